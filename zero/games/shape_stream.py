"""The reference game's stream of shapes: the same seed deals the same hands."""

import numpy as np
from numpy.typing import NDArray

from zero.games.game import GameError
from zero.games.triangle_board import TEMPLATES

NUM_COLOURS = 9

_WORD = 2**32


class ShapeStream:
    """Hands of the triangle puzzle out of one mt19937, as the C++ standard library of GNU draws them.

    For every slot it draws a template, then a colour, which has no effect on the rules.

    Args:
        seed: 0 to 2^32 - 1.

    Raises:
        GameError: a seed outside.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < _WORD:
            raise GameError(f"seed {seed} must be within 0 to 2^32 - 1")
        self._source = np.random.RandomState(seed)

    def deal(self, num_slots: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Templates [num_slots], 0 to 30, and colours [num_slots], 0 to 8, of the next hand; slot 0 is drawn first."""
        drawn = [(self._below(len(TEMPLATES)), self._below(NUM_COLOURS)) for _ in range(num_slots)]
        hand = np.array(drawn, np.int64).reshape(num_slots, 2)
        return hand[:, 0].copy(), hand[:, 1].copy()

    def _below(self, bound: int) -> int:
        """Draw from 0 to bound - 1 without bias (Lemire 2019, "Fast random integer generation in an interval")."""
        while True:
            # Over the full range of a word, this is the raw output of the generator.
            product = int(self._source.randint(0, _WORD, dtype=np.uint32)) * bound
            if product % _WORD >= _WORD % bound:
                return product // _WORD
