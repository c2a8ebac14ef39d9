"""How items are drawn: each strategy is one class and one line in SELECTORS."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.sum_tree import LargestTree, SumTree
from zero.jit import njit
from zero.tables import TableConfig


class Draw(NamedTuple):
    """Drawn items.

    Attributes:
        slots: int64 [B].
        probabilities: float64 [B].
    """

    slots: NDArray[np.int64]
    probabilities: NDArray[np.float64]


class ItemSelector(ABC):
    """Draws out of items, each in a slot 0 to capacity - 1.

    Attributes:
        uses_priorities: whether priorities make a difference.
    """

    uses_priorities = False

    @property
    def mass(self) -> float | None:
        """Sum of the weights by which items are drawn; None where each item counts as one."""
        return None

    @abstractmethod
    def insert(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Items [N] that are new, oldest first, with their priorities [N]."""

    @abstractmethod
    def remove(self, slots: NDArray[np.int64]) -> None:
        """The items [N], none twice, are no more."""

    @abstractmethod
    def update(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Give priorities [N] to items [N]; of several for one the last counts."""

    @abstractmethod
    def draw(self, uniforms: NDArray[np.float64], allowed: NDArray[np.bool_] | None = None) -> Draw:
        """Draw B items.

        Args:
            uniforms: [B] in [0, 1).
            allowed: [capacity], which slots may be drawn; None for all. With it a draw takes time in proportion to the
                capacity, and probabilities are those among the allowed items.

        Returns:
            B items, or none if there is none to draw.
        """


_NONE = Draw(np.empty(0, np.int64), np.empty(0))


def evenly(candidates: NDArray[np.int64], uniforms: NDArray[np.float64]) -> Draw:
    """Candidates by uniforms [B] in [0, 1), each equally likely; none if there is none."""
    size = len(candidates)
    if not size:
        return _NONE
    places = np.minimum((uniforms * size).astype(np.int64), size - 1)
    return Draw(candidates[places], np.full(len(uniforms), 1.0 / size))


class UniformSelector(ItemSelector):
    """Every item is equally likely; which is drawn depends on what the items are, not on how they came to be."""

    def __init__(self, config: TableConfig) -> None:
        self._tree = SumTree(config.capacity)  # 1 for an item: sums of ones are exact

    def insert(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:  # noqa: ARG002
        """See ItemSelector."""
        self._tree.set(slots, np.ones(len(slots)))

    def remove(self, slots: NDArray[np.int64]) -> None:
        """See ItemSelector."""
        self._tree.set(slots, np.zeros(len(slots)))

    def update(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Priorities mean nothing here."""

    def draw(self, uniforms: NDArray[np.float64], allowed: NDArray[np.bool_] | None = None) -> Draw:
        """See ItemSelector."""
        if allowed is not None:
            return evenly(np.flatnonzero((self._tree.leaves[: len(allowed)] > 0) & allowed), uniforms)
        number = self._tree.total
        if not number:
            return _NONE
        return Draw(self._tree.draw(uniforms), np.full(len(uniforms), 1.0 / number))


class PrioritizedSelector(ItemSelector):
    """Proportional prioritization (Schaul et al. 2016): P(i) = p_i^exponent / sum_k p_k^exponent.

    Priority 0 is never drawn, unless all are 0: then all items are equally likely.
    """

    uses_priorities = True

    def __init__(self, config: TableConfig) -> None:
        self._exponent = config.priority_exponent
        self._tree = SumTree(config.capacity)
        self._is_item = np.zeros(config.capacity, np.bool_)

    @property
    def mass(self) -> float:
        """See ItemSelector."""
        return self._tree.total

    def insert(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """See ItemSelector."""
        self._is_item[slots] = True
        self.update(slots, priorities)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """See ItemSelector."""
        self._is_item[slots] = False
        self._tree.set(slots, np.zeros(len(slots)))

    def update(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """See ItemSelector."""
        weights = priorities.astype(np.float64) ** self._exponent
        # 0 to the power of 0 is 1, but priority 0 means never.
        self._tree.set(slots, np.where(priorities > 0, weights, 0.0))

    def draw(self, uniforms: NDArray[np.float64], allowed: NDArray[np.bool_] | None = None) -> Draw:
        """See ItemSelector."""
        if allowed is not None:
            return self._draw_among(allowed, uniforms)
        total = self._tree.total
        if total <= 0:
            return evenly(np.flatnonzero(self._is_item), uniforms)
        slots = self._tree.draw(uniforms)
        return Draw(slots, self._tree.leaves[slots] / total)

    def _draw_among(self, allowed: NDArray[np.bool_], uniforms: NDArray[np.float64]) -> Draw:
        candidates = np.flatnonzero(self._is_item & allowed)
        weights = self._tree.leaves[candidates]
        sums = np.cumsum(weights)
        if not len(sums) or sums[-1] <= 0:
            return evenly(candidates, uniforms)
        # Side "right" never stops at a weight of 0; rounding may lead beyond the last positive one.
        places = np.minimum(np.searchsorted(sums, uniforms * sums[-1], "right"), np.flatnonzero(weights)[-1])
        return Draw(candidates[places], weights[places] / sums[-1])


@njit
def _append_linked(links: NDArray[np.int32], slots: NDArray[np.int64]) -> None:
    end = len(links) - 1  # stands before the first and after the last
    for slot in slots:
        last = links[end, 0]
        links[slot, 0], links[slot, 1] = last, end
        links[last, 1] = links[end, 0] = slot


@njit
def _remove_linked(links: NDArray[np.int32], slots: NDArray[np.int64]) -> None:
    for slot in slots:
        before, after = links[slot]
        links[before, 1] = after
        links[after, 0] = before


@njit
def _first_linked(
    links: NDArray[np.int32], direction: int, number: int, allowed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    end = len(links) - 1
    slots = np.empty(number, np.int64)
    found = 0
    slot = links[end, direction]
    while slot != end and found < number:
        if not len(allowed) or allowed[slot]:
            slots[found] = slot
            found += 1
        slot = links[slot, direction]
    return slots[:found]


def _certainly(slots: NDArray[np.int64], number: int) -> Draw:
    """The chosen items in their order, from the beginning again if they are fewer than asked for."""
    return Draw(np.resize(slots, number), np.ones(number)) if len(slots) else _NONE


_ANY = np.empty(0, np.bool_)


class _LinkedSelector(ItemSelector):
    """Items in the order of insertion."""

    def __init__(self, config: TableConfig, direction: int) -> None:
        self._links = np.full((config.capacity + 1, 2), config.capacity, np.int32)  # before and after, by slot
        self._direction = direction

    def insert(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:  # noqa: ARG002
        """See ItemSelector."""
        _append_linked(self._links, slots)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """See ItemSelector."""
        _remove_linked(self._links, slots)

    def update(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Priorities mean nothing here."""

    def draw(self, uniforms: NDArray[np.float64], allowed: NDArray[np.bool_] | None = None) -> Draw:
        """See ItemSelector."""
        number = len(uniforms)
        return _certainly(
            _first_linked(self._links, self._direction, number, _ANY if allowed is None else allowed), number
        )


class FifoSelector(_LinkedSelector):
    """The oldest items, oldest first."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config, 1)


class LifoSelector(_LinkedSelector):
    """The newest items, newest first."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config, 0)


class _HeapSelector(ItemSelector):
    """Items by sign x priority, largest first; equal ones in no order that one may rely on."""

    uses_priorities = True

    def __init__(self, config: TableConfig, sign: int) -> None:
        self._tree = LargestTree(config.capacity)
        self._sign = np.float32(sign)
        self._number = 0

    def insert(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """See ItemSelector."""
        self._number += len(slots)
        self.update(slots, priorities)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """See ItemSelector."""
        self._number -= len(slots)
        self._tree.set(slots, np.full(len(slots), -np.inf, np.float32))

    def update(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """See ItemSelector."""
        self._tree.set(slots, self._sign * priorities)

    def draw(self, uniforms: NDArray[np.float64], allowed: NDArray[np.bool_] | None = None) -> Draw:
        """See ItemSelector."""
        number = len(uniforms)
        if allowed is None:
            return _certainly(self._tree.largest(min(number, self._number)), number)
        values = self._tree.leaves[: len(allowed)]
        candidates = np.flatnonzero(allowed & (values > -np.inf))
        best = np.argsort(-values[candidates], kind="stable")[:number]
        return _certainly(candidates[best], number)


class MaxHeapSelector(_HeapSelector):
    """The items of the highest priority, highest first."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config, 1)


class MinHeapSelector(_HeapSelector):
    """The items of the lowest priority, lowest first."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config, -1)


SELECTORS: dict[str, Callable[[TableConfig], ItemSelector]] = {
    "uniform": UniformSelector,
    "prioritized": PrioritizedSelector,
    "fifo": FifoSelector,
    "lifo": LifoSelector,
    "max_heap": MaxHeapSelector,
    "min_heap": MinHeapSelector,
}
"""By the name that a TableConfig gives."""
