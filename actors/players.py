"""Players for evaluation: random, greedy, the policy alone, and the policy under search."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game, States
from zero.networks.inference import InferenceNetwork
from zero.search.tree_search import TreeSearch

Actions = NDArray[np.int64]
Seeds = NDArray[np.uint64]


class Player(Protocol):
    """Chooses a legal action per position; rows are independent of each other."""

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """Actions [B] for positions [B, state_size]; where a game is over, any number.

        Args:
            states: the positions.
            seeds: uint64 [B], the only source of randomness.
        """
        ...


def _uniforms(seeds: Seeds, size: int) -> NDArray[np.float64]:
    """Independent uniforms [B, size], row i from seeds[i] alone."""
    return np.stack([np.random.default_rng(int(seed)).random(size) for seed in seeds])


class RandomPlayer:
    """Plays uniformly among the legal actions."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        mask = self._game.legal_action_mask(states)
        return np.where(mask, _uniforms(seeds, mask.shape[1]), -1.0).argmax(-1)


class GreedyPlayer:
    """Plays the action with the highest immediate reward, ties at random."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        mask = self._game.legal_action_mask(states)
        rows, actions = np.nonzero(mask)
        rewards = np.full(mask.shape, -np.inf)
        if len(rows):
            rewards[rows, actions] = self._game.apply(states[rows], actions.astype(np.int64)).rewards
        best = rewards == rewards.max(-1, keepdims=True)
        return np.where(best & mask, _uniforms(seeds, mask.shape[1]), -1.0).argmax(-1)


class PolicyPlayer:
    """Plays the network's most likely legal action, without search."""

    def __init__(self, game: Game, network: InferenceNetwork) -> None:
        self._game = game
        self._network = network

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player; `seeds` are not used."""
        del seeds
        logits, _ = self._network(self._game.encode(self._game.observation(states)))
        return np.where(self._game.search_action_mask(states), logits, -np.inf).argmax(-1)


class SearchPlayer:
    """Plays what the search finds best, without root noise.

    Args:
        search: as wide as the batches will be.
    """

    def __init__(self, search: TreeSearch) -> None:
        self._search = search

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        return self._search.run(states, seeds, noise_scale=0.0).actions
