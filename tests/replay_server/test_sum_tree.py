"""The trees over slots against plain arrays."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.sum_tree import LargestTree, SumTree

SIZES = st.integers(1, 40)


@settings(deadline=None)  # the first call compiles
@given(SIZES, st.data())
def test_sums_are_exact_after_any_writes(capacity: int, data: st.DataObject) -> None:
    """Every write leaves each weight as written and the total the same as in a tree that is filled afresh."""
    tree = SumTree(capacity)
    weights = np.zeros(capacity)
    for _ in range(data.draw(st.integers(1, 6))):
        slots = np.array(data.draw(st.lists(st.integers(0, capacity - 1), max_size=12)), np.int64)
        values = np.array(data.draw(st.lists(st.floats(0, 1e6), min_size=len(slots), max_size=len(slots))), np.float64)
        tree.set(slots, values)
        for slot, value in zip(slots, values, strict=True):
            weights[slot] = value
    np.testing.assert_array_equal(tree.leaves[:capacity], weights)
    fresh = SumTree(capacity)
    fresh.set(np.arange(capacity), weights)
    assert tree.total == fresh.total
    np.testing.assert_allclose(tree.total, weights.sum(), rtol=1e-12)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from([0.0, 1e-30, 1e-9, 1.0, 3.0, 1e9]), min_size=1, max_size=40).filter(any))
def test_every_slot_gets_its_share_of_the_unit_interval(weights: list[float]) -> None:
    """Evenly spread numbers fall to the slots as their weights say, none to a weight of 0, also at the very ends."""
    tree = SumTree(len(weights))
    tree.set(np.arange(len(weights)), np.array(weights))
    uniforms = np.append(np.arange(2000) / 2000, np.nextafter(1.0, 0.0))
    counts = np.bincount(tree.draw(uniforms), minlength=len(weights))
    shares = np.array(weights) / np.sum(weights)
    assert (counts[np.flatnonzero(shares == 0)] == 0).all()
    assert (np.abs(counts[: len(weights)] - 2001 * shares) <= 2).all()


@settings(deadline=None)  # the first call compiles
@given(SIZES, st.data())
def test_the_largest_are_those_of_a_sorted_list(capacity: int, data: st.DataObject) -> None:
    """Largest first, whatever was written before, and looking changes nothing."""
    tree = LargestTree(capacity)
    values = np.full(capacity, -np.inf, np.float32)
    for _ in range(data.draw(st.integers(1, 4))):
        slots = np.array(data.draw(st.lists(st.integers(0, capacity - 1), min_size=1, max_size=12)), np.int64)
        new = np.array(
            data.draw(st.lists(st.sampled_from([-np.inf, 0, 1, 2, 5]), min_size=len(slots), max_size=len(slots))),
            np.float32,
        )
        tree.set(slots, new)
        for slot, value in zip(slots, new, strict=True):
            values[slot] = value
        number = int((values > -np.inf).sum())
        for _ in range(2):
            found = tree.largest(number)
            assert len(set(found.tolist())) == number
            np.testing.assert_array_equal(values[found], np.sort(values)[::-1][:number])
