"""Uniformly random play: the baseline of every evaluation, and how tests and benchmarks walk through games."""

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit


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
