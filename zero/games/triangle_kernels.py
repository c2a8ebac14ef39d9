"""Compiled rules of the triangle puzzle, over batches of positions.

A position is W + 3 words: the occupied cells as a bitboard of W words; the shape ids of the slots, a byte each, 255 for
an empty or missing slot; flags in the low byte and moves made above them; pieces placed in the low half and cells
cleared in the high half.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.games.bits import bit_index, count_bits, lowest_bit, single_bit
from zero.games.triangle_board import (
    MAX_SHAPE_SIZE,
    NO_SHAPE,
    NUM_DIRECTIONS,
    BoardTables,
    LineTables,
    PlacementTables,
    ShapeTables,
)
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

StepArrays = tuple[NDArray[np.uint64], NDArray[np.float32]]
"""States [B, W + 3] and rewards [B] after half a step."""


class Rewards(NamedTuple):
    """What is paid: per cell placed, per cell cleared, per survived move, for an illegal action, for a natural end."""

    placed: float
    cleared: float
    alive: float
    illegal_action: float
    natural_end: float


class Room(NamedTuple):
    """Where the futures of one position are worked out.

    Attributes:
        fitting: uint64 [23 * V], the placements that fit now.
        left: uint64 [23 * V], those that fit after a placement.
        occupied: uint64 [W], the board after it.
        cleared: uint64 [W], what it cleared.
    """

    fitting: NDArray[np.uint64]
    left: NDArray[np.uint64]
    occupied: NDArray[np.uint64]
    cleared: NDArray[np.uint64]


@njit
def shape_in_slot(slots: np.uint64, slot: int) -> int:
    """The shape id in a slot, 255 for none."""
    return int((slots >> np.uint64(8 * slot)) & _BYTE)


@njit
def _set_slot(slots: np.uint64, slot: int, shape: int) -> np.uint64:
    shift = np.uint64(8 * slot)
    return (slots & ~(_BYTE << shift)) | (np.uint64(shape) << shift)


@njit
def _free_cells(live: NDArray[np.uint64], position: NDArray[np.uint64], free: NDArray[np.uint64]) -> None:
    """Set free [2W + 1] to the playable cells that are not occupied; words from W on must be 0 and stay so."""
    for word in range(live.shape[0]):
        free[word] = live[word] & ~position[word]


@njit
def _fit_slots(
    shapes: ShapeTables, free: NDArray[np.uint64], slots: np.uint64, one_is_enough: bool, fits: NDArray[np.uint64]
) -> bool:
    """Set fits [num_slots, W] to the bitboards of origins where each slot's shape lands on free cells only.

    Where one slot that fits is enough, stops at the first and returns True; else returns False. The compiler makes
    much slower code of a loop whose result is kept to its end.
    """
    fits[:] = _NONE
    for slot in range(fits.shape[0]):
        shape = shape_in_slot(slots, slot)
        if shape == NO_SHAPE:
            continue
        found = _NONE
        for word in range(fits.shape[1]):
            origins = shapes.origins[shape, word]
            for triangle in range(MAX_SHAPE_SIZE):
                source = word + (shapes.offsets[shape, triangle] >> 6)
                shift = np.uint64(shapes.offsets[shape, triangle] & 63)
                # Two shifts, for a shift by 64 is undefined.
                origins &= (free[source] >> shift) | ((free[source + 1] << (_WORD_TOP - shift)) << _ONE)
            fits[slot, word] = origins
            found |= origins
        if one_is_enough and found != _NONE:
            return True
    return False


@njit
def _is_legal(shapes: ShapeTables, position: NDArray[np.uint64], num_slots: int, slot: int, origin: int) -> bool:
    """Whether the shape of a slot, any integer, fits at a cell of the board, in a position that goes on."""
    if slot < 0 or slot >= num_slots:
        return False
    words: int = shapes.origins.shape[1]
    shape = shape_in_slot(position[words], slot)
    if shape == NO_SHAPE or (shapes.origins[shape, origin >> 6] & single_bit(origin)) == _NONE:
        return False
    taken = _NONE
    for triangle in range(MAX_SHAPE_SIZE):
        cell = origin + shapes.offsets[shape, triangle]
        taken |= position[cell >> 6] & single_bit(cell)
    return taken == _NONE


@njit
def _clear_lines(
    line_masks: NDArray[np.uint64],
    position: NDArray[np.uint64],
    placed: NDArray[np.uint64],
    cleared: NDArray[np.uint64],
) -> int:
    """Empty the full lines through the placed cells [W]; the number of cells emptied. `cleared` [W] is scratch."""
    cleared[:] = _NONE
    for line in range(line_masks.shape[0]):
        if (line_masks[line, 0] & ~position[0]) != _NONE:
            continue  # nearly always
        touched = _NONE
        missing = _NONE
        for word in range(line_masks.shape[1]):
            mask = line_masks[line, word]
            touched |= mask & placed[word]
            missing |= mask & ~position[word]
        if missing == _NONE and touched != _NONE:
            for word in range(line_masks.shape[1]):
                cleared[word] |= line_masks[line, word]
    count = 0
    for word in range(line_masks.shape[1]):
        position[word] &= ~cleared[word]
        count += count_bits(cleared[word])
    return count


@njit
def _occupy(
    shapes: ShapeTables, position: NDArray[np.uint64], slot: int, origin: int, placed: NDArray[np.uint64]
) -> int:
    """Place the shape of a slot where it fits and empty the slot; how many cells that took, set in placed [W]."""
    words: int = placed.shape[0]
    shape = shape_in_slot(position[words], slot)
    placed[:] = _NONE
    for triangle in range(MAX_SHAPE_SIZE):
        cell = origin + shapes.offsets[shape, triangle]
        placed[cell >> 6] |= single_bit(cell)
    for word in range(words):
        position[word] |= placed[word]
    position[words] = _set_slot(position[words], slot, NO_SHAPE)
    return int(shapes.sizes[shape])


@njit
def _apply_illegal(rewards: Rewards, ends_on_illegal: bool, position: NDArray[np.uint64], words: int) -> float:
    """End the game, or count a move that did nothing."""
    if ends_on_illegal:
        position[words + 1] |= OVER | ENDED_ILLEGALLY
        return rewards.illegal_action
    position[words + 1] += _ONE << STEPS_SHIFT
    return 0.0


@njit
def apply(
    board: BoardTables,
    rewards: Rewards,
    ends_on_illegal: bool,
    states: NDArray[np.uint64],
    actions: NDArray[np.int64],
) -> StepArrays:
    """Play actions [B]; positions that are over or wait for chance stay, with reward 0."""
    words, cells = board.num_words, board.num_cells
    after = states.copy()
    paid = np.zeros(states.shape[0], np.float32)
    free, fits = _scratch(board.num_slots, words)
    placed, emptied = np.zeros(words, np.uint64), np.zeros(words, np.uint64)
    for row in range(states.shape[0]):
        position, action = after[row], int(actions[row])
        if (position[words + 1] & _STOPPED) != _NONE:
            continue
        slot = action // cells
        origin = action - slot * cells
        if not _is_legal(board.shapes, position, board.num_slots, slot, origin):
            paid[row] = _apply_illegal(rewards, ends_on_illegal, position, words)
            continue
        size = _occupy(board.shapes, position, slot, origin, placed)
        cleared = _clear_lines(board.lines.masks, position, placed, emptied)
        reward = rewards.placed * size + rewards.cleared * cleared
        position[words + 1] += _ONE << STEPS_SHIFT
        position[words + 2] += _ONE + (np.uint64(cleared) << CLEARED_SHIFT)
        if position[words] == EMPTY_SLOTS:
            position[words + 1] |= CHANCE_PENDING
        else:
            _free_cells(board.live, position, free)
            reward += _live_or_end(
                rewards, position, words, _fit_slots(board.shapes, free, position[words], True, fits)
            )
        paid[row] = reward
    return after, paid


@njit
def _live_or_end(rewards: Rewards, position: NDArray[np.uint64], words: int, lives: bool) -> float:
    if lives:
        return rewards.alive
    position[words + 1] |= OVER
    return rewards.natural_end


@njit
def _scratch(num_slots: int, words: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Room for the free cells [2W + 1] and for where shapes fit [num_slots, W]."""
    return np.zeros(2 * words + 1, np.uint64), np.zeros((num_slots, words), np.uint64)


