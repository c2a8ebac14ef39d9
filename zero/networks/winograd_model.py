"""The learned model's network for play in float32: compiled convolutions, latents channels last."""

from torch import Tensor
from torch.nn import functional

from zero.networks.learned import LearnedModelNetwork, normalise
from zero.networks.residual import NetworkOutput
from zero.networks.winograd import make_board
from zero.networks.winograd_network import (
    Activations,
    Linear,
    WinogradHeads,
    WinogradScalar,
    WinogradTower,
    bias_of,
    padded,
)


class WinogradModel:
    """Foresees what the network foresees, to rounding, several times as fast on one core.

    Latents are [B, cells * channels], channels last and filled up with zeros.

    Args:
        network: of float32; weights that it gets later are not seen.
    """

    def __init__(self, network: LearnedModelNetwork) -> None:
        _, height, width = network.planes_shape
        board = make_board(height, width)
        self._network = network
        self._representation = WinogradTower(board, network.stem, network.features, network.tower)
        dynamics, chance = network.dynamics, network.chance
        self._dynamics = WinogradTower(board, dynamics.stem, dynamics.features, dynamics.tower)
        self._chance = None if chance is None else WinogradTower(board, chance.stem, chance.features, chance.tower)
        self._cells, self._channels = self._representation.cells, self._representation.channels
        self._heads = WinogradHeads(network, self._cells, self._channels)
        own, planes = network.stem.out_channels, network.reward_planes
        weight = padded(planes.weight.flatten(1), self._channels).T.contiguous()
        self._reward_planes = Linear(weight, bias_of(planes))
        self._reward = WinogradScalar(network.reward, planes.out_channels * self._cells, own, self._channels)
        head = network.chance_head
        self._chance_head = None if head is None else Linear(padded(head.weight, self._channels).T, head.bias)

    def represent(self, encoded: Tensor) -> Tensor:
        """Latents of encoded observations float32 [B, E]."""
        return self._latents(self._representation.of_encoded(encoded))

    def foresee(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Latents after actions, int64 [B], but before chance; reward logits."""
        planes = self._network.action_planes(actions).flatten(2).transpose(1, 2)
        following = self._latents(self._dynamics.of_latents(latents, planes, latents[:, :0]))
        means = self._means(following)
        of_cells = self._reward_planes(following.view(-1, self._channels)).view(len(actions), self._cells, -1)
        reward_planes = functional.relu(of_cells.transpose(1, 2)).reshape(len(actions), -1)
        return following, self._reward(reward_planes, means, means[:, :0])

    def expect_chance(self, latents: Tensor) -> Tensor:
        """Chance logits, as the network gives them."""
        return latents[:, :0] if self._chance_head is None else self._chance_head(self._means(latents))

    def resolve(self, afterstates: Tensor, codes: Tensor) -> Tensor:
        """Latents of afterstates after outcomes with these codes, int64 [B, parts]."""
        assert self._chance is not None, "the game names no chance codes"
        nothing = afterstates.view(len(codes), self._cells, -1)[:, :, :0]
        return self._latents(self._chance.of_latents(afterstates, nothing, self._network.code_features(codes)))

    def predict(self, latents: Tensor) -> NetworkOutput:
        """Policy and value of latents."""
        return self._heads(latents.view(-1, self._channels), self._means(latents), latents[:, :0])

    def _latents(self, activations: Activations) -> Tensor:
        return normalise(activations.trunk_boards)

    def _means(self, latents: Tensor) -> Tensor:
        return latents.view(len(latents), self._cells, self._channels).mean(1)
