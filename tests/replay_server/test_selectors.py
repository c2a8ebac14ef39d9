"""The contract that every selector keeps, then what each one promises by its name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.selectors import SELECTORS, ItemSelector
from tests.replay_server.played import table_config

CAPACITY = 13
ORDERED = ("fifo", "lifo", "max_heap", "min_heap")


def make(name: str, exponent: float = 1.0) -> ItemSelector:
    return SELECTORS[name](table_config(selector=name, capacity=CAPACITY, priority_exponent=exponent))


def filled(name: str, priorities: dict[int, float]) -> ItemSelector:
    """Items in this order."""
    selector = make(name)
    selector.insert(np.array(list(priorities), np.int64), np.array(list(priorities.values()), np.float32))
    return selector


def draw(selector: ItemSelector, number: int, allowed: np.ndarray | None = None) -> list[int]:
    return selector.draw((np.arange(number) + 0.5) / number, allowed).slots.tolist()


def expected_weights(name: str, items: dict[int, float]) -> dict[int, float]:
    """How likely each item is, relative to the others, where chance decides."""
    if name == "uniform" or not any(items.values()):
        return dict.fromkeys(items, 1.0)
    return items


def expected_order(name: str, items: dict[int, float]) -> list[float]:
    """What is drawn first: places in the order of insertion, or priorities."""
    places = list(range(len(items)))
    return {
        "fifo": places,
        "lifo": places[::-1],
        "max_heap": sorted(items.values(), reverse=True),
        "min_heap": sorted(items.values()),
    }[name]


def check(name: str, selector: ItemSelector, items: dict[int, float], allowed: np.ndarray | None) -> None:
    """Hold draws against the items in the order of insertion, with their priorities."""
    may = {slot: p for slot, p in items.items() if allowed is None or allowed[slot]}
    number = 3 * CAPACITY
    drawn = selector.draw((np.arange(number) + 0.5) / number, allowed)
    if not may:
        assert len(drawn.slots) == len(drawn.probabilities) == 0
        return
    assert len(drawn.slots) == len(drawn.probabilities) == number
    assert set(drawn.slots.tolist()) <= set(may)
    if name in ORDERED:
        assert (drawn.probabilities == 1).all()
        slots = drawn.slots[: len(may)].tolist()
        assert sorted(slots) == sorted(may), "every item comes once before one comes again"
        ranks = [list(may).index(slot) if name in ("fifo", "lifo") else may[slot] for slot in slots]
        assert ranks == expected_order(name, may)
    else:
        weights = expected_weights(name, may)
        total = sum(weights.values())
        for slot, probability in zip(drawn.slots.tolist(), drawn.probabilities, strict=True):
            assert probability == pytest.approx(weights[slot] / total)
            assert probability > 0


@pytest.mark.parametrize("name", SELECTORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_contract_of_selectors(name: str, data: st.DataObject) -> None:
    """Whatever was inserted, removed and reprioritized: items are drawn as the name says, with their probability."""
    selector = make(name)
    items: dict[int, float] = {}
    priorities = st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])
    for _ in range(data.draw(st.integers(1, 12))):
        free = [slot for slot in range(CAPACITY) if slot not in items]
        action = data.draw(st.sampled_from(["insert", "remove", "update"]))
        if action == "insert" and free:
            chosen = data.draw(st.lists(st.sampled_from(free), unique=True, min_size=1))
            values = [data.draw(priorities) for _ in chosen]
            selector.insert(np.array(chosen, np.int64), np.array(values, np.float32))
            items.update(zip(chosen, values, strict=True))
        elif action == "remove" and items:
            chosen = data.draw(st.lists(st.sampled_from(list(items)), unique=True, min_size=1))
            selector.remove(np.array(chosen, np.int64))
            for slot in chosen:
                del items[slot]
        elif items:
            chosen = data.draw(st.lists(st.sampled_from(list(items)), min_size=1))
            values = [data.draw(priorities) for _ in chosen]
            selector.update(np.array(chosen, np.int64), np.array(values, np.float32))
            items.update(zip(chosen, values, strict=True))
        check(name, selector, items, None)
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=CAPACITY, max_size=CAPACITY)))
        check(name, selector, items, mask)


@pytest.mark.parametrize("name", ["uniform", "prioritized"])
def test_chance_draws_as_often_as_it_says(name: str) -> None:
    """Of 30,000 evenly spread numbers each item gets its probability's share, filtered or not."""
    selector = filled(name, {3: 1.0, 7: 4.0, 1: 0.0, 12: 5.0})
    for allowed in (None, np.arange(CAPACITY) != 7):
        drawn = selector.draw(np.random.default_rng(0).random(30_000), allowed)
        for slot in set(drawn.slots.tolist()):
            mine = drawn.slots == slot
            assert mine.mean() == pytest.approx(drawn.probabilities[mine][0], abs=0.015)


def test_priority_0_is_never_drawn_unless_all_are_0() -> None:
    """Also with exponent 0, where every power is 1; among zeros all are equally likely."""
    for exponent in (0.0, 0.6, 1.0):
        selector = make("prioritized", exponent)
        selector.insert(np.arange(4), np.array([0, 1, 0, 1], np.float32))
        assert set(draw(selector, 400)) == {1, 3}
        selector.update(np.array([1, 3]), np.zeros(2, np.float32))
        assert set(draw(selector, 400)) == {0, 1, 2, 3}


def test_fewer_items_than_asked_for_come_again_in_their_order() -> None:
    """The oldest three of three, twice."""
    assert draw(filled("fifo", {5: 1, 2: 1, 9: 1}), 6) == [5, 2, 9, 5, 2, 9]
    assert draw(filled("lifo", {5: 1, 2: 1, 9: 1}), 4) == [9, 2, 5, 9]
