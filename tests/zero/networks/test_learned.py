"""The network with a learned model: its copy for play computes the same, and actions and codes mean what they say."""

import numpy as np
import pytest
import torch

from zero.config import NetworkConfig
from zero.games.registry import make_game
from zero.networks.inference import InferenceModel, make_inference
from zero.networks.learned import LearnedModelNetwork
from zero.networks.make_network import make_network


def network_of(name: str, **settings: object) -> LearnedModelNetwork:
    """A network of noise: no layer is at its start of zero."""
    network = make_network(make_game(name, {}), NetworkConfig.model_validate({"model": "learned", **settings}), 0)
    assert isinstance(network, LearnedModelNetwork)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network


def model_of(network: LearnedModelNetwork, dtype: torch.dtype) -> InferenceModel:
    """Its copy for play."""
    model = make_inference(network, dtype)
    assert isinstance(model, InferenceModel)
    return model


@pytest.mark.parametrize("name", ["triangle", "tic_tac_toe", "connect_four"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("channels", [32, 20, 48, 8])
def test_the_model_in_play_is_the_model(name: str, dtype: torch.dtype, within: float, channels: int) -> None:
    """Predictions, rewards and chance after two actions, and an outcome, are those of PyTorch, batch by batch."""
    network = network_of(name, channels=channels)
    model, game = model_of(network, dtype), make_game(name, {})
    for batch_size in (5, 9):
        rng = np.random.default_rng(batch_size)
        encoded = rng.random((batch_size, game.encoded_size), np.float32)
        found = model.represent(encoded)
        with torch.no_grad():
            expected = network.trunk(torch.from_numpy(encoded))
            for _ in range(2):
                actions = rng.integers(0, game.num_actions, batch_size)
                found, rewards = model.foresee(found, actions)
                expected, reward_logits = network.foresee(expected, torch.from_numpy(actions))
                np.testing.assert_allclose(rewards, network.support.expectation(reward_logits), atol=20 * within)
            if network.code_sizes:
                follows, parts = model.expect_chance(found)
                logits = network.expect_chance(expected)
                np.testing.assert_allclose(follows, logits[:, -1].sigmoid(), atol=within)
                for part, part_logits in zip(parts, network.code_logits(logits), strict=True):
                    np.testing.assert_allclose(part, part_logits.softmax(-1), atol=within)
                codes = np.stack([rng.integers(0, size, batch_size) for size in network.code_sizes], axis=1)
                found = model.resolve(found, codes)
                expected = network.resolve(expected, torch.from_numpy(codes))
            policy_logits, value_logits = network.predict(expected, expected[:, :0, 0, 0])
            logits, values = model.predict(found)
            np.testing.assert_allclose(logits, policy_logits, atol=within)
            np.testing.assert_allclose(values, network.support.expectation(value_logits), atol=20 * within)
            alone = model.predict(model.represent(encoded))
            called = model(encoded)
            for one, other in zip(alone, called, strict=True):
                np.testing.assert_array_equal(one, other)


def test_latents_stay_in_range() -> None:
    """However often the dynamics is applied, the largest number of a latent is 1 and none is below 0."""
    network = network_of("triangle", channels=8)
    latents = network.trunk(torch.rand(4, network.encoded_size))
    for action in range(10):
        latents, _ = network.foresee(latents, torch.full((4,), action))
        assert latents.flatten(1).amax(1).tolist() == pytest.approx([1] * 4)
        assert latents.min() >= 0


def test_an_action_is_a_cell_on_its_slots_plane() -> None:
    """Where the action space is slot x cell; on other boards every action has an embedding of its own."""
    planes = network_of("triangle").action_planes(torch.tensor([0, 130, 359]))
    assert planes.shape == (3, 3, 8, 15)
    assert planes.nonzero().tolist() == [[0, 0, 0, 0], [1, 1, 0, 10], [2, 2, 7, 14]]
    embedded = network_of("connect_four").action_planes(torch.arange(7))
    assert embedded.shape == (7, 4, 6, 7)
    assert len(embedded.flatten(1).unique(dim=0)) == 7


def test_every_part_of_the_codes_matters() -> None:
    """Another shape in any slot leads to another latent; the same codes to the same."""
    network = network_of("triangle", channels=8)
    afterstates = network.trunk(torch.rand(1, network.encoded_size))
    codes = torch.tensor([[1, 2, 3], [4, 2, 3], [1, 4, 3], [1, 2, 4], [1, 2, 3]])
    latents = network.resolve(afterstates.expand(5, -1, -1, -1), codes).flatten(1)
    assert len(latents.detach().unique(dim=0)) == 4
    assert torch.equal(latents[0], latents[4])


def test_a_game_without_codes_has_no_chance_in_its_network() -> None:
    """Off where nothing is random."""
    network = network_of("tic_tac_toe")
    assert network.chance is None
    assert network.chance_head is None
