"""Uniformly random play: the baseline of every evaluation, and how tests and benchmarks walk through games."""

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit
from zero.search.randomness import uniform


@njit
def random_legal_actions(mask: NDArray[np.bool_], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw a legal action per game, each equally likely.

    Args:
        mask: bool [B, A], C-contiguous, True = legal.
        uniforms: float64 [B] in [0, 1).

    Returns:
        int64 [B]; -1 where nothing is legal.
    """
    actions = np.full(mask.shape[0], -1, np.int64)
    for row in range(mask.shape[0]):
        count = 0
        for action in range(mask.shape[1]):
            count += mask[row, action]
        left = np.int64(uniforms[row] * count)
        for action in range(mask.shape[1]):
            if mask[row, action]:
                if left == 0:
                    actions[row] = action
                    break
                left -= 1
    return actions


@njit
def row_uniforms(seeds: NDArray[np.uint64], first: int, count: int) -> NDArray[np.float64]:
    """Numbers `first` to `first + count` of the stream of each seed, [B, count], strictly between 0 and 1."""
    numbers = np.empty((seeds.shape[0], count))
    for row in range(seeds.shape[0]):
        for column in range(count):
            numbers[row, column] = uniform(seeds[row], first + column)
    return numbers
