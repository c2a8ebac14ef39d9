"""The AlphaZero search model: the real rules step, a network predicts."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game, States, Transition
from zero.search.model import RootOutput, StepOutput

Evaluate = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Encoded observations [B, E] to policy logits [B, A] and values [B], in real scale, for the player to move."""


@runtime_checkable
class ObservationNetwork(Protocol):
    """A network that is elsewhere: it is sent compact observations, for encoded ones are a hundred times as large."""

    def evaluate_observations(
        self, observations: NDArray[np.generic]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compact observations [B, ...] to what `Evaluate` gives."""
        ...


class AlphaZeroModel:
    """A game and a network as the search sees them; positions and embeddings are the game's states [B, S].

    The network always evaluates the full batch, finished games included: one shape is faster than a few rows less.
    Whose turn it is must be known before chance is resolved.

    Args:
        game: the rules.
        evaluate: the network.
        discount: per step, in (0, 1].
        chance_draws: outcomes that are averaged whenever chance is sampled.
    """

    def __init__(
        self, game: Game, evaluate: Evaluate | ObservationNetwork, discount: float, chance_draws: int = 1
    ) -> None:
        if not 0 < discount <= 1:
            raise ValueError(f"discount must be above 0 and at most 1, got {discount}")
        if chance_draws < 1:
            raise ValueError(f"chance_draws must be at least 1, got {chance_draws}")
        self.num_actions = game.num_actions
        self.max_legal_actions = game.max_legal_actions
        self.chance_size = game.chance_size * chance_draws
        self.discount = discount
        self._game = game
        self._evaluate = _of_observations(game, evaluate)

    def root(self, positions: NDArray[np.generic]) -> RootOutput:
        """Evaluate states [B, S]."""
        states = positions.astype(np.uint64, copy=False)
        logits, values = self._predict(states, self._game.terminated(states))
        return RootOutput(states, logits, values, self._game.search_action_mask(states))

    def step(
        self,
        embeddings: NDArray[np.generic],
        actions: NDArray[np.int64],
        uniforms: NDArray[np.float64],
    ) -> StepOutput:
        """Play actions [B], or sample an outcome where the action is -1, and evaluate what comes out.

        The value of a step that ends in an afterstate belongs to outcomes drawn from the uniforms.
        """
        states = embeddings.astype(np.uint64, copy=False)
        applied = self._apply(states, actions)
        drawn = self._resolve(applied, uniforms[:, : self._game.chance_size])
        logits, values = self._predict(drawn.states, drawn.terminated)
        chance_rewards = drawn.rewards
        if self.chance_size > self._game.chance_size and applied.chance_pending.any():
            chance_rewards, values = self._average_draws(applied, uniforms, chance_rewards, values)
        return StepOutput(
            embeddings=applied.states,
            rewards=applied.rewards,
            chance_rewards=chance_rewards,
            discounts=self._discounts(states, applied.states),
            values=values,
            logits=logits,
            legal_action_mask=self._game.search_action_mask(drawn.states),
            terminated=applied.terminated,
            is_chance=applied.chance_pending,
        )

    def _predict(
        self, states: States, terminated: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits, values = self._evaluate(self._game.observation(states))
        return logits, np.where(terminated, np.float32(0), values)

    def _average_draws(
        self,
        applied: Transition,
        uniforms: NDArray[np.float64],
        chance_rewards: NDArray[np.float32],
        values: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rewards and values [B] with those of afterstates averaged over the first draw and all further ones."""
        rows = np.flatnonzero(applied.chance_pending)
        further = uniforms[rows, self._game.chance_size :].reshape(-1, self._game.chance_size)  # [rows * draws, size]
        num_draws = len(further) // len(rows)
        afterstates = np.repeat(applied.states[rows], num_draws, axis=0)
        drawn = self._game.resolve(afterstates, self._game.chance_from_uniforms(further))
        drawn_values = self._predict_in_batches(drawn.states, drawn.terminated, len(values))
        averaged: list[NDArray[np.float32]] = []
        for first, others in ((chance_rewards, drawn.rewards), (values, drawn_values)):
            mean = first.copy()
            mean[rows] = (first[rows] + others.reshape(-1, num_draws).sum(1)) / (1 + num_draws)
            averaged.append(mean)
        return averaged[0], averaged[1]

    def _predict_in_batches(
        self, states: States, terminated: NDArray[np.bool_], batch_size: int
    ) -> NDArray[np.float32]:
        """Values of any number of states, evaluated in full batches, of which the last one repeats itself."""
        values: list[NDArray[np.float32]] = []
        for start in range(0, len(states), batch_size):
            rows = np.arange(start, start + batch_size) % len(states)
            values.append(self._predict(states[rows], terminated[rows])[1])
        return np.concatenate(values)[: len(states)]

    def _apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """What the actions do; rows with action -1 are afterstates and stay as they are."""
        playing = actions >= 0
        if playing.all():
            return self._game.apply(states, actions)
        after = states.copy()
        rewards = np.zeros(len(states), np.float32)
        terminated = np.zeros(len(states), np.bool_)
        pending = ~playing
        rows = np.flatnonzero(playing)
        if len(rows):
            applied = self._game.apply(states[rows], actions[rows])
            after[rows] = applied.states
            rewards[rows] = applied.rewards
            terminated[rows] = applied.terminated
            pending[rows] = applied.chance_pending
        return Transition(after, rewards, terminated, pending)

    def _resolve(self, applied: Transition, uniforms: NDArray[np.float64]) -> Transition:
        """One outcome of the afterstates; other rows as they are, with no further reward."""
        if applied.chance_pending.any():
            return self._game.resolve(applied.states, self._game.chance_from_uniforms(uniforms))
        return Transition(applied.states, np.zeros_like(applied.rewards), applied.terminated, applied.chance_pending)

    def _discounts(self, before: States, after: States) -> NDArray[np.float32]:
        """float32 [B], the discount, negative where the turn passed to the other player of a zero-sum game."""
        discount = np.float32(self.discount)
        if self._game.num_players == 1:
            return np.full(len(before), discount)
        same_player = self._game.to_play(before) == self._game.to_play(after)
        return np.where(same_player, discount, -discount)


def _of_observations(
    game: Game, network: Evaluate | ObservationNetwork
) -> Callable[[NDArray[np.generic]], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The network as a function of compact observations."""
    if isinstance(network, ObservationNetwork):
        return network.evaluate_observations
    return lambda observations: network(game.encode(observations))
