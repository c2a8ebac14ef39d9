"""The rules of the triangle puzzle once more, in sets and loops, with a geometry of its own."""

from collections.abc import Iterable

import numpy as np

Cell = tuple[int, int]
Triangle = tuple[str, int, int]

# Index: triangles as (U or D, row, column) from the origin; origins on the empty board; the twin template, if any.
TABLE: tuple[tuple[tuple[Triangle, ...], int, int | None], ...] = (
    ((("U", 0, 0),), 48, 1),
    ((("U", 0, 0),), 48, 0),
    ((("U", 0, 0), ("D", 1, 0)), 44, 3),
    ((("U", 0, 0), ("D", 1, 0)), 44, 2),
    ((("D", 0, 0),), 48, None),
    ((("U", 0, 0), ("D", 0, 1)), 44, 6),
    ((("U", 0, 0), ("D", 0, 1)), 44, 5),
    ((("D", 0, 0), ("U", 0, 1)), 44, 8),
    ((("D", 0, 0), ("U", 0, 1)), 44, 7),
    ((("U", 0, 0), ("D", 0, 1), ("U", 0, 2)), 40, None),
    ((("D", 0, 0), ("U", 0, 1), ("D", 0, 2)), 40, None),
    ((("U", 0, 0), ("D", 0, 1), ("U", 0, 2), ("D", 1, 0)), 37, None),
    ((("U", 0, 0), ("D", 0, 1), ("U", 0, 2), ("D", 1, 2)), 37, None),
    ((("D", 0, 0), ("U", 0, 1), ("U", 1, 0), ("D", 1, 1)), 37, None),
    ((("U", 0, 0), ("U", 0, 2), ("D", 1, 0), ("U", 1, 1), ("D", 1, 2)), 37, 21),
    ((("U", 0, 0), ("D", 1, -2), ("U", 1, -1), ("D", 1, 0)), 37, None),
    ((("U", 0, 0), ("D", 0, 1), ("D", 1, 0), ("U", 1, 1)), 37, None),
    ((("U", 0, 0), ("D", 0, 1), ("D", 1, 0), ("U", 1, 1), ("D", 1, 2)), 37, 22),
    ((("U", 0, 0), ("D", 0, 1), ("U", 0, 2), ("D", 1, 0), ("U", 1, 1)), 37, None),
    ((("U", 0, 0), ("D", 0, 1), ("U", 0, 2), ("D", 1, 0), ("D", 1, 2)), 37, None),
    ((("U", 0, 0), ("D", 0, 1), ("U", 0, 2), ("U", 1, 1), ("D", 1, 2)), 37, None),
    ((("U", 0, 0), ("U", 0, 2), ("D", 1, 0), ("U", 1, 1), ("D", 1, 2)), 37, 14),
    ((("U", 0, 0), ("D", 0, 1), ("D", 1, 0), ("U", 1, 1), ("D", 1, 2)), 37, 17),
    ((("D", 0, 0), ("U", 0, 1), ("D", 1, 1)), 40, 29),
    ((("U", 0, 0), ("U", 1, -1), ("D", 1, 0)), 40, 27),
    ((("U", 0, 0), ("D", 1, 0), ("U", 1, 1)), 40, None),
    ((("U", 0, 0), ("U", 1, -1), ("D", 1, 0), ("U", 1, 1)), 36, None),
    ((("U", 0, 0), ("U", 1, -1), ("D", 1, 0)), 40, 24),
    ((("D", 0, 0), ("U", 0, 1), ("D", 0, 2), ("D", 1, 1)), 36, None),
    ((("D", 0, 0), ("U", 0, 1), ("D", 1, 1)), 40, 23),
    ((("U", 0, 0), ("D", 0, 1), ("D", 1, 0)), 40, None),
)

# Distinct shapes in the order in which templates first show them: what observations call shape ids.
DISTINCT = tuple(dict.fromkeys(frozenset(triangles) for triangles, _, _ in TABLE))


def is_up(cell: Cell) -> bool:
    return sum(cell) % 2 == 1


