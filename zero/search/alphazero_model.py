"""The AlphaZero search model: the real rules step, a network predicts."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game, States, Transition
from zero.search.model import RootOutput, StepOutput

Evaluate = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Encoded observations [B, E] to policy logits [B, A] and values [B], in real scale, for the player to move."""


class AlphaZeroModel:
    """A game and a network as the search sees them; positions and embeddings are the game's states [B, S].

    The network always evaluates the full batch, finished games included: one shape is faster than a few rows less.
    Whose turn it is must be known before chance is resolved.

    Args:
        game: the rules.
        evaluate: the network.
        discount: per step, in (0, 1].
    """

    def __init__(self, game: Game, evaluate: Evaluate, discount: float) -> None:
        if not 0 < discount <= 1:
            raise ValueError(f"discount must be above 0 and at most 1, got {discount}")
        self.num_actions = game.num_actions
        self.max_legal_actions = game.max_legal_actions
        self.chance_size = game.chance_size
        self._game = game
        self._evaluate = evaluate
        self._discount = np.float32(discount)

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

        The value of a step that ends in an afterstate belongs to one outcome, drawn from the uniforms.
        """
        states = embeddings.astype(np.uint64, copy=False)
        applied = self._apply(states, actions)
        drawn = self._resolve(applied, uniforms)
        logits, values = self._predict(drawn.states, drawn.terminated)
        return StepOutput(
            embeddings=applied.states,
            rewards=applied.rewards,
            chance_rewards=drawn.rewards,
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
        logits, values = self._evaluate(self._game.encode(self._game.observation(states)))
        return logits, np.where(terminated, np.float32(0), values)

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
        if self._game.num_players == 1:
            return np.full(len(before), self._discount)
        same_player = self._game.to_play(before) == self._game.to_play(after)
        return np.where(same_player, self._discount, -self._discount)
