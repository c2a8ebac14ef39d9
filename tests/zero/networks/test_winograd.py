"""The compiled convolutions give what PyTorch's give, on boards of any shape."""

import numpy as np
import pytest
import torch

from zero.config import NetworkConfig
from zero.games.registry import make_game
from zero.networks import vectors
from zero.networks.inference import InferenceNetwork
from zero.networks.make_network import make_network
from zero.networks.winograd import (
    channels_last,
    convolve,
    make_board,
    make_layer,
    make_scratch,
    zeros,
)


@pytest.mark.parametrize("shape", [(8, 15), (3, 3), (6, 7), (1, 1), (5, 4)])
@pytest.mark.parametrize("channels", [(12, 32), (40, 40)])
@pytest.mark.parametrize("skips", [True, False])
def test_a_layer_is_the_convolution_of_pytorch(shape: tuple[int, int], channels: tuple[int, int], skips: bool) -> None:
    """Offsets and what is skipped are added, the result is cut off at 0, and averaged; also in more than one block."""
    height, width = shape
    inputs, outputs = channels
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * 0.1
    board, layer = make_board(height, width), make_layer(weight)
    scratch = make_scratch(board, layer)._replace(games=3)
    boards = torch.randn(7, inputs, height, width, generator=generator)
    skipped = torch.randn(7, height, width, layer.outputs, generator=generator)
    offsets = torch.randn(7, layer.outputs, generator=generator)
    planes = zeros(7 * height * width * layer.inputs)
    output, means = zeros(7 * height * width * layer.outputs), zeros(7 * layer.outputs)
    channels_last(boards.flatten(1).numpy(), inputs, layer.inputs, planes)
    added = skipped if skips else torch.zeros(0)
    convolve(board, layer, scratch, planes, offsets.flatten().numpy(), added.flatten().numpy(), output, means)

    expected = torch.conv2d(boards.double(), weight.double(), padding=1).permute(0, 2, 3, 1)
    expected = expected + offsets[:, None, None, :outputs]
    expected = (expected + skipped[..., :outputs] if skips else expected).relu().numpy()
    found = output.reshape(7, height, width, -1)[..., :outputs]
    np.testing.assert_allclose(found, expected, atol=5e-5)
    np.testing.assert_allclose(means.reshape(7, -1)[:, :outputs], expected.mean((1, 2)), atol=2e-5)


@pytest.mark.parametrize("name", ["triangle", "tic_tac_toe", "connect_four"])
@pytest.mark.parametrize("channels", [1, 8, 16, 17, 20, 32, 33, 48, 49, 64])
def test_the_network_in_play_is_the_network(name: str, channels: int) -> None:
    """Logits and values are those of PyTorch, for policies of either kind and any width, batch by batch."""
    game, config = make_game(name, {}), NetworkConfig(channels=channels, blocks=3)
    network = make_network(game, config, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    evaluate = InferenceNetwork(network)
    for batch_size in (5, 9):
        encoded = np.random.default_rng(batch_size).random((batch_size, game.encoded_size), np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(encoded))
            values = network.support.expectation(expected.value_logits).numpy()
        logits, found_values = evaluate(encoded)
        scale = max(1.0, float(expected.policy_logits.abs().max()))
        np.testing.assert_allclose(logits, expected.policy_logits.numpy(), atol=2e-5 * scale)
        np.testing.assert_allclose(found_values, values, rtol=1e-3, atol=1e-3)


def test_what_is_not_a_number_is_not_hidden() -> None:
    """A network whose weights have become NaN says so: cutting off at 0 does not make numbers of it."""
    game = make_game("tic_tac_toe", {})
    network = make_network(game, NetworkConfig(channels=8, blocks=1), 0)
    with torch.no_grad():
        network.stem.weight.fill_(float("nan"))
    logits, values = InferenceNetwork(network)(np.ones((2, game.encoded_size), np.float32))
    assert np.isnan(logits).all()
    assert np.isnan(values).all()


def test_vectors_mean_the_same_in_the_interpreter() -> None:
    """The functions that are compiled to instructions can be read and run as they stand."""
    array = np.arange(40, dtype=np.float32)
    vector = vectors.load(array, 3)
    vectors.store(array, 20, vectors.positive_part(vectors.multiply_add(vector, vectors.splat(2), vectors.splat(-10))))
    np.testing.assert_array_equal(array[20:36], np.maximum(2 * np.arange(3, 19) - 10, 0))