@njit
def resolve(
    board: BoardTables, rewards: Rewards, states: NDArray[np.uint64], outcomes: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.float32], int]:
    """Deal templates [B, num_slots] where chance is pending; also the first row with an impossible one, or -1."""
    words = board.num_words
    after = states.copy()
    paid = np.zeros(states.shape[0], np.float32)
    free, fits = _scratch(board.num_slots, words)
    for row in range(states.shape[0]):
        position = after[row]
        if (position[words + 1] & _STOPPED) != CHANCE_PENDING:
            continue
        for slot in range(board.num_slots):
            template = int(outcomes[row, slot])
            if template < 0 or template >= board.shapes.of_template.shape[0]:
                return after, paid, row
            position[words] = _set_slot(position[words], slot, int(board.shapes.of_template[template]))
        position[words + 1] &= ~CHANCE_PENDING
        _free_cells(board.live, position, free)
        lives = _fit_slots(board.shapes, free, position[words], True, fits)
        paid[row] = _live_or_end(rewards, position, words, lives)
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
    free, fits = _scratch(board.num_slots, words)
    for row in range(states.shape[0]):
        slots = states[row, words]
        if (states[row, words + 1] & _STOPPED) != _NONE:
            continue
        _free_cells(board.live, states[row], free)
        _fit_slots(board.shapes, free, slots, False, fits)
        for slot in range(board.num_slots):
            if distinct and _repeats_earlier_slot(slots, slot):
                continue
            for word in range(words):
                origins = fits[slot, word]
                while origins != _NONE:
                    bit = lowest_bit(origins)
                    mask[row, slot * cells + 64 * word + bit_index(bit)] = True
                    origins ^= bit
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
def _read_observation(
    live: NDArray[np.uint64],
    num_shapes: int,
    num_slots: int,
    num_cells: int,
    observation: NDArray[np.uint8],
    position: NDArray[np.uint64],
) -> bool:
    """Set the bitboard and slots of a position [W + 1 or more]; False if there can be no such position."""
    words: int = live.shape[0]
    num_bytes = (num_cells + 7) // 8
    position[:words] = _NONE
    for byte in range(num_bytes):
        position[byte >> 3] |= np.uint64(observation[byte]) << np.uint64(8 * (byte & 7))
    position[words] = EMPTY_SLOTS
    for slot in range(num_slots):
        shape = int(observation[num_bytes + slot])
        if shape >= num_shapes and shape != NO_SHAPE:
            return False
        position[words] = _set_slot(position[words], slot, shape)
    outside = _NONE
    for word in range(words):
        outside |= position[word] & ~live[word]
    return outside == _NONE


