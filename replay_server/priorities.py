"""Priorities by slot as they were given, before any exponent, in pages that remember whether they have changed."""

import numpy as np
from numpy.typing import NDArray

PAGE_SLOTS = 4096


class Priorities:
    """One priority per slot, 0 for free ones.

    Attributes:
        values: float32 [capacity]; not to be written.
        highest: the highest one seen, at least 1: what new steps get.
    """

    def __init__(self, capacity: int) -> None:
        self.values = np.zeros(capacity, np.float32)
        self.highest = 1.0
        self._changed = np.zeros(-(-capacity // PAGE_SLOTS), np.bool_)

    def set(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Give priorities [N] to slots [N]; of several for one slot the last counts."""
        if len(slots):
            self.values[slots] = priorities
            self._changed[slots // PAGE_SLOTS] = True
            self.highest = max(self.highest, float(priorities.max()))

    def take_changed_pages(self) -> list[int]:
        """Numbers of the pages changed since the last call; page i holds the slots i x PAGE_SLOTS on."""
        pages = np.flatnonzero(self._changed)
        self._changed[:] = False
        return pages.tolist()

    def mark_changed(self, pages: list[int] | None = None) -> None:
        """Count pages, all by default, as changed: they could not be saved, or were lost."""
        self._changed[slice(None) if pages is None else pages] = True
