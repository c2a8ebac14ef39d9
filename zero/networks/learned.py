"""A network with a learned model: representation, dynamics, chance and prediction, on the planes of the board."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from zero.config import NetworkConfig
from zero.games.game import Game
from zero.networks.residual import (
    SCALAR_PLANES,
    ResidualBlock,
    ResidualNetwork,
    Unrolled,
    make_scalar_layers,
)

EMBEDDED_PLANES = 4
"""Planes of an action's embedding, where the action space is no multiple of the board."""
DYNAMICS_GRADIENT = 0.5
"""Of what the dynamics sends back to the latents it starts from, so that long unrolls do not outweigh the start
(Schrittwieser et al. 2020, appendix G)."""

_LEAST_RANGE = 1e-5


def normalise(trunk: Tensor) -> Tensor:
    """Scale the numbers of every row, none of them below 0, so that their largest is 1, all of a row alike.

    As Schrittwieser et al. 2020, appendix G: the least is 0 already, for a tower ends in a rectifier.
    """
    return trunk / trunk.flatten(1).amax(1).clamp(min=_LEAST_RANGE).view(-1, *(1,) * (trunk.ndim - 1))


class LatentTower(nn.Module):
    """From latents, planes and features to new latents: what is added to the old ones, then a residual tower.

    Args:
        config: sizes.
        game: whose board and lines it is for.
        num_planes: beside the latents.
        num_features: that are the same for all cells.
    """

    def __init__(self, config: NetworkConfig, game: Game, num_planes: int, num_features: int) -> None:
        super().__init__()
        channels = config.channels
        self.stem = nn.Conv2d(channels + num_planes, channels, 3, padding=1)
        self.features = nn.Linear(num_features, channels, bias=False) if num_features else None
        self.tower = nn.Sequential(*(ResidualBlock(channels, game.lines) for _ in range(config.blocks)))

    def forward(self, latents: Tensor, planes: Tensor, features: Tensor) -> Tensor:
        """[B, channels, H, W], normalised.

        Args:
            latents: [B, channels, H, W].
            planes: [B, num_planes, H, W].
            features: [B, num_features].
        """
        inputs = torch.cat((latents, planes), dim=1).contiguous(memory_format=torch.channels_last)
        added = latents + self.stem(inputs)
        if self.features is not None:
            added = added + self.features(features)[:, :, None, None]
        return normalise(self.tower(functional.relu(added)))


