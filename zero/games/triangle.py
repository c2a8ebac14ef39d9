"""The triangle puzzle: place dealt shapes on a board of triangles, clear full lines, last as long as you can."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zero.games import triangle_kernels as kernels
from zero.games import triangle_rendering as rendering
from zero.games.arrays import as_actions, as_outcomes, as_rows
from zero.games.game import Game, GameError, States, Transition
from zero.games.options import GameOptions
from zero.games.triangle_board import (
    HEXAGON,
    NO_SHAPE,
    SHAPE_OF_TEMPLATE,
    SHAPES,
    TEMPLATES,
    Cell,
    Range,
    bitboard,
    build_tables,
)
from zero.trajectories import ColumnSpec

Reward = Annotated[float, Field(allow_inf_nan=False)]

_COUNT_MASK = np.uint64(2**32 - 1)
_SHAPES_OF_TEMPLATES = np.array(SHAPE_OF_TEMPLATE, np.int64)


class TriangleOptions(GameOptions):
    """The board and what is paid; the defaults are the rules of the published game.

    Attributes:
        rows: rows of the board.
        cols: columns of the board.
        playable_ranges: [start, end) of the playable columns, one per row.
        num_slots: shapes that are dealt at once.
        min_line_length: runs of cells shorter than this are no lines.
        reward_placed: per triangle placed.
        reward_cleared: per cell cleared.
        reward_alive: per move after which the game goes on.
        illegal_action_penalty: the reward of an illegal action that ends the game.
        penalty_on_natural_end: the reward, beside placed and cleared, of the move after which nothing fits.
        illegal_action_mode: an illegal action ends the game, or is ignored: it pays nothing and counts as a move.
    """

    rows: int = Field(default=8, ge=1)
    cols: int = Field(default=15, ge=1)
    playable_ranges: tuple[Range, ...] = HEXAGON
    num_slots: int = Field(default=3, ge=1, le=8)
    min_line_length: int = Field(default=2, ge=1)
    reward_placed: Reward = 0.01
    reward_cleared: Reward = 0.5
    reward_alive: Reward = 0.005
    illegal_action_penalty: Reward = -10.0
    penalty_on_natural_end: Reward = 0.0
    illegal_action_mode: Literal["end", "ignore"] = "end"

    @model_validator(mode="after")
    def _ranges_are_on_the_board(self) -> "TriangleOptions":
        if len(self.playable_ranges) != self.rows:
            raise ValueError(
                f"playable_ranges has {len(self.playable_ranges)} rows, rows is {self.rows}: give one [start, end) each"
            )
        for row, (start, end) in enumerate(self.playable_ranges):
            if not 0 <= start <= end <= self.cols:
                raise ValueError(
                    f"playable_ranges[{row}] is [{start}, {end}), must satisfy 0 <= start <= end <= cols = {self.cols}"
                )
        return self


class Triangle(Game):
    """The puzzle; states, observations and planes are laid out as `triangle_kernels` says.

    An action is `slot * rows * cols + row * cols + column`, where the shape's origin goes. An outcome is one template
    index, 0 to 30, per slot. When the last slot is emptied chance is pending; what living or dying pays then belongs to
    `resolve`, for only the deal decides it.

    An observation is uint8 [ceil(rows * cols / 8) + num_slots]: the occupied cells, lowest bit first, then the shape
    ids, 255 for an empty slot. Moves made, pieces, cleared cells, and that an illegal action ended the game, are not
    in it.

    Planes: occupied; playable and pointing up; playable and pointing down; how full the line through each cell is, for
    each of the three directions; then for every slot where its shape fits, how many cells that would clear / 10, which
    fraction of the placements of all templates on the empty board it would leave, and which fraction of the templates
    would fit nowhere. Features: the shape of every slot, one-hot; which fraction of its placements each shape has left.
    """

    name = "triangle"
    num_players = 1

    def __init__(self, options: TriangleOptions | None = None) -> None:
        self.options = options or TriangleOptions()
        rows, cols, slots = self.options.rows, self.options.cols, self.options.num_slots
        self._board = build_tables(cols, self.options.playable_ranges, slots, self.options.min_line_length)
        self._rewards = kernels.Rewards(
            placed=self.options.reward_placed,
            cleared=self.options.reward_cleared,
            alive=self.options.reward_alive,
            illegal_action=self.options.illegal_action_penalty,
            natural_end=self.options.penalty_on_natural_end,
        )
        self._ends_on_illegal = self.options.illegal_action_mode == "end"
        most_origins = int(np.bitwise_count(self._board.shapes.origins).sum(axis=1).max())
        self.num_actions = slots * rows * cols
        self.max_legal_actions = max(1, slots * most_origins)
        self.state_size = self._board.num_words + kernels.NUM_EXTRA_WORDS
        self.chance_size = slots
        self.observation_spec = ColumnSpec("observation", "uint8", (-(-rows * cols // 8) + slots,))
        self.planes_shape = (6 + 4 * slots, rows, cols)
        self.num_features = (slots + 1) * len(SHAPES)

    @property
    def lines(self) -> NDArray[np.bool_]:
        """bool [L, rows, cols], the lines that are cleared when they are full."""
        bits = np.unpackbits(self._board.lines.masks.view(np.uint8), axis=1, bitorder="little")
        rows, cols = self.options.rows, self.options.cols
        return bits[:, : rows * cols].reshape(-1, rows, cols).astype(np.bool_)

    def initial(self, outcomes: NDArray[np.int64]) -> States:
        """Empty boards with the dealt templates [B, num_slots].

        Raises:
            GameError: an outcome that is no template.
        """
        outcomes = as_rows("outcomes", outcomes, np.int64, (self.chance_size,))
        states = np.zeros((outcomes.shape[0], self.state_size), np.uint64)
        states[:, self._board.num_words] = kernels.EMPTY_SLOTS
        states[:, self._board.num_words + 1] = kernels.CHANCE_PENDING
        return self.resolve(states, outcomes).states

    def position(self, occupied: Iterable[Cell], templates: Sequence[int | None]) -> States:
        """One position [1, state_size], for tests and analysis: occupied (row, column) cells, a template per slot.

        Raises:
            GameError: a cell that is not playable, no template, or another number of slots.
        """
        cells = set(occupied)
        playable = {(row, column) for row, ends in enumerate(self.options.playable_ranges) for column in range(*ends)}
        if not cells <= playable:
            raise GameError(f"cell {min(cells - playable)} is not playable")
        if len(templates) != self.options.num_slots:
            raise GameError(f"there are {self.options.num_slots} slots, got {len(templates)} templates")
        unknown = [template for template in templates if template is not None and not 0 <= template < len(TEMPLATES)]
        if unknown:
            raise GameError(f"there is no template {unknown[0]}; they are 0 to {len(TEMPLATES) - 1}")
        states = np.zeros((1, self.state_size), np.uint64)
        states[0, : self._board.num_words] = bitboard(cells, self.options.cols, self._board.num_cells)
        shapes = [NO_SHAPE if template is None else SHAPE_OF_TEMPLATE[template] for template in templates]
        slots = np.full(8, NO_SHAPE, np.uint64)
        slots[: len(shapes)] = shapes
        states[0, self._board.num_words] = (slots << np.arange(0, 64, 8, dtype=np.uint64)).sum()
        return self.decode(self.observation(states))

    def legal_action_mask(self, states: States) -> NDArray[np.bool_]:
        """bool [B, A], where each slot's shape fits; none when the game is over or chance is pending."""
        return kernels.legal_action_mask(self._board, self._checked(states), False)

    def search_action_mask(self, states: States) -> NDArray[np.bool_]:
        """Legal actions [B, A] less those of a slot that holds the same shape as an earlier one."""
        return kernels.legal_action_mask(self._board, self._checked(states), True)

    def apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """Play actions [B]: place, clear, and unless the hand is empty find whether anything still fits.

        An action outside 0 to A - 1 is illegal like any other. A position that waits for chance stays, with reward 0.
        """
        states = self._checked(states)
        actions = as_actions(actions, states.shape[0])
        after, rewards = kernels.apply(self._board, self._rewards, self._ends_on_illegal, states, actions)
        return self._transition(after, rewards)

    def resolve(self, states: States, outcomes: NDArray[np.int64]) -> Transition:
        """Deal templates [B, num_slots] where chance is pending, and find whether anything fits.

        Raises:
            GameError: an outcome that is no template, where chance is pending.
        """
        states = self._checked(states)
        outcomes = as_outcomes(outcomes, states.shape[0], self.chance_size)
        after, rewards, bad = kernels.resolve(self._board, self._rewards, states, outcomes)
        if bad >= 0:
            raise GameError(f"outcomes are templates 0 to {len(TEMPLATES) - 1}, got {outcomes[bad].tolist()}")
        return self._transition(after, rewards)

    def chance_from_uniforms(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Every template is equally likely, slots are independent."""
        uniforms = as_rows("uniforms", uniforms, np.float64, (self.chance_size,))
        return (uniforms * len(TEMPLATES)).astype(np.int64)

    @property
    def chance_code_sizes(self) -> tuple[int, ...]:
        """A shape per slot."""
        return (len(SHAPES),) * self.options.num_slots

    def chance_codes(self, states: States, outcomes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shape ids [B, num_slots] of dealt templates: those that differ in colour alone are one shape."""
        return _SHAPES_OF_TEMPLATES[as_outcomes(outcomes, len(states), self.chance_size)]

    def terminated(self, states: States) -> NDArray[np.bool_]:
        """bool [B], nothing fits, or an illegal action was played."""
        return self._has_flag(self._checked(states), kernels.OVER)

    def end_reason(self, states: States, index: int = 0) -> str:
        """Why position `index` of the batch is over; empty if it is not."""
        flags = states[index, self._board.num_words + 1]
        if flags & kernels.ENDED_ILLEGALLY:
            return "illegal action"
        return "no shape fits" if flags & kernels.OVER else ""

    def to_play(self, states: States) -> NDArray[np.int8]:
        """int8 [B], zeros: there is one player."""
        return np.zeros(states.shape[0], np.int8)

    def observation(self, states: States) -> NDArray[np.generic]:
        """uint8 [B, ceil(rows * cols / 8) + num_slots]."""
        return kernels.observe(self._board, self._checked(states))

    def decode(self, observations: NDArray[np.generic]) -> States:
        """Positions with counters 0; whether they are over or wait for chance follows from the rules.

        Raises:
            GameError: an occupied cell that is not playable, or an unknown shape id.
        """
        observations = self._checked_observations(observations)
        states, bad = kernels.decode(self._board, observations)
        _refuse_bad_observation(observations, bad)
        return states

    def encode(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """float32 [B, (6 + 4 * num_slots) * rows * cols + 23 * (num_slots + 1)].

        Raises:
            GameError: an occupied cell that is not playable, or an unknown shape id.
        """
        observations = self._checked_observations(observations)
        encoded, bad = kernels.encode(self._board, observations)
        _refuse_bad_observation(observations, bad)
        return encoded

    def stats(self, states: States) -> dict[str, NDArray[np.float64]]:
        """Triangles cleared and pieces placed since the start, or since the position was decoded, each [B]."""
        counts = self._checked(states)[:, self._board.num_words + 2]
        return {
            "triangles_cleared": (counts >> kernels.CLEARED_SHIFT).astype(np.float64),
            "pieces_placed": (counts & _COUNT_MASK).astype(np.float64),
        }

    def num_moves(self, states: States) -> NDArray[np.int64]:
        """int64 [B], moves made, counted as `stats` counts; ignored illegal actions are moves too."""
        return (self._checked(states)[:, self._board.num_words + 1] >> kernels.STEPS_SHIFT).astype(np.int64)

    def render_ascii(self, states: States, index: int = 0) -> str:
        """The board, the shapes, and why the game ended; A and V are occupied triangles pointing up and down."""
        return rendering.render_ascii(self._picture(states, index))

    def render_svg(self, states: States, index: int = 0) -> str:
        """The board with its occupied triangles filled, the shapes to its right, as an SVG document."""
        return rendering.render_svg(self._picture(states, index))

    def _picture(self, states: States, index: int) -> rendering.Picture:
        observation = self.observation(self._checked(states)[index : index + 1])[0]
        slots = self.options.num_slots
        bits = np.unpackbits(observation[:-slots].astype(np.uint8), bitorder="little")
        return rendering.Picture(
            columns=self.options.cols,
            ranges=self.options.playable_ranges,
            occupied=frozenset(divmod(int(cell), self.options.cols) for cell in np.flatnonzero(bits)),
            shapes=tuple(None if shape == NO_SHAPE else SHAPES[int(shape)] for shape in observation[-slots:]),
            caption=self.end_reason(states, index),
        )

    def _transition(self, states: States, rewards: NDArray[np.float32]) -> Transition:
        return Transition(
            states, rewards, self._has_flag(states, kernels.OVER), self._has_flag(states, kernels.CHANCE_PENDING)
        )

    def _has_flag(self, states: States, flag: np.uint64) -> NDArray[np.bool_]:
        return (states[:, self._board.num_words + 1] & flag) != 0

    def _checked(self, states: States) -> States:
        return as_rows("states", states, np.uint64, (self.state_size,))

    def _checked_observations(self, observations: NDArray[Any]) -> NDArray[np.uint8]:
        return as_rows("observations", observations, np.uint8, self.observation_spec.shape)


def _refuse_bad_observation(observations: NDArray[np.uint8], row: int) -> None:
    if row >= 0:
        raise GameError(f"observation {row} is no position of this board: {observations[row].tolist()}")
