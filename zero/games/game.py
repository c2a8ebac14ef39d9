"""The interface of a game: positions as arrays, many games at once, chance passed in."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from zero.games.random_play import random_legal_actions, row_uniforms
from zero.trajectories import ColumnSpec

States = NDArray[np.uint64]
"""Positions, [B, state_size]: everything the rules need, nothing random inside."""


class GameError(ValueError):
    """A game, an option or a position that cannot be; the text is one line that says what was given and is allowed."""


@dataclass(frozen=True)
class Transition:
    """What one half of a step did to B positions.

    Attributes:
        states: uint64 [B, state_size], the positions after it. New arrays; inputs are never changed.
        rewards: float32 [B], to the player who moved.
        terminated: bool [B], the game is over.
        chance_pending: bool [B], the position is an afterstate that waits for `resolve`.
    """

    states: States
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    chance_pending: NDArray[np.bool_]


@dataclass(frozen=True)
class Symmetry:
    """A change of names that maps games onto games: every array tells from which index a new entry is taken.

    Attributes:
        observation: int64 [D], of a compact observation, flat.
        actions: int64 [A].
    """

    observation: NDArray[np.int64]
    actions: NDArray[np.int64]


class Game(ABC):
    """Rules of a game for batches of positions.

    A step has two halves: `apply`, what the player's action does, and `resolve`, what chance does where the first
    half left `chance_pending`. A position never carries a random generator: outcomes are passed in, so a search that
    draws its own outcomes cannot foresee the real ones. Rows of a batch are independent of each other. A finished
    position stays as it is under any action, with reward 0.

    Attributes:
        name: the registered name.
        num_actions: size A of the action space.
        max_legal_actions: the most legal actions that any position has.
        num_players: 1, or 2 for zero-sum games in turns.
        state_size: uint64 words per position.
        chance_size: numbers per chance outcome; 0 if nothing is ever random.
        observation_spec: dtype and shape of a compact observation; its name is "observation".
        planes_shape: (C, H, W) of the encoded planes.
        num_features: F, encoded scalars beside the planes; may be 0.
    """

    name: ClassVar[str]
    num_actions: int
    max_legal_actions: int
    num_players: int
    state_size: int
    chance_size: int
    observation_spec: ColumnSpec
    planes_shape: tuple[int, int, int]
    num_features: int

    @property
    def encoded_size(self) -> int:
        """C * H * W + F, the length of one encoded observation."""
        channels, height, width = self.planes_shape
        return channels * height * width + self.num_features

    @property
    def lines(self) -> NDArray[np.bool_]:
        """bool [L, H, W], sets of cells, none empty, that the rules look at as one; none unless a game names any."""
        return np.zeros((0, *self.planes_shape[1:]), np.bool_)

    @property
    def chance_code_sizes(self) -> tuple[int, ...]:
        """How many codes each part of a chance outcome has, as players see it, 1 to 255 each.

        Empty unless a game names any. With codes, a learned model foresees what the player's action does and what
        chance may do apart, as `apply` and `resolve` are; without, it predicts both at once, as if nothing were random.
        """
        return ()

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Ways in which a game without chance looks the same, the identity not among them; none unless it names any.

        What is learned of a position is then learned of all that are the same by one of them.
        """
        return ()

    @abstractmethod
    def initial(self, outcomes: NDArray[np.int64]) -> States:
        """Start positions from chance outcomes [B, chance_size]."""

    @abstractmethod
    def legal_action_mask(self, states: States) -> NDArray[np.bool_]:
        """bool [B, A], True = legal; all False when the game is over or chance is pending."""

    @abstractmethod
    def apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """Play actions [B] without resolving chance. The turn passes here: an afterstate names the next player."""

    @abstractmethod
    def resolve(self, states: States, outcomes: NDArray[np.int64]) -> Transition:
        """Apply chance outcomes [B, chance_size] to the rows where chance is pending; other rows stay, reward 0."""

    @abstractmethod
    def chance_from_uniforms(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Map uniforms in [0, 1), [B, chance_size], to outcomes [B, chance_size] with the game's distribution."""

    @abstractmethod
    def terminated(self, states: States) -> NDArray[np.bool_]:
        """bool [B], the game is over."""

    @abstractmethod
    def to_play(self, states: States) -> NDArray[np.int8]:
        """int8 [B], the player to move, 0 or 1."""

    @abstractmethod
    def observation(self, states: States) -> NDArray[np.generic]:
        """Compact observations [B, *observation_spec.shape]: what is stored."""

    @abstractmethod
    def decode(self, observations: NDArray[np.generic]) -> States:
        """Positions from compact observations; counters that the rules do not need may be lost."""

    @abstractmethod
    def encode(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """Network input [B, C * H * W + F]: planes in C order, then features."""

    @abstractmethod
    def render_ascii(self, states: States, index: int = 0) -> str:
        """Position `index` of the batch as text."""

    def render_svg(self, states: States, index: int = 0) -> str:
        """Position `index` of the batch as an SVG document; unless a game draws one, its text.

        Elements that can be clicked to play have `data-target="N"`, for action N. Where something must be chosen first,
        it has `data-piece="M"`, and the action is M + N; its `data-covers` are the targets that it will fill, as
        differences to N. A picture without targets is not played on.
        """
        lines = self.render_ascii(states, index).splitlines()
        width = 10 * max([1, *(len(line) for line in lines)]) + 20
        rows = "".join(
            f'<text x="10" y="{20 * row + 25}" xml:space="preserve">{escape(line)}</text>'
            for row, line in enumerate(lines)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {20 * len(lines) + 20}" '
            f'font-family="monospace" font-size="16">{rows}</svg>'
        )

    def stats(self, states: States) -> dict[str, NDArray[np.float64]]:  # noqa: ARG002
        """Counters of the game so far, by name, each [B]; empty unless a game counts anything."""
        return {}

    def search_action_mask(self, states: States) -> NDArray[np.bool_]:
        """Legal actions [B, A] less those that only repeat another one; at least one wherever any is legal."""
        return self.legal_action_mask(states)

    def draw_chance(self, rng: np.random.Generator, batch_size: int) -> NDArray[np.int64]:
        """Outcomes [batch_size, chance_size] drawn from a generator."""
        return self.chance_from_uniforms(rng.random((batch_size, self.chance_size)))

    def chance_codes(self, states: States, outcomes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: ARG002
        """What players see of outcomes [B, chance_size], [B, len(chance_code_sizes)], from 0 to the size less 1.

        Outcomes of a position that have the same codes lead to the same observation.

        Args:
            states: the positions where chance is pending; of others the codes mean nothing.
            outcomes: as `resolve` takes them.
        """
        return np.zeros((len(states), 0), np.int64)

    def step(self, states: States, actions: NDArray[np.int64], outcomes: NDArray[np.int64]) -> Transition:
        """Play actions [B] and resolve chance with outcomes [B, chance_size] where it is pending.

        Rewards of both halves are added; `chance_pending` of the result is False everywhere.
        """
        return self.settle(self.apply(states, actions), outcomes)

    def settle(self, applied: Transition, outcomes: NDArray[np.int64]) -> Transition:
        """The whole step [B] from its first half: chance resolved with outcomes [B, chance_size] where it is pending.

        Rewards of both halves are added; `chance_pending` of the result is False everywhere.
        """
        if not applied.chance_pending.any():
            return applied
        resolved = self.resolve(applied.states, outcomes)
        return Transition(
            resolved.states,
            applied.rewards + resolved.rewards,
            applied.terminated | resolved.terminated,
            resolved.chance_pending,
        )

    def random_returns(self, states: States, seeds: NDArray[np.uint64], max_moves: int) -> NDArray[np.float32]:
        """Undiscounted returns [B] of one game each of uniformly random legal moves, to the player to move.

        A game may compile this; what each row gives must have the same distribution as here.

        Args:
            states: positions where no chance is pending.
            seeds: uint64 [B]; a row's moves and its chance follow from its seed alone.
            max_moves: games end here at the latest, with the return they have.
        """
        returns = np.zeros(len(states), np.float32)
        player, rows = self.to_play(states), np.arange(len(states))
        numbers_per_move = 1 + self.chance_size
        for move in range(max_moves):
            uniforms = row_uniforms(seeds[rows], move * numbers_per_move, numbers_per_move)
            actions = random_legal_actions(self.legal_action_mask(states), uniforms[:, 0].copy())
            playing = actions >= 0
            if not playing.all():
                rows, states, actions, uniforms = rows[playing], states[playing], actions[playing], uniforms[playing]
            if not len(rows):
                break
            own = self.to_play(states) == player[rows]
            transition = self.step(states, actions, self.chance_from_uniforms(uniforms[:, 1:].copy()))
            returns[rows] += np.where(own, transition.rewards, -transition.rewards)
            states = transition.states
        return returns
