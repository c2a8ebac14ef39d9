"""The residual network for play in float32: compiled convolutions with all that follows them, heads as products."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zero.networks.residual import NetworkOutput, ResidualBlock, ResidualNetwork
from zero.networks.winograd import (
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
class _Linear:
    """A matrix product: weight [inputs, outputs] and bias [outputs]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        return torch.addmm(self.bias, inputs, self.weight)


class _Activations:
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
    context: _Linear

    def __call__(self, activations: _Activations, offsets: Tensor) -> None:
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
    context: _Linear


class WinogradNetwork:
    """Predicts what the network predicts, to rounding, several times as fast on one core.

    Args:
        network: of float32; weights that it gets later are not seen.
    """

    def __init__(self, network: ResidualNetwork) -> None:
        _, height, width = network.planes_shape
        self._cells = height * width
        self._board = make_board(height, width)
        self._stem = make_layer(network.stem.weight)
        self._channels = self._stem.outputs
        self._num_planes = network.stem.in_channels
        self._stem_bias = _padded(_bias(network.stem), self._channels)
        self._features = (
            None if network.features is None else _padded(network.features.weight.T.contiguous(), self._channels)
        )
        self._blocks = [self._make_block(block) for block in network.tower if isinstance(block, ResidualBlock)]
        self._stem_scratch = make_scratch(self._board, self._stem)
        self._scratch = make_scratch(self._board, self._blocks[0].first) if self._blocks else self._stem_scratch
        self._activations = self._make_activations(0)
        self._make_heads(network)

    def _make_activations(self, batch_size: int) -> _Activations:
        return _Activations(batch_size, self._cells, self._stem.inputs, self._channels)

    def _make_block(self, block: ResidualBlock) -> _Block:
        context = self._by_channel(block.context.weight)
        return _Block(
            first=make_layer(block.first.weight),
            first_bias=_padded(_bias(block.first), self._channels),
            second=make_layer(block.second.weight) if block.line_context is None else self._mix(block),
            context=_Linear(context, _padded(_bias(block.second) + block.context.bias, self._channels)),
        )

    def _mix(self, block: ResidualBlock) -> _LineMix:
        assert block.line_context is not None
        context = _Linear(self._by_channel(block.line_context.weight), _padded(block.line_context.bias, self._channels))
        return _LineMix(self._by_channel(block.second.weight[:, :, 0, 0]), block.pool, block.spread, context)

    def _by_channel(self, weight: Tensor) -> Tensor:
        """A weight [outputs, inputs] as [inputs, outputs], both filled up with zeros."""
        return _padded(_padded(weight, self._channels).T, self._channels).contiguous()

    def _make_heads(self, network: ResidualNetwork) -> None:
        convolutions = [network.value_planes]
        last = network.policy[-1]
        self._policy = _by_cell(last, self._cells, self._channels) if isinstance(last, nn.Linear) else None
        first = network.policy[0]
        if isinstance(first, nn.Conv2d):
            convolutions.append(first)
        weights = torch.cat([convolution.weight.flatten(1) for convolution in convolutions])  # [planes, channels]
        self._head_planes = _Linear(
            _padded(weights, self._channels).T.contiguous(), torch.cat([_bias(layer) for layer in convolutions])
        )
        self._num_value_planes = network.value_planes.out_channels
        hidden, logits = network.value[0], network.value[2]
        assert isinstance(hidden, nn.Linear)
        assert isinstance(logits, nn.Linear)
        size = self._num_value_planes * self._cells
        self._value_hidden = _Linear(hidden.weight[:, :size].T.contiguous(), hidden.bias)
        of_means, of_features = hidden.weight[:, size:].split((network.stem.out_channels, network.num_features), dim=1)
        self._value_of_means = _padded(of_means, self._channels).T.contiguous()
        self._value_of_features = of_features.T.contiguous()
        self._value_logits = _Linear(logits.weight.T.contiguous(), logits.bias)

    def __call__(self, encoded: Tensor) -> NetworkOutput:
        """Predictions for encoded observations float32 [B, E]."""
        batch_size = len(encoded)
        if self._activations.mean_rows.shape[0] != batch_size:
            self._activations = self._make_activations(batch_size)
        self._run_tower(encoded)
        activations = self._activations
        planes = self._head_planes(activations.trunk_rows).view(batch_size, self._cells, -1).transpose(1, 2)
        value_planes = planes[:, : self._num_value_planes].reshape(batch_size, -1).relu_()
        hidden = self._value_hidden(value_planes).addmm_(activations.mean_rows, self._value_of_means)
        hidden.addmm_(encoded[:, self._num_planes * self._cells :], self._value_of_features).relu_()
        if self._policy is None:
            policy_logits = planes[:, self._num_value_planes :].reshape(batch_size, -1)
        else:
            policy_logits = self._policy(activations.trunk_boards)
        return NetworkOutput(policy_logits, self._value_logits(hidden))

    def _run_tower(self, encoded: Tensor) -> None:
        """Set trunk and means."""
        board, activations = self._board, self._activations
        batch_size = len(encoded)
        planes, trunk, hidden, means = activations.planes, activations.trunk, activations.hidden, activations.means
        channels_last(encoded.numpy(), self._num_planes, self._stem.inputs, planes)
        offsets = self._stem_bias.expand(batch_size, -1)
        if self._features is not None:
            offsets = torch.addmm(offsets, encoded[:, self._num_planes * self._cells :], self._features)
        convolve(board, self._stem, self._stem_scratch, planes, _flat(offsets), _NOTHING, trunk, means)
        for block in self._blocks:
            offsets = block.first_bias.expand(batch_size, -1)
            convolve(board, block.first, self._scratch, trunk, _flat(offsets), _NOTHING, hidden, means)
            offsets = block.context(activations.mean_rows)
            if isinstance(block.second, _LineMix):
                block.second(activations, offsets)
            else:
                convolve(board, block.second, self._scratch, hidden, _flat(offsets), trunk, trunk, means)


def _bias(layer: nn.Conv2d) -> Tensor:
    return layer.get_parameter("bias")


def _flat(rows: Tensor) -> NDArray[np.float32]:
    return rows.contiguous().view(-1).numpy()


def _padded(tensor: Tensor, size: int) -> Tensor:
    """The tensor with its last dimension filled up with zeros."""
    return functional.pad(tensor, (0, size - tensor.shape[-1]))


def _by_cell(layer: nn.Linear, cells: int, channels: int) -> _Linear:
    """A layer over planes, [channels, cells] in a row, as one over cells, [cells, channels] with channels filled up."""
    weight = layer.weight.view(layer.out_features, -1, cells).transpose(1, 2)  # [A, cells, channels]
    return _Linear(_padded(weight, channels).reshape(layer.out_features, -1).T.contiguous(), layer.bias)
