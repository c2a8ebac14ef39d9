"""Players for evaluation: random, greedy, the policy alone, and the policy under search."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game, States
from zero.games.random_play import row_uniforms
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


def best_actions(values: NDArray[np.floating], seeds: Seeds) -> Actions:
    """Actions [B] of the highest values [B, A], ties at random, row i by seeds[i] alone."""
    best = values == values.max(axis=1, keepdims=True)
    return np.where(best, row_uniforms(seeds, 0, values.shape[1]), -1.0).argmax(axis=1)


class RandomPlayer:
    """Plays uniformly among the legal actions."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        return best_actions(self._game.legal_action_mask(states).astype(np.float64), seeds)


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
        return best_actions(rewards, seeds)


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
