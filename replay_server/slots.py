"""Where steps live: slots linked into trajectories, given out and taken back in any order."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit

_GENERATIONS = 2**32 - 1
BYTES_PER_SLOT = 4 + 4 + 1 + 8 + 8 + 4
_OPEN, _TRUNCATED, _TERMINATED = 0, 1, 2


@njit
def _walk(
    following: NDArray[np.int32], ends: NDArray[np.uint8], starts: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    capacity = len(following) - 1
    lengths = np.zeros(len(starts), np.int32)
    bounds = np.zeros(len(starts), np.int32)
    terminated = np.zeros(len(starts), np.bool_)
    for i in range(len(starts)):
        slot = starts[i]
        for t in range(rows.shape[1]):
            rows[i, t] = slot
            if slot != capacity:
                lengths[i] = t + 1
                if bounds[i] == 0 and ends[slot] != 0:
                    bounds[i] = t + 1
                    terminated[i] = ends[slot] == 2
                slot = following[slot]
        if bounds[i] == 0:
            bounds[i] = lengths[i]
    return lengths, bounds, terminated


class Walk(NamedTuple):
    """Sequences from B positions on, at most `reach` steps each.

    Attributes:
        rows: int64 [B, reach], the slots; the capacity beyond the end.
        lengths: int32 [B], steps there are.
        bounds: int32 [B], steps of them that belong to the trajectory of the first one.
        terminated: bool [B], that trajectory ended by its rules at `bounds`.
    """

    rows: NDArray[np.int64]
    lengths: NDArray[np.int32]
    bounds: NDArray[np.int32]
    terminated: NDArray[np.bool_]


class Slots:
    """The slots 0 to capacity - 1 and what is known of the step in each.

    A generation says which chunk a slot's step came with, so that a key (generation << 32 | slot) names one step for
    ever; it is 0 for a free slot.

    Attributes:
        generations: uint32 [capacity].
        weights_versions: uint64 [capacity], who played the step.
        stored_at: float64 [capacity], Unix time.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._following = np.full(capacity + 1, capacity, np.int32)  # the slot of the next step, capacity for none
        self._ends = np.zeros(capacity + 1, np.uint8)
        self.generations = np.zeros(capacity, np.uint32)
        self.weights_versions = np.zeros(capacity, np.uint64)
        self.stored_at = np.zeros(capacity, np.float64)
        self._free = np.arange(capacity, dtype=np.int32)  # a ring: slots are given out in the order they came back
        self._first_free = 0
        self.num_free = capacity

    def reserve(self, number: int) -> NDArray[np.int64]:
        """Free slots [number] that are no longer free; as many must be."""
        places = np.arange(self._first_free, self._first_free + number) % self._capacity
        self._first_free = (self._first_free + number) % self._capacity
        self.num_free -= number
        return self._free[places].astype(np.int64)

    def give_back(self, slots: NDArray[np.int64]) -> None:
        """Reserved slots [N] are free again."""
        first = self._first_free + self.num_free
        self._free[np.arange(first, first + len(slots)) % self._capacity] = slots
        self.num_free += len(slots)

    def settle(self, first: int) -> None:
        """Take all slots without a step as free, from slot `first` on and around."""
        order = (first + np.arange(self._capacity)) % self._capacity
        free = order[self.generations[order] == 0]
        self._free[: len(free)] = free
        self._first_free = 0
        self.num_free = len(free)

    def fill(self, slots: NDArray[np.int64], lengths: Sequence[int], ordinals: NDArray[np.int64]) -> None:
        """Steps of chunks live in these slots [N], linked in this order within a chunk.

        Args:
            slots: of all chunks, one after the other.
            lengths: steps of each chunk, N together.
            ordinals: of the chunks.
        """
        self._following[slots[:-1]] = slots[1:]
        self._following[slots[np.cumsum(lengths) - 1]] = self._capacity
        self._ends[slots] = _OPEN
        self.generations[slots] = np.repeat((ordinals % _GENERATIONS + 1).astype(np.uint32), lengths)

    def link(self, slot: int, following: int | None) -> None:
        """The step after the one in a slot lives in another one, or nowhere."""
        self._following[slot] = self._capacity if following is None else following

    def end(self, slot: int, *, terminated: bool) -> None:
        """A trajectory ends with the step in a slot."""
        self._ends[slot] = _TERMINATED if terminated else _TRUNCATED

    def empty(self, slots: NDArray[np.int64]) -> None:
        """The steps in these slots [N] are no more, the slots are free."""
        self.generations[slots] = 0
        self.give_back(slots)

    def walk(self, starts: NDArray[np.int64], reach: int) -> Walk:
        """The sequences from stored positions [B] on."""
        rows = np.empty((len(starts), reach), np.int64)
        return Walk(rows, *_walk(self._following, self._ends, starts, rows))

    def keys(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Keys [N] of the steps in slots [N]."""
        return self.generations[slots].astype(np.uint64) << np.uint64(32) | slots.astype(np.uint64)

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The slots [N] that keys [N] name, and which of them [N] still hold that step."""
        slots = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        within = slots < self._capacity
        slots[~within] = 0
        generations = (keys >> np.uint64(32)).astype(np.uint32)
        return slots, within & (generations != 0) & (self.generations[slots] == generations)