class LearnedModelNetwork(ResidualNetwork):
    """The functions of MuZero (Schrittwieser et al. 2020) and, for chance, Stochastic MuZero (Antonoglou et al. 2022).

    The representation h is the network's own tower; its trunk, normalised, is the latent, planes of the board. The
    prediction f is the network's own heads. The dynamics g adds an action to a latent; where the game names chance
    codes and one follows, its result is an afterstate, and a tower of its own adds the codes. Codes are what players
    see, so nothing has to be learned to tell outcomes apart, and an afterstate foresees their probabilities.

    An action is a plane per slot with a one in its cell where the action space is slot x cell; else a learned
    embedding.
    """

    def __init__(self, game: Game, config: NetworkConfig) -> None:
        super().__init__(game, config, value_sees_features=False)
        _, height, width = game.planes_shape
        cells = height * width
        self.num_actions = game.num_actions
        self.code_sizes = game.chance_code_sizes
        is_factored = game.num_actions % cells == 0
        self._action_planes = (game.num_actions // cells if is_factored else EMBEDDED_PLANES, height, width)
        self.embedding = None if is_factored else nn.Embedding(game.num_actions, EMBEDDED_PLANES * cells)
        self.dynamics = LatentTower(config, game, self._action_planes[0], 0)
        self.reward_planes = nn.Conv2d(config.channels, SCALAR_PLANES, 1)
        self.reward = make_scalar_layers(cells, 0, config, self.support)
        num_codes = sum(self.code_sizes)
        self.chance = LatentTower(config, game, 0, num_codes) if num_codes else None
        self.chance_head = nn.Linear(config.channels, num_codes + 1) if num_codes else None

    def trunk(self, encoded: Tensor) -> Tensor:
        """Latents [B, channels, H, W] of encoded observations [B, C * H * W + F]."""
        return normalise(super().trunk(encoded))

    def action_planes(self, actions: Tensor) -> Tensor:
        """Planes [B, P, H, W] of actions, int64 [B]."""
        if self.embedding is None:
            planes = functional.one_hot(actions, self.num_actions).to(self.stem.weight.dtype)
        else:
            planes = self.embedding(actions)
        return planes.unflatten(1, self._action_planes)

    def foresee(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, channels, H, W] after actions [B] but before chance; reward logits [B, support_size]."""
        following = self.dynamics(latents, self.action_planes(actions), latents[:, :0, 0, 0])
        planes = functional.relu(self.reward_planes(following)).flatten(1)
        return following, self.reward(torch.cat((planes, following.mean((2, 3))), dim=1))

    def expect_chance(self, latents: Tensor) -> Tensor:
        """Chance logits [B, number of codes + 1], see Unrolled; [B, 0] where the game names no codes."""
        return latents[:, :0, 0, 0] if self.chance_head is None else self.chance_head(latents.mean((2, 3)))

    def resolve(self, afterstates: Tensor, codes: Tensor) -> Tensor:
        """Latents [B, channels, H, W] of afterstates after the outcomes that codes, int64 [B, parts], stand for."""
        assert self.chance is not None, "the game names no chance codes"
        return self.chance(afterstates, afterstates[:, :0], self.code_features(codes))

    def code_features(self, codes: Tensor) -> Tensor:
        """Codes [B, parts], one-hot, [B, number of codes]."""
        shown = [functional.one_hot(code, size) for code, size in zip(codes.T, self.code_sizes, strict=True)]
        return torch.cat(shown, dim=1).to(self.stem.weight.dtype)

    def code_logits(self, chance_logits: Tensor) -> tuple[Tensor, ...]:
        """Of chance logits [..., number of codes + 1] the part of every code, [..., size]."""
        ends = torch.tensor((0, *self.code_sizes)).cumsum(0).tolist()
        return tuple(chance_logits[..., start:end] for start, end in pairwise(ends))

    def unroll(self, encoded: Tensor, actions: Tensor, chance_codes: Tensor) -> Unrolled:
        """Predict for the drawn positions and after each of the actions that were played from there.

        Args:
            encoded: [B, E].
            actions: int64 [B, K].
            chance_codes: int64 [B, K, number of parts], of the outcome after each action; below 0 where none was.
        """
        latents = [self.trunk(encoded)]
        rewards, chances = list[Tensor](), list[Tensor]()
        for step in range(actions.shape[1]):
            start = DYNAMICS_GRADIENT * latents[-1] + (1 - DYNAMICS_GRADIENT) * latents[-1].detach()
            following, reward_logits = self.foresee(start, actions[:, step])
            rewards.append(reward_logits)
            chances.append(self.expect_chance(following))
            latents.append(self._resolve_where_shown(following, chance_codes[:, step]))
        # All positions at once: heads are small, and calls are not free.
        together = torch.stack(latents, dim=1)  # [B, K + 1, channels, H, W]
        flat = together.flatten(0, 1)
        output = self.predict(flat, flat[:, :0, 0, 0])
        shape = together.shape[:2]
        return Unrolled(
            output.policy_logits.unflatten(0, shape),
            output.value_logits.unflatten(0, shape),
            torch.stack(rewards, dim=1),
            torch.stack(chances, dim=1),
            together,
        )

    def _resolve_where_shown(self, afterstates: Tensor, codes: Tensor) -> Tensor:
        rows = (codes >= 0).all(-1).nonzero().squeeze(-1)
        if self.chance is None or not len(rows):
            return afterstates
        return afterstates.index_copy(0, rows, self.resolve(afterstates[rows], codes[rows]))
