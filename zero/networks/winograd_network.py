"""The residual network for play in float32: compiled convolutions with all that follows them, heads as products."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zero.networks.residual import NetworkOutput, ResidualBlock, ResidualNetwork
from zero.networks.winograd import (
    Board,
    Layer,
    channels_last,
    convolve,
    make_board,
    make_layer,
    make_scratch,
    zeros,
)

_NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Linear:
    """A matrix product: weight [inputs, outputs] and bias [outputs]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        return torch.addmm(self.bias, inputs, self.weight)


class Activations:
    """What lies between the layers, for B boards, channels last, as PyTorch and NumPy see the same memory."""

    def __init__(self, batch_size: int, cells: int, inputs: int, channels: int) -> None:
        self.planes = zeros(batch_size * cells * inputs)
        self.trunk = zeros(batch_size * cells * channels)
        self.hidden = zeros(batch_size * cells * channels)
        self.means = zeros(batch_size * channels)
        self.trunk_rows = torch.from_numpy(self.trunk).view(batch_size * cells, channels)
        self.trunk_boards = self.trunk_rows.view(batch_size, cells * channels)
        self.mean_rows = torch.from_numpy(self.means).view(batch_size, channels)
        self.hidden_rows = torch.from_numpy(self.hidden).view(batch_size * cells, channels)
        self.planes_of_boards = torch.from_numpy(self.planes).view(batch_size, cells, inputs)
        self.shape = (batch_size, cells, channels)


@dataclass(frozen=True)
class _LineMix:
    """What ends a block on a board with lines: a product per cell, and what is pooled over its lines.

    Attributes:
        weight: [channels, channels], of the cell itself.
        pool: [L, cells].
        spread: [cells, L].
        context: of a line.
    """

    weight: Tensor
    pool: Tensor
    spread: Tensor
    context: Linear

    def __call__(self, activations: Activations, offsets: Tensor) -> None:
        """Add to the trunk what hidden and offsets [B, channels] give, and set the means."""
        hidden, trunk = activations.hidden_rows.view(activations.shape), activations.trunk_rows.view(activations.shape)
        of_lines = self.context((self.pool @ hidden).flatten(0, 1)).view(len(offsets), len(self.pool), -1)
        activations.trunk_rows.addmm_(activations.hidden_rows, self.weight)
        trunk.baddbmm_(self.spread.expand(len(offsets), -1, -1), of_lines)
        trunk.add_(offsets[:, None]).relu_()
        torch.mean(trunk, 1, out=activations.mean_rows)


@dataclass(frozen=True)
class _Block:
    """A residual block; `context` gives what the second convolution adds to all cells, its bias included."""

    first: Layer
    first_bias: Tensor
    second: Layer | _LineMix
    context: Linear