def strips(cell: Cell) -> tuple[Cell, Cell, Cell]:
    """For each direction, (which strip of the plane between two parallel lines, how far along it)."""
    row, column = cell
    return (row, column), ((column - row) // 2, row + column), ((row + column + 1) // 2, column - row)


def find_lines(live: Iterable[Cell], min_length: int) -> set[frozenset[Cell]]:
    """Group by strip, cut at gaps."""
    lines: set[frozenset[Cell]] = set()
    for direction in range(3):
        by_strip: dict[int, list[tuple[int, Cell]]] = {}
        for cell in live:
            strip, place = strips(cell)[direction]
            by_strip.setdefault(strip, []).append((place, cell))
        for members in by_strip.values():
            run: list[tuple[int, Cell]] = []
            for place, cell in sorted(members):
                if run and place != run[-1][0] + 1:
                    lines.add(frozenset(cell for _, cell in run))
                    run = []
                run.append((place, cell))
            lines.add(frozenset(cell for _, cell in run))
    return {line for line in lines if len(line) >= min_length}


def find_places(live: Iterable[Cell]) -> list[list[frozenset[Cell]]]:
    """For each template, what it occupies wherever it fits on an empty board."""
    live, places = set(live), []
    for triangles, _, _ in TABLE:
        origins = [cell for cell in live if is_up(cell) == (triangles[0][0] == "U")]
        shapes = [frozenset((row + down, column + right) for _, down, right in triangles) for row, column in origins]
        places.append([shape for shape in shapes if shape <= live])
    return places


class NaiveTriangle:
    """One game; rewards as in the rules, with the chance half kept apart."""

    def __init__(self, options, hand: list[int]) -> None:
        self.options = options
        self.live = {(r, c) for r, (start, end) in enumerate(options.playable_ranges) for c in range(start, end)}
        self.lines, self.places = find_lines(self.live, options.min_line_length), find_places(self.live)
        self.occupied: set[Cell] = set()
        self.hand: list[int | None] = list(hand)
        self.moves = self.pieces = self.cleared = 0
        self.over = not self.legal()

    def cells(self, action: int) -> set[Cell] | None:
        """What an action would occupy; None if it is illegal."""
        slot, place = divmod(action, self.options.rows * self.options.cols)
        row, column = divmod(place, self.options.cols)
        if self.hand[slot] is None:
            return None
        cells = set()
        for kind, down, right in TABLE[self.hand[slot]][0]:
            cell = (row + down, column + right)
            if cell not in self.live or cell in self.occupied or is_up(cell) != (kind == "U"):
                return None
            cells.add(cell)
        return cells

    def legal(self) -> list[int]:
        """Actions that can be played, whether or not the game is over."""
        num_actions = self.options.num_slots * self.options.rows * self.options.cols
        return [action for action in range(num_actions) if self.cells(action) is not None]

    def would_clear(self, cells: set[Cell]) -> set[Cell]:
        """The cells of the lines that these cells would complete."""
        full = [line for line in self.lines if line & cells and line <= self.occupied | cells]
        return set().union(*full)

    def step(self, action: int, hand: list[int]) -> float:
        """Play, deal the hand if the last one is used up, and give the reward of it all."""
        if self.over:
            return 0.0
        cells = (
            self.cells(action) if 0 <= action < self.options.num_slots * self.options.rows * self.options.cols else None
        )
        if cells is None:
            if self.options.illegal_action_mode == "ignore":
                self.moves += 1
                return 0.0
            self.over = True
            return self.options.illegal_action_penalty
        cleared = self.would_clear(cells)
        self.occupied = (self.occupied | cells) - cleared
        self.hand[action // (self.options.rows * self.options.cols)] = None
        if all(template is None for template in self.hand):
            self.hand = list(hand)
        self.moves += 1
        self.pieces += 1
        self.cleared += len(cleared)
        self.over = not self.legal()
        reward = self.options.reward_placed * len(cells) + self.options.reward_cleared * len(cleared)
        return reward + (self.options.penalty_on_natural_end if self.over else self.options.reward_alive)

    def shape_ids(self) -> list[int]:
        """What each slot holds, as observations say it."""
        return [255 if template is None else DISTINCT.index(frozenset(TABLE[template][0])) for template in self.hand]

    def line_through(self, cell: Cell, direction: int) -> frozenset[Cell]:
        """The line of this direction; another one may lie in the same strip on tiny boards, but is shorter."""
        strip = strips(cell)[direction][0]
        through = [line for line in self.lines if cell in line]
        along = [line for line in through if all(strips(other)[direction][0] == strip for other in line)]
        return max(along, key=len, default=frozenset())

    def encode(self) -> np.ndarray:
        """The planes and features, cell by cell."""
        options = self.options
        planes = np.zeros((6 + 4 * options.num_slots, options.rows, options.cols), np.float32)
        on_empty = self.placements(set())
        for cell in self.live:
            planes[(0, *cell)] = cell in self.occupied
            planes[(1 if is_up(cell) else 2, *cell)] = 1
            for direction in range(3):
                line = self.line_through(cell, direction)
                planes[(3 + direction, *cell)] = len(line & self.occupied) / max(1, len(line))
        for action in self.legal():
            slot, place = divmod(action, options.rows * options.cols)
            row, column = divmod(place, options.cols)
            cells = self.cells(action)
            cleared = self.would_clear(cells)
            left = self.placements((self.occupied | cells) - cleared)
            planes[6 + 4 * slot, row, column] = 1
            planes[7 + 4 * slot, row, column] = len(cleared) / 10
            planes[8 + 4 * slot, row, column] = sum(left) / max(1, sum(on_empty))
            planes[9 + 4 * slot, row, column] = left.count(0) / len(TABLE)
        features = np.zeros((options.num_slots + 1, len(DISTINCT)), np.float32)
        for slot, shape in enumerate(self.shape_ids()):
            if shape != 255:
                features[slot, shape] = 1
        for template, left in enumerate(self.placements(self.occupied)):
            shape = DISTINCT.index(frozenset(TABLE[template][0]))
            features[-1, shape] = left / max(1, on_empty[template])
        return np.concatenate([planes.ravel(), features.ravel()])

    def placements(self, occupied: set[Cell]) -> list[int]:
        """In how many places each template fits."""
        return [sum(place.isdisjoint(occupied) for place in places) for places in self.places]
