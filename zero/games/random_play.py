"""Uniformly random play: the baseline of every evaluation, and how tests and benchmarks walk through games."""

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit
from zero.search.randomness import uniform

_BLOCK = 32
"""Actions that are passed over at once where the drawn one is not among them."""


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
    num_actions = mask.shape[1]
    for row in range(mask.shape[0]):
        count = 0
        for action in range(num_actions):
            count += mask[row, action]
        if count == 0:
            continue
        # Branches on single actions would be mispredicted, so whole blocks are skipped and the last one is counted out.
        left, start = np.int64(uniforms[row] * count), 0
        while True:
            stop = min(start + _BLOCK, num_actions)
            inside = 0
            for action in range(start, stop):
                inside += mask[row, action]
            if left < inside:
                break
            left -= inside
            start = stop
        seen, passed = 0, 0
        for action in range(start, stop):
            seen += mask[row, action]
            passed += seen <= left
        actions[row] = start + passed
    return actions


@njit
def row_uniforms(seeds: NDArray[np.uint64], first: int, count: int) -> NDArray[np.float64]:
    """Numbers `first` to `first + count` of the stream of each seed, [B, count], strictly between 0 and 1."""
    numbers = np.empty((seeds.shape[0], count))
    for row in range(seeds.shape[0]):
        for column in range(count):
            numbers[row, column] = uniform(seeds[row], first + column)
    return numbers
