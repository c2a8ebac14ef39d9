"""The loss of a batch: cross-entropies of all that is predicted, with importance weights, and the new priorities."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from zero.config import LearnerConfig
from zero.networks.residual import Unrolled
from zero.networks.value_support import ValueSupport

PRIORITY_FLOOR = 1e-3
"""Added to every priority, so that a position whose value is known is still drawn for its policy (Schaul et al. 2016,
section 3.3)."""


@dataclass(frozen=True)
class TrainingBatch:
    """What a training step needs, all on the learner's device: drawn positions and K moves that followed each.

    Attributes:
        encoded: float32 [B, E].
        actions: int64 [B, K], as played; beyond the end of a game any.
        chance_codes: int64 [B, K, number of parts], of the outcome after each action; -1 where none was.
        policy_mask: bool [B or 1, K + 1 or 1, A], the actions among which the policy chooses.
        target_policy: float32 [B, K + 1, A], sums to 1 over the mask, or to 0 where the policy is not to be learned.
        target_value: float32 [B, K + 1], in real scale.
        target_reward: float32 [B, K], of each action, in real scale.
        is_known: float32 [B, K + 1], 1 where the position has a value and the move from it a reward: inside the game,
            and after its end, where both are 0; 0 beyond the last move of a game that was cut off.
        is_inside: float32 [B, K + 1], 1 where the position was recorded; 0 beyond the last move of any game.
        importance_weights: float32 [B], at most 1.
        encoded_later: float32 [B, K, E], the positions after the actions, anything beyond the end; None unless
            consistency is to be learned.
        code_sizes: of the parts of the chance codes.
    """

    encoded: Tensor
    actions: Tensor
    chance_codes: Tensor
    policy_mask: Tensor
    target_policy: Tensor
    target_value: Tensor
    target_reward: Tensor
    is_known: Tensor
    is_inside: Tensor
    importance_weights: Tensor
    encoded_later: Tensor | None = None
    code_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Loss:
    """The loss and what is reported of it; means are over what has a target.

    Attributes:
        total: scalar, to minimise.
        policy: scalar, mean KL divergence from target to prediction at the drawn positions; its minimum is 0.
        value: scalar, mean cross-entropy there.
        unrolled_policy: scalar, as policy, after actions; 0 without a model, like all that follows but the last four.
        unrolled_value: scalar, as value, after actions.
        reward: scalar, mean cross-entropy.
        chance: scalar, mean cross-entropy of whether chance follows, and of the codes where it does.
        consistency: scalar, mean of 1 less the cosine between foreseen and real latents.
        priorities: float32 [B], absolute value error in transformed scale, plus PRIORITY_FLOOR.
        target_entropy: scalar, mean entropy of the target policy, in nats.
        policy_entropy: scalar, mean entropy of the predicted policy over the mask, in nats.
        values: float32 [B], the network's, in real scale.
        clamped_targets: scalar, share of the value and reward targets that lie beyond the support, so that what is
            learned of them is its end.
    """

    total: Tensor
    policy: Tensor
    value: Tensor
    unrolled_policy: Tensor
    unrolled_value: Tensor
    reward: Tensor
    chance: Tensor
    consistency: Tensor
    priorities: Tensor
    target_entropy: Tensor
    policy_entropy: Tensor
    values: Tensor
    clamped_targets: Tensor


def importance_weights(probabilities: NDArray[np.float64], table_size: int, exponent: float) -> NDArray[np.float32]:
    """(N P(i)) ^ -exponent, divided by the largest of the batch (Schaul et al. 2016, section 3.4)."""
    weights = (probabilities * table_size) ** -exponent
    return (weights / weights.max()).astype(np.float32)


def compute_loss(
    output: Unrolled,
    batch: TrainingBatch,
    support: ValueSupport,
    config: LearnerConfig,
    later_latents: Tensor | None = None,
) -> Loss:
    """Cross-entropies to the search policy, to two-hot values and rewards, and to what chance showed.

    What is foreseen of K actions counts 1 / K each, so that the length of the unroll does not weigh it against the
    drawn position (Schrittwieser et al. 2020, appendix G).

    Args:
        output: predictions for the batch.
        batch: the targets.
        support: of values and rewards.
        config: weights of the losses.
        later_latents: [B, K, ...], what the network makes of `encoded_later`, for the loss of consistency.
    """
    num_actions = batch.actions.shape[1]
    policy, target_entropy, log_policy = _policy_losses(output, batch)
    value_logits = output.value_logits.float()
    value = _scalar_losses(value_logits, batch.target_value, support) * batch.is_known
    positions = policy + config.value_loss_weight * value  # [B, K + 1]
    if config.entropy_weight > 0:
        positions = positions + config.entropy_weight * (log_policy.exp() * log_policy).sum(-1)
    reward = _scalar_losses(output.reward_logits.float(), batch.target_reward, support) * batch.is_known[:, :-1]
    chance = _chance_losses(output.chance_logits.float(), batch) * batch.is_known[:, :-1]
    consistency = _consistency_losses(output.latents, later_latents, reward) * batch.is_inside[:, 1:]
    steps = config.reward_loss_weight * reward + config.chance_loss_weight * chance  # [B, K]
    if later_latents is not None:
        steps = steps + config.consistency_loss_weight * consistency
    steps = (positions[:, 1:] + steps) / max(num_actions, 1)
    total = ((positions[:, 0] + steps.sum(1)) * batch.importance_weights).mean()
    with torch.no_grad():
        first_logits, known = value_logits[:, 0], batch.is_known
        expected = (first_logits.softmax(-1) * support.atoms).sum(-1)
        priorities = (expected - support.transform(batch.target_value[:, 0])).abs() + PRIORITY_FLOOR
    learned = (batch.target_policy.sum(-1) > 0).float()
    return Loss(
        total=total,
        policy=policy[:, 0].mean().detach(),
        value=value[:, 0].mean().detach(),
        unrolled_policy=_mean_over(policy[:, 1:], learned[:, 1:]),
        unrolled_value=_mean_over(value[:, 1:], known[:, 1:]),
        reward=_mean_over(reward, known[:, :-1]),
        chance=_mean_over(chance, known[:, :-1]),
        consistency=_mean_over(consistency, batch.is_inside[:, 1:]),
        priorities=priorities,
        target_entropy=target_entropy[:, 0].mean(),
        policy_entropy=-(log_policy[:, 0].exp() * log_policy[:, 0]).sum(-1).mean().detach(),
        values=support.expectation(first_logits.detach()),
        clamped_targets=_share_beyond(support, batch),
    )


def _policy_losses(output: Unrolled, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
    """KL divergences from the targets and entropies of these, [B, K + 1]; log-probabilities [B, K + 1, A].

    The constant entropy of the target is subtracted from the cross-entropy, which changes no gradient and makes 0 its
    minimum.
    """
    lowest = torch.finfo(torch.float32).min
    log_policy = output.policy_logits.float().masked_fill(~batch.policy_mask, lowest).log_softmax(-1)
    target_entropy = -torch.special.xlogy(batch.target_policy, batch.target_policy).sum(-1)
    policy = -(batch.target_policy * log_policy).sum(-1) - target_entropy
    return policy, target_entropy, log_policy


def _scalar_losses(logits: Tensor, targets: Tensor, support: ValueSupport) -> Tensor:
    """Cross-entropies [B, L] of logits [B, L, support_size] to targets [B, L] in real scale."""
    return -(support.two_hot(targets) * logits.log_softmax(-1)).sum(-1)


def _chance_losses(logits: Tensor, batch: TrainingBatch) -> Tensor:
    """Cross-entropies [B, K] of whether chance follows, and of each part of the codes where it does."""
    losses = torch.zeros(batch.actions.shape, device=logits.device)
    if not batch.code_sizes:
        return losses
    follows = (batch.chance_codes >= 0).all(-1).float()
    losses = losses + functional.binary_cross_entropy_with_logits(logits[..., -1], follows, reduction="none")
    ends = np.cumsum((0, *batch.code_sizes)).tolist()
    for part, (start, end) in enumerate(pairwise(ends)):
        codes = batch.chance_codes[..., part].clamp(min=0).unsqueeze(-1)
        losses = losses - follows * logits[..., start:end].log_softmax(-1).gather(-1, codes).squeeze(-1)
    return losses


def _consistency_losses(latents: Tensor, later_latents: Tensor | None, like: Tensor) -> Tensor:
    """1 less the cosine [B, K] between foreseen latents and the real ones, which stay as they are."""
    if later_latents is None:
        return torch.zeros_like(like)
    return 1 - functional.cosine_similarity(latents[:, 1:].flatten(2), later_latents.detach().flatten(2), dim=-1)


def _mean_over(losses: Tensor, counted: Tensor) -> Tensor:
    """Mean of losses where `counted` is 1, 0 if nowhere, without a gradient."""
    return ((losses * counted).sum() / counted.sum().clamp(min=1)).detach()


def _share_beyond(support: ValueSupport, batch: TrainingBatch) -> Tensor:
    targets = support.transform(torch.cat((batch.target_value, batch.target_reward), dim=1))
    known = torch.cat((batch.is_known, batch.is_known[:, :-1]), dim=1)
    beyond = ((targets < support.atoms[0]) | (targets > support.atoms[-1])).float()
    return _mean_over(beyond, known)