@njit
def decode(board: BoardTables, observations: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], int]:
    """Positions with counters 0, over or pending as the rules say; also the first impossible row, or -1."""
    words = board.num_words
    shapes: int = board.shapes.sizes.shape[0]
    states = np.zeros((observations.shape[0], words + NUM_EXTRA_WORDS), np.uint64)
    free, fits = _scratch(board.num_slots, words)
    for row in range(observations.shape[0]):
        position = states[row]
        if not _read_observation(board.live, shapes, board.num_slots, board.num_cells, observations[row], position):
            return states, row
        _free_cells(board.live, position, free)
        if position[words] == EMPTY_SLOTS:
            position[words + 1] = CHANCE_PENDING
        elif not _fit_slots(board.shapes, free, position[words], True, fits):
            position[words + 1] = OVER
    return states, -1


@njit
def encode(board: BoardTables, observations: NDArray[np.uint8]) -> tuple[NDArray[np.float32], int]:
    """Network input [B, (6 + 4 * num_slots) * cells + 23 * (num_slots + 1)]; also the first impossible row, or -1."""
    words, cells, slots = board.num_words, board.num_cells, board.num_slots
    shapes: int = board.shapes.sizes.shape[0]
    features = (6 + 4 * slots) * cells
    encoded = np.zeros((observations.shape[0], features + shapes * (slots + 1)), np.float32)
    position = np.zeros(words + 1, np.uint64)
    free, fits = _scratch(slots, words)
    missing = np.zeros(board.lines.masks.shape[0], np.int64)
    fill = np.zeros(board.lines.masks.shape[0] + 1, np.float32)
    room = _make_room(board)
    for row in range(observations.shape[0]):
        if not _read_observation(board.live, shapes, slots, cells, observations[row], position):
            return encoded, row
        _free_cells(board.live, position, free)
        _fit_slots(board.shapes, free, position[words], False, fits)
        _fill_lines(board.lines, free, missing, fill)
        _mark(position[:words], encoded[row])
        _encode_board(board.live_planes, board.lines.of_cell, fill, encoded[row, cells : 6 * cells])
        _find_placements(board.placements, position[:words], room.fitting)
        _encode_mobility(board.placements, room.fitting, encoded[row, features + slots * shapes :])
        for slot in range(slots):
            shape = shape_in_slot(position[words], slot)
            if shape != NO_SHAPE:
                first = (6 + 4 * slot) * cells
                planes = encoded[row, first : first + 4 * cells].reshape(4, cells)
                _mark(fits[slot], planes[0])
                _encode_clears(board.shapes, board.lines.masks, free, missing, shape, planes[0], planes[1])
                _encode_futures(board, position, shape, planes, room)
                encoded[row, features + slot * shapes + shape] = 1
    return encoded, -1


