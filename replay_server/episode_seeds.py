"""Counts stored trajectories that were dealt from the same seed: a sign that actors play the same games."""

from collections import Counter


class EpisodeSeeds:
    """Seeds of what is stored; 0 stands for none.

    Attributes:
        duplicates: trajectories whose seed an earlier stored one has, too.
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self._stored: Counter[int] = Counter()

    def add(self, seed: int) -> None:
        """A trajectory with this seed was stored."""
        if seed:
            self.duplicates += self._stored[seed] > 0
            self._stored[seed] += 1

    def remove(self, seed: int) -> None:
        """One of those with this seed was removed."""
        if seed:
            self._stored[seed] -= 1
            self.duplicates -= self._stored[seed] > 0
            if not self._stored[seed]:
                del self._stored[seed]
