"""What the tests of searches share: either search by name, seeds, real positions, equality of results."""

import dataclasses
from typing import Any

import numpy as np

from zero.config import SearchConfig
from zero.games.game import Game
from zero.search.gumbel import GumbelSearch
from zero.search.model import SearchModel
from zero.search.puct import PuctSearch
from zero.search.tree_search import SearchResult, TreeSearch


def search_of(root_policy: str, model: SearchModel, batch_size: int, **settings: Any) -> TreeSearch:
    """The search of that name with these values of the search config."""
    config = SearchConfig.model_validate({"root_policy": root_policy} | settings)
    return (PuctSearch if root_policy == "puct" else GumbelSearch)(model, config, batch_size)


def seeds_of(count: int, first: int = 0) -> np.ndarray:
    """Consecutive seeds, uint64 [count]."""
    return np.arange(first, first + count, dtype=np.uint64)


def random_positions(game: Game, batch_size: int, num_moves: int) -> np.ndarray:
    """States [B, S] after `num_moves` random legal moves."""
    rng = np.random.default_rng(3)
    states = game.initial(game.draw_chance(rng, batch_size))
    for _ in range(num_moves):
        mask = game.legal_action_mask(states)
        actions = np.where(mask, rng.random(mask.shape), -1).argmax(1)
        states = game.step(states, actions, game.draw_chance(rng, batch_size)).states
    return states


def assert_same(one: SearchResult, other: SearchResult) -> None:
    """Bit for bit."""
    for field in dataclasses.fields(SearchResult):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)
