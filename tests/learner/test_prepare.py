"""What a training step sees of a batch: the drawn positions, their targets and their weights."""

import numpy as np
import torch

from learner.learner import Learner
from learner.losses import compute_loss
from zero.config import parse_config
from zero.games.registry import make_game
from zero.trajectories import SequenceBatch

CONFIG = parse_config("", ["discount=0.5", "learner.td_steps=2", "learner.td_lambda=1.0"])
GAME = make_game("triangle", {})


def sequence_batch(batch_size: int = 4) -> SequenceBatch:
    """Start positions with a reward of one per step and a search value of eight."""
    learner = Learner(CONFIG, GAME, torch.device("cpu"))
    windows = learner.windows()
    states = GAME.initial(GAME.draw_chance(np.random.default_rng(0), batch_size))
    mask = GAME.search_action_mask(states)
    # Sums to 0.96: what half precision may leave of a distribution, exaggerated.
    policy = (0.96 * mask / mask.sum(-1, keepdims=True)).astype(np.float16)
    columns = {
        "observation": GAME.observation(states)[:, None],
        "search_policy": policy[:, None],
        "reward": np.ones((batch_size, windows["reward"]), np.float32),
        "discount": np.ones((batch_size, windows["discount"]), np.float32),
        "search_value": np.full((batch_size, windows["search_value"]), 8, np.float32),
    }
    return SequenceBatch(
        columns,
        keys=np.arange(batch_size, dtype=np.uint64),
        probabilities=np.linspace(0.1, 0.4, batch_size),
        lengths=np.full(batch_size, 50, np.int32),
        weights_versions=np.ones(batch_size, np.uint64),
        terminated=np.zeros(batch_size, np.bool_),
        table_size=100,
    )


def test_windows_reach_as_far_as_the_targets() -> None:
    """`unroll_steps` + `td_steps` + 1 steps of what values are made of, and the positions alone that are looked at."""
    values = {"reward": 3, "discount": 3, "search_value": 3}
    assert Learner(CONFIG, GAME, torch.device("cpu")).windows() == {"observation": 1, "search_policy": 1} | values
    learned = ["network.model=learned", "network.channels=8", "network.blocks=1", "learner.td_steps=2"]
    learned += ["learner.unroll_steps=4", "learner.consistency_loss_weight=0"]
    expected = {"observation": 1, "search_policy": 5, "action": 4, "chance_code": 4}
    expected |= {"reward": 7, "discount": 7, "search_value": 7}
    assert Learner(parse_config("", learned), GAME, torch.device("cpu")).windows() == expected
    consistent = parse_config("", [*learned, "learner.consistency_loss_weight=1"])
    assert Learner(consistent, GAME, torch.device("cpu")).windows() == expected | {"observation": 5}


def test_value_targets_use_the_discount_of_the_config() -> None:
    """Two rewards, discounted by a half, and the search value two steps on, by a quarter."""
    batch = Learner(CONFIG, GAME, torch.device("cpu")).prepare(sequence_batch())
    assert batch.target_value.tolist() == [[1 + 0.5 * 1 + 0.25 * 8]] * 4


def test_policy_targets_are_distributions_over_what_the_search_considered() -> None:
    """Rounding is undone, and the mask is that of the search."""
    batch = Learner(CONFIG, GAME, torch.device("cpu")).prepare(sequence_batch())
    assert torch.allclose(batch.target_policy.sum(-1), torch.ones(4, 1), atol=1e-6)
    states = GAME.initial(GAME.draw_chance(np.random.default_rng(0), 4))
    assert np.array_equal(batch.policy_mask[:, 0].numpy(), GAME.search_action_mask(states))
    assert (batch.target_policy[~batch.policy_mask] == 0).all()


def test_a_policy_of_zeros_is_not_learned() -> None:
    """Where no policy was recorded, the value alone has a loss; the policy head gets no gradient from there."""
    learner = Learner(CONFIG, GAME, torch.device("cpu"))
    sequences = sequence_batch()
    sequences.columns["search_policy"][:] = 0
    batch = learner.prepare(sequences)
    assert (batch.target_policy == 0).all()
    output = learner.network.unroll(batch.encoded, batch.actions, batch.chance_codes)
    output.policy_logits.retain_grad()
    loss = compute_loss(output, batch, learner.network.support, CONFIG.learner)
    loss.total.backward()
    assert float(loss.policy) == 0
    assert float(loss.value) > 0
    assert (output.policy_logits.grad == 0).all()


def test_what_is_drawn_often_weighs_less() -> None:
    """Importance weights fall with the probability of the draw, the largest is one."""
    weights = Learner(CONFIG, GAME, torch.device("cpu")).prepare(sequence_batch()).importance_weights
    assert weights[0] == 1
    assert (weights[1:] < weights[:-1]).all()


def test_observations_are_encoded_for_the_network() -> None:
    """The network sees what play sees of the same positions."""
    batch = sequence_batch()
    encoded = Learner(CONFIG, GAME, torch.device("cpu")).prepare(batch).encoded
    assert np.array_equal(encoded.numpy(), GAME.encode(batch.columns["observation"][:, 0]))
