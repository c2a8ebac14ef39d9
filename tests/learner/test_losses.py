"""Losses are what the formulas say, and never see an illegal action."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.losses import PRIORITY_FLOOR, TrainingBatch, compute_loss, importance_weights
from zero.config import LearnerConfig, NetworkConfig
from zero.networks.residual import Unrolled
from zero.networks.value_support import ValueSupport

SUPPORT = ValueSupport(NetworkConfig(support_min=-1, support_max=1, support_size=3, value_transform=False))


CONFIG = LearnerConfig()


def batch_of(target_policy: torch.Tensor, mask: torch.Tensor, target_value: torch.Tensor) -> TrainingBatch:
    """A batch with weights of one and no moves."""
    size = len(target_value)
    return TrainingBatch(
        encoded=torch.zeros(size, 1),
        actions=torch.zeros(size, 0, dtype=torch.int64),
        chance_codes=torch.zeros(size, 0, 0, dtype=torch.int64),
        policy_mask=mask[:, None],
        target_policy=target_policy[:, None],
        target_value=target_value[:, None],
        target_reward=torch.zeros(size, 0),
        is_known=torch.ones(size, 1),
        is_inside=torch.ones(size, 1),
        importance_weights=torch.ones(size),
    )


def predicted(policy_logits: torch.Tensor, value_logits: torch.Tensor) -> Unrolled:
    """Predictions for the drawn positions alone."""
    nothing = value_logits[:, None][:, :0]
    return Unrolled(policy_logits[:, None], value_logits[:, None], nothing, nothing[..., :0], nothing)


def test_policy_loss_is_zero_at_the_target_and_ignores_illegal_logits() -> None:
    """A policy equal to its target over the legal actions costs nothing, whatever illegal actions have as logits."""
    target = torch.tensor([[0.25, 0.75, 0.0]])
    logits = torch.tensor([[0.25, 0.75, 1e6]])
    logits[:, :2] = logits[:, :2].log()
    mask = torch.tensor([[True, True, False]])
    output = predicted(logits, torch.zeros(1, 3))
    loss = compute_loss(output, batch_of(target, mask, torch.zeros(1)), SUPPORT, CONFIG)
    assert loss.policy.item() == pytest.approx(0, abs=1e-6)


def test_illegal_logits_get_no_gradient() -> None:
    """Masked actions pull at nothing."""
    logits = torch.zeros(1, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    batch = batch_of(torch.tensor([[1.0, 0.0, 0.0]]), mask, torch.zeros(1))
    compute_loss(predicted(logits, torch.zeros(1, 3)), batch, SUPPORT, CONFIG).total.backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_value_loss_and_priorities() -> None:
    """Uniform logits cost log 3 against any target; the priority is the distance from their mean, 0, and never 0."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    batch = batch_of(torch.full((2, 2), 0.5), mask, torch.tensor([1.0, 0.0]))
    loss = compute_loss(predicted(torch.zeros(2, 2), torch.zeros(2, 3)), batch, SUPPORT, CONFIG)
    assert loss.value.item() == pytest.approx(np.log(3))
    assert loss.priorities.tolist() == pytest.approx([1.0 + PRIORITY_FLOOR, PRIORITY_FLOOR])


def test_targets_beyond_the_support_are_counted() -> None:
    """Its ends are not beyond it; in transformed scale where the network has one."""
    mask = torch.ones(4, 2, dtype=torch.bool)
    batch = batch_of(torch.full((4, 2), 0.5), mask, torch.tensor([-1.0, 1.0, 1.5, -3.0]))
    output = predicted(torch.zeros(4, 2), torch.zeros(4, 3))
    assert compute_loss(output, batch, SUPPORT, CONFIG).clamped_targets.item() == 0.5
    squashed = ValueSupport(NetworkConfig(support_min=-1, support_max=1, support_size=3))
    assert compute_loss(output, batch, squashed, CONFIG).clamped_targets.item() == 0.25


