"""Both searches visit what a naive one visits, on worlds without structure and on real games."""

from typing import Any

import numpy as np
import pytest

from tests.zero.search.models import HashWorld, hash_network
from tests.zero.search.reference import REFERENCES, ReferenceResult
from tests.zero.search.searches import random_positions, search_of, seeds_of
from zero.config import SearchConfig
from zero.games.game import Game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.model import SearchModel
from zero.search.tree_search import SearchResult


def assert_equals_reference(
    root_policy: str, model: SearchModel, positions: np.ndarray, noise_scale: float, **settings: Any
) -> SearchResult:
    """Same visits, action and leaves; same policy and value within float32."""
    seeds = seeds_of(len(positions), 7)
    config = SearchConfig.model_validate({"root_policy": root_policy} | settings)
    result = search_of(root_policy, model, len(positions), **settings).run(positions, seeds, noise_scale)
    for game, seed in enumerate(seeds.tolist()):
        expected = REFERENCES[root_policy](model, config, positions[game], seed, noise_scale).run()
        assert_one_equals(result, game, expected)
    return result


def assert_one_equals(result: SearchResult, game: int, expected: ReferenceResult) -> None:
    visits = np.zeros(result.visit_counts.shape[1], np.int32)
    visits[list(expected.visits)] = list(expected.visits.values())
    policy = np.zeros(len(visits))
    policy[list(expected.policy)] = list(expected.policy.values())
    np.testing.assert_array_equal(result.visit_counts[game], visits)
    assert result.actions[game] == expected.action
    assert result.num_unique_leaves[game] == expected.num_unique_leaves
    np.testing.assert_allclose(result.search_policy[game], policy, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(result.search_value[game], expected.value, rtol=1e-4, atol=1e-5)


WORLDS = {
    "plain": HashWorld(),
    "terminals": HashWorld(terminal=0.3),
    "chance": HashWorld(chance=0.3),
    "two players": HashWorld(num_players=2, discount=1.0),
    "everything": HashWorld(num_actions=9, terminal=0.1, chance=0.2, num_players=2),
    "narrow": HashWorld(num_actions=3, density=0.2, terminal=0.05),
    "wide and peaked": HashWorld(num_actions=40, chance=0.1, logit_scale=8.0),
    "large returns": HashWorld(reward_scale=300.0, terminal=0.1),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_random_worlds_are_searched_like_the_reference(root_policy: str, world: HashWorld) -> None:
    """Worlds without any structure that could hide a mistake."""
    positions = np.arange(8, dtype=np.uint64)[:, None] + np.uint64(50)
    assert_equals_reference(root_policy, world, positions, 1.0, num_simulations=48)


BOTH = [{"num_simulations": 1}, {"min_value_range": 0.8}, {"min_value_range": 0.0}, {"common_chance": True}]
GUMBEL = [
    {"num_simulations": 5, "max_num_considered_actions": 16},
    {"num_simulations": 64, "max_num_considered_actions": 4},
    {"num_simulations": 20, "max_num_considered_actions": 1},
    {"c_scale": 1.0},
    {"c_visit": 2.0, "c_scale": 0.5},
]
PUCT = [
    {"pb_c_init": 3.0},
    {"pb_c_base": 10.0},
    {"dirichlet_alpha": 0.3},
    {"dirichlet_fraction": 1.0},
    {"dirichlet_fraction": 0.0},
]


@pytest.mark.parametrize(
    ("root_policy", "settings"),
    [
        (name, settings)
        for name, all_settings in (("gumbel", BOTH + GUMBEL), ("puct", BOTH + PUCT))
        for settings in all_settings
    ],
    ids=str,
)
@pytest.mark.parametrize("noise_scale", [0.0, 0.5])
def test_every_setting_means_what_it_means_in_the_reference(
    root_policy: str, settings: dict[str, Any], noise_scale: float
) -> None:
    """Fewer simulations than actions, other weights and floors, shared chance, less noise and none."""
    world = HashWorld(num_actions=12, terminal=0.1, chance=0.1, num_players=2)
    assert_equals_reference(root_policy, world, np.arange(4, dtype=np.uint64)[:, None], noise_scale, **settings)


@pytest.mark.parametrize("game", [TicTacToe(), Triangle()], ids=lambda game: game.name)
def test_real_games_are_searched_like_the_reference(root_policy: str, game: Game) -> None:
    """Positions a few moves into real games, with chance and with ends in reach."""
    model = AlphaZeroModel(game, hash_network(game.num_actions), 0.97)
    states = random_positions(game, batch_size=6, num_moves=5)
    result = assert_equals_reference(root_policy, model, states, 1.0, num_simulations=40)
    assert (result.num_unique_leaves < 40).any(), "neither chance nor an end was met: the positions test too little"


def test_fewer_simulations_are_those_of_a_smaller_search(root_policy: str) -> None:
    """A search that is told to make 16 simulations makes those of a search made for 16, in between full ones."""
    world = HashWorld(num_actions=9, terminal=0.1, chance=0.2, num_players=2)
    positions = np.arange(8, dtype=np.uint64)[:, None]
    large = search_of(root_policy, world, 8, num_simulations=64, max_num_considered_actions=4)
    small = search_of(root_policy, world, 8, num_simulations=16, max_num_considered_actions=4)
    for _ in range(2):
        large.run(positions, seeds_of(8))
        few, expected = large.run(positions, seeds_of(8), num_simulations=16), small.run(positions, seeds_of(8))
        np.testing.assert_array_equal(few.visit_counts, expected.visit_counts)
        np.testing.assert_array_equal(few.search_policy, expected.search_policy)
