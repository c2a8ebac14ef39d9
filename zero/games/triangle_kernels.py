"""Compiled rules of the triangle puzzle, over batches of positions.

A position is W + 3 words: the occupied cells as a bitboard of W words; the shape ids of the slots, a byte each, 255 for
an empty or missing slot; flags in the low byte and moves made above them; pieces placed in the low half and cells
cleared in the high half.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.games.bits import bit_index, count_bits, lowest_bit, single_bit
from zero.games.triangle_board import NO_SHAPE, NUM_DIRECTIONS, SHAPES, BoardTables
from zero.jit import njit

NUM_EXTRA_WORDS = 3
"""Words of a position beside the bitboard."""

OVER = np.uint64(1)
CHANCE_PENDING = np.uint64(2)
ENDED_ILLEGALLY = np.uint64(4)
STEPS_SHIFT = np.uint64(8)
CLEARED_SHIFT = np.uint64(32)
EMPTY_SLOTS = np.uint64(2**64 - 1)

CLEARED_SCALE = 0.1
"""Cells cleared by a placement, as encoded, are multiplied by this."""

_STOPPED = OVER | CHANCE_PENDING
_NONE = np.uint64(0)
_ONE = np.uint64(1)
_WORD_TOP = np.uint64(63)
_BYTE = np.uint64(255)
_NUM_SHAPES = len(SHAPES)
_LARGEST_SHAPE = max(len(shape.offsets) for shape in SHAPES)

StepArrays = tuple[NDArray[np.uint64], NDArray[np.float32]]
"""States [B, W + 3] and rewards [B] after half a step."""


class Rewards(NamedTuple):
    """What is paid: per cell placed, per cell cleared, per survived move, for an illegal action, for a natural end."""

    placed: float
    cleared: float
    alive: float
    illegal_action: float
    natural_end: float


@njit
def shape_in_slot(slots: np.uint64, slot: int) -> int:
    """The shape id in a slot, 255 for none."""
    return int((slots >> np.uint64(8 * slot)) & _BYTE)


@njit
def _set_slot(slots: np.uint64, slot: int, shape: int) -> np.uint64:
    shift = np.uint64(8 * slot)
    return (slots & ~(_BYTE << shift)) | (np.uint64(shape) << shift)


@njit
def _free_cells(board: BoardTables, position: NDArray[np.uint64], free: NDArray[np.uint64]) -> None:
    """Set free [2W + 1] to the playable cells that are not occupied; words from W on must be 0 and stay so."""
    for word in range(board.num_words):
        free[word] = board.live[word] & ~position[word]


@njit
def _fits(board: BoardTables, free: NDArray[np.uint64], shape: int, word: int) -> np.uint64:
    """Word `word` of the bitboard of origins where the shape lands on free cells only."""
    fits = board.shape_origins[shape, word]
    for triangle in range(board.shape_sizes[shape]):
        if fits == _NONE:
            break
        offset = board.shape_offsets[shape, triangle]
        source = word + (offset >> 6)
        shift = np.uint64(offset & 63)
        # Two shifts, for a shift by 64 is undefined.
        fits &= (free[source] >> shift) | ((free[source + 1] << (_WORD_TOP - shift)) << _ONE)
    return fits


@njit
def _any_fits(board: BoardTables, free: NDArray[np.uint64], slots: np.uint64) -> bool:
    for slot in range(board.num_slots):
        shape = shape_in_slot(slots, slot)
        if shape == NO_SHAPE:
            continue
        for word in range(board.num_words):
            if _fits(board, free, shape, word) != _NONE:
                return True
    return False


@njit
def _is_legal(board: BoardTables, position: NDArray[np.uint64], action: int) -> bool:
    """Whether the action, any integer, can be played in a position that goes on."""
    if action < 0 or action >= board.num_slots * board.num_cells:
        return False
    shape = shape_in_slot(position[board.num_words], action // board.num_cells)
    origin = action % board.num_cells
    if shape == NO_SHAPE or (board.shape_origins[shape, origin >> 6] & single_bit(origin)) == _NONE:
        return False
    for triangle in range(board.shape_sizes[shape]):
        cell = origin + board.shape_offsets[shape, triangle]
        if (position[cell >> 6] & single_bit(cell)) != _NONE:
            return False
    return True


@njit
def _clear_lines(
    board: BoardTables, position: NDArray[np.uint64], placed: NDArray[np.uint64], cleared: NDArray[np.uint64]
) -> int:
    """Empty the full lines through the placed cells [W]; the number of cells emptied. `cleared` [W] is scratch."""
    cleared[:] = _NONE
    for line in range(board.line_masks.shape[0]):
        touched = _NONE
        missing = _NONE
        for word in range(board.num_words):
            mask = board.line_masks[line, word]
            touched |= mask & placed[word]
            missing |= mask & ~position[word]
        if touched != _NONE and missing == _NONE:
            for word in range(board.num_words):
                cleared[word] |= board.line_masks[line, word]
    count = 0
    for word in range(board.num_words):
        position[word] &= ~cleared[word]
        count += count_bits(cleared[word])
    return count


@njit
def _place(
    board: BoardTables, rewards: Rewards, position: NDArray[np.uint64], action: int, scratch: NDArray[np.uint64]
) -> float:
    """Play a legal action: place, empty the slot, clear, count; the reward so far. `scratch` is [2, W]."""
    slot, origin = action // board.num_cells, action % board.num_cells
    shape = shape_in_slot(position[board.num_words], slot)
    size = board.shape_sizes[shape]
    placed = scratch[0]
    placed[:] = _NONE
    for triangle in range(size):
        cell = origin + board.shape_offsets[shape, triangle]
        placed[cell >> 6] |= single_bit(cell)
    for word in range(board.num_words):
        position[word] |= placed[word]
    position[board.num_words] = _set_slot(position[board.num_words], slot, NO_SHAPE)
    cleared = _clear_lines(board, position, placed, scratch[1])
    position[board.num_words + 1] += _ONE << STEPS_SHIFT
    position[board.num_words + 2] += _ONE + (np.uint64(cleared) << CLEARED_SHIFT)
    return rewards.placed * size + rewards.cleared * cleared


@njit
def _end_or_live(board: BoardTables, rewards: Rewards, position: NDArray[np.uint64], free: NDArray[np.uint64]) -> float:
    """End the game if no shape fits; the reward for living or dying. `free` [2W + 1] is scratch."""
    _free_cells(board, position, free)
    if _any_fits(board, free, position[board.num_words]):
        return rewards.alive
    position[board.num_words + 1] |= OVER
    return rewards.natural_end


@njit
def apply(
    board: BoardTables,
    rewards: Rewards,
    ends_on_illegal: bool,
    states: NDArray[np.uint64],
    actions: NDArray[np.int64],
) -> StepArrays:
    """Play actions [B]; positions that are over or wait for chance stay, with reward 0."""
    words = board.num_words
    after = states.copy()
    paid = np.zeros(states.shape[0], np.float32)
    free = np.zeros(2 * words + 1, np.uint64)
    scratch = np.zeros((2, words), np.uint64)
    for row in range(states.shape[0]):
        position = after[row]
        if (position[words + 1] & _STOPPED) != _NONE:
            continue
        if not _is_legal(board, position, actions[row]):
            if ends_on_illegal:
                position[words + 1] |= OVER | ENDED_ILLEGALLY
                paid[row] = rewards.illegal_action
            else:
                position[words + 1] += _ONE << STEPS_SHIFT
            continue
        reward = _place(board, rewards, position, actions[row], scratch)
        if position[words] == EMPTY_SLOTS:
            position[words + 1] |= CHANCE_PENDING
        else:
            reward += _end_or_live(board, rewards, position, free)
        paid[row] = reward
    return after, paid


@njit
def resolve(
    board: BoardTables, rewards: Rewards, states: NDArray[np.uint64], outcomes: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.float32], int]:
    """Deal templates [B, num_slots] where chance is pending; also the first row with an impossible one, or -1."""
    words = board.num_words
    after = states.copy()
    paid = np.zeros(states.shape[0], np.float32)
    free = np.zeros(2 * words + 1, np.uint64)
    for row in range(states.shape[0]):
        position = after[row]
        if (position[words + 1] & _STOPPED) != CHANCE_PENDING:
            continue
        for slot in range(board.num_slots):
            template = int(outcomes[row, slot])
            if template < 0 or template >= board.template_shapes.shape[0]:
                return after, paid, row
            position[words] = _set_slot(position[words], slot, int(board.template_shapes[template]))
        position[words + 1] &= ~CHANCE_PENDING
        paid[row] = _end_or_live(board, rewards, position, free)
    return after, paid, -1


@njit
def _repeats_earlier_slot(slots: np.uint64, slot: int) -> bool:
    shape = shape_in_slot(slots, slot)
    for earlier in range(slot):  # noqa: SIM110 - numba compiles no generators
        if shape_in_slot(slots, earlier) == shape:
            return True
    return False


@njit
def legal_action_mask(board: BoardTables, states: NDArray[np.uint64], distinct: bool) -> NDArray[np.bool_]:
    """bool [B, A], where shapes fit; with `distinct`, only for the first of the slots that hold the same shape."""
    words, cells = board.num_words, board.num_cells
    mask = np.zeros((states.shape[0], board.num_slots * cells), np.bool_)
    free = np.zeros(2 * words + 1, np.uint64)
    for row in range(states.shape[0]):
        slots = states[row, words]
        if (states[row, words + 1] & _STOPPED) != _NONE:
            continue
        _free_cells(board, states[row], free)
        for slot in range(board.num_slots):
            shape = shape_in_slot(slots, slot)
            if shape == NO_SHAPE or (distinct and _repeats_earlier_slot(slots, slot)):
                continue
            for word in range(words):
                fits = _fits(board, free, shape, word)
                while fits != _NONE:
                    bit = lowest_bit(fits)
                    mask[row, slot * cells + 64 * word + bit_index(bit)] = True
                    fits ^= bit
    return mask


@njit
def observe(board: BoardTables, states: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """uint8 [B, ceil(cells / 8) + num_slots]: the occupied cells, lowest bit first, and the shape ids."""
    num_bytes = (board.num_cells + 7) // 8
    observations = np.empty((states.shape[0], num_bytes + board.num_slots), np.uint8)
    for row in range(states.shape[0]):
        for byte in range(num_bytes):
            observations[row, byte] = np.uint8((states[row, byte >> 3] >> np.uint64(8 * (byte & 7))) & _BYTE)
        for slot in range(board.num_slots):
            observations[row, num_bytes + slot] = np.uint8(shape_in_slot(states[row, board.num_words], slot))
    return observations


@njit
def _read_observation(board: BoardTables, observation: NDArray[np.uint8], position: NDArray[np.uint64]) -> bool:
    """Set the bitboard and slots of a position [W + 1 or more]; False if there can be no such position."""
    num_bytes = (board.num_cells + 7) // 8
    position[: board.num_words] = _NONE
    for byte in range(num_bytes):
        position[byte >> 3] |= np.uint64(observation[byte]) << np.uint64(8 * (byte & 7))
    position[board.num_words] = EMPTY_SLOTS
    for slot in range(board.num_slots):
        shape = int(observation[num_bytes + slot])
        if shape >= _NUM_SHAPES and shape != NO_SHAPE:
            return False
        position[board.num_words] = _set_slot(position[board.num_words], slot, shape)
    outside = _NONE
    for word in range(board.num_words):
        outside |= position[word] & ~board.live[word]
    return outside == _NONE


@njit
def decode(board: BoardTables, observations: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], int]:
    """Positions with counters 0, over or pending as the rules say; also the first impossible row, or -1."""
    words = board.num_words
    states = np.zeros((observations.shape[0], words + NUM_EXTRA_WORDS), np.uint64)
    free = np.zeros(2 * words + 1, np.uint64)
    for row in range(observations.shape[0]):
        position = states[row]
        if not _read_observation(board, observations[row], position):
            return states, row
        _free_cells(board, position, free)
        if position[words] == EMPTY_SLOTS:
            position[words + 1] = CHANCE_PENDING
        elif not _any_fits(board, free, position[words]):
            position[words + 1] = OVER
    return states, -1


@njit
def encode(board: BoardTables, observations: NDArray[np.uint8]) -> tuple[NDArray[np.float32], int]:
    """Network input [B, (6 + 2 * num_slots) * cells + 23 * num_slots]; also the first impossible row, or -1."""
    words, cells, slots = board.num_words, board.num_cells, board.num_slots
    features = (6 + 2 * slots) * cells
    encoded = np.zeros((observations.shape[0], features + _NUM_SHAPES * slots), np.float32)
    position = np.zeros(words + 1, np.uint64)
    free = np.zeros(2 * words + 1, np.uint64)
    missing = np.zeros(board.line_masks.shape[0], np.int64)
    fill = np.zeros(board.line_masks.shape[0] + 1, np.float32)
    for row in range(observations.shape[0]):
        if not _read_observation(board, observations[row], position):
            return encoded, row
        _free_cells(board, position, free)
        _fill_lines(board, free, missing, fill)
        _encode_board(board, position, fill, encoded[row])
        for slot in range(slots):
            shape = shape_in_slot(position[words], slot)
            if shape != NO_SHAPE:
                planes = encoded[row, (6 + 2 * slot) * cells : (8 + 2 * slot) * cells]
                _encode_placements(board, free, missing, shape, planes)
                encoded[row, features + slot * _NUM_SHAPES + shape] = 1
    return encoded, -1


@njit
def _fill_lines(
    board: BoardTables, free: NDArray[np.uint64], missing: NDArray[np.int64], fill: NDArray[np.float32]
) -> None:
    """Set, per line, the number of free cells [L] and the fraction that is occupied [L + 1]; the last stays 0."""
    for line in range(missing.shape[0]):
        count = 0
        for word in range(board.num_words):
            count += count_bits(board.line_masks[line, word] & free[word])
        missing[line] = count
        fill[line] = 1 - count / board.line_lengths[line]


@njit
def _encode_board(
    board: BoardTables, position: NDArray[np.uint64], fill: NDArray[np.float32], encoded: NDArray[np.float32]
) -> None:
    """Write the six planes that do not depend on the slots."""
    cells = board.num_cells
    for word in range(board.num_words):
        occupied = position[word]
        while occupied != _NONE:
            bit = lowest_bit(occupied)
            encoded[64 * word + bit_index(bit)] = 1
            occupied ^= bit
    for plane in range(2):
        for cell in range(cells):
            encoded[(1 + plane) * cells + cell] = board.live_planes[plane, cell]
    for direction in range(NUM_DIRECTIONS):
        for cell in range(cells):
            encoded[(3 + direction) * cells + cell] = fill[board.cell_lines[direction, cell]]


@njit
def _encode_placements(
    board: BoardTables,
    free: NDArray[np.uint64],
    missing: NDArray[np.int64],
    shape: int,
    planes: NDArray[np.float32],
) -> None:
    """Write the two planes of a slot, [2 * cells]: legal origins, and how much a placement there would clear."""
    for word in range(board.num_words):
        fits = _fits(board, free, shape, word)
        while fits != _NONE:
            bit = lowest_bit(fits)
            planes[64 * word + bit_index(bit)] = 1
            fits ^= bit
    for line in range(missing.shape[0]):
        if 0 < missing[line] <= board.shape_sizes[shape]:
            _encode_clears(board, free, missing, shape, line, planes)


@njit
def _encode_clears(
    board: BoardTables,
    free: NDArray[np.uint64],
    missing: NDArray[np.int64],
    shape: int,
    line: int,
    planes: NDArray[np.float32],
) -> None:
    """Write how much is cleared by each placement that completes `line`."""
    gap = -1
    for word in range(board.num_words):
        open_cells = board.line_masks[line, word] & free[word]
        if open_cells != _NONE:
            gap = 64 * word + bit_index(lowest_bit(open_cells))
            break
    # A placement that completes the line covers this gap, so one of its triangles lies there.
    for triangle in range(board.shape_sizes[shape]):
        origin = gap - board.shape_offsets[shape, triangle]
        if origin >= 0 and planes[origin] != 0 and _completes(board, missing, shape, origin, line):
            planes[board.num_cells + origin] = CLEARED_SCALE * _count_cleared(board, missing, shape, origin)


@njit
def _completes(board: BoardTables, missing: NDArray[np.int64], shape: int, origin: int, line: int) -> bool:
    """Whether a legal placement fills all free cells of a line that has some."""
    count = 0
    for triangle in range(board.shape_sizes[shape]):
        cell = origin + board.shape_offsets[shape, triangle]
        if (board.line_masks[line, cell >> 6] & single_bit(cell)) != _NONE:
            count += 1
    return count == missing[line]


@njit
def _count_cleared(board: BoardTables, missing: NDArray[np.int64], shape: int, origin: int) -> int:
    """Distinct cells of all lines that a legal placement completes."""
    count = 0
    for word in range(board.num_words):
        cleared = _NONE
        for line in range(missing.shape[0]):
            if 0 < missing[line] <= _LARGEST_SHAPE and _completes(board, missing, shape, origin, line):
                cleared |= board.line_masks[line, word]
        count += count_bits(cleared)
    return count
