"""The network gives the same in training and in play, batch by batch, in every dtype it plays in."""

import numpy as np
import pytest
import torch

from zero.config import NetworkConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.inference import DTYPES, InferenceNetwork, fastest_dtype
from zero.networks.make_network import make_network
from zero.networks.residual import ResidualBlock
from zero.networks.weights import WeightsMismatchError, load_weights, weights_to_bytes


@pytest.fixture(scope="module", params=["triangle", "tic_tac_toe"])
def game(request: pytest.FixtureRequest) -> Game:
    """Every built-in game."""
    return make_game(request.param, {})


def encoded_starts(game: Game, count: int) -> np.ndarray:
    """Encoded start positions [count, E]."""
    states = game.initial(game.draw_chance(np.random.default_rng(0), count))
    return game.encode(game.observation(states))


def trained_a_little(game: Game) -> torch.nn.Module:
    """A network whose layers are all away from their initial zeros."""
    network = make_network(game, NetworkConfig(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network


def test_output_shapes(game: Game) -> None:
    """One logit per action and one per atom."""
    output = make_network(game, NetworkConfig(), seed=0)(torch.from_numpy(encoded_starts(game, 3)))
    assert output.policy_logits.shape == (3, game.num_actions)
    assert output.value_logits.shape == (3, NetworkConfig().support_size)


def test_training_and_play_compute_the_same(game: Game) -> None:
    """Nothing in the network depends on the mode or on the rest of the batch."""
    network = trained_a_little(game)
    encoded = encoded_starts(game, 8)
    with torch.no_grad():
        trained = network.train()(torch.from_numpy(encoded)).policy_logits.numpy()
    played, _ = InferenceNetwork(network)(encoded)
    alone, _ = InferenceNetwork(network)(encoded[3:4])
    np.testing.assert_allclose(played, trained, atol=1e-5)
    np.testing.assert_allclose(alone[0], played[3], atol=1e-5)


def test_every_play_dtype_stays_close_to_float32(game: Game) -> None:
    """Reduced precision moves logits and values by little, and both come back as float32."""
    network = trained_a_little(game)
    encoded = encoded_starts(game, 8)
    logits, values = InferenceNetwork(network)(encoded)
    for dtype in DTYPES:
        other_logits, other_values = InferenceNetwork(network, dtype)(encoded)
        assert other_logits.dtype == other_values.dtype == np.float32
        assert np.abs(other_logits - logits).max() < 0.1
        assert np.abs(other_values - values).max() < 0.05 * (1 + np.abs(values).max())


def test_fastest_dtype_is_the_one_that_took_least() -> None:
    """The measurement picks by the clock."""
    game = make_game("tic_tac_toe", {})
    network = make_network(game, NetworkConfig(), seed=0)
    # Two readings per timed call: a call of the first dtype takes 5 s, one of the second 1 s.
    readings = iter([0.0, 5.0, 10.0, 15.0, 20.0, 21.0, 30.0, 31.0])
    assert fastest_dtype(network, 4, lambda: next(readings), rounds=2) == DTYPES[1]


def test_weights_survive_the_wire(game: Game) -> None:
    """Weights to bytes and back into a fresh network give the same predictions."""
    network = trained_a_little(game)
    other = make_network(game, NetworkConfig(), seed=1)
    load_weights(other, weights_to_bytes(network))
    encoded = torch.from_numpy(encoded_starts(game, 4))
    with torch.no_grad():
        assert torch.equal(network(encoded).policy_logits, other(encoded).policy_logits)


def test_weights_of_another_network_are_refused(game: Game) -> None:
    """The error names what differs, and the network stays as it was."""
    network = make_network(game, NetworkConfig(), seed=0)
    before = weights_to_bytes(network)
    with pytest.raises(WeightsMismatchError, match="another network"):
        load_weights(network, weights_to_bytes(make_network(game, NetworkConfig(channels=16), seed=0)))
    with pytest.raises(WeightsMismatchError, match="no safetensors file"):
        load_weights(network, b"garbage")
    assert weights_to_bytes(network) == before


def test_seed_gives_the_same_network_and_leaves_the_global_generator_alone(game: Game) -> None:
    """Construction is a function of the seed, without side effects."""
    state = torch.get_rng_state()
    first = weights_to_bytes(make_network(game, NetworkConfig(), seed=7))
    assert first == weights_to_bytes(make_network(game, NetworkConfig(), seed=7))
    assert first != weights_to_bytes(make_network(game, NetworkConfig(), seed=8))
    assert torch.equal(state, torch.get_rng_state())


def test_a_fresh_network_expects_next_to_nothing(game: Game) -> None:
    """Whatever the support reaches to, for the first targets bootstrap with these values."""
    for config in (NetworkConfig(), NetworkConfig(support_min=-20, support_max=20, support_size=81)):
        _, values = InferenceNetwork(make_network(game, config, seed=0))(encoded_starts(game, 8))
        assert np.abs(values).max() < 3


def test_the_value_depends_on_every_feature() -> None:
    """Scalars beside the planes reach the value by a way of their own."""
    game = make_game("triangle", {})
    network = trained_a_little(game)
    encoded = torch.from_numpy(encoded_starts(game, 1)).requires_grad_()
    network.features.weight.data.zero_()
    network(encoded).value_logits.square().sum().backward()
    assert (encoded.grad[0, -game.num_features :] != 0).all()


def test_a_block_sees_along_lines() -> None:
    """Far cells of a line reach each other in one block; cells that share no line do not, but for the mean of all."""
    lines = np.zeros((2, 6, 6), np.bool_)
    lines[0, 2] = lines[1, :, 5] = True
    block = ResidualBlock(4, lines)
    generator = torch.Generator().manual_seed(0)
    for layer in (block.first, block.second, block.line_context):
        assert layer is not None
        layer.weight.data = torch.rand(layer.weight.shape, generator=generator)
    cells = torch.rand((1, 4, 6, 6), generator=generator, requires_grad=True)
    block(cells)[0, :, 2, 0].sum().backward()
    assert cells.grad is not None
    reached = (cells.grad[0] != 0).any(0)
    # Each cell of the row is itself the outcome of a 3x3 convolution.
    assert reached[1:4].all()
    assert not reached[[0, 4, 5]].any()
