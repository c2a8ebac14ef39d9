"""Connect Four: two players in turns, nothing random; stones fall in seven columns, four in a row win."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero.games import connect_four_kernels as kernels
from zero.games.arrays import as_actions, as_outcomes, as_rows
from zero.games.connect_four_kernels import NUM_COLUMNS, NUM_ROWS
from zero.games.game import Game, GameError, States, Symmetry, Transition
from zero.trajectories import ColumnSpec

_CELL_SIDE = 40
_COLOURS = ("#eceff4", "#d08770", "#ebcb8b")


class ConnectFour(Game):
    """Four in a row on 7 columns x 6 rows; reward 1 to the mover who completes a line, 0 otherwise.

    A state is laid out as `connect_four_kernels` says. An action is a column. An observation is uint8 [2, 7]: for
    player 0, who begins, and player 1, the stones of each column as bits, lowest bit at the bottom. Planes: own stones,
    the opponent's, and ones where player 0 is to move.
    """

    name = "connect_four"
    num_actions = NUM_COLUMNS
    max_legal_actions = NUM_COLUMNS
    num_players = 2
    state_size = 2
    chance_size = 0
    observation_spec = ColumnSpec("observation", "uint8", (2, NUM_COLUMNS))
    planes_shape = (3, NUM_ROWS, NUM_COLUMNS)
    num_features = 0

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Left and right exchanged."""
        columns = np.arange(NUM_COLUMNS)[::-1]
        return (Symmetry(np.concatenate([columns, NUM_COLUMNS + columns]), columns.copy()),)

    def initial(self, outcomes: NDArray[np.int64]) -> States:
        """Empty boards, as many as there are rows of outcomes [B, 0]."""
        return np.zeros((as_rows("outcomes", outcomes, np.int64, (0,)).shape[0], 2), np.uint64)

    def legal_action_mask(self, states: States) -> NDArray[np.bool_]:
        """bool [B, 7], the columns that are not full; none when the game is over."""
        return kernels.legal_action_mask(self._checked(states))

    def apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """Drop stones in columns `actions` [B].

        Raises:
            GameError: the column is full or there is no such column, in a game that is not over.
        """
        states = self._checked(states)
        actions = as_actions(actions, states.shape[0])
        after, rewards, over, illegal = kernels.apply(states, actions)
        if illegal >= 0:
            raise GameError(f"connect_four: action {actions[illegal]} is not legal")
        return Transition(after, rewards, over, np.zeros_like(over))

    def resolve(self, states: States, outcomes: NDArray[np.int64]) -> Transition:
        """Nothing is ever random: positions stay."""
        states = self._checked(states)
        as_outcomes(outcomes, states.shape[0], 0)
        nothing = np.zeros(states.shape[0], np.bool_)
        return Transition(states.copy(), nothing.astype(np.float32), kernels.terminated(states), nothing)

    def chance_from_uniforms(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Outcomes [B, 0]."""
        return as_rows("uniforms", uniforms, np.float64, (0,)).astype(np.int64)

    def terminated(self, states: States) -> NDArray[np.bool_]:
        """bool [B], somebody has four in a row or no cell is free."""
        return kernels.terminated(self._checked(states))

    def to_play(self, states: States) -> NDArray[np.int8]:
        """int8 [B]; player 0 moves when both have equally many stones."""
        return kernels.to_play(self._checked(states))

    def observation(self, states: States) -> NDArray[np.generic]:
        """uint8 [B, 2, 7], the stones of each player in each column."""
        return kernels.observe(self._checked(states))

    def decode(self, observations: NDArray[np.generic]) -> States:
        """Positions from uint8 [B, 2, 7]; nothing is lost.

        Raises:
            GameError: stones that float, lie on each other or were put out of turn.
        """
        rows = as_rows("observations", observations, np.uint8, self.observation_spec.shape)
        states, bad = kernels.decode(rows)
        if bad >= 0:
            raise GameError(f"connect_four: observation {bad} is no position: {rows[bad].tolist()}")
        return states

    def encode(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """float32 [B, 126]: own stones, the opponent's stones, ones where player 0 is to move; the top row first.

        Raises:
            GameError: stones that float, lie on each other or were put out of turn.
        """
        return kernels.encode(self.decode(observations))

    def random_returns(self, states: States, seeds: NDArray[np.uint64], max_moves: int) -> NDArray[np.float32]:
        """See Game; compiled."""
        return kernels.random_returns(self._checked(states), as_rows("seeds", seeds, np.uint64, ()), max_moves)

    def render_ascii(self, states: States, index: int = 0) -> str:
        """Six rows of X (player 0), O (player 1) and dots, above the numbers of the columns."""
        rows = ["".join(".XO"[mark] for mark in row) for row in self._marks(states, index)]
        return "\n".join([*rows, "0123456"])

    def render_svg(self, states: States, index: int = 0) -> str:
        """The board with a disc per cell, as an SVG document; each is a target that stands for its column."""
        middle = _CELL_SIDE // 2
        discs = "".join(
            f'<circle cx="{_CELL_SIDE * column + middle}" cy="{_CELL_SIDE * row + middle}" r="{middle - 4}" '
            f'fill="{_COLOURS[mark]}" data-target="{column}"/>'
            for row, marks in enumerate(self._marks(states, index))
            for column, mark in enumerate(marks)
        )
        width, height = _CELL_SIDE * NUM_COLUMNS, _CELL_SIDE * NUM_ROWS
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
            f'<rect width="{width}" height="{height}" rx="8" fill="#5e81ac"/>{discs}</svg>'
        )

    def _marks(self, states: States, index: int) -> list[list[int]]:
        """0 free, 1 player 0, 2 player 1, by row from the top and column."""
        first, second = self.observation(self._checked(states)[index : index + 1])[0].astype(np.int64)
        heights = range(NUM_ROWS - 1, -1, -1)
        return [
            [int(one >> height & 1) + 2 * int(two >> height & 1) for one, two in zip(first, second, strict=True)]
            for height in heights
        ]

    def _checked(self, states: NDArray[Any]) -> States:
        return as_rows("states", states, np.uint64, (2,))
