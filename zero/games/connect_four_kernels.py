"""Compiled rules of Connect Four, over batches of positions.

A position is two words: the stones of player 0, who begins, and of player 1. Bit `7 * column + row` is a cell, rows
counted from the bottom; the seventh bit of a column is always 0, so that shifted lines never run into the next column.
"""

import numpy as np
from numpy.typing import NDArray

from zero.games.bits import count_bits, lowest_bit
from zero.jit import njit
from zero.search.randomness import uniform

NUM_COLUMNS = 7
NUM_ROWS = 6
NUM_CELLS = NUM_COLUMNS * NUM_ROWS

_NONE = np.uint64(0)
_ONE = np.uint64(1)
_COLUMN_BITS = 7
_BOTTOM = np.uint64(sum(1 << (_COLUMN_BITS * column) for column in range(NUM_COLUMNS)))
_FULL = np.uint64(int(_BOTTOM) * (2**NUM_ROWS - 1))
_COLUMN = np.uint64(2**NUM_ROWS - 1)
# Bits from a cell to the next: up, right and down, right, right and up.
_UP, _FALLING, _RIGHT, _RISING = np.uint64(1), np.uint64(6), np.uint64(7), np.uint64(8)


@njit
def _has_run(stones: np.uint64, step: np.uint64) -> bool:
    pairs = stones & (stones >> step)
    return (pairs & (pairs >> (step + step))) != _NONE


@njit
def has_four(stones: np.uint64) -> bool:
    """Whether the stones hold four in a row, in any of the four directions."""
    return _has_run(stones, _UP) or _has_run(stones, _FALLING) or _has_run(stones, _RIGHT) or _has_run(stones, _RISING)


@njit
def is_over(first: np.uint64, second: np.uint64) -> bool:
    """Whether either player has four in a row, or no cell is free."""
    return (first | second) == _FULL or has_four(first) or has_four(second)


@njit
def _column_bits(column: int) -> np.uint64:
    return _COLUMN << np.uint64(_COLUMN_BITS * column)


@njit
def _drop(occupied: np.uint64, column: int) -> np.uint64:
    """The cell that a stone falls to, as a bit: the carry runs up the stones of the column; 0 for a full column."""
    bottom = _ONE << np.uint64(_COLUMN_BITS * column)
    return (occupied + bottom) & _column_bits(column) & ~occupied


@njit
def player_to_move(first: np.uint64, second: np.uint64) -> int:
    """0 where both have equally many stones, else 1."""
    return count_bits(first) - count_bits(second)


@njit
def legal_action_mask(states: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [B, 7], the columns that are not full; none when the game is over."""
    mask = np.zeros((states.shape[0], NUM_COLUMNS), np.bool_)
    for row in range(states.shape[0]):
        if not is_over(states[row, 0], states[row, 1]):
            occupied = states[row, 0] | states[row, 1]
            for column in range(NUM_COLUMNS):
                mask[row, column] = _drop(occupied, column) != _NONE
    return mask


@njit
def terminated(states: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [B], the game is over."""
    over = np.zeros(states.shape[0], np.bool_)
    for row in range(states.shape[0]):
        over[row] = is_over(states[row, 0], states[row, 1])
    return over


@njit
def to_play(states: NDArray[np.uint64]) -> NDArray[np.int8]:
    """int8 [B], the player to move."""
    players = np.zeros(states.shape[0], np.int8)
    for row in range(states.shape[0]):
        players[row] = player_to_move(states[row, 0], states[row, 1])
    return players


@njit
def apply(
    states: NDArray[np.uint64], actions: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.bool_], int]:
    """Drop stones in columns `actions` [B]: positions, rewards, what is over; also the first illegal row, or -1."""
    after = states.copy()
    rewards = np.zeros(states.shape[0], np.float32)
    over = np.zeros(states.shape[0], np.bool_)
    for row in range(states.shape[0]):
        first, second, column = states[row, 0], states[row, 1], actions[row]
        if is_over(first, second):
            over[row] = True
            continue
        cell = _NONE
        if 0 <= column < NUM_COLUMNS:
            cell = _drop(first | second, column)
        if cell == _NONE:
            return after, rewards, over, row
        player = player_to_move(first, second)
        after[row, player] |= cell
        if has_four(after[row, player]):
            rewards[row] = 1
            over[row] = True
        else:
            over[row] = (after[row, 0] | after[row, 1]) == _FULL
    return after, rewards, over, -1


