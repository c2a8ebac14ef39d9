"""The network of an experiment, as its config names it."""

import torch
from torch import nn

from zero.config import NetworkConfig
from zero.games.game import Game
from zero.networks.learned import LearnedModelNetwork
from zero.networks.residual import ResidualNetwork

_NETWORKS: dict[str, type[ResidualNetwork] | type[LearnedModelNetwork]] = {
    "rules": ResidualNetwork,
    "learned": LearnedModelNetwork,
}


def make_network(game: Game, config: NetworkConfig, seed: int) -> ResidualNetwork:
    """A fresh network; the same seed gives the same weights, and the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _NETWORKS[config.model](game, config)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Planes travel channels-last; weights in the same order spare a reordering per call.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return network
