"""Losses are what the formulas say, and never see an illegal action."""

import numpy as np
import pytest
import torch

from learner.losses import PRIORITY_FLOOR, TrainingBatch, compute_loss, importance_weights
from zero.config import NetworkConfig
from zero.networks.residual import NetworkOutput
from zero.networks.value_support import ValueSupport

SUPPORT = ValueSupport(NetworkConfig(support_min=-1, support_max=1, support_size=3, value_transform=False))


def batch_of(target_policy: torch.Tensor, mask: torch.Tensor, target_value: torch.Tensor) -> TrainingBatch:
    """A batch with weights of one."""
    size = len(target_value)
    return TrainingBatch(torch.zeros(size, 1), mask, target_policy, target_value, torch.ones(size))


def test_policy_loss_is_zero_at_the_target_and_ignores_illegal_logits() -> None:
    """A policy equal to its target over the legal actions costs nothing, whatever illegal actions have as logits."""
    target = torch.tensor([[0.25, 0.75, 0.0]])
    logits = torch.tensor([[0.25, 0.75, 1e6]])
    logits[:, :2] = logits[:, :2].log()
    mask = torch.tensor([[True, True, False]])
    output = NetworkOutput(logits, torch.zeros(1, 3))
    loss = compute_loss(output, batch_of(target, mask, torch.zeros(1)), SUPPORT, 1.0)
    assert loss.policy.item() == pytest.approx(0, abs=1e-6)


def test_illegal_logits_get_no_gradient() -> None:
    """Masked actions pull at nothing."""
    logits = torch.zeros(1, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    batch = batch_of(torch.tensor([[1.0, 0.0, 0.0]]), mask, torch.zeros(1))
    compute_loss(NetworkOutput(logits, torch.zeros(1, 3)), batch, SUPPORT, 1.0).total.backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_value_loss_and_priorities() -> None:
    """Uniform logits cost log 3 against any target; the priority is the distance from their mean, 0, and never 0."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    batch = batch_of(torch.full((2, 2), 0.5), mask, torch.tensor([1.0, 0.0]))
    loss = compute_loss(NetworkOutput(torch.zeros(2, 2), torch.zeros(2, 3)), batch, SUPPORT, 1.0)
    assert loss.value.item() == pytest.approx(np.log(3))
    assert loss.priorities.tolist() == pytest.approx([1.0 + PRIORITY_FLOOR, PRIORITY_FLOOR])


def test_targets_beyond_the_support_are_counted() -> None:
    """Its ends are not beyond it; in transformed scale where the network has one."""
    mask = torch.ones(4, 2, dtype=torch.bool)
    batch = batch_of(torch.full((4, 2), 0.5), mask, torch.tensor([-1.0, 1.0, 1.5, -3.0]))
    output = NetworkOutput(torch.zeros(4, 2), torch.zeros(4, 3))
    assert compute_loss(output, batch, SUPPORT, 1.0).clamped_targets.item() == 0.5
    squashed = ValueSupport(NetworkConfig(support_min=-1, support_max=1, support_size=3))
    assert compute_loss(output, batch, squashed, 1.0).clamped_targets.item() == 0.25


def test_values_are_in_real_scale() -> None:
    """What the network says of the positions, as search sees it."""
    squashed = ValueSupport(NetworkConfig(support_min=0, support_max=20, support_size=41))
    logits = torch.randn(2, 41, generator=torch.Generator().manual_seed(0))
    batch = batch_of(torch.full((2, 2), 0.5), torch.ones(2, 2, dtype=torch.bool), torch.zeros(2))
    loss = compute_loss(NetworkOutput(torch.zeros(2, 2), logits), batch, squashed, 1.0)
    assert loss.values.tolist() == squashed.expectation(logits).tolist()
    assert loss.values.min() > loss.priorities.max()


def test_importance_weights_scale_each_row() -> None:
    """A row of weight w counts w times, in the total and nowhere else."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    rows = batch_of(torch.eye(2), mask, torch.zeros(2))
    weighted = TrainingBatch(rows.encoded, mask, rows.target_policy, rows.target_value, torch.tensor([1.0, 0.0]))
    output = NetworkOutput(torch.tensor([[2.0, 0.0], [5.0, 0.0]]), torch.zeros(2, 3))
    first_alone = compute_loss(
        NetworkOutput(output.policy_logits[:1], output.value_logits[:1]),
        batch_of(torch.eye(2)[:1], mask[:1], torch.zeros(1)),
        SUPPORT,
        1.0,
    )
    assert compute_loss(output, weighted, SUPPORT, 1.0).total.item() == pytest.approx(first_alone.total.item() / 2)


def test_importance_weights_undo_the_draw() -> None:
    """With exponent 1, weight x probability is the same for all; the largest weight is 1."""
    probabilities = np.array([0.1, 0.2, 0.4])
    weights = importance_weights(probabilities, 10, 1.0)
    assert (weights * probabilities).tolist() == pytest.approx([0.1] * 3)
    assert importance_weights(probabilities, 10, 0.0).tolist() == [1, 1, 1]