def test_values_are_in_real_scale() -> None:
    """What the network says of the positions, as search sees it."""
    squashed = ValueSupport(NetworkConfig(support_min=0, support_max=20, support_size=41))
    logits = torch.randn(2, 41, generator=torch.Generator().manual_seed(0))
    batch = batch_of(torch.full((2, 2), 0.5), torch.ones(2, 2, dtype=torch.bool), torch.zeros(2))
    loss = compute_loss(predicted(torch.zeros(2, 2), logits), batch, squashed, CONFIG)
    assert loss.values.tolist() == squashed.expectation(logits).tolist()
    assert loss.values.min() > loss.priorities.max()


def test_importance_weights_scale_each_row() -> None:
    """A row of weight w counts w times, in the total and nowhere else."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    rows = batch_of(torch.eye(2), mask, torch.zeros(2))
    weighted = replace(rows, importance_weights=torch.tensor([1.0, 0.0]))
    logits = torch.tensor([[2.0, 0.0], [5.0, 0.0]])
    output = predicted(logits, torch.zeros(2, 3))
    first_alone = compute_loss(
        predicted(logits[:1], torch.zeros(1, 3)),
        batch_of(torch.eye(2)[:1], mask[:1], torch.zeros(1)),
        SUPPORT,
        CONFIG,
    )
    assert compute_loss(output, weighted, SUPPORT, CONFIG).total.item() == pytest.approx(first_alone.total.item() / 2)


def test_importance_weights_undo_the_draw() -> None:
    """With exponent 1, weight x probability is the same for all; the largest weight is 1."""
    probabilities = np.array([0.1, 0.2, 0.4])
    weights = importance_weights(probabilities, 10, 1.0)
    assert (weights * probabilities).tolist() == pytest.approx([0.1] * 3)
    assert importance_weights(probabilities, 10, 0.0).tolist() == [1, 1, 1]


def unrolled_batch(num_actions: int = 2) -> tuple[Unrolled, TrainingBatch]:
    """Two rows of K moves among three actions, with one chance code of two; all predictions are uniform."""
    size, length = 2, num_actions + 1
    batch = TrainingBatch(
        encoded=torch.zeros(size, 1),
        actions=torch.zeros(size, num_actions, dtype=torch.int64),
        chance_codes=torch.zeros(size, num_actions, 1, dtype=torch.int64),
        policy_mask=torch.ones(1, 1, 3, dtype=torch.bool),
        target_policy=torch.eye(3)[torch.zeros(size, length, dtype=torch.int64)],
        target_value=torch.zeros(size, length),
        target_reward=torch.zeros(size, num_actions),
        is_known=torch.ones(size, length),
        is_inside=torch.ones(size, length),
        importance_weights=torch.ones(size),
        code_sizes=(2,),
    )
    output = Unrolled(
        torch.zeros(size, length, 3),
        torch.zeros(size, length, 3),
        torch.zeros(size, num_actions, 3),
        torch.zeros(size, num_actions, 3),
        torch.ones(size, length, 4),
    )
    return output, batch


@pytest.mark.parametrize("num_actions", [1, 2, 5])
def test_the_length_of_the_unroll_does_not_weigh_it(num_actions: int) -> None:
    """Each of K actions counts 1 / K: policy, value, reward and chance of uniform predictions add up the same."""
    config = LearnerConfig(value_loss_weight=0.5, reward_loss_weight=3.0, chance_loss_weight=0.25)
    loss = compute_loss(*unrolled_batch(num_actions), SUPPORT, config)
    position = np.log(3) + 0.5 * np.log(3)
    step = 3 * np.log(3) + 0.25 * 2 * np.log(2)  # whether chance follows, and which of two codes
    assert loss.total.item() == pytest.approx(2 * position + step, rel=1e-5)
    assert loss.reward.item() == pytest.approx(np.log(3))
    assert loss.chance.item() == pytest.approx(2 * np.log(2))


def test_what_is_not_known_costs_nothing() -> None:
    """Value, reward and chance beyond a game that was cut off pull at nothing, nor does a policy of zeros."""
    output, batch = unrolled_batch()
    output = Unrolled(*(part.requires_grad_() for part in output))
    batch.is_known[:, 1:] = 0
    batch.target_policy[:, 1:] = 0
    compute_loss(output, batch, SUPPORT, CONFIG).total.backward()
    for part in (output.policy_logits, output.value_logits):
        assert part.grad is not None
        assert part.grad[:, 0].abs().sum() > 0
        assert (part.grad[:, 1:] == 0).all()
    for part in (output.reward_logits, output.chance_logits):
        assert part.grad is not None
        assert part.grad[:, 0].abs().sum() > 0, "the move from the last known position earns a known reward"
        assert (part.grad[:, 1:] == 0).all()


def test_codes_are_learned_where_chance_showed_any() -> None:
    """Without an outcome only whether one follows has a loss."""
    output, batch = unrolled_batch()
    output = output._replace(chance_logits=output.chance_logits.requires_grad_())
    batch.chance_codes[:] = -1
    compute_loss(output, batch, SUPPORT, CONFIG).total.backward()
    gradient = output.chance_logits.grad
    assert gradient is not None
    assert (gradient[..., :2] == 0).all()
    assert (gradient[..., 2] > 0).all()


def test_rewards_beyond_the_support_are_counted() -> None:
    """Values and rewards alike, those that are known."""
    output, batch = unrolled_batch()
    batch.target_reward[0, 0] = 7.0
    batch.target_value[1, 2] = -7.0
    assert compute_loss(output, batch, SUPPORT, CONFIG).clamped_targets.item() == pytest.approx(2 / 10)
    batch.is_known[1, 2] = 0
    assert compute_loss(output, batch, SUPPORT, CONFIG).clamped_targets.item() == pytest.approx(1 / 9)


def test_consistency_pulls_the_foreseen_towards_the_real() -> None:
    """Latents in the same direction cost nothing, orthogonal ones their weight; the real ones get no gradient."""
    output, batch = unrolled_batch()
    config = LearnerConfig(consistency_loss_weight=2.0)
    same = compute_loss(output, batch, SUPPORT, config, torch.ones(2, 2, 4)).total
    real = torch.tensor([1.0, -1, 1, -1]).expand(2, 2, 4).clone().requires_grad_()
    foreseen = output._replace(latents=torch.ones(2, 3, 4).requires_grad_())
    loss = compute_loss(foreseen, batch, SUPPORT, config, real)
    assert loss.consistency.item() == pytest.approx(1)
    assert loss.total.item() - same.item() == pytest.approx(2.0, abs=1e-5)
    loss.total.backward()
    assert real.grad is None
    assert foreseen.latents.grad is not None
    assert foreseen.latents.grad[:, 1:].abs().sum() > 0


def test_nothing_is_consistent_with_what_was_not_recorded() -> None:
    """Beyond the last move of a game there is no position to compare with, even where values and rewards are known."""
    output, batch = unrolled_batch()
    foreseen = output._replace(latents=torch.ones(2, 3, 4).requires_grad_())
    batch.is_inside[:, 2] = 0
    real = torch.tensor([1.0, -1, 1, -1]).expand(2, 2, 4)
    loss = compute_loss(foreseen, batch, SUPPORT, LearnerConfig(consistency_loss_weight=2.0), real)
    assert loss.consistency.item() == pytest.approx(1), "the mean over what was recorded"
    loss.total.backward()
    assert foreseen.latents.grad is not None
    assert foreseen.latents.grad[:, 1].abs().sum() > 0
    assert (foreseen.latents.grad[:, 2] == 0).all()


def test_entropy_is_rewarded() -> None:
    """A uniform policy over three actions is paid the logarithm of three, at every position."""
    plain = compute_loss(*unrolled_batch(), SUPPORT, CONFIG).total.item()
    paid = compute_loss(*unrolled_batch(), SUPPORT, LearnerConfig(entropy_weight=0.1)).total.item()
    assert plain - paid == pytest.approx(0.1 * 2 * np.log(3), rel=1e-4)
