"""Tic-tac-toe: two players in turns, nothing random; the smallest game that exercises the whole interface."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero.games.arrays import as_actions, as_outcomes, as_rows
from zero.games.game import Game, GameError, States, Symmetry, Transition
from zero.trajectories import ColumnSpec

_NUM_CELLS = 9
_ALL_CELLS = np.uint64(0b111_111_111)
_ONE = np.uint64(1)
_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
_LINE_MASKS = np.array([sum(1 << cell for cell in line) for line in _LINES], np.uint64)
_CELL_BITS = _ONE << np.arange(_NUM_CELLS, dtype=np.uint64)
_FREE, _FIRST, _SECOND = 0, 1, 2
_CELL_SIDE = 80


class TicTacToe(Game):
    """Three in a row on 3 x 3 cells; reward 1 to the mover who completes a line, 0 otherwise.

    A state is two words: the cells of player 0, who begins, and of player 1; bit `3 * row + column`. An observation is
    uint8 [9]: 0 free, 1 player 0, 2 player 1. Planes: own cells, the opponent's, and ones where player 0 is to move.
    """

    name = "tic_tac_toe"
    num_actions = _NUM_CELLS
    max_legal_actions = _NUM_CELLS
    num_players = 2
    state_size = 2
    chance_size = 0
    observation_spec = ColumnSpec("observation", "uint8", (_NUM_CELLS,))
    planes_shape = (3, 3, 3)
    num_features = 0

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Turns of the board and its mirror images, seven in all."""
        board = np.arange(_NUM_CELLS).reshape(3, 3)
        images = [np.rot90(side, turns).ravel() for side in (board, board.T) for turns in range(4)]
        return tuple(Symmetry(cells, cells) for cells in images[1:])

    def initial(self, outcomes: NDArray[np.int64]) -> States:
        """Empty boards, as many as there are rows of outcomes [B, 0]."""
        return np.zeros((as_rows("outcomes", outcomes, np.int64, (0,)).shape[0], 2), np.uint64)

    def legal_action_mask(self, states: States) -> NDArray[np.bool_]:
        """bool [B, 9], the free cells; none when the game is over."""
        states = self._checked(states)
        free = ~(states[:, 0] | states[:, 1])
        return ((free[:, None] & _CELL_BITS) != 0) & ~self.terminated(states)[:, None]

    def apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """Mark cells `actions` [B].

        Raises:
            GameError: the cell is taken or there is no such cell, in a game that is not over.
        """
        states = self._checked(states)
        actions = as_actions(actions, states.shape[0])
        running = ~self.terminated(states)
        rows = np.flatnonzero(running)
        cells = actions[rows]
        legal = (cells >= 0) & (cells < _NUM_CELLS)
        bits = _ONE << np.where(legal, cells, 0).astype(np.uint64)
        legal &= ((states[rows, 0] | states[rows, 1]) & bits) == 0
        if not legal.all():
            raise GameError(f"tic_tac_toe: action {cells[~legal][0]} is not legal")
        after = states.copy()
        players = self.to_play(states)[rows]
        after[rows, players] |= bits
        won = np.zeros(states.shape[0], np.bool_)
        won[rows] = _has_line(after[rows, players])
        rewards = won.astype(np.float32)
        return Transition(after, rewards, self.terminated(after), np.zeros_like(won))

    def resolve(self, states: States, outcomes: NDArray[np.int64]) -> Transition:
        """Nothing is ever random: positions stay."""
        states = self._checked(states)
        batch_size = states.shape[0]
        as_outcomes(outcomes, batch_size, 0)
        nothing = np.zeros(batch_size, np.bool_)
        return Transition(states.copy(), nothing.astype(np.float32), self.terminated(states), nothing)

    def chance_from_uniforms(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Outcomes [B, 0]."""
        return as_rows("uniforms", uniforms, np.float64, (0,)).astype(np.int64)

    def terminated(self, states: States) -> NDArray[np.bool_]:
        """bool [B], a line is complete or no cell is free."""
        states = self._checked(states)
        full = (states[:, 0] | states[:, 1]) == _ALL_CELLS
        return full | _has_line(states[:, 0]) | _has_line(states[:, 1])

    def to_play(self, states: States) -> NDArray[np.int8]:
        """int8 [B]; player 0 moves when both have equally many cells."""
        counts = np.bitwise_count(self._checked(states))
        return (counts[:, 0] > counts[:, 1]).astype(np.int8)

    def observation(self, states: States) -> NDArray[np.generic]:
        """uint8 [B, 9]: 0 free, 1 player 0, 2 player 1."""
        first, second = ((self._checked(states)[:, player, None] & _CELL_BITS).astype(np.bool_) for player in (0, 1))
        return first * np.uint8(_FIRST) + second * np.uint8(_SECOND)

    def decode(self, observations: NDArray[np.generic]) -> States:
        """Positions from uint8 [B, 9]; nothing is lost.

        Raises:
            GameError: a value above 2.
        """
        cells = self._checked_observations(observations)
        return np.stack([((cells == mark) * _CELL_BITS).sum(axis=1) for mark in (_FIRST, _SECOND)], axis=1)

    def encode(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """float32 [B, 27]: own cells, the opponent's cells, ones where player 0 is to move.

        Raises:
            GameError: a value above 2.
        """
        cells = self._checked_observations(observations)
        first, second = cells == _FIRST, cells == _SECOND
        first_to_play = (first.sum(axis=1) == second.sum(axis=1))[:, None]
        own, opponent = np.where(first_to_play, first, second), np.where(first_to_play, second, first)
        turn = np.broadcast_to(first_to_play, cells.shape)
        return np.concatenate([own, opponent, turn], axis=1).astype(np.float32)

    def render_ascii(self, states: States, index: int = 0) -> str:
        """Three lines of X (player 0), O (player 1) and dots."""
        marks = "".join(".XO"[int(mark)] for mark in self.observation(states[index : index + 1])[0])
        return "\n".join(marks[start : start + 3] for start in (0, 3, 6))

    def render_svg(self, states: States, index: int = 0) -> str:
        """The board with its crosses (player 0) and noughts (player 1), as an SVG document; a free cell is a target."""
        cells = [
            _cell_svg(_CELL_SIDE * (cell % 3), _CELL_SIDE * (cell // 3), cell, int(mark))
            for cell, mark in enumerate(self.observation(states[index : index + 1])[0])
        ]
        side = 3 * _CELL_SIDE
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" '
            f'fill="none" stroke-width="8" stroke-linecap="round">{"".join(cells)}</svg>'
        )

    def _checked(self, states: States) -> States:
        return as_rows("states", states, np.uint64, (2,))

    def _checked_observations(self, observations: NDArray[Any]) -> NDArray[np.uint8]:
        cells = as_rows("observations", observations, np.uint8, (_NUM_CELLS,))
        if (cells > _SECOND).any():
            raise GameError(f"tic_tac_toe: an observation holds {cells.max()}, allowed are 0, 1 and 2")
        return cells


def _has_line(cells: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [B], whether the bits [B] hold a complete line."""
    return ((cells[:, None] & _LINE_MASKS) == _LINE_MASKS).any(axis=1)


def _cell_svg(left: int, top: int, cell: int, mark: int) -> str:
    target = f' data-target="{cell}"' if mark == _FREE else ""
    tile = (
        f'<rect x="{left + 3}" y="{top + 3}" width="{_CELL_SIDE - 6}" height="{_CELL_SIDE - 6}" rx="8" '
        f'fill="#eceff4"{target}/>'
    )
    if mark == _FIRST:
        arm = _CELL_SIDE - 44
        return f'{tile}<path d="M{left + 22} {top + 22}l{arm} {arm}m0 -{arm}l-{arm} {arm}" stroke="#5e81ac"/>'
    if mark == _SECOND:
        middle = _CELL_SIDE // 2
        return f'{tile}<circle cx="{left + middle}" cy="{top + middle}" r="20" stroke="#d08770"/>'
    return tile