@njit
def observe(states: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """uint8 [B, 2, 7]: the stones of each player in each column, lowest bit at the bottom."""
    observations = np.empty((states.shape[0], 2, NUM_COLUMNS), np.uint8)
    for row in range(states.shape[0]):
        for player in range(2):
            for column in range(NUM_COLUMNS):
                observations[row, player, column] = np.uint8(
                    (states[row, player] >> np.uint64(_COLUMN_BITS * column)) & _COLUMN
                )
    return observations


@njit
def _is_position(first: np.uint64, second: np.uint64) -> bool:
    """Whether stones lie on stones, none on another, and nobody has moved out of turn."""
    occupied = first | second
    # A column without gaps is one less than a power of two.
    grounded = (occupied & (occupied + _BOTTOM) & _FULL) == _NONE
    return grounded and (first & second) == _NONE and 0 <= player_to_move(first, second) <= 1


@njit
def decode(observations: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], int]:
    """Positions [B, 2]; also the first row that can be none, or -1."""
    states = np.zeros((observations.shape[0], 2), np.uint64)
    for row in range(observations.shape[0]):
        for player in range(2):
            for column in range(NUM_COLUMNS):
                stones = np.uint64(observations[row, player, column])
                if stones > _COLUMN:
                    return states, row
                states[row, player] |= stones << np.uint64(_COLUMN_BITS * column)
        if not _is_position(states[row, 0], states[row, 1]):
            return states, row
    return states, -1


@njit
def encode(states: NDArray[np.uint64]) -> NDArray[np.float32]:
    """float32 [B, 126]: planes of 6 x 7, the top row first: own stones, the opponent's, ones for player 0."""
    encoded = np.zeros((states.shape[0], 3 * NUM_CELLS), np.float32)
    for row in range(states.shape[0]):
        player = player_to_move(states[row, 0], states[row, 1])
        for column in range(NUM_COLUMNS):
            for height in range(NUM_ROWS):
                shift = np.uint64(_COLUMN_BITS * column + height)
                cell = (NUM_ROWS - 1 - height) * NUM_COLUMNS + column
                encoded[row, cell] = (states[row, player] >> shift) & _ONE
                encoded[row, NUM_CELLS + cell] = (states[row, 1 - player] >> shift) & _ONE
        encoded[row, 2 * NUM_CELLS :] = 1 - player
    return encoded


@njit
def random_returns(states: NDArray[np.uint64], seeds: NDArray[np.uint64], max_moves: int) -> NDArray[np.float32]:
    """Results [B] of one game of uniformly random moves from each position, to the player to move: 1, 0 or -1."""
    results = np.zeros(states.shape[0], np.float32)
    for row in range(states.shape[0]):
        own, other = states[row, 0], states[row, 1]
        if is_over(own, other):
            continue
        if player_to_move(own, other) == 1:
            own, other = other, own
        result = np.float32(1)
        for move in range(max_moves):
            own |= _random_cell(own | other, uniform(seeds[row], move))
            if has_four(own):
                results[row] = result
                break
            own, other, result = other, own, -result
    return results


@njit
def _random_cell(occupied: np.uint64, number: float) -> np.uint64:
    """One of the cells where a stone can fall, as a bit, each equally likely; 0 on a full board."""
    cells = (occupied + _BOTTOM) & _FULL
    for _ in range(int(number * count_bits(cells))):
        cells &= cells - _ONE
    return lowest_bit(cells)
