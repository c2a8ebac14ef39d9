"""Random numbers by position: number `counter` of the stream `seed`, whatever was drawn before and for whom."""

import math

import numpy as np

from zero.jit import njit

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_SHIFT_TO_52 = np.uint64(12)


@njit
def _mix(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> _SHIFT_1)) * _MIX_1
    word = (word ^ (word >> _SHIFT_2)) * _MIX_2
    return word ^ (word >> _SHIFT_3)


@njit
def _word(seed: np.uint64, counter: int) -> np.uint64:
    """SplitMix64 (Steele, Lea and Flood 2014) addressed by position.

    The seed is mixed first, so that the streams of neighbouring seeds do not overlap.
    """
    return _mix(_mix(seed + _WEYL) + (np.uint64(counter) + np.uint64(1)) * _WEYL)


@njit
def uniform(seed: np.uint64, counter: int) -> float:
    """Number `counter` of the stream `seed`, strictly between 0 and 1."""
    word = _word(seed, counter)
    # 52 bits and a half: with 53 the largest one would round to 1.
    return (float(word >> _SHIFT_TO_52) + 0.5) * 2.0**-52


@njit
def gumbel(seed: np.uint64, counter: int) -> float:
    """Number `counter` of the stream `seed`, standard Gumbel distributed."""
    return -math.log(-math.log(uniform(seed, counter)))


@njit
def log_gamma(seed: np.uint64, counter: int, shape: float) -> float:
    """Logarithm of number `counter` of the stream `seed`, gamma distributed with this shape and scale 1.

    Marsaglia and Tsang (2000), with their step down from shape + 1. A number of small shape may be too small for a
    float; its logarithm is not.
    """
    # Rejection takes any number of draws: they come from a stream that belongs to this number alone.
    own = _word(seed, counter)
    scale = shape + 2 / 3
    width = 1 / math.sqrt(9 * scale)
    drawn = 1
    while True:
        normal = math.sqrt(-2 * math.log(uniform(own, drawn))) * math.cos(2 * math.pi * uniform(own, drawn + 1))
        cube = (1 + width * normal) ** 3
        if cube > 0 and math.log(uniform(own, drawn + 2)) < normal**2 / 2 + scale * (1 - cube + math.log(cube)):
            return math.log(scale * cube) + math.log(uniform(own, 0)) / shape
        drawn += 3
