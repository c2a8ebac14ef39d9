"""The default network: a small residual tower over planes, with pooled context and no normalisation layers."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zero.config import NetworkConfig
from zero.games.game import Game
from zero.networks.value_support import ValueSupport


class NetworkOutput(NamedTuple):
    """Predictions for a batch.

    Attributes:
        policy_logits: [B, A], illegal actions not masked.
        value_logits: [B, support_size].
    """

    policy_logits: Tensor
    value_logits: Tensor


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
    """

    def __init__(self, game: Game, config: NetworkConfig) -> None:
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
        value_planes = 8
        self.value_planes = nn.Conv2d(channels, value_planes, 1)
        self.support = ValueSupport(config)
        last = nn.Linear(config.value_hidden, config.support_size)
        # A fresh network expects next to nothing: targets bootstrap with its values long before it knows better.
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(-self.support.atoms.abs())
        self.value = nn.Sequential(
            nn.Linear(value_planes * height * width + channels + game.num_features, config.value_hidden),
            nn.ReLU(),
            last,
        )

    def forward(self, encoded: Tensor) -> NetworkOutput:
        """Predict.

        Args:
            encoded: [B, C * H * W + F], as Game.encode gives it.
        """
        planes = encoded[:, : self._num_plane_values].unflatten(1, self.planes_shape)
        features = encoded[:, self._num_plane_values :]
        stem = self.stem(planes.contiguous(memory_format=torch.channels_last))
        if self.features is not None:
            stem = stem + self.features(features)[:, :, None, None]
        trunk = self.tower(functional.relu(stem))
        value_planes = functional.relu(self.value_planes(trunk)).flatten(1)
        value_logits = self.value(torch.cat((value_planes, trunk.mean((2, 3)), features), dim=1))
        return NetworkOutput(self.policy(trunk), value_logits)


def make_network(game: Game, config: NetworkConfig, seed: int) -> ResidualNetwork:
    """A fresh network; the same seed gives the same weights, and the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResidualNetwork(game, config)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Planes travel channels-last; weights in the same order spare a reordering per call.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return network
