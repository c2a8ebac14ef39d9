"""The steps of a table that may be drawn: which they are, how often each still may, and the drawing itself."""

import numpy as np
from numpy.typing import NDArray

from replay_server.selectors import SELECTORS, Draw, evenly
from zero.tables import TableConfig


class Items:
    """Items, each in a slot 0 to capacity - 1.

    Attributes:
        number: stored now.
    """

    def __init__(self, config: TableConfig, rng: np.random.Generator) -> None:
        self.number = 0
        self._rng = rng
        self._selector = SELECTORS[config.selector](config)
        self._is_item = np.zeros(config.capacity, np.bool_)
        self._most_draws = config.max_times_sampled  # of an item; 0 for any number
        self._times_drawn = np.zeros(config.capacity if self._most_draws else 0, np.int32)
        self._draws_left = 0

    @property
    def uses_priorities(self) -> bool:
        """Whether priorities make a difference."""
        return self._selector.uses_priorities

    @property
    def mass(self) -> float:
        """The sum of the weights by which items are drawn; their number where each counts as one."""
        mass = self._selector.mass
        return float(self.number) if mass is None else mass

    def are_in(self, slots: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these slots [N] hold an item."""
        return self._is_item[slots]

    def insert(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Items [N] that are new, oldest first, with their priorities [N]."""
        if not len(slots):
            return
        self._is_item[slots] = True
        self._selector.insert(slots, priorities)
        self.number += len(slots)
        if self._most_draws:
            self._times_drawn[slots] = 0
            self._draws_left += len(slots) * self._most_draws

    def remove(self, slots: NDArray[np.int64]) -> None:
        """What is an item in these slots, none twice, is no more."""
        slots = slots[self._is_item[slots]]
        if not len(slots):
            return
        if self._most_draws:
            self._draws_left -= self._left_of(slots)
        self._drop(slots)

    def _drop(self, slots: NDArray[np.int64]) -> None:
        self._selector.remove(slots)
        self._is_item[slots] = False
        self.number -= len(slots)

    def _left_of(self, slots: NDArray[np.int64]) -> int:
        return len(slots) * self._most_draws - int(self._times_drawn[slots].sum())

    def update(self, slots: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Give priorities [N] to what is an item in these slots [N]; of several for one the last counts."""
        items = self._is_item[slots]
        self._selector.update(slots[items], priorities[items])

    def can_draw(self, batch_size: int, allowed: NDArray[np.bool_] | None = None) -> bool:
        """Whether there are items, among those in `allowed` [capacity], and often enough to be drawn."""
        if allowed is None:
            return self.number > 0 and (not self._most_draws or self._draws_left >= batch_size)
        matching = np.flatnonzero(allowed & self._is_item)
        return len(matching) > 0 and (not self._most_draws or self._left_of(matching) >= batch_size)

    def peek(self, number: int, allowed: NDArray[np.bool_] | None, rng: np.random.Generator | None = None) -> Draw:
        """Look at so many, each item among those in `allowed` [capacity] equally likely; nothing is used up.

        Takes time in proportion to the capacity.

        Returns:
            The items, or none if there is none to look at.
        """
        candidates = np.flatnonzero(self._is_item if allowed is None else allowed & self._is_item)
        return evenly(candidates, (rng or self._rng).random(number))

    def draw(
        self, number: int, allowed: NDArray[np.bool_] | None = None, rng: np.random.Generator | None = None
    ) -> Draw:
        """Draw so many, among those in `allowed` [capacity], which can be; what is used up is no item any more.

        The same numbers of `rng` draw the same of the same items; without it the table's own generator is used.
        """
        rng = rng or self._rng
        if not self._most_draws:
            return self._selector.draw(rng.random(number), allowed)
        draws: list[Draw] = []
        while number:
            draw = self._selector.draw(rng.random(number), allowed)
            kept = self._count_draws(draw.slots)
            draws.append(Draw(draw.slots[kept], draw.probabilities[kept]))
            number -= len(draws[-1].slots)
        return Draw(np.concatenate([draw.slots for draw in draws]), np.concatenate([d.probabilities for d in draws]))

    def _count_draws(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Count draws that are still allowed, returns which; what is used up can no longer be drawn."""
        kept = np.zeros(len(slots), np.bool_)
        for i, slot in enumerate(slots.tolist()):
            if self._times_drawn[slot] < self._most_draws:
                self._times_drawn[slot] += 1
                kept[i] = True
        self._draws_left -= int(kept.sum())
        used_up = np.unique(slots[self._times_drawn[slots] >= self._most_draws])
        self._drop(used_up[self._is_item[used_up]])
        return kept
