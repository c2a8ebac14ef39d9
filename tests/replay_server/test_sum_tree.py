"""The sum tree against a plain array."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.sum_tree import SumTree

SIZES = st.integers(1, 40)


@settings(deadline=None)  # the first call compiles
@given(SIZES, st.data())
def test_sums_are_exact_after_any_writes(capacity: int, data: st.DataObject) -> None:
    """Range writes and scattered writes leave each weight as written and the total as a fresh pairwise sum."""
    tree = SumTree(capacity)
    weights = np.zeros(capacity)
    for _ in range(data.draw(st.integers(1, 6))):
        weight = data.draw(st.floats(0, 1e6))
        start = data.draw(st.integers(0, capacity - 1))
        stop = data.draw(st.integers(start + 1, capacity))
        if data.draw(st.booleans()):
            tree.set_range(start, stop, weight)
            weights[start:stop] = weight
        else:
            slots = np.array([start, stop - 1, start], np.int64)
            tree.set(slots, np.array([1.0, 2.0, weight]))
            weights[stop - 1] = 2.0
            weights[start] = weight
    np.testing.assert_array_equal(tree.weights(np.arange(capacity)), weights)
    level = np.zeros(1 << max(capacity - 1, 1).bit_length())
    level[:capacity] = weights
    while len(level) > 1:
        level = level[::2] + level[1::2]
    assert tree.total == level[0]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 1e9]), min_size=1, max_size=40).filter(any))
def test_draws_follow_the_cumulative_weights(weights: list[float]) -> None:
    """A uniform number lands where the cumulative sum says, and never on weight 0, also at the very ends."""
    tree = SumTree(len(weights))
    tree.set(np.arange(len(weights)), np.array(weights))
    uniforms = np.append(np.linspace(0, 1, 50, endpoint=False), np.nextafter(1.0, 0.0))
    slots = tree.draw(uniforms)
    assert all(weights[slot] > 0 for slot in slots)
    cumulative = np.cumsum(weights)
    target = uniforms * cumulative[-1]
    slack = cumulative[-1] * 1e-12
    before = np.concatenate(([0.0], cumulative))[slots]
    assert (target >= before - slack).all()
    assert (target <= cumulative[slots] + slack).all()