class WinogradTower:
    """A stem and the residual blocks above it.

    Args:
        board: that is convolved.
        stem: its convolution; what it reads beyond the channels of the tower are planes beside latents.
        features: what it adds to all cells, or None.
        tower: residual blocks.
    """

    def __init__(self, board: Board, stem: nn.Conv2d, features: nn.Linear | None, tower: nn.Sequential) -> None:
        self._board = board
        self.cells = board.height * board.width
        self._stem = make_layer(stem.weight)
        self.channels = self._stem.outputs
        self._num_planes, self._num_own = stem.in_channels, stem.out_channels
        self._stem_bias = padded(bias_of(stem), self.channels)
        self._features = None if features is None else padded(features.weight.T.contiguous(), self.channels)
        self._blocks = [self._make_block(block) for block in tower if isinstance(block, ResidualBlock)]
        self._stem_scratch = make_scratch(self._board, self._stem)
        self._scratch = make_scratch(self._board, self._blocks[0].first) if self._blocks else self._stem_scratch
        self._activations = self._make_activations(0)

    def _make_activations(self, batch_size: int) -> Activations:
        return Activations(batch_size, self.cells, self._stem.inputs, self.channels)

    def _make_block(self, block: ResidualBlock) -> _Block:
        context = self._by_channel(block.context.weight)
        return _Block(
            first=make_layer(block.first.weight, self.channels),
            first_bias=padded(bias_of(block.first), self.channels),
            second=make_layer(block.second.weight, self.channels) if block.line_context is None else self._mix(block),
            context=Linear(context, padded(bias_of(block.second) + block.context.bias, self.channels)),
        )

    def _mix(self, block: ResidualBlock) -> _LineMix:
        assert block.line_context is not None
        context = Linear(self._by_channel(block.line_context.weight), padded(block.line_context.bias, self.channels))
        return _LineMix(self._by_channel(block.second.weight[:, :, 0, 0]), block.pool, block.spread, context)

    def _by_channel(self, weight: Tensor) -> Tensor:
        """A weight [outputs, inputs] as [inputs, outputs], both filled up with zeros."""
        return padded(padded(weight, self.channels).T, self.channels).contiguous()

    def of_encoded(self, encoded: Tensor) -> Activations:
        """The activations, overwritten by the next, for encoded observations float32 [B, E]."""
        activations = self._activations_for(len(encoded))
        channels_last(encoded.numpy(), self._num_planes, self._stem.inputs, activations.planes)
        self._run(activations, encoded[:, self._num_planes * self.cells :], _NOTHING)
        return activations

    def of_latents(self, latents: Tensor, planes: Tensor, features: Tensor) -> Activations:
        """The activations, overwritten by the next, of latents [B, cells * channels], to which the stem is added.

        Args:
            latents: channels last, filled up.
            planes: [B, cells, P], channels last, what the stem reads beside the latents.
            features: [B, F].
        """
        activations = self._activations_for(len(latents))
        inputs, own = activations.planes_of_boards, self._num_own
        inputs[:, :, :own] = latents.view(len(latents), self.cells, -1)[:, :, :own]
        inputs[:, :, own : own + planes.shape[2]] = planes
        self._run(activations, features, _flat(latents))
        return activations

    def _activations_for(self, batch_size: int) -> Activations:
        if self._activations.mean_rows.shape[0] != batch_size:
            self._activations = self._make_activations(batch_size)
        return self._activations

    def _run(self, activations: Activations, features: Tensor, skipped: NDArray[np.float32]) -> None:
        """Set trunk and means from the planes and what is added to the stem."""
        board, batch_size = self._board, len(features)
        planes, trunk, hidden, means = activations.planes, activations.trunk, activations.hidden, activations.means
        offsets = self._stem_bias.expand(batch_size, -1)
        if self._features is not None:
            offsets = torch.addmm(offsets, features, self._features)
        convolve(board, self._stem, self._stem_scratch, planes, _flat(offsets), skipped, trunk, means)
        for block in self._blocks:
            offsets = block.first_bias.expand(batch_size, -1)
            convolve(board, block.first, self._scratch, trunk, _flat(offsets), _NOTHING, hidden, means)
            offsets = block.context(activations.mean_rows)
            if isinstance(block.second, _LineMix):
                block.second(activations, offsets)
            else:
                convolve(board, block.second, self._scratch, hidden, _flat(offsets), trunk, trunk, means)


