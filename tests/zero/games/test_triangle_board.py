"""The tables of the triangle puzzle: lines, templates, shapes, origins, options."""

from collections import Counter

import numpy as np
import pytest

from tests.zero.games.naive_triangle import TABLE
from zero.games.game import GameError
from zero.games.options import parse_options
from zero.games.triangle import Triangle, TriangleOptions
from zero.games.triangle_board import HEXAGON, SHAPES, TEMPLATES, build_tables, find_lines, live_cells, points_up

LINES = (
    "0,3-0,11:9 1,2-1,12:11 2,1-2,13:13 3,0-3,14:15 4,0-4,14:15 5,1-5,13:13 6,2-6,12:11 7,3-7,11:9",
    "0,3-7,10:15 0,4-7,11:15 0,6-6,12:13 0,8-5,13:11 0,10-4,14:9 1,2-7,8:13 2,1-7,6:11 3,0-7,4:9",
    "4,0-0,4:9 5,1-0,6:11 6,2-0,8:13 7,3-0,10:15 7,4-0,11:15 7,6-1,12:13 7,8-2,13:11 7,10-3,14:9",
)


@pytest.mark.parametrize("direction", range(3))
def test_lines_of_the_default_board(direction: int):
    """Eight lines per direction with the published ends and lengths."""
    lines = find_lines(HEXAGON, 2)[direction]
    found = {f"{a[0]},{a[1]}-{b[0]},{b[1]}:{len(line)}" for line in lines for a, b in [(line[0], line[-1])]}
    assert found == set(LINES[direction].split())
    assert sorted(len(line) for line in lines) == [9, 9, 11, 11, 13, 13, 15, 15]


def test_cells_of_the_default_board():
    """96 cells, half of them pointing up, each on exactly three lines; a minimum length of 3 changes nothing."""
    cells = live_cells(HEXAGON)
    assert len(cells) == 96
    assert sum(points_up(*cell) for cell in cells) == 48
    through = Counter(cell for lines in find_lines(HEXAGON, 2) for line in lines for cell in line)
    assert through == dict.fromkeys(cells, 3)
    assert find_lines(HEXAGON, 2) == find_lines(HEXAGON, 3)


def test_templates():
    """All 31 in the published order, every triangle pointing as published; sizes, twins, and 23 distinct shapes."""
    assert len(TEMPLATES) == len(TABLE) == 31
    for template, (triangles, _, twin) in zip(TEMPLATES, TABLE, strict=True):
        assert set(template.offsets) == {(row, column) for _, row, column in triangles}
        for kind, row, column in triangles:
            assert (kind == "U") == (template.up == ((row + column) % 2 == 0))
        assert twin is None or TEMPLATES[twin] == template
    assert Counter(len(template.offsets) for template in TEMPLATES) == {1: 3, 2: 6, 3: 8, 4: 7, 5: 7}
    assert len(SHAPES) == len(set(TEMPLATES)) == 23


def test_templates_are_connected():
    """From the origin every triangle is reached over shared edges."""
    for template in TEMPLATES:
        reached, frontier = {(0, 0)}, [(0, 0)]
        while frontier:
            row, column = frontier.pop()
            up = ((row + column) % 2 == 0) == template.up
            for cell in ((row, column - 1), (row, column + 1), (row + 1, column) if up else (row - 1, column)):
                if cell in template.offsets and cell not in reached:
                    reached.add(cell)
                    frontier.append(cell)
        assert reached == set(template.offsets)


def test_origins_on_the_empty_board():
    """Published counts per template; 910 placements of shapes, 1,244 of templates, 288 actions that are ever legal."""
    game = Triangle()
    counts, ever = [], np.zeros((8, 15), np.bool_)
    for template, (_, empty, _) in enumerate(TABLE):
        states = game.position([], [template, None, None])
        mask = game.legal_action_mask(states)[0]
        assert mask.sum() == empty
        assert not mask[120:].any()
        counts.append(int(mask.sum()))
        ever |= mask[:120].reshape(8, 15)
    assert sum(counts) == 1244
    assert sum(dict(zip(TEMPLATES, counts, strict=True)).values()) == 910
    assert 3 * ever.sum() == 288
    assert game.max_legal_actions == 3 * max(counts) == 144


def test_directions_with_the_same_cells_are_one_line():
    """On a board of two cells the row and the falling line are one; no rising line is long enough."""
    tables = build_tables(2, [(0, 2)], 1, 2)
    assert tables.lines.masks.tolist() == [[3]]
    assert tables.lines.of_cell.tolist() == [[0, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rowz": 8}, ["rowz", "playable_ranges"]),
        ({"rows": 0}, ["rows", "1", "got 0"]),
        ({"cols": -1}, ["cols", "got -1"]),
        ({"num_slots": 0}, ["num_slots"]),
        ({"rows": 7}, ["playable_ranges", "8 rows", "7"]),
        ({"rows": 1, "playable_ranges": [[0, 16]]}, ["playable_ranges[0]", "[0, 16)", "15"]),
        ({"rows": 1, "playable_ranges": [[-1, 3]]}, ["playable_ranges[0]"]),
        ({"rows": 1, "playable_ranges": [[4, 3]]}, ["playable_ranges[0]"]),
        ({"illegal_action_mode": "raise"}, ["illegal_action_mode", "end", "ignore", "raise"]),
        ({"reward_placed": float("nan")}, ["reward_placed"]),
    ],
)
def test_bad_options_are_refused(options: dict, words: list[str]):
    """One line that names the option, what was given and what is allowed."""
    with pytest.raises(GameError) as caught:
        parse_options("triangle", TriangleOptions, options)
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_an_empty_row_is_allowed():
    """A row may have no playable cell."""
    options = parse_options("triangle", TriangleOptions, {"rows": 2, "cols": 3, "playable_ranges": [[2, 2], [0, 3]]})
    game = Triangle(options)
    states = game.position([], [0, None, None])
    assert np.flatnonzero(game.legal_action_mask(states)).tolist() == [3, 5]
