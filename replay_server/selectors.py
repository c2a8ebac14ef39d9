"""How positions are drawn: uniformly, or in proportion to their priorities."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.sum_tree import SumTree
from zero.tables import TableConfig


class Draw(NamedTuple):
    """Drawn positions.

    Attributes:
        positions: int64 [B].
        probabilities: float64 [B].
    """

    positions: NDArray[np.int64]
    probabilities: NDArray[np.float64]


class PositionSelector(ABC):
    """Draws out of the stored positions tail to head - 1; position p lives in slot p modulo capacity."""

    @abstractmethod
    def insert(self, start: int, stop: int) -> None:
        """The positions start to stop - 1 are stored from now on."""

    @abstractmethod
    def remove(self, start: int, stop: int) -> None:
        """The positions start to stop - 1 are no longer stored."""

    @abstractmethod
    def update(self, positions: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Give priorities [N] to stored positions [N]."""

    @abstractmethod
    def draw(self, tail: int, head: int, uniforms: NDArray[np.float64]) -> Draw:
        """Positions for uniform numbers [B] in [0, 1), with replacement; at least one position is stored."""


def _uniform(tail: int, head: int, uniforms: NDArray[np.float64]) -> Draw:
    size = head - tail
    positions = tail + np.minimum((uniforms * size).astype(np.int64), size - 1)
    return Draw(positions, np.full(len(uniforms), 1.0 / size))


class UniformSelector(PositionSelector):
    """Every stored position is equally likely; priorities are taken and mean nothing."""

    def insert(self, start: int, stop: int) -> None:
        """Nothing to keep."""

    def remove(self, start: int, stop: int) -> None:
        """Nothing to keep."""

    def update(self, positions: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Nothing to keep."""

    def draw(self, tail: int, head: int, uniforms: NDArray[np.float64]) -> Draw:
        """See PositionSelector."""
        return _uniform(tail, head, uniforms)


_PAGE_SLOTS = 4096


class PrioritizedSelector(PositionSelector):
    """Proportional prioritization (Schaul et al. 2016): P(i) = p_i^exponent / sum_k p_k^exponent.

    New positions get the highest priority seen, 1 at first. Priority 0 is never drawn, unless all are 0: then all
    stored positions are equally likely. Priorities are also kept as given, in pages, so that they can be saved.

    Attributes:
        priorities: float32 [capacity], before the exponent.
        highest: the highest priority seen.
    """

    page_slots = _PAGE_SLOTS

    def __init__(self, capacity: int, exponent: float) -> None:
        self._capacity = capacity
        self._exponent = exponent
        self._tree = SumTree(capacity)
        self.priorities = np.zeros(capacity, np.float32)
        self.highest = 1.0
        self._dirty = np.zeros(-(-capacity // _PAGE_SLOTS), np.bool_)

    def insert(self, start: int, stop: int) -> None:
        """See PositionSelector."""
        self._fill(start, stop, self.highest, self.highest**self._exponent)

    def remove(self, start: int, stop: int) -> None:
        """See PositionSelector."""
        self._fill(start, stop, 0.0, 0.0)

    def _fill(self, start: int, stop: int, priority: float, weight: float) -> None:
        first = start % self._capacity
        last = first + stop - start
        wrapped = max(last - self._capacity, 0)
        for low, high in ((first, last - wrapped), (0, wrapped)):
            if high > low:
                self._tree.set_range(low, high, weight)
                self.priorities[low:high] = priority
                self._dirty[low // _PAGE_SLOTS : -(-high // _PAGE_SLOTS)] = True

    def update(self, positions: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """See PositionSelector."""
        if not len(positions):
            return
        slots = positions % self._capacity
        weights = priorities.astype(np.float64) ** self._exponent
        # 0 to the power of 0 is 1, but priority 0 means never.
        self._tree.set(slots, np.where(priorities > 0, weights, 0.0))
        self.priorities[slots] = priorities
        self._dirty[slots // _PAGE_SLOTS] = True
        self.highest = max(self.highest, float(priorities.max()))

    def restore(self, positions: NDArray[np.int64], priorities: NDArray[np.float32], highest: float) -> None:
        """Give saved priorities to stored positions; the others get the highest priority seen."""
        self.highest = max(self.highest, highest)
        filled = np.flatnonzero(self.priorities > 0)
        self.update(filled, np.full(len(filled), self.highest, np.float32))
        self.update(positions, priorities)

    def draw(self, tail: int, head: int, uniforms: NDArray[np.float64]) -> Draw:
        """See PositionSelector."""
        total = self._tree.total
        if total <= 0:
            return _uniform(tail, head, uniforms)
        slots = self._tree.draw(uniforms)
        return Draw(tail + (slots - tail) % self._capacity, self._tree.weights(slots) / total)

    def take_dirty_pages(self) -> list[int]:
        """Numbers of the pages changed since the last call; page i holds the slots i x page_slots on."""
        pages = np.flatnonzero(self._dirty)
        self._dirty[:] = False
        return pages.tolist()

    def mark_dirty(self, pages: list[int]) -> None:
        """Give pages back that could not be saved."""
        self._dirty[pages] = True


def make_selector(config: TableConfig) -> PositionSelector:
    """The selector of a table."""
    if config.selector == "prioritized":
        return PrioritizedSelector(config.capacity, config.priority_exponent)
    return UniformSelector()
