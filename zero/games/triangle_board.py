"""Geometry of the triangle puzzle: cells, lines, templates and shapes, and the tables that the kernels read."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Cell = tuple[int, int]
"""(row, column), rows from the top."""

Range = tuple[int, int]
"""[start, end) of the playable columns of a row."""

NO_SHAPE = 255
"""Shape id of an empty slot."""

NUM_DIRECTIONS = 3
MAX_SHAPE_SIZE = 5
_WORD_BITS = 64

HEXAGON: tuple[Range, ...] = ((3, 12), (2, 13), (1, 14), (0, 15), (0, 15), (1, 14), (2, 13), (3, 12))
"""Playable columns of the default board, 8 x 15: the regular hexagon of side 4."""

_TEMPLATE_NOTATION = (
    "U0,0",
    "U0,0",
    "U0,0 D1,0",
    "U0,0 D1,0",
    "D0,0",
    "U0,0 D0,1",
    "U0,0 D0,1",
    "D0,0 U0,1",
    "D0,0 U0,1",
    "U0,0 D0,1 U0,2",
    "D0,0 U0,1 D0,2",
    "U0,0 D0,1 U0,2 D1,0",
    "U0,0 D0,1 U0,2 D1,2",
    "D0,0 U0,1 U1,0 D1,1",
    "U0,0 U0,2 D1,0 U1,1 D1,2",
    "U0,0 D1,-2 U1,-1 D1,0",
    "U0,0 D0,1 D1,0 U1,1",
    "U0,0 D0,1 D1,0 U1,1 D1,2",
    "U0,0 D0,1 U0,2 D1,0 U1,1",
    "U0,0 D0,1 U0,2 D1,0 D1,2",
    "U0,0 D0,1 U0,2 U1,1 D1,2",
    "U0,0 U0,2 D1,0 U1,1 D1,2",
    "U0,0 D0,1 D1,0 U1,1 D1,2",
    "D0,0 U0,1 D1,1",
    "U0,0 U1,-1 D1,0",
    "U0,0 D1,0 U1,1",
    "U0,0 U1,-1 D1,0 U1,1",
    "U0,0 U1,-1 D1,0",
    "D0,0 U0,1 D0,2 D1,1",
    "D0,0 U0,1 D1,1",
    "U0,0 D0,1 D1,0",
)


class Shape(NamedTuple):
    """A piece.

    Attributes:
        up: whether its triangle at (0, 0), which every shape has, points up.
        offsets: (row, column) of its triangles from the origin, (0, 0) among them, sorted.
    """

    up: bool
    offsets: tuple[Cell, ...]


def _parse(notation: str) -> Shape:
    up: dict[Cell, bool] = {}
    for triangle in notation.split():
        row, column = triangle[1:].split(",")
        up[int(row), int(column)] = triangle[0] == "U"
    return Shape(up[0, 0], tuple(sorted(up)))


TEMPLATES: tuple[Shape, ...] = tuple(_parse(notation) for notation in _TEMPLATE_NOTATION)
"""The 31 equally likely templates; some occur twice, which doubles their probability."""

SHAPES: tuple[Shape, ...] = tuple(dict.fromkeys(TEMPLATES))
"""The 23 distinct shapes; a shape id is an index into this."""

SHAPE_OF_TEMPLATE: tuple[int, ...] = tuple(SHAPES.index(template) for template in TEMPLATES)


def points_up(row: int, column: int) -> bool:
    """Whether the triangle in this cell points up; so does every other cell of a row, whatever is playable."""
    return (row + column) % 2 == 1


def live_cells(ranges: Sequence[Range]) -> list[Cell]:
    """The playable cells, row by row."""
    return [(row, column) for row, (start, end) in enumerate(ranges) for column in range(start, end)]


def find_lines(ranges: Sequence[Range], min_length: int) -> list[list[list[Cell]]]:
    """Maximal runs of playable cells, for each direction (along the row, falling, rising), sorted by first cell."""
    live = set(live_cells(ranges))
    lines: list[list[list[Cell]]] = []
    for direction in range(NUM_DIRECTIONS):
        starts = sorted(live - {_next_cell(cell, direction) for cell in live})
        runs = [_run(start, direction, live) for start in starts]
        lines.append([run for run in runs if len(run) >= min_length])
    return lines


def _next_cell(cell: Cell, direction: int) -> Cell:
    row, column = cell
    crosses_row = (direction == 1 and points_up(row, column)) or (direction == 2 and not points_up(row, column))
    if not crosses_row:
        return row, column + 1
    return (row + 1, column) if direction == 1 else (row - 1, column)


def _run(start: Cell, direction: int, live: set[Cell]) -> list[Cell]:
    run = [start]
    while (cell := _next_cell(run[-1], direction)) in live:
        run.append(cell)
    return run


class ShapeTables(NamedTuple):
    """The shapes on a board.

    Attributes:
        sizes: int64 [23].
        offsets: int64 [23, 5], bits from the origin to each triangle of a shape; rows are filled up with 0.
        origins: uint64 [23, W], where each shape fits on the empty board.
        of_template: int64 [31], the shape id of each template.
    """

    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    origins: NDArray[np.uint64]
    of_template: NDArray[np.int64]


class LineTables(NamedTuple):
    """The L lines of a board.

    Attributes:
        masks: uint64 [L, W], the cells of each line.
        inverse_lengths: float64 [L], 1 / number of cells.
        of_cell: int64 [3, num_cells], the line through a cell in each direction; L for none.
    """

    masks: NDArray[np.uint64]
    inverse_lengths: NDArray[np.float64]
    of_cell: NDArray[np.int64]


class PlacementTables(NamedTuple):
    """All placements of all shapes on the empty board as one set of bits, V words for each shape.

    The first word of every shape holds its first 64 placements, in the order of their origins; then come the second
    words of all shapes, and so on.

    Attributes:
        all: uint64 [23 * V], every placement.
        covering: uint64 [num_cells, 23 * V], those that cover a cell.
        num_templates: int64 [23 * V], how many templates are the shape that a word belongs to.
        inverse_counts: float64 [23], 1 / placements of the shape; 0 if it fits nowhere.
        inverse_total: 1 / placements of all templates.
        inverse_num_templates: 1 / number of templates.
    """

    all: NDArray[np.uint64]
    covering: NDArray[np.uint64]
    num_templates: NDArray[np.int64]
    inverse_counts: NDArray[np.float64]
    inverse_total: float
    inverse_num_templates: float


class BoardTables(NamedTuple):
    """What the kernels need to know of a board; W = number of 64-bit words for all rows * columns cells.

    A bitboard is uint64 [W]; cell (r, c) is bit `r * columns + c`, counted from the lowest bit of the first word.

    Attributes:
        num_cells: rows * columns.
        num_words: W.
        num_slots: preview slots.
        live: bitboard of the playable cells.
        lines: its lines.
        shapes: the shapes on it.
        placements: where they fit.
        live_planes: float32 [2, num_cells], ones at playable cells that point up, and at those that point down.
    """

    num_cells: int
    num_words: int
    num_slots: int
    live: NDArray[np.uint64]
    lines: LineTables
    shapes: ShapeTables
    placements: PlacementTables
    live_planes: NDArray[np.float32]


def build_tables(columns: int, ranges: Sequence[Range], num_slots: int, min_line_length: int) -> BoardTables:
    """Tables of a board with `columns` columns and one row per range."""
    num_cells = len(ranges) * columns
    live = live_cells(ranges)
    live_planes = np.zeros((2, num_cells), np.float32)
    for row, column in live:
        live_planes[0 if points_up(row, column) else 1, row * columns + column] = 1
    offsets = np.zeros((len(SHAPES), MAX_SHAPE_SIZE), np.int64)
    for shape_id, shape in enumerate(SHAPES):
        # An offset is negative only on a board too narrow for the shape, where no origin is ever tried.
        bits = [max(0, row * columns + column) for row, column in shape.offsets]
        offsets[shape_id, : len(bits)] = bits
    return BoardTables(
        num_cells=num_cells,
        num_words=-(-num_cells // _WORD_BITS),
        num_slots=num_slots,
        live=bitboard(live, columns, num_cells),
        lines=_line_tables(columns, ranges, min_line_length),
        shapes=ShapeTables(
            sizes=np.array([len(shape.offsets) for shape in SHAPES]),
            offsets=offsets,
            origins=np.stack([bitboard(_origins(shape, live), columns, num_cells) for shape in SHAPES]),
            of_template=np.array(SHAPE_OF_TEMPLATE),
        ),
        placements=_placement_tables(columns, live, num_cells),
        live_planes=live_planes,
    )


def bitboard(cells: Iterable[Cell], columns: int, num_cells: int) -> NDArray[np.uint64]:
    """uint64 [W], the cells as bits."""
    words = np.zeros(-(-num_cells // _WORD_BITS), np.uint64)
    for row, column in cells:
        word, bit = divmod(row * columns + column, _WORD_BITS)
        words[word] |= np.uint64(1 << bit)
    return words


def _line_tables(columns: int, ranges: Sequence[Range], min_length: int) -> LineTables:
    """The lines; two directions with the same cells, on tiny boards, are one line."""
    num_cells = len(ranges) * columns
    by_direction = find_lines(ranges, min_length)
    distinct = list(dict.fromkeys(frozenset(line) for lines in by_direction for line in lines))
    of_cell = np.full((NUM_DIRECTIONS, num_cells), len(distinct), np.int64)
    for direction, lines in enumerate(by_direction):
        for line in lines:
            number = distinct.index(frozenset(line))
            for row, column in line:
                of_cell[direction, row * columns + column] = number
    masks = np.zeros((len(distinct), -(-num_cells // _WORD_BITS)), np.uint64)
    for number, line in enumerate(distinct):
        masks[number] = bitboard(line, columns, num_cells)
    return LineTables(masks, 1 / np.array([len(line) for line in distinct]), of_cell)


def _placement_tables(columns: int, live: list[Cell], num_cells: int) -> PlacementTables:
    """Number the placements and find what each one covers."""
    origins = [_origins(shape, live) for shape in SHAPES]
    counts = np.array([len(cells) for cells in origins])
    num_words = max(1, -(-int(counts.max()) // _WORD_BITS))
    covering = np.zeros((num_cells, num_words, len(SHAPES)), np.uint64)
    for shape_id, shape in enumerate(SHAPES):
        for number, (row, column) in enumerate(origins[shape_id]):
            word, bit = divmod(number, _WORD_BITS)
            for down, right in shape.offsets:
                covering[(row + down) * columns + column + right, word, shape_id] |= np.uint64(1 << bit)
    num_templates = np.bincount(SHAPE_OF_TEMPLATE, minlength=len(SHAPES))
    return PlacementTables(
        all=np.bitwise_or.reduce(covering, axis=0).ravel(),
        covering=covering.reshape(num_cells, -1),
        num_templates=np.tile(num_templates, num_words),
        inverse_counts=np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0),
        inverse_total=1 / max(1, int(counts @ num_templates)),
        inverse_num_templates=1 / len(TEMPLATES),
    )


def _origins(shape: Shape, live: list[Cell]) -> list[Cell]:
    """Where the shape fits on the empty board."""
    playable = set(live)
    return [
        (row, column)
        for row, column in live
        if points_up(row, column) == shape.up
        and all((row + down, column + right) in playable for down, right in shape.offsets)
    ]
