"""A sum tree over slots: draws in proportion to weights; parents are recomputed, so no rounding error builds up."""

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit


@njit
def _set_range(tree: NDArray[np.float64], start: int, stop: int, weight: float) -> None:
    leaves = len(tree) // 2
    low, high = leaves + start, leaves + stop - 1  # nodes, both inclusive
    for node in range(low, high + 1):
        tree[node] = weight
    while low > 1:
        low //= 2
        high //= 2
        for node in range(low, high + 1):
            tree[node] = tree[2 * node] + tree[2 * node + 1]


@njit
def _set_leaves(tree: NDArray[np.float64], slots: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
    leaves = len(tree) // 2
    for i in range(len(slots)):
        tree[leaves + slots[i]] = weights[i]
    for i in range(len(slots)):
        node = (leaves + slots[i]) // 2
        while node >= 1:
            tree[node] = tree[2 * node] + tree[2 * node + 1]
            node //= 2


@njit
def _draw(tree: NDArray[np.float64], uniforms: NDArray[np.float64], slots: NDArray[np.int64]) -> None:
    leaves = len(tree) // 2
    for i in range(len(uniforms)):
        rest = uniforms[i] * tree[1]
        node = 1
        while node < leaves:
            node *= 2
            # Rounding may leave a rest as large as the whole left side: never walk into an empty subtree.
            if rest >= tree[node] and tree[node + 1] > 0.0:
                rest -= tree[node]
                node += 1
        slots[i] = node - leaves


class SumTree:
    """Weights [capacity] of slots, all 0 at first, finite and not negative."""

    def __init__(self, capacity: int) -> None:
        leaves = 1 << max(capacity - 1, 1).bit_length()
        self._tree = np.zeros(2 * leaves)  # node i has the children 2 i and 2 i + 1, the leaves are the second half
        self._leaves = leaves

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._tree[1])

    def weights(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weights [N] of slots [N]."""
        return self._tree[self._leaves + slots]

    def set_range(self, start: int, stop: int, weight: float) -> None:
        """Give one weight to the slots start to stop - 1, at least one."""
        _set_range(self._tree, start, stop, weight)

    def set(self, slots: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Give weights [N] to slots [N]; of several for one slot the last counts."""
        _set_leaves(self._tree, slots, weights)

    def draw(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Slots [N] for uniform numbers [N] in [0, 1); needs a positive total."""
        slots = np.empty(len(uniforms), np.int64)
        _draw(self._tree, uniforms, slots)
        return slots