@njit
def _fill_lines(
    lines: LineTables, free: NDArray[np.uint64], missing: NDArray[np.int64], fill: NDArray[np.float32]
) -> None:
    """Set, per line, the number of free cells [L] and the fraction that is occupied [L + 1]; the last stays 0."""
    for line in range(missing.shape[0]):
        count = 0
        for word in range(lines.masks.shape[1]):
            count += count_bits(lines.masks[line, word] & free[word])
        missing[line] = count
        fill[line] = 1 - count * lines.inverse_lengths[line]


@njit
def _mark(bits: NDArray[np.uint64], plane: NDArray[np.float32]) -> None:
    """Write ones at the set bits of a bitboard."""
    for word in range(bits.shape[0]):
        left = bits[word]
        while left != _NONE:
            bit = lowest_bit(left)
            plane[64 * word + bit_index(bit)] = 1
            left ^= bit


@njit
def _encode_board(
    live_planes: NDArray[np.float32],
    lines_of_cell: NDArray[np.int64],
    fill: NDArray[np.float32],
    planes: NDArray[np.float32],
) -> None:
    """Write the five planes [5 * cells] of where triangles can lie and how full their lines are."""
    cells = live_planes.shape[1]
    for plane in range(2):
        planes[plane * cells : (plane + 1) * cells] = live_planes[plane]
    for direction in range(NUM_DIRECTIONS):
        for cell in range(cells):
            planes[(2 + direction) * cells + cell] = fill[lines_of_cell[direction, cell]]


@njit
def _encode_clears(
    shapes: ShapeTables,
    line_masks: NDArray[np.uint64],
    free: NDArray[np.uint64],
    missing: NDArray[np.int64],
    shape: int,
    legal: NDArray[np.float32],
    clears: NDArray[np.float32],
) -> None:
    """Write how much is cleared by each legal placement that completes a line; planes [cells]."""
    for line in range(missing.shape[0]):
        if missing[line] == 0 or missing[line] > shapes.sizes[shape]:
            continue
        gap = _first_gap(line_masks[line], free)
        # A placement that completes the line covers its gaps, so one of its triangles lies on the first.
        for triangle in range(shapes.sizes[shape]):
            origin = gap - shapes.offsets[shape, triangle]
            if origin >= 0 and legal[origin] != 0 and clears[origin] == 0:
                cleared = _count_cleared(shapes, line_masks, missing, shape, origin)
                clears[origin] = CLEARED_SCALE * cleared


@njit
def _first_gap(line_mask: NDArray[np.uint64], free: NDArray[np.uint64]) -> int:
    """The first free cell of a line; -1 for none."""
    for word in range(line_mask.shape[0]):
        gaps = line_mask[word] & free[word]
        if gaps != _NONE:
            return 64 * word + bit_index(lowest_bit(gaps))
    return -1


