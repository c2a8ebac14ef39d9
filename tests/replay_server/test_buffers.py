"""The built-in buffers: what they keep, by which chance, how they are constructed, saved and drawn from."""

import math
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay_server.buffer_contract import BufferContractError, check_buffer
from replay_server.data_buffer import DataBuffer, FieldMismatch
from replay_server.replacement import mean_lifetime_probability, survival_probability, turnover_probability
from replay_server.replacement_buffer import DictRandomReplacementBuffer, RandomReplacementBuffer
from replay_server.sequential_buffer import DictSequentialBuffer, SequentialBuffer
from replay_server.state_file import StateError
from zero.trajectories import PriorityUpdates

NAMES = ["observation", "action"]


def step(number: int) -> dict[str, Any]:
    """A sample with names, which no other number has."""
    return {"observation": np.full(3, number, np.float32), "action": number}


class Newest(DataBuffer[int, list[int]]):
    """What the guide has: a buffer of one's own, without persistence."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(max_queue_size=size)
        self.data: list[int] = []
        self.size = size

    def add(self, data: int) -> None:
        """Keep the newest."""
        self.data = [*self.data, data][-self.size :]

    def get_data(self) -> list[int]:
        """A copy."""
        return list(self.data)

    def __len__(self) -> int:
        return len(self.data)


class Leaky(Newest):
    """Gives out what it stores."""

    def get_data(self) -> list[int]:
        """Not a copy."""
        return self.data


class Forgetful(Newest):
    """Says that it was saved."""

    def save_state(self, path: Path) -> None:
        """Save nothing."""

    def load_state(self, path: Path) -> None:
        """Load nothing."""


def seeded(*shape: Any, **options: Any) -> Callable[[], DataBuffer[Any, Any]]:
    """Makes replacement buffers that draw alike."""
    return lambda: RandomReplacementBuffer(*shape, **options, rng=np.random.default_rng(1))


@pytest.mark.parametrize(
    ("make", "samples"),
    [
        (lambda: SequentialBuffer(4), range(10)),
        (lambda: SequentialBuffer(NAMES, 4), [step(number) for number in range(10)]),
        (lambda: DictSequentialBuffer(NAMES, max_size=4), [step(number) for number in range(10)]),
        (seeded(4), range(10)),
        (seeded(4, 0.3), range(10)),
        (seeded(NAMES, 4, expected_survival_length=20), [step(number) for number in range(20)]),
        (lambda: DictRandomReplacementBuffer(NAMES, 4, 0.5, rng=np.random.default_rng(2)), [step(i) for i in range(9)]),
        (Newest, range(10)),
    ],
)
def test_contract_of_buffers(make: Callable[[], DataBuffer[Any, Any]], samples: Any, tmp_path: Path) -> None:
    """Every built-in buffer and one of the user's own keep the published contract."""
    check_buffer(make, list(samples), tmp_path)


@pytest.mark.parametrize(("broken", "rule"), [(Leaky, "caller's"), (Forgetful, "bring back")])
def test_the_contract_finds_what_is_broken(broken: type[Newest], rule: str, tmp_path: Path) -> None:
    """A buffer that aliases, and one that only says that it was saved, are named for it."""
    with pytest.raises(BufferContractError, match=rule):
        check_buffer(broken, list(range(10)), tmp_path)


def test_a_sequential_buffer_keeps_the_newest_in_order() -> None:
    """Of ten samples the last four, oldest first; also by name, a list for each."""
    buffer, named = SequentialBuffer[int, list[int]](4), SequentialBuffer(NAMES, max_size=4)
    for number in range(10):
        buffer.add(number)
        named.add(step(number))
    assert buffer.get_data() == [6, 7, 8, 9]
    assert named.get_data()["action"] == [6, 7, 8, 9]
    assert len(buffer) == len(named) == buffer.max_size == named.max_queue_size == 4