class WinogradHeads:
    """Policy and value of a trunk that lies channels last.

    Args:
        network: whose heads they are.
        cells: of the board.
        channels: of the trunk, filled up.
    """

    def __init__(self, network: ResidualNetwork, cells: int, channels: int) -> None:
        self._cells = cells
        convolutions = [network.value_planes]
        last = network.policy[-1]
        self._policy = _by_cell(last, cells, channels) if isinstance(last, nn.Linear) else None
        first = network.policy[0]
        if isinstance(first, nn.Conv2d):
            convolutions.append(first)
        weights = torch.cat([convolution.weight.flatten(1) for convolution in convolutions])  # [planes, channels]
        self._head_planes = Linear(
            padded(weights, channels).T.contiguous(), torch.cat([bias_of(layer) for layer in convolutions])
        )
        self._num_value_planes = network.value_planes.out_channels
        self._value = WinogradScalar(network.value, self._num_value_planes * cells, network.stem.out_channels, channels)

    def __call__(self, rows: Tensor, means: Tensor, features: Tensor) -> NetworkOutput:
        """Predictions of a trunk [B * cells, channels] with means [B, channels] and features [B, F]."""
        batch_size = len(means)
        planes = self._head_planes(rows).view(batch_size, self._cells, -1).transpose(1, 2)
        value_planes = planes[:, : self._num_value_planes].reshape(batch_size, -1).relu_()
        if self._policy is None:
            policy_logits = planes[:, self._num_value_planes :].reshape(batch_size, -1)
        else:
            policy_logits = self._policy(rows.view(batch_size, -1))
        return NetworkOutput(policy_logits, self._value(value_planes, means, features))


class WinogradScalar:
    """The layers of a categorical number, for means that have been filled up.

    Args:
        layers: as `make_scalar_layers` gave them.
        num_planes: numbers of planes that they read first.
        num_means: means that they read then.
        channels: to which these have been filled up.
    """

    def __init__(self, layers: nn.Sequential, num_planes: int, num_means: int, channels: int) -> None:
        hidden, logits = layers[0], layers[2]
        assert isinstance(hidden, nn.Linear)
        assert isinstance(logits, nn.Linear)
        of_planes, of_means, of_features = hidden.weight.split(
            (num_planes, num_means, hidden.in_features - num_planes - num_means), dim=1
        )
        self._hidden = Linear(of_planes.T.contiguous(), hidden.bias)
        self._of_means = padded(of_means, channels).T.contiguous()
        self._of_features = of_features.T.contiguous()
        self._logits = Linear(logits.weight.T.contiguous(), logits.bias)

    def __call__(self, planes: Tensor, means: Tensor, features: Tensor) -> Tensor:
        """Logits [B, support_size]."""
        hidden = self._hidden(planes).addmm_(means, self._of_means)
        hidden.addmm_(features, self._of_features).relu_()
        return self._logits(hidden)


class WinogradNetwork:
    """Predicts what the network predicts, to rounding, several times as fast on one core.

    Args:
        network: of float32; weights that it gets later are not seen.
    """

    def __init__(self, network: ResidualNetwork) -> None:
        _, height, width = network.planes_shape
        self._tower = WinogradTower(make_board(height, width), network.stem, network.features, network.tower)
        self._heads = WinogradHeads(network, self._tower.cells, self._tower.channels)
        self._first_feature = network.encoded_size - network.num_value_features

    def __call__(self, encoded: Tensor) -> NetworkOutput:
        """Predictions for encoded observations float32 [B, E]."""
        activations = self._tower.of_encoded(encoded)
        return self._heads(activations.trunk_rows, activations.mean_rows, encoded[:, self._first_feature :])


def bias_of(layer: nn.Conv2d) -> Tensor:
    """The bias of a convolution."""
    return layer.get_parameter("bias")


def _flat(rows: Tensor) -> NDArray[np.float32]:
    return rows.contiguous().view(-1).numpy()


def padded(tensor: Tensor, size: int) -> Tensor:
    """The tensor with its last dimension filled up with zeros."""
    return functional.pad(tensor, (0, size - tensor.shape[-1]))


def _by_cell(layer: nn.Linear, cells: int, channels: int) -> Linear:
    """A layer over planes, [channels, cells] in a row, as one over cells, [cells, channels] with channels filled up."""
    weight = layer.weight.view(layer.out_features, -1, cells).transpose(1, 2)  # [A, cells, channels]
    return Linear(padded(weight, channels).reshape(layer.out_features, -1).T.contiguous(), layer.bias)
