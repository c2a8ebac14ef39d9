"""Trees over slots that draw in proportion to weights or find the largest; parents are recomputed, never adjusted."""

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit

# Node i has the children 2 i and 2 i + 1; the leaves are the second half of the array, for any number of them.


@njit
def _set_sums(tree: NDArray[np.float64], slots: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
    leaves = len(tree) // 2
    nodes = np.empty(len(slots), np.int64)
    for i in range(len(slots)):
        nodes[i] = leaves + slots[i]
        tree[nodes[i]] = weights[i]
    number = len(slots)
    # All nodes rise together, neighbours that meet go on as one: a run of n slots costs about n steps, not n log n.
    while number:
        kept = 0
        for i in range(number):
            parent = nodes[i] // 2
            if parent and (kept == 0 or nodes[kept - 1] != parent):
                nodes[kept] = parent
                kept += 1
        number = kept
        for i in range(number):
            tree[nodes[i]] = tree[2 * nodes[i]] + tree[2 * nodes[i] + 1]


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
        self._tree = np.zeros(2 * max(capacity, 2))
        self._leaves = max(capacity, 2)

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._tree[1])

    @property
    def leaves(self) -> NDArray[np.float64]:
        """The weights, a view; not to be written."""
        return self._tree[self._leaves :]

    def set(self, slots: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Give weights [N] to slots [N]; of several for one slot the last counts."""
        _set_sums(self._tree, slots, weights)

    def draw(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Slots [N] for uniform numbers [N] in [0, 1); needs a positive total."""
        slots = np.empty(len(uniforms), np.int64)
        _draw(self._tree, uniforms, slots)
        return slots


@njit
def _set_largest(tree: NDArray[np.float32], slots: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    leaves = len(tree) // 2
    for i in range(len(slots)):
        node = leaves + slots[i]
        tree[node] = values[i]
        node //= 2
        while node:
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
            node //= 2


@njit
def _take_largest(tree: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    leaves = len(tree) // 2
    slots = np.empty(number, np.int64)
    values = np.empty(number, np.float32)
    for i in range(number):
        node = 1
        while node < leaves:
            node *= 2
            if tree[node + 1] > tree[node]:
                node += 1
        slots[i] = node - leaves
        values[i] = tree[node]
        tree[node] = -np.inf
        node //= 2
        while node:
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
            node //= 2
    _set_largest(tree, slots, values)
    return slots


class LargestTree:
    """Values [capacity] of slots, minus infinity at first, out of which the largest are found."""

    def __init__(self, capacity: int) -> None:
        self._tree = np.full(2 * max(capacity, 2), -np.inf, np.float32)
        self._leaves = max(capacity, 2)

    @property
    def leaves(self) -> NDArray[np.float32]:
        """The values, a view; not to be written."""
        return self._tree[self._leaves :]

    def set(self, slots: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Give values [N] to slots [N]; of several for one slot the last counts."""
        _set_largest(self._tree, slots, values)

    def largest(self, number: int) -> NDArray[np.int64]:
        """The slots of the `number` largest values, largest first; as many must be above minus infinity."""
        return _take_largest(self._tree, number)