def test_queue_bounds() -> None:
    """As long as a sequential buffer; int(N / p) of a replacement buffer, none by p = 0; what a subclass says."""
    assert SequentialBuffer(7).max_queue_size == 7
    assert RandomReplacementBuffer(10).max_queue_size == 10
    assert RandomReplacementBuffer(10, 0.3).max_queue_size == 33
    assert RandomReplacementBuffer(NAMES, 10, 0.5).max_queue_size == 20
    with pytest.warns(RuntimeWarning, match="without a bound"):
        assert RandomReplacementBuffer(10, 0.0).max_queue_size is None
    assert Newest(3).max_queue_size == 3
    assert Newest(0).max_queue_size == 0
    with pytest.raises(ValueError, match="negative"):
        Newest(-1)


def test_both_constructors_of_a_buffer_of_ones_own() -> None:
    """By place and by name: a bound, None with a warning, or names and a size."""

    class Own(Newest):
        def __init__(self, *given: Any, **named: Any) -> None:
            DataBuffer.__init__(self, *given, **named)

    assert (Own(5).max_queue_size, Own(max_queue_size=5).max_queue_size) == (5, 5)
    for own in (Own(NAMES, 6), Own(NAMES, max_size=6), Own(collecting_data_names=NAMES, max_size=6)):
        assert (own.max_queue_size, own.max_size, own.collecting_data_names) == (6, 6, NAMES)
    for unbounded in (Own, lambda: Own(None)):
        with pytest.warns(RuntimeWarning, match="without a bound"):
            assert unbounded().max_queue_size is None
    for wrong in (lambda: SequentialBuffer(0), lambda: SequentialBuffer(NAMES), lambda: SequentialBuffer(NAMES, -1)):
        with pytest.raises(ValueError, match="max_size"):
            wrong()


def test_fields_are_checked_and_named() -> None:
    """A sample with other fields is refused as KeyError and as ValueError, with the missing and the extra ones."""
    buffer = SequentialBuffer(NAMES, 4)
    buffer.add(step(1))
    for kind in (FieldMismatch, KeyError, ValueError):
        with pytest.raises(kind, match=r"lacks \['action'\] and has \['reward'\]"):
            buffer.add({"observation": 1, "reward": 2})
    sent = pickle.loads(pickle.dumps(FieldMismatch({"action"}, ["reward"])))  # as between processes
    assert (sent.missing, sent.extra, str(sent)) == (
        *(("action",), ("reward",)),
        "a sample lacks ['action'] and has ['reward'] too many",
    )
    with pytest.raises(TypeError, match="mapping"):
        buffer.add(3)  # pyright: ignore[reportArgumentType]
    assert buffer.get_data()["action"] == [1]


def test_a_buffer_without_persistence_cannot_be_saved(tmp_path: Path) -> None:
    """It fails, and does not come back empty."""
    with pytest.raises(NotImplementedError, match="Newest does not implement"):
        Newest().save_state(tmp_path / "x")
    with pytest.raises(NotImplementedError, match="Newest does not implement"):
        Newest().load_state(tmp_path / "x")


# --- replacement -----------------------------------------------------------------------------------------------------


def test_the_formula() -> None:
    """By hand: 100 / 1000 x (ln 100 + 0.5772156649) = 0.518239; the harmonic number of 100 is 5.187378; 100 / 1000."""
    assert survival_probability(100, 1000) == pytest.approx(0.5182385851, abs=1e-9)
    assert turnover_probability(100, 1000) == pytest.approx(0.5187377518, abs=1e-9)
    assert mean_lifetime_probability(100, 1000) == 0.1
    assert RandomReplacementBuffer(100, expected_survival_length=1000).replace_probability == pytest.approx(
        0.5182385851
    )
    assert RandomReplacementBuffer(100, turnover=1000).replace_probability == pytest.approx(0.5187377518)
    assert RandomReplacementBuffer(100, mean_lifetime=1000).replace_probability == 0.1
    assert RandomReplacementBuffer(100).replace_probability == 1


def test_what_cannot_be_had_is_said() -> None:
    """A life shorter than the shortest one warns and takes every sample; contradictions and nonsense are refused."""
    for option in ("expected_survival_length", "turnover", "mean_lifetime"):
        with pytest.warns(RuntimeWarning, match="cannot be reached"):
            assert RandomReplacementBuffer(100, **{option: 50.0}).replace_probability == 1
        for wrong in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="positive"):
                RandomReplacementBuffer(100, **{option: wrong})
        with pytest.raises(ValueError, match="same thing"):
            RandomReplacementBuffer(100, replace_probability=0.5, **{option: 1000.0})
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="within 0 to 1"):
            RandomReplacementBuffer(100, wrong)


