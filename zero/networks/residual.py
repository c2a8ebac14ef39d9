"""A network for play by the rules: a small residual tower over planes, pooled context, no normalisation layers."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zero.config import NetworkConfig
from zero.games.game import Game
from zero.networks.value_support import ValueSupport

SCALAR_PLANES = 8
"""Planes that a categorical number is read from."""


class NetworkOutput(NamedTuple):
    """Predictions for a batch.

    Attributes:
        policy_logits: [B, A], illegal actions not masked.
        value_logits: [B, support_size].
    """

    policy_logits: Tensor
    value_logits: Tensor


class Unrolled(NamedTuple):
    """Predictions for drawn positions and for what follows K actions from each.

    Attributes:
        policy_logits: [B, K + 1, A], illegal actions not masked.
        value_logits: [B, K + 1, support_size].
        reward_logits: [B, K, support_size], of the rewards that the actions earn.
        chance_logits: [B, K, number of codes + 1], of every part's codes after each action, then of whether chance
            follows it at all; [B, K, 0] where the game names no codes.
        latents: [B, K + 1, ...], what the predictions are made from; [B, 1, 0] without actions.
    """

    policy_logits: Tensor
    value_logits: Tensor
    reward_logits: Tensor
    chance_logits: Tensor
    latents: Tensor


class ResidualBlock(nn.Module):
    """Two convolutions, and context pooled over the lines of the board and over all of it, added to the input.

    The first convolution is 3x3. The second one is, too, unless the board has lines: these carry what is far away, for
    a fraction of the cost.

    The last layers of a block start at zero, so that a fresh tower is the identity and trains without normalisation
    (Zhang et al. 2019, Fixup). Nothing depends on batch statistics: training and play compute the same function.
    """

    pool: Tensor
    spread: Tensor

    def __init__(self, channels: int, lines: NDArray[np.bool_]) -> None:
        super().__init__()
        cells_of_line = torch.from_numpy(lines).flatten(1).float()  # [L, H * W]
        self.register_buffer("pool", cells_of_line / cells_of_line.sum(1, keepdim=True), persistent=False)
        self.register_buffer("spread", cells_of_line.T.contiguous(), persistent=False)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 1) if len(lines) else nn.Conv2d(channels, channels, 3, padding=1)
        self.context = nn.Linear(channels, channels)
        self.line_context = nn.Linear(channels, channels) if len(lines) else None
        for layer in (self.second, self.context, self.line_context):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, trunk: Tensor) -> Tensor:
        """[B, channels, H, W] to the same shape."""
        hidden = functional.relu(self.first(trunk))
        added = self.second(hidden) + self.context(hidden.mean((2, 3)))[:, :, None, None]
        if self.line_context is not None:
            cells = hidden.permute(0, 2, 3, 1)  # [B, H, W, channels], as it lies in memory
            of_lines = self.line_context(self.pool @ cells.flatten(1, 2))  # [B, L, channels]
            added = added + (self.spread @ of_lines).view(cells.shape).permute(0, 3, 1, 2)
        return functional.relu(trunk + added)


class ResidualNetwork(nn.Module):
    """Policy and categorical value from encoded observations.

    Where the action space is a multiple of the board, as slot x cell is, the policy head is a convolution with one
    plane per slot; else a linear layer.

    Args:
        game: the rules, of which only shapes and lines are read.
        config: sizes.
        value_sees_features: the value reads the encoded features, too, not the trunk alone.
    """

    def __init__(self, game: Game, config: NetworkConfig, *, value_sees_features: bool = True) -> None:
        super().__init__()
        self.encoded_size = game.encoded_size
        self.num_features = game.num_features
        self.planes_shape = game.planes_shape
        planes, height, width = game.planes_shape
        self._num_plane_values = planes * height * width
        channels = config.channels
        self.stem = nn.Conv2d(planes, channels, 3, padding=1)
        self.features = nn.Linear(game.num_features, channels, bias=False) if game.num_features else None
        self.tower = nn.Sequential(*(ResidualBlock(channels, game.lines) for _ in range(config.blocks)))
        policy_planes, remainder = divmod(game.num_actions, height * width)
        if remainder:
            self.policy = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, game.num_actions))
        else:
            self.policy = nn.Sequential(nn.Conv2d(channels, policy_planes, 1), nn.Flatten())
        self.value_planes = nn.Conv2d(channels, SCALAR_PLANES, 1)
        self.support = ValueSupport(config)
        self.num_value_features = game.num_features if value_sees_features else 0
        self.value = make_scalar_layers(height * width, self.num_value_features, config, self.support)

    def forward(self, encoded: Tensor) -> NetworkOutput:
        """Predict.

        Args:
            encoded: [B, C * H * W + F], as Game.encode gives it.
        """
        return self.predict(self.trunk(encoded), encoded[:, self.encoded_size - self.num_value_features :])

    def trunk(self, encoded: Tensor) -> Tensor:
        """[B, channels, H, W] of encoded observations [B, C * H * W + F]."""
        planes = encoded[:, : self._num_plane_values].unflatten(1, self.planes_shape)
        stem = self.stem(planes.contiguous(memory_format=torch.channels_last))
        if self.features is not None:
            stem = stem + self.features(encoded[:, self._num_plane_values :])[:, :, None, None]
        return self.tower(functional.relu(stem))

    def predict(self, trunk: Tensor, features: Tensor) -> NetworkOutput:
        """Policy and value from the trunk and features [B, F], or [B, 0] if the value does not see any."""
        value_planes = functional.relu(self.value_planes(trunk)).flatten(1)
        value_logits = self.value(torch.cat((value_planes, trunk.mean((2, 3)), features), dim=1))
        return NetworkOutput(self.policy(trunk), value_logits)

    def unroll(self, encoded: Tensor, actions: Tensor, chance_codes: Tensor) -> Unrolled:
        """Predict for the drawn positions; there is no model that could follow actions.

        Args:
            encoded: [B, E].
            actions: int64 [B, 0].
            chance_codes: int64 [B, 0, number of parts].
        """
        del actions, chance_codes
        policy_logits, value_logits = self(encoded)
        nothing = value_logits[:, None, :0]
        return Unrolled(policy_logits[:, None], value_logits[:, None], value_logits[:, None][:, :0], nothing, nothing)


def make_scalar_layers(cells: int, num_features: int, config: NetworkConfig, support: ValueSupport) -> nn.Sequential:
    """Layers from SCALAR_PLANES planes, the means of the trunk and features to the logits of a categorical number."""
    last = nn.Linear(config.value_hidden, config.support_size)
    # A fresh network expects next to nothing: targets bootstrap with its values long before it knows better.
    nn.init.zeros_(last.weight)
    last.bias.data.copy_(-support.atoms.abs())
    size = SCALAR_PLANES * cells + config.channels + num_features
    return nn.Sequential(nn.Linear(size, config.value_hidden), nn.ReLU(), last)
