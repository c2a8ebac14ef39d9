"""When samples were collected: counts those after a moment, in whatever order they came."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FIRST_ROOM = 1024


class Stamps:
    """Times of samples, all of them: eight bytes each."""

    def __init__(self, times: NDArray[np.float64] | None = None) -> None:
        """With the times of an earlier life, sorted, if given."""
        self._sorted = np.empty(_FIRST_ROOM, np.float64) if times is None else times.copy()
        self._size = 0 if times is None else len(times)
        self._late: list[float] = []  # not sorted in yet

    def __len__(self) -> int:
        return self._size + len(self._late)

    def add(self, times: Sequence[float]) -> None:
        """Note times, in any order.

        Raises:
            ValueError: one is NaN.
        """
        if any(time != time for time in times):  # noqa: PLR0124 -- only NaN differs from itself
            raise ValueError("a sample was collected at NaN: the clock of its collector is broken")
        self._late.extend(times)

    def count_after(self, time: float) -> int:
        """How many are strictly after a time."""
        self._sort_in()
        return self._size - int(np.searchsorted(self._sorted[: self._size], time, side="right"))

    def times(self) -> NDArray[np.float64]:
        """All, sorted: a copy."""
        self._sort_in()
        return self._sorted[: self._size].copy()

    def _sort_in(self) -> None:
        if not self._late:
            return
        new = np.sort(np.array(self._late, np.float64))
        self._late = []
        size = self._size + len(new)
        if size > len(self._sorted):
            grown = np.empty(max(size, 2 * len(self._sorted)), np.float64)
            grown[: self._size] = self._sorted[: self._size]
            self._sorted = grown
        self._sorted[self._size : size] = new
        # Usually all of the new ones are later; else only what is not yet in its place is sorted again.
        first = int(np.searchsorted(self._sorted[: self._size], new[0], side="right"))
        if first < self._size:
            self._sorted[first:size].sort(kind="stable")
        self._size = size
