"""When samples were collected: counts those after a moment, in whatever order they came, in bounded memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ENTRIES = 1 << 20
"""16 bytes each."""
PRECISION = 1e-4
"""Of the count of samples that are older than the newest MAX_ENTRIES / 2."""

_FIRST_ROOM = 1024


class Stamps:
    """Times of samples.

    The newest MAX_ENTRIES / 2 and more are kept one by one, and counts that reach no further back are exact. Older ones
    share entries, each of PRECISION of the number of newer samples (exponential histogram, Datar et al. 2002), which
    counts as collected at its newest time: a count that begins within it is too high by what of it is older.
    """

    def __init__(self, times: NDArray[np.float64] | None = None, counts: NDArray[np.int64] | None = None) -> None:
        """With the entries of an earlier life, sorted by time, if given."""
        self._size = 0 if times is None else len(times)
        self._times = np.empty(_FIRST_ROOM, np.float64) if times is None else times.copy()
        self._counts = np.ones(len(self._times), np.int64) if counts is None else counts.copy()
        self._late: list[float] = []  # not sorted in yet
        self._num_sorted = int(self._counts[: self._size].sum())

    def __len__(self) -> int:
        return self._num_sorted + len(self._late)

    def add(self, times: Sequence[float]) -> None:
        """Note times, in any order.

        Raises:
            ValueError: one is NaN.
        """
        if any(time != time for time in times):  # noqa: PLR0124 -- only NaN differs from itself
            raise ValueError("a sample was collected at NaN: the clock of its collector is broken")
        self._late.extend(times)
        if len(self._late) >= MAX_ENTRIES:
            self._sort_in()

    def count_after(self, time: float) -> int:
        """How many are strictly after a time."""
        self._sort_in()
        first = int(np.searchsorted(self._times[: self._size], time, side="right"))
        return int(self._counts[first : self._size].sum())

    def entries(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """All times, sorted, and how many samples each stands for: copies."""
        self._sort_in()
        return self._times[: self._size].copy(), self._counts[: self._size].copy()

    def _sort_in(self) -> None:
        if not self._late:
            return
        new = np.sort(np.array(self._late, np.float64))
        self._late = []
        start, self._size = self._size, self._size + len(new)
        if self._size > len(self._times):
            room = max(self._size, 2 * len(self._times)) - start
            self._times = np.concatenate((self._times[:start], np.empty(room, np.float64)))
            self._counts = np.concatenate((self._counts[:start], np.ones(room, np.int64)))
        self._times[start : self._size] = new
        self._counts[start : self._size] = 1
        self._num_sorted += len(new)
        # Usually all of the new ones are later; else only what is not yet in its place is sorted again.
        first = int(np.searchsorted(self._times[:start], new[0], side="right"))
        if first < start:
            order = first + np.argsort(self._times[first : self._size], kind="stable")
            self._times[first : self._size] = self._times[order]
            self._counts[first : self._size] = self._counts[order]
        if self._size > MAX_ENTRIES:
            self._share_entries()

    def _share_entries(self) -> None:
        """Let old samples share entries, the larger the older they are."""
        times, counts = self._times[: self._size], self._counts[: self._size]
        newer = self._num_sorted - np.cumsum(counts)
        exact = MAX_ENTRIES // 2
        # Two entries become one if from its oldest to its newest sample it lies within one class: else what was large
        # when it was made would take in one neighbour after the other.
        is_one = (_classes(newer[:-1] + counts[:-1] - 1, exact) == _classes(newer[1:], exact)) & (newer[:-1] > exact)
        last = np.flatnonzero(np.append(~is_one, True))
        firsts = np.append(0, last[:-1] + 1)
        self._times, self._counts = times[last], np.add.reduceat(counts, firsts)
        self._size = len(last)


def _classes(newer: NDArray[np.int64], exact: int) -> NDArray[np.int64]:
    """Classes of samples by how many are newer; one spans PRECISION of that number."""
    return np.floor(np.log(np.maximum(newer, exact) / exact) / np.log1p(PRECISION)).astype(np.int64)