def test_acceptance_rate_and_uniformity_of_slots() -> None:
    """Of 40,000 samples after the buffer is full a quarter is taken, and each of 20 slots gets a twentieth of them."""
    buffer = RandomReplacementBuffer[int, list[int]](20, 0.25, rng=np.random.default_rng(5))
    replaced: Counter[int] = Counter()
    for number in range(20):
        buffer.add(number)
    before = buffer.get_data()
    for number in range(20, 40_020):
        buffer.add(number)
        after = buffer.get_data()
        replaced.update(slot for slot in range(20) if after[slot] != before[slot])
        before = after
    taken = replaced.total()
    assert abs(taken - 10_000) < 4 * math.sqrt(40_000 * 0.25 * 0.75)
    chi_square = sum((replaced[slot] - taken / 20) ** 2 / (taken / 20) for slot in range(20))
    assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand


def test_turnover_is_the_age_at_which_every_slot_was_replaced() -> None:
    """Over 300 buffers of 10, the mean number of samples until all the first ones are gone is the one asked for."""
    lengths: list[int] = []
    rng = np.random.default_rng(8)
    for _ in range(300):
        buffer = RandomReplacementBuffer[int, list[int]](10, turnover=100, rng=rng)
        number = 0
        while number < 10 or min(buffer.get_data()) < 10:
            buffer.add(number)
            number += 1
        lengths.append(number - 10)
    assert np.mean(lengths) == pytest.approx(100, abs=4 * np.std(lengths) / math.sqrt(300))


def test_probability_zero_keeps_the_first() -> None:
    """The first four stay, whatever comes; and no division by zero."""
    with pytest.warns(RuntimeWarning):
        buffer = RandomReplacementBuffer[int, list[int]](4, 0.0)
    for number in range(100):
        buffer.add(number)
    assert buffer.get_data() == [0, 1, 2, 3]


# --- saving ----------------------------------------------------------------------------------------------------------


def test_reload_into_smaller_and_larger(tmp_path: Path) -> None:
    """Sequential: the newest that fit, in order, and the next sample takes the right place."""
    buffer = SequentialBuffer(NAMES, 5)
    for number in range(8):
        buffer.add(step(number))
    buffer.save_state(tmp_path / "state")
    for size, kept, then in ((3, [5, 6, 7], [6, 7, 8]), (5, [3, 4, 5, 6, 7], [4, 5, 6, 7, 8]), (9, None, None)):
        loaded = SequentialBuffer(NAMES, size)
        loaded.add(step(99))
        loaded.load_state(tmp_path / "state")
        assert loaded.get_data()["action"] == (kept or [3, 4, 5, 6, 7])
        np.testing.assert_array_equal(loaded.get_data()["observation"][-1], step(7)["observation"])
        loaded.add(step(8))
        assert loaded.get_data()["action"] == (then or [3, 4, 5, 6, 7, 8])


def test_reload_of_a_replacement_buffer(tmp_path: Path) -> None:
    """Smaller: some of what was there, not only the oldest; larger: all of it, and room."""
    buffer = RandomReplacementBuffer[int, list[int]](200, rng=np.random.default_rng(1))
    for number in range(200):
        buffer.add(number)
    buffer.save_state(tmp_path / "state")
    smaller = RandomReplacementBuffer[int, list[int]](50)
    smaller.load_state(tmp_path / "state")
    kept = smaller.get_data()
    assert len(set(kept)) == 50
    assert 60 < np.mean(kept) < 140
    smaller.add(1000)
    assert 1000 in smaller.get_data()
    larger = RandomReplacementBuffer[int, list[int]](300)
    larger.load_state(tmp_path / "state")
    larger.add(1000)
    assert larger.get_data() == [*range(200), 1000]


