"""The table in memory against a naive list of trajectories."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.block import Block, decode_block
from replay_server.table import Table
from tests.replay_server.played import SIGNATURE, played, table_config
from zero.trajectories import PriorityUpdates, SequenceBatch, Trajectory
from zero.wire import codec, replay_pb2

CAPACITY = 23
WINDOWS = {"observation": 1, "action": 3, "reward": 4, "policy": 6}


def block_of(*trajectories: Trajectory) -> Block:
    request = replay_pb2.InsertRequest(trajectories=[codec.encode_trajectory(item) for item in trajectories])
    return decode_block(request.trajectories, SIGNATURE, request.SerializeToString(), CAPACITY, 1 << 20)


@dataclass
class NaiveTable:
    """What a table must be, written as if speed did not matter."""

    stored: list[Trajectory] = field(default_factory=list)
    inserted: int = 0

    def append(self, trajectories: list[Trajectory]) -> None:
        """Evict the oldest trajectories until the new ones fit."""
        steps = sum(item.num_steps for item in trajectories)
        while sum(item.num_steps for item in self.stored) + steps > CAPACITY:
            self.stored.pop(0)
        self.stored += trajectories
        self.inserted += steps

    def positions(self) -> dict[int, tuple[Trajectory, int]]:
        """Every stored position: its trajectory and step."""
        first = self.inserted - sum(item.num_steps for item in self.stored)
        steps = [(item, step) for item in self.stored for step in range(item.num_steps)]
        return dict(enumerate(steps, first))

    def check(self, batch: SequenceBatch) -> None:
        """Recompute every row."""
        positions = self.positions()
        assert batch.table_size == len(positions)
        for row, key in enumerate(batch.keys.tolist()):
            trajectory, step = positions[(key >> 32) * CAPACITY + (key & 0xFFFFFFFF)]
            assert batch.weights_versions[row] == trajectory.weights_version
            assert batch.lengths[row] == min(trajectory.num_steps - step, max(WINDOWS.values()))
            for name, window in WINDOWS.items():
                expected = np.zeros_like(batch.columns[name][row])
                seen = trajectory.columns[name][step : step + window]
                expected[: len(seen)] = seen
                np.testing.assert_array_equal(batch.columns[name][row], expected)


inserts = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3).filter(lambda t: sum(t) <= CAPACITY), min_size=1)


@settings(max_examples=60, deadline=None)
@given(inserts, st.sampled_from(("uniform", "prioritized")), st.integers(0, 2**31))
def test_windows_lengths_and_keys_are_those_of_a_naive_table(calls, selector: str, first: int) -> None:
    """After any inserts, evictions and wraps every drawn row shows its own trajectory, zero beyond its end."""
    table = Table(table_config(capacity=CAPACITY, selector=selector), np.random.default_rng(0), first)
    naive = NaiveTable(inserted=first)
    number = 0
    for lengths in calls:
        trajectories = [played(number + i, length) for i, length in enumerate(lengths)]
        number += len(lengths)
        table.append(block_of(*trajectories))
        naive.append(trajectories)
        naive.check(table.sample(16, WINDOWS))
        assert (table.num_steps, table.num_trajectories) == (len(naive.positions()), len(naive.stored))


@settings(max_examples=60, deadline=None)
@given(inserts, st.data())
def test_probabilities_are_those_of_a_naive_table(calls, data: st.DataObject) -> None:
    """P(i) is priority^exponent over its sum; new steps have the highest priority seen; evicted keys change nothing."""
    exponent = data.draw(st.sampled_from([0.0, 0.7, 1.0]))
    config = table_config(capacity=CAPACITY, selector="prioritized", priority_exponent=exponent)
    table = Table(config, np.random.default_rng(0))
    naive = NaiveTable()
    priorities: dict[int, float] = {}
    highest, number = 1.0, 0
    seen: list[int] = []
    for lengths in calls:
        table.append(block_of(*(played(number + i, length) for i, length in enumerate(lengths))))
        naive.append([played(number + i, length) for i, length in enumerate(lengths)])
        number += len(lengths)
        priorities = {position: priorities.get(position, highest) for position in naive.positions()}
        seen += [position // CAPACITY << 32 | position % CAPACITY for position in priorities]
        chosen = data.draw(st.lists(st.sampled_from(seen), max_size=6))
        values = data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=len(chosen), max_size=len(chosen)))
        updated, evicted = table.update_priorities(
            PriorityUpdates(np.array(chosen, np.uint64), np.array(values, np.float32))
        )
        hits = 0
        for key, value in zip(chosen, values, strict=True):
            position = (key >> 32) * CAPACITY + (key & 0xFFFFFFFF)
            if position in priorities:
                priorities[position] = value
                highest = max(highest, value)
                hits += 1
        assert (updated, evicted) == (hits, len(chosen) - hits)
        batch = table.sample(16, {"action": 1})
        weights = {p: v**exponent if v else 0.0 for p, v in priorities.items()}
        total = sum(weights.values())
        for key, probability in zip(batch.keys.tolist(), batch.probabilities, strict=True):
            position = (key >> 32) * CAPACITY + (key & 0xFFFFFFFF)
            expected = weights[position] / total if total else 1 / len(priorities)
            assert probability == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("selector", ["uniform", "prioritized"])
def test_positions_are_drawn_as_often_as_they_should(selector: str) -> None:
    """Over 40,000 draws the counts fit the stated probabilities (chi-square, p > 0.001), priority 0 is never drawn."""
    table = Table(table_config(selector=selector, priority_exponent=0.6, capacity=50), np.random.default_rng(1))
    table.append(block_of(played(0, 20)))
    first = table.sample(400, {"action": 1})
    keys = np.unique(first.keys)
    assert len(keys) == 20
    priorities = np.where(np.arange(20) % 5 == 0, 0, np.arange(20) + 1).astype(np.float32)
    table.update_priorities(PriorityUpdates(keys, priorities))
    batch = table.sample(40_000, {"action": 1})
    weights = priorities**0.6 if selector == "prioritized" else np.ones(20)
    expected = weights / weights.sum() * 40_000
    counts = np.array([(batch.keys == key).sum() for key in keys])
    assert (counts[expected == 0] == 0).all()
    drawn = expected > 0
    chi_square = ((counts - expected)[drawn] ** 2 / expected[drawn]).sum()
    assert chi_square < 43.8  # 99.9 % quantile with 19 degrees of freedom


def test_a_stale_key_never_hits_a_newer_step() -> None:
    """After a slot has been written again, a key of its earlier life is counted as evicted and changes nothing."""
    config = table_config(capacity=10, selector="prioritized")
    table = Table(config, np.random.default_rng(0))
    table.append(block_of(played(0, 10)))
    old = np.unique(table.sample(200, {"action": 1}).keys)
    table.append(block_of(played(1, 10)))
    new = np.unique(table.sample(200, {"action": 1}).keys)
    assert set((old & np.uint64(0xFFFFFFFF)).tolist()) == set((new & np.uint64(0xFFFFFFFF)).tolist())
    assert table.update_priorities(PriorityUpdates(old, np.full(len(old), 99, np.float32))) == (0, 10)
    np.testing.assert_allclose(table.sample(50, {"action": 1}).probabilities, 0.1)


def test_keys_that_nobody_gave_out_are_ignored() -> None:
    """Slots beyond the capacity and positions of the future name nothing."""
    table = Table(table_config(capacity=10, selector="prioritized"), np.random.default_rng(0))
    table.append(block_of(played(0, 4)))
    keys = np.array([4, 10, 2**32 - 1, 1 << 32, 2**64 - 1, 2**63], np.uint64)
    assert table.update_priorities(PriorityUpdates(keys, np.ones(len(keys), np.float32))) == (0, len(keys))


def test_evicted_trajectories_stay_known_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is known while stored and among the last evicted ones, then forgotten."""
    monkeypatch.setattr("replay_server.table.KNOWN_EVICTED", 2)
    table = Table(table_config(capacity=10), np.random.default_rng(0))
    for number in range(5):
        table.append(block_of(played(number, 5)))
    assert [table.digest_of(f"t{number}") is not None for number in range(5)] == [False, True, True, True, True]


def test_the_digest_stands_for_the_content_and_not_for_its_packing() -> None:
    """Compression and column order leave it alone; any change of content changes it."""
    trajectory = played(1)
    digest = block_of(trajectory).records[0].digest
    reordered = replace(trajectory, columns=dict(reversed(trajectory.columns.items())))
    assert block_of(reordered).records[0].digest == digest
    zipped = replay_pb2.InsertRequest(trajectories=[codec.encode_trajectory(trajectory, compress=True)])
    assert decode_block(zipped.trajectories, SIGNATURE, b"", CAPACITY, 1 << 20).records[0].digest == digest
    reward = trajectory.columns["reward"].copy()
    reward[-1] += 1
    for other in (
        replace(trajectory, columns={**trajectory.columns, "reward": reward}),
        replace(trajectory, actor_id="actor-1"),
        replace(trajectory, weights_version=99),
        replace(trajectory, episode_seed=99),
        replace(trajectory, terminated=False),
        replace(trajectory, truncated=True),
        replace(trajectory, stats={"score": 9.0}),
    ):
        assert block_of(other).records[0].digest != digest
