"""The contract that every remover keeps, then what each one promises by its name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.removers import REMOVERS


def allowed_choices(name: str, priorities: dict[int, float]) -> set[int]:
    """Which trajectories, in the order of insertion and with their priorities, may be chosen."""
    ordinals = list(priorities)
    return {
        "fifo": {ordinals[0]},
        "lifo": {ordinals[-1]},
        "random": set(ordinals),
        "max_heap": {o for o in ordinals if priorities[o] == max(priorities.values())},
        "min_heap": {o for o in ordinals if priorities[o] == min(priorities.values())},
    }[name]


@pytest.mark.parametrize("name", REMOVERS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_contract_of_removers(name: str, data: st.DataObject) -> None:
    """Whatever came, went and was reprioritized: a choice is stored and as the name says, and changes nothing."""
    priorities: dict[int, float] = {}
    remover = REMOVERS[name](np.random.default_rng(0), lambda ordinal: priorities[ordinal])
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0])
    number = 0
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["insert", "insert", "remove", "reprioritize", "choose"]))
        if action == "insert" or not priorities:
            priorities[number] = data.draw(values)
            remover.insert(number)
            number += data.draw(st.integers(1, 3))
        elif action == "remove":
            gone = data.draw(st.sampled_from(list(priorities)))
            del priorities[gone]
            remover.remove(gone)
        elif action == "reprioritize":
            changed = data.draw(st.lists(st.sampled_from(list(priorities)), min_size=1))
            for ordinal in changed:
                priorities[ordinal] = data.draw(values)
            remover.reprioritize(changed)
        else:
            for _ in range(2):
                assert remover.choose() in allowed_choices(name, priorities)


@pytest.mark.parametrize("name", REMOVERS)
def test_older_ones_are_chosen_as_the_name_says(name: str) -> None:
    """Of six, the choice by chance is even among those before the fourth; any other is the usual one."""
    remover = REMOVERS[name](np.random.default_rng(1), float)
    for ordinal in range(6):
        remover.insert(ordinal)
    counts = np.bincount([remover.choose_older(3) for _ in range(3000)], minlength=6)
    if name == "random":
        assert (np.abs(counts[:3] - 1000) < 120).all()
        assert not counts[3:].any()
    else:
        assert counts[remover.choose()] == 3000


def test_random_chooses_evenly() -> None:
    """Over 9,000 choices among three each gets a third, also after others have gone."""
    remover = REMOVERS["random"](np.random.default_rng(1), lambda _: 0.0)
    for ordinal in range(6):
        remover.insert(ordinal)
    for ordinal in (0, 5, 2):
        remover.remove(ordinal)
    counts = np.bincount([remover.choose() for _ in range(9000)], minlength=6)
    assert (np.abs(counts[[1, 3, 4]] - 3000) < 200).all()


@pytest.mark.parametrize("name", ["min_heap", "max_heap"])
def test_a_heap_does_not_grow_with_its_updates(name: str) -> None:
    """10,000 changes of one priority among ten leave a heap of a size that follows from the ten."""
    priorities = dict.fromkeys(range(10), 1.0)
    remover = REMOVERS[name](np.random.default_rng(0), lambda ordinal: priorities[ordinal])
    for ordinal in priorities:
        remover.insert(ordinal)
    for i in range(10_000):
        priorities[3] = float(i)
        remover.reprioritize([3])
        remover.choose()
    assert len(vars(remover)["_heap"]) < 200
