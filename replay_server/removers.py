"""Which trajectory makes room: each strategy is one class and one line in REMOVERS."""

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np


class TrajectoryRemover(ABC):
    """Chooses among stored trajectories, each named by its ordinal.

    Attributes:
        uses_priorities: whether `reprioritize` must be called.
    """

    uses_priorities = False

    @abstractmethod
    def insert(self, ordinal: int) -> None:
        """A trajectory is new."""

    @abstractmethod
    def remove(self, ordinal: int) -> None:
        """A trajectory is no more."""

    @abstractmethod
    def choose(self) -> int:
        """The one to be removed next; there is at least one. Choosing alone removes nothing."""

    def choose_older(self, ordinal: int) -> int:  # noqa: ARG002 -- most choose by a rule that knows no chance
        """As `choose` while an older one than this ordinal is stored: a choice by chance is among the older ones."""
        return self.choose()

    def reprioritize(self, ordinals: Iterable[int]) -> None:  # noqa: B027 -- most have nothing to do
        """The priorities of stored trajectories have changed."""


PriorityOf = Callable[[int], float]
"""The priority of a stored trajectory: the highest of its items, 0 without any."""


class _OrderedRemover(TrajectoryRemover):
    def __init__(self, rng: np.random.Generator, priority_of: PriorityOf) -> None:  # noqa: ARG002
        # Not a dict: finding the first one gets slower with every first one that was deleted.
        self._ordinals: OrderedDict[int, None] = OrderedDict()

    def insert(self, ordinal: int) -> None:
        """See TrajectoryRemover."""
        self._ordinals[ordinal] = None

    def remove(self, ordinal: int) -> None:
        """See TrajectoryRemover."""
        del self._ordinals[ordinal]


class FifoRemover(_OrderedRemover):
    """The oldest one."""

    def choose(self) -> int:
        """See TrajectoryRemover."""
        return next(iter(self._ordinals))


class LifoRemover(_OrderedRemover):
    """The newest one."""

    def choose(self) -> int:
        """See TrajectoryRemover."""
        return next(reversed(self._ordinals))


class RandomRemover(TrajectoryRemover):
    """Any one, all equally likely."""

    def __init__(self, rng: np.random.Generator, priority_of: PriorityOf) -> None:  # noqa: ARG002
        self._rng = rng
        self._ordinals: list[int] = []
        self._places: dict[int, int] = {}

    def insert(self, ordinal: int) -> None:
        """See TrajectoryRemover."""
        self._places[ordinal] = len(self._ordinals)
        self._ordinals.append(ordinal)

    def remove(self, ordinal: int) -> None:
        """See TrajectoryRemover."""
        last = self._ordinals.pop()
        place = self._places.pop(ordinal)
        if last != ordinal:
            self._ordinals[place] = last
            self._places[last] = place

    def choose(self) -> int:
        """See TrajectoryRemover."""
        return self._ordinals[self._rng.integers(len(self._ordinals))]

    def choose_older(self, ordinal: int) -> int:
        """See TrajectoryRemover."""
        chosen = self.choose()
        while chosen >= ordinal:  # few are new, so this ends soon
            chosen = self.choose()
        return chosen


class _HeapRemover(TrajectoryRemover):
    """By sign x priority, smallest first, of equal ones the oldest; priorities are read when one is to be chosen."""

    uses_priorities = True

    def __init__(self, priority_of: PriorityOf, sign: float) -> None:
        self._priority_of = priority_of
        self._sign = sign
        self._ranks: dict[int, float] = {}
        self._changed: set[int] = set()
        self._heap: list[tuple[float, int]] = []  # may hold what is outdated: then it differs from _ranks

    def insert(self, ordinal: int) -> None:
        """See TrajectoryRemover."""
        self._ranks[ordinal] = np.nan
        self._changed.add(ordinal)

    def remove(self, ordinal: int) -> None:
        """See TrajectoryRemover."""
        del self._ranks[ordinal]
        self._changed.discard(ordinal)
        self._compact()

    def reprioritize(self, ordinals: Iterable[int]) -> None:
        """See TrajectoryRemover."""
        self._changed.update(ordinals)

    def choose(self) -> int:
        """See TrajectoryRemover."""
        for ordinal in self._changed:
            rank = self._sign * self._priority_of(ordinal)
            if rank != self._ranks[ordinal]:
                self._ranks[ordinal] = rank
                heapq.heappush(self._heap, (rank, ordinal))
        self._changed.clear()
        while self._ranks.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        self._compact()
        return self._heap[0][1]

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._ranks) + 64:
            self._heap = [(rank, ordinal) for ordinal, rank in self._ranks.items() if not np.isnan(rank)]
            heapq.heapify(self._heap)


class MinHeapRemover(_HeapRemover):
    """The one of the lowest priority."""

    def __init__(self, rng: np.random.Generator, priority_of: PriorityOf) -> None:  # noqa: ARG002
        super().__init__(priority_of, 1.0)


class MaxHeapRemover(_HeapRemover):
    """The one of the highest priority."""

    def __init__(self, rng: np.random.Generator, priority_of: PriorityOf) -> None:  # noqa: ARG002
        super().__init__(priority_of, -1.0)


REMOVERS: dict[str, Callable[[np.random.Generator, PriorityOf], TrajectoryRemover]] = {
    "fifo": FifoRemover,
    "lifo": LifoRemover,
    "random": RandomRemover,
    "max_heap": MaxHeapRemover,
    "min_heap": MinHeapRemover,
}
"""By the name that a TableConfig gives."""
