"""Bits of 64-bit words, for compiled code.

Numba watches only the file of the function that it compiled: who changes this one must touch its importers too.
"""

import numpy as np

from zero.jit import njit

ONE = np.uint64(1)

_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_TOP_SIX_BITS = np.uint64(58)
_INDEX_OF_KEY = np.zeros(64, np.int64)
for _bit in range(64):
    _INDEX_OF_KEY[(((int(_DE_BRUIJN) << _bit) & (2**64 - 1)) >> 58)] = _bit

_PAIRS = np.uint64(0x5555555555555555)
_NIBBLES = np.uint64(0x3333333333333333)
_BYTES = np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTE_SUM = np.uint64(0x0101010101010101)
_TWO = np.uint64(2)
_FOUR = np.uint64(4)
_TOP_BYTE = np.uint64(56)


@njit
def lowest_bit(word: np.uint64) -> np.uint64:
    """The word with only its lowest set bit; 0 for 0."""
    return word & (~word + ONE)


@njit
def bit_index(bit: np.uint64) -> int:
    """Index of the one set bit of a word (a de Bruijn sequence hashes the 64 powers of two perfectly)."""
    return _INDEX_OF_KEY[(bit * _DE_BRUIJN) >> _TOP_SIX_BITS]


@njit
def count_bits(word: np.uint64) -> int:
    """How many bits are set, by sums over pairs, nibbles and bytes."""
    word = word - ((word >> ONE) & _PAIRS)
    word = (word & _NIBBLES) + ((word >> _TWO) & _NIBBLES)
    word = (word + (word >> _FOUR)) & _BYTES
    return int((word * _BYTE_SUM) >> _TOP_BYTE)


@njit
def single_bit(index: int) -> np.uint64:
    """The word in which only bit `index % 64` is set."""
    return ONE << np.uint64(index & 63)
