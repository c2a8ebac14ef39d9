"""Makes training batches of drawn sequences: encodes positions, computes targets, says what is known of what."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.losses import TrainingBatch, importance_weights
from learner.symmetries import SymmetricViews, all_symmetries
from learner.targets import td_lambda_targets
from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.self_play_table import NO_CODE
from zero.trajectories import SequenceBatch

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class UnrolledTargets:
    """Targets of positions 0 to K of every window, of which position k follows from action k - 1.

    Attributes:
        values: float32 [B, K + 1], in real scale, for the player to move; 0 beyond the end.
        rewards: float32 [B, K], of the action from position k on, to the player who moved; 0 beyond the end.
        is_known: bool [B, K + 1]: inside the game, or after an end by the rules, where nothing more is earned.
        is_inside: bool [B, K + 1]: inside the game, so that there is a position.
    """

    values: Floats
    rewards: Floats
    is_known: NDArray[np.bool_]
    is_inside: NDArray[np.bool_]


def unrolled_targets(
    rewards: Floats,
    discounts: Floats,
    search_values: Floats,
    lengths: NDArray[np.int32],
    unroll_steps: int,
    td_lambda: float,
) -> UnrolledTargets:
    """Targets of the first `unroll_steps` + 1 positions of every sequence.

    The value of each is the lambda-return over a window of its own, as long for every position: the search values that
    it bootstraps with are those of the positions themselves. A game that was over before a position leaves it a value
    and a reward of 0, forever: the absorbing state. What follows a game that was cut off is not known.

    Args:
        rewards: [B, L], L at least `unroll_steps` + 1.
        discounts: [B, L], with the sign of the turn, 0 where the game ended.
        search_values: [B, L].
        lengths: [B], steps of the trajectory from the start of the window on, at least 1; may exceed L.
        unroll_steps: K.
        td_lambda: see `td_lambda_targets`.
    """
    horizon = rewards.shape[1] - unroll_steps
    values = [
        td_lambda_targets(
            rewards[:, start : start + horizon],
            discounts[:, start : start + horizon],
            search_values[:, start : start + horizon],
            lengths - start,
            td_lambda,
        )
        for start in range(unroll_steps + 1)
    ]
    last = np.minimum(lengths, rewards.shape[1]) - 1
    ended = discounts[np.arange(len(last)), last] == 0  # [B], inside the window
    positions = np.arange(unroll_steps + 1)
    inside = positions < lengths[:, None]
    return UnrolledTargets(
        np.stack(values, axis=1),
        np.where(inside[:, :-1], rewards[:, :unroll_steps], np.float32(0)),
        inside | ended[:, None],
        inside,
    )


class BatchMaker:
    """What the learner asks the replay server for, and what it makes of the answer.

    Args:
        config: of the experiment.
        game: the rules, to encode with.
        device: where the batches go.
    """

    def __init__(self, config: ExperimentConfig, game: Game, device: torch.device) -> None:
        self._config = config
        self._game = game
        self._device = device
        self._symmetries = all_symmetries(game) if config.learner.use_symmetries else ()

    def windows(self) -> dict[str, int]:
        """Steps needed of every column."""
        learner = self._config.learner
        unroll_steps = learner.unroll_steps
        horizon = unroll_steps + learner.td_steps + 1
        later = unroll_steps if learner.consistency_loss_weight > 0 else 0
        windows = {"observation": 1 + later, "search_policy": 1 + unroll_steps}
        windows |= dict.fromkeys(("reward", "discount", "search_value"), horizon)
        if unroll_steps:
            windows["action"] = unroll_steps
            if self._game.chance_code_sizes:
                windows["chance_code"] = unroll_steps
        return windows

    def prepare(self, batch: SequenceBatch) -> TrainingBatch:
        """Encode the drawn positions and compute the targets of these and of what follows them."""
        learner, columns = self._config.learner, batch.columns
        targets = unrolled_targets(
            columns["reward"].astype(np.float32, copy=False),
            columns["discount"].astype(np.float32) * np.float32(self._config.discount),
            columns["search_value"].astype(np.float32, copy=False),
            batch.lengths,
            learner.unroll_steps,
            learner.td_lambda,
        )
        weights = importance_weights(batch.probabilities, batch.table_size, learner.importance_sampling_exponent)
        actions, codes = self._played(batch)
        policies, policy_mask = _distributions(columns["search_policy"]), self._policy_mask(columns["observation"])
        observations = columns["observation"]
        if len(self._symmetries) > 1:
            views = SymmetricViews(self._symmetries, batch.keys)
            observations, actions = views.observations(observations), views.actions(actions)
            policies, policy_mask = views.per_action(policies), views.per_action(policy_mask)
        return TrainingBatch(
            encoded=self._moved(self._game.encode(observations[:, 0])),
            actions=self._moved(actions),
            chance_codes=self._moved(codes),
            policy_mask=self._moved(policy_mask),
            target_policy=self._moved(policies),
            target_value=self._moved(targets.values),
            target_reward=self._moved(targets.rewards),
            is_known=self._moved(targets.is_known.astype(np.float32)),
            is_inside=self._moved(targets.is_inside.astype(np.float32)),
            importance_weights=self._moved(weights),
            encoded_later=self._encoded_later(observations),
            code_sizes=self._game.chance_code_sizes if learner.unroll_steps else (),
        )

    def _policy_mask(self, observations: NDArray[np.generic]) -> NDArray[np.bool_]:
        """The actions that the search considered; all of them if it learns below the root what can be played."""
        if self._config.network.model == "learned":
            return np.ones((1, 1, self._game.num_actions), np.bool_)
        return self._game.search_action_mask(self._game.decode(observations[:, 0]))[:, None]

    def _played(self, batch: SequenceBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Actions [B, K] and chance codes [B, K, parts]; whatever is done after the end of a game, it stays over."""
        count, unroll_steps = len(batch.keys), self._config.learner.unroll_steps
        sizes = self._game.chance_code_sizes
        if not unroll_steps:
            return np.zeros((count, 0), np.int64), np.zeros((count, 0, len(sizes)), np.int64)
        inside = np.arange(unroll_steps) < batch.lengths[:, None]
        # A function of the batch, so that a learner that is restored goes on as if it had never stopped.
        any_actions = np.random.default_rng(batch.keys).integers(0, self._game.num_actions, inside.shape)
        actions = np.where(inside, batch.columns["action"].astype(np.int64), any_actions)
        if not sizes:
            return actions, np.zeros((*inside.shape, 0), np.int64)
        codes = batch.columns["chance_code"].astype(np.int64)
        return actions, np.where(inside[:, :, None] & (codes != NO_CODE), codes, -1)

    def _encoded_later(self, observations: NDArray[np.generic]) -> Tensor | None:
        count, steps = len(observations), observations.shape[1] - 1
        if not steps:
            return None
        later = observations[:, 1:].reshape(count * steps, *observations.shape[2:])
        return self._moved(self._game.encode(later).reshape(count, steps, -1))

    def _moved(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _distributions(policies: NDArray[np.generic]) -> Floats:
    """Stored policies [B, L, A] that sum to 1 where they are not all zeros.

    Half precision rounds a stored policy, so its sum is 1 only to three digits. Zeros stay zeros: the policy of a move
    that was searched cheaply, or of no move at all, is not to be learned.
    """
    policies = policies.astype(np.float32)
    total = policies.sum(-1, keepdims=True)
    policies /= np.where(total > 0, total, 1)
    return policies