def test_the_generator_is_saved(tmp_path: Path) -> None:
    """A loaded buffer draws what the saved one would have drawn; one with another kind of generator is refused."""
    buffer = RandomReplacementBuffer[int, list[int]](5, 0.5, rng=np.random.default_rng(3))
    for number in range(20):
        buffer.add(number)
    buffer.save_state(tmp_path / "state")
    loaded = RandomReplacementBuffer[int, list[int]](5, 0.5, rng=np.random.default_rng(99))
    loaded.load_state(tmp_path / "state")
    for number in range(20, 60):
        buffer.add(number)
        loaded.add(number)
    assert loaded.get_data() == buffer.get_data()
    other = RandomReplacementBuffer[int, list[int]](5, 0.5, rng=np.random.Generator(np.random.MT19937(1)))
    with pytest.raises(StateError, match="PCG64"):
        other.load_state(tmp_path / "state")


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    """Another kind of buffer, and other fields; the buffer is as it was."""
    SequentialBuffer(3).save_state(tmp_path / "plain")
    for other, text in ((RandomReplacementBuffer(3), "not of a Random"), (SequentialBuffer(NAMES, 3), "fields")):
        with pytest.raises(StateError, match=text):
            other.load_state(tmp_path / "plain")


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_sequences_are_consecutive_and_even() -> None:
    """In a buffer that has gone round, a sequence goes on in order; every start is as likely, as it says."""
    buffer = SequentialBuffer(NAMES, 6)
    for number in range(10):
        buffer.add(step(number))
    batch = buffer.sample(6000, 3, np.random.default_rng(0))
    actions = batch.columns["action"]
    assert actions.shape == (6000, 3)
    assert batch.columns["observation"].shape == (6000, 3, 3)
    assert (np.diff(actions, axis=1) == 1).all()
    counts = np.bincount(actions[:, 0], minlength=8)[4:]
    assert (np.abs(counts - 1500) < 150).all()
    assert (batch.probabilities == 0.25).all()
    with pytest.raises(ValueError, match="no batch"):
        buffer.sample(1, 7, np.random.default_rng(0))


def test_priorities_decide_what_is_drawn_and_keys_outlive_their_slot() -> None:
    """Only what has a priority is drawn, in proportion; a key of a sample that is gone hits nothing."""
    buffer = SequentialBuffer[int, list[int]](4)
    rng = np.random.default_rng(0)
    for number in range(4):
        buffer.add(number)
    batch = buffer.sample(400, 1, rng)
    old = {int(value): key for value, key in zip(batch.columns["data"][:, 0], batch.keys, strict=True)}
    keys = np.array([old[number] for number in range(4)], np.uint64)
    buffer.update_priorities(PriorityUpdates(keys, np.array([0, 1, 3, 0], np.float32)))
    batch = buffer.sample(4000, 1, rng)
    counts = np.bincount(batch.columns["data"][:, 0], minlength=4)
    assert counts[0] == counts[3] == 0
    assert abs(counts[2] - 3000) < 150
    assert set(batch.probabilities) == {0.25, 0.75}
    buffer.add(4)  # in the slot of 0, with the highest priority seen
    buffer.update_priorities(PriorityUpdates(keys[:1], np.zeros(1, np.float32)))
    assert (buffer.sample(4000, 1, rng).columns["data"] == 4).mean() > 0.3
    with pytest.raises(ValueError, match="finite"):
        buffer.update_priorities(PriorityUpdates(keys[:1], np.array([np.nan], np.float32)))


def test_a_replacement_buffer_has_no_sequences() -> None:
    """Its slots are in no order."""
    buffer = RandomReplacementBuffer[int, list[int]](4)
    buffer.add(1)
    assert buffer.sample(2, 1, np.random.default_rng(0)).columns["data"].tolist() == [[1], [1]]
    with pytest.raises(ValueError, match="no order"):
        buffer.sample(2, 2, np.random.default_rng(0))


def test_nothing_warns_without_a_reason() -> None:
    """Buffers with bounds are made in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SequentialBuffer(1)
        RandomReplacementBuffer(1)
        RandomReplacementBuffer(10, expected_survival_length=1000)
