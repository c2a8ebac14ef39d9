"""The loss of a batch: policy and value cross-entropy with importance weights, and the new priorities."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zero.networks.residual import NetworkOutput
from zero.networks.value_support import ValueSupport

PRIORITY_FLOOR = 1e-3
"""Added to every priority, so that a position whose value is known is still drawn for its policy (Schaul et al. 2016,
section 3.3)."""


@dataclass(frozen=True)
class TrainingBatch:
    """What a training step needs, all on the learner's device.

    Attributes:
        encoded: float32 [B, E].
        legal_action_mask: bool [B, A], the actions that the search considered.
        target_policy: float32 [B, A], sums to 1 over the mask, or to 0 where the policy is not to be learned.
        target_value: float32 [B], in real scale.
        importance_weights: float32 [B], at most 1.
    """

    encoded: Tensor
    legal_action_mask: Tensor
    target_policy: Tensor
    target_value: Tensor
    importance_weights: Tensor


@dataclass(frozen=True)
class Loss:
    """The loss and what is reported of it.

    Attributes:
        total: scalar, to minimise.
        policy: scalar, mean KL divergence from target to prediction; its minimum is 0.
        value: scalar, mean cross-entropy.
        priorities: float32 [B], absolute value error in transformed scale, plus PRIORITY_FLOOR.
        target_entropy: scalar, mean entropy of the target policy, in nats.
        values: float32 [B], the network's, in real scale.
        clamped_targets: scalar, share of the value targets that lie beyond the support, so that what is learned of them
            is its end.
    """

    total: Tensor
    policy: Tensor
    value: Tensor
    priorities: Tensor
    target_entropy: Tensor
    values: Tensor
    clamped_targets: Tensor


def importance_weights(probabilities: NDArray[np.float64], table_size: int, exponent: float) -> NDArray[np.float32]:
    """(N P(i)) ^ -exponent, divided by the largest of the batch (Schaul et al. 2016, section 3.4)."""
    weights = (probabilities * table_size) ** -exponent
    return (weights / weights.max()).astype(np.float32)


def compute_loss(output: NetworkOutput, batch: TrainingBatch, support: ValueSupport, value_weight: float) -> Loss:
    """Cross-entropies to the search policy over legal actions and to the two-hot value target.

    The constant entropy of the target is subtracted from the policy loss, which changes no gradient and makes 0 its
    minimum.
    """
    lowest = torch.finfo(torch.float32).min
    logits = output.policy_logits.float().masked_fill(~batch.legal_action_mask, lowest)
    log_policy = logits.log_softmax(-1)
    target_entropy = -torch.special.xlogy(batch.target_policy, batch.target_policy).sum(-1)
    policy = -(batch.target_policy * log_policy).sum(-1) - target_entropy
    value_logits = output.value_logits.float()
    value = -(support.two_hot(batch.target_value) * value_logits.log_softmax(-1)).sum(-1)
    total = ((policy + value_weight * value) * batch.importance_weights).mean()
    with torch.no_grad():
        expected = (value_logits.softmax(-1) * support.atoms).sum(-1)
        target = support.transform(batch.target_value)
        priorities = (expected - target).abs() + PRIORITY_FLOOR
        clamped = ((target < support.atoms[0]) | (target > support.atoms[-1])).float().mean()
        values = support.expectation(value_logits)
    return Loss(
        total, policy.mean().detach(), value.mean().detach(), priorities, target_entropy.mean(), values, clamped
    )
