"""Pictures of the triangle puzzle, as text and as SVG."""

from collections.abc import Iterable
from typing import NamedTuple
from xml.sax.saxutils import escape

from zero.games.triangle_board import Cell, Range, Shape, live_cells, points_up

PALETTE = (
    (220, 40, 40),
    (60, 60, 220),
    (40, 200, 40),
    (230, 230, 40),
    (240, 150, 20),
    (140, 40, 140),
    (40, 200, 200),
    (200, 100, 180),
    (100, 180, 200),
)
"""The nine colours that shapes are dealt in, (red, green, blue); they have no effect on the rules."""

_SIDE = 40.0
_HEIGHT = _SIDE * 3**0.5 / 2
_MARGIN = 10.0
_SLOT_ROWS = 3
_SLOT_WIDTH = 3.0 * _SIDE
_EMPTY, _OCCUPIED, _OUTLINE = "#eceff4", "#4c566a", "#aab2c0"


class Picture(NamedTuple):
    """What is drawn: columns, the playable ones of each row, occupied cells, the shape in each slot, a caption."""

    columns: int
    ranges: tuple[Range, ...]
    occupied: frozenset[Cell]
    shapes: tuple[Shape | None, ...]
    caption: str


def render_ascii(picture: Picture) -> str:
    """A and V: occupied, pointing up and down; a dot below or above the middle: free, likewise."""
    lines: list[str] = []
    for row, (start, end) in enumerate(picture.ranges):
        marks = [_mark((row, column), (row, column) in picture.occupied) for column in range(start, end)]
        lines.append((" " * start + "".join(marks)).rstrip())
    for slot, shape in enumerate(picture.shapes):
        lines.extend(_shape_lines(slot, shape))
    return "\n".join([*lines, *([picture.caption] if picture.caption else [])])


def render_svg(picture: Picture) -> str:
    """Free cells light, occupied ones dark, every slot's shape in a colour of its own beside the board."""
    board = [
        _triangle(
            (_MARGIN, _MARGIN),
            cell,
            points_up(*cell),
            f'fill="{_OCCUPIED if cell in picture.occupied else _EMPTY}" data-target="{_number(picture, cell)}"',
        )
        for cell in live_cells(picture.ranges)
    ]
    columns = max((end for _, end in picture.ranges), default=0)
    left = 2 * _MARGIN + (columns + 1) * _SIDE / 2
    slots = [
        _slot((left, _MARGIN + slot * _SLOT_ROWS * _HEIGHT), picture, slot, shape)
        for slot, shape in enumerate(picture.shapes)
        if shape is not None
    ]
    rows = max(len(picture.ranges), _SLOT_ROWS * len(picture.shapes))
    width, height = left + _SLOT_WIDTH, 2 * _MARGIN + rows * _HEIGHT
    caption = f"<title>{escape(picture.caption)}</title>" if picture.caption else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" stroke="{_OUTLINE}">'
        f'{caption}<g class="board">{"".join(board)}</g>{"".join(slots)}</svg>'
    )


def _mark(cell: Cell, occupied: bool) -> str:
    if points_up(*cell):
        return "A" if occupied else "."
    return "V" if occupied else "'"


def _shape_lines(slot: int, shape: Shape | None) -> Iterable[str]:
    if shape is None:
        return [f"{slot}: -"]
    rows, columns = zip(*shape.offsets, strict=True)
    lines: list[str] = []
    for row in range(max(rows) + 1):
        marks = [
            ("A" if _offset_points_up(shape, (row, column)) else "V") if (row, column) in shape.offsets else " "
            for column in range(min(columns), max(columns) + 1)
        ]
        lines.append(((f"{slot}: " if row == 0 else "   ") + "".join(marks)).rstrip())
    return lines


def _offset_points_up(shape: Shape, offset: Cell) -> bool:
    return (sum(offset) % 2 == 0) == shape.up


def _slot(corner: tuple[float, float], picture: Picture, slot: int, shape: Shape) -> str:
    first = min(column for _, column in shape.offsets)
    fill = 'fill="#{:02x}{:02x}{:02x}"'.format(*PALETTE[slot % len(PALETTE)])
    triangles = [
        _triangle(corner, (row, column - first), _offset_points_up(shape, (row, column)), fill)
        for row, column in shape.offsets
    ]
    piece = slot * len(picture.ranges) * picture.columns
    covers = " ".join(str(_number(picture, offset)) for offset in shape.offsets)
    return f'<g class="slot" data-piece="{piece}" data-covers="{covers}">{"".join(triangles)}</g>'


def _number(picture: Picture, cell: Cell) -> int:
    """Of a cell, or the difference that an offset makes to it."""
    return cell[0] * picture.columns + cell[1]


def _triangle(corner: tuple[float, float], cell: Cell, up: bool, attributes: str) -> str:
    """One triangle of a grid whose upper left corner is given, (x, y)."""
    x, y = corner[0] + cell[1] * _SIDE / 2, corner[1] + cell[0] * _HEIGHT
    base, tip = (y + _HEIGHT, y) if up else (y, y + _HEIGHT)
    corners = ((x, base), (x + _SIDE, base), (x + _SIDE / 2, tip))
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" {attributes}/>'