@njit
def _make_room(board: BoardTables) -> Room:
    size: int = board.placements.all.shape[0]
    return Room(
        np.zeros(size, np.uint64),
        np.zeros(size, np.uint64),
        np.zeros(board.num_words, np.uint64),
        np.zeros(board.num_words, np.uint64),
    )


@njit
def _find_placements(placements: PlacementTables, occupied: NDArray[np.uint64], fitting: NDArray[np.uint64]) -> None:
    """Set fitting [23 * V] to the placements that cover no occupied cell."""
    fitting[:] = placements.all
    for word in range(occupied.shape[0]):
        left = occupied[word]
        while left != _NONE:
            bit = lowest_bit(left)
            _cover(placements.covering, 64 * word + bit_index(bit), fitting)
            left ^= bit


@njit
def _cover(covering: NDArray[np.uint64], cell: int, fitting: NDArray[np.uint64]) -> None:
    """Take the placements that cover a cell out of those that fit."""
    for word in range(fitting.shape[0]):
        fitting[word] &= ~covering[cell, word]


@njit
def _encode_mobility(placements: PlacementTables, fitting: NDArray[np.uint64], features: NDArray[np.float32]) -> None:
    """Write for every shape the fraction of its placements that is left."""
    for shape in range(features.shape[0]):
        count = 0
        for word in range(shape, fitting.shape[0], features.shape[0]):
            count += count_bits(fitting[word])
        features[shape] = count * placements.inverse_counts[shape]


@njit
def _encode_futures(
    board: BoardTables, position: NDArray[np.uint64], shape: int, planes: NDArray[np.float32], room: Room
) -> None:
    """Write which fraction of all placements each legal placement leaves, and of how many templates it leaves none.

    Planes [4, cells], of which the first two are written: what is legal, and what it clears.
    """
    covering, num_templates = board.placements.covering, board.placements.num_templates
    offsets, size = board.shapes.offsets, board.shapes.sizes[shape]
    fitting, left = room.fitting, room.left
    shapes: int = board.shapes.sizes.shape[0]
    for origin in range(planes.shape[1]):
        if planes[0, origin] == 0:
            continue
        if planes[1, origin] == 0:
            left[:] = fitting
            for triangle in range(size):
                _cover(covering, origin + offsets[shape, triangle], left)
        else:
            _clear_in_room(board, position, shape, origin, room)
        count, without = 0, 0
        for word in range(left.shape[0]):
            count += num_templates[word] * count_bits(left[word])
        for word in range(shapes, left.shape[0]):
            left[word % shapes] |= left[word]
        for word in range(shapes):
            without += num_templates[word] * (left[word] == _NONE)
        planes[2, origin] = count * board.placements.inverse_total
        planes[3, origin] = without * board.placements.inverse_num_templates


@njit
def _clear_in_room(board: BoardTables, position: NDArray[np.uint64], shape: int, origin: int, room: Room) -> None:
    """Set room.left to the placements that are left after one that clears lines."""
    for word in range(room.occupied.shape[0]):
        room.occupied[word] = position[word]
    for triangle in range(board.shapes.sizes[shape]):
        cell = origin + board.shapes.offsets[shape, triangle]
        room.occupied[cell >> 6] |= single_bit(cell)
    _clear_lines(board.lines.masks, room.occupied, room.occupied, room.cleared)
    _find_placements(board.placements, room.occupied, room.left)


@njit
def _count_cleared(
    shapes: ShapeTables, line_masks: NDArray[np.uint64], missing: NDArray[np.int64], shape: int, origin: int
) -> int:
    """Distinct cells of all lines that a legal placement completes."""
    count = 0
    for word in range(line_masks.shape[1]):
        cleared = _NONE
        for line in range(missing.shape[0]):
            if 0 < missing[line] <= shapes.sizes[shape]:
                covered = 0
                for triangle in range(shapes.sizes[shape]):
                    cell = origin + shapes.offsets[shape, triangle]
                    covered += (line_masks[line, cell >> 6] & single_bit(cell)) != _NONE
                if covered == missing[line]:
                    cleared |= line_masks[line, word]
        count += count_bits(cleared)
    return count
