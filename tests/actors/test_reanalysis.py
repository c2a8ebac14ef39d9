"""Which stored positions are searched again, and that the search is a fresh one of the position alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

from actors.reanalyser import Pace
from actors.reanalysis import WINDOWS, Positions, Reanalysis, choose_positions
from replay_server.answers import RateLimiterInfo, TableInfo
from zero.config import ExperimentConfig, parse_config
from zero.games.game import Game
from zero.games.random_play import random_legal_actions
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.networks.make_network import make_network
from zero.search.make_search import make_search
from zero.search.tree_search import TreeSearch
from zero.self_play_table import self_play_signature, self_play_table
from zero.trajectories import SequenceBatch

WIDTH = 8


def config_for(game: str, root_policy: str = "gumbel", model: str = "rules") -> ExperimentConfig:
    """Small, with noise."""
    settings = [
        f"game.name={game}",
        f"search.root_policy={root_policy}",
        "search.num_simulations=6",
        "search.max_num_considered_actions=4",
        "network.channels=8",
        "network.blocks=1",
        f"network.model={model}",
        f"learner.unroll_steps={2 if model == 'learned' else 0}",
    ]
    return parse_config("", settings)


def some_search(config: ExperimentConfig, game: Game) -> TreeSearch:
    """With a network that tells positions apart."""
    return make_search(game, make_inference(make_network(game, config.network, 3)), config, WIDTH)


def some_states(game: Game, number: int) -> np.ndarray:
    """Positions of random games, no two alike by chance."""
    rng = np.random.default_rng(1)
    states = game.initial(game.draw_chance(rng, number))
    for _ in range(2):
        actions = random_legal_actions(game.legal_action_mask(states), rng.random(number))
        states = game.step(states, actions, game.draw_chance(rng, number)).states
    return states


def stored(game: Game, states: np.ndarray, policies: np.ndarray | None = None) -> Positions:
    """The positions as a table has them."""
    number = len(states)
    if policies is None:
        policies = np.full((number, game.num_actions), 1 / game.num_actions, np.float32)
    keys = np.arange(number, dtype=np.uint64)
    return Positions(keys, game.observation(states), policies, np.zeros(number, np.float32))


@pytest.mark.parametrize(
    ("name", "root_policy", "model"),
    [
        ("triangle", "gumbel", "rules"),
        ("triangle", "gumbel", "learned"),
        ("tic_tac_toe", "puct", "rules"),
        ("tic_tac_toe", "puct", "learned"),
    ],
)
def test_it_is_a_fresh_search_of_the_position(name: str, root_policy: str, model: str) -> None:
    """Bit for bit what a search in play gives with the same seeds, alone in its batch or among others."""
    config = config_for(name, root_policy, model)
    game = make_game(name, {})
    states = some_states(game, WIDTH)
    seeds = np.random.default_rng(5).integers(0, 2**64, WIDTH, dtype=np.uint64)
    fresh = some_search(config, game).run(states, seeds, config.self_play.noise_scale)
    for number in (WIDTH, 3):
        search = some_search(config, game)
        search.run(states[::-1].copy(), seeds)  # what was searched before leaves nothing behind
        found = Reanalysis(game, config, np.random.default_rng(5)).search(search, stored(game, states[:number]))
        np.testing.assert_array_equal(found.policies, fresh.search_policy[:number])
        np.testing.assert_array_equal(found.values, fresh.search_value[:number])
        assert found.num_simulations == WIDTH * 6
        assert found.value_change == pytest.approx(np.abs(fresh.search_value[:number]).mean())


def test_how_much_policies_change_is_told() -> None:
    """Against an independent computation; positions without a policy do not count, and gain one."""
    config, game = config_for("tic_tac_toe"), make_game("tic_tac_toe", {})
    states = some_states(game, WIDTH)
    policies = np.random.default_rng(0).dirichlet(np.ones(9), WIDTH).astype(np.float32)
    policies[2:4] = 0
    positions = stored(game, states, policies)
    found = Reanalysis(game, config, np.random.default_rng(5)).search(some_search(config, game), positions)
    np.testing.assert_allclose(found.policies.sum(-1), 1, rtol=1e-5)
    divergences = [
        sum(float(p * math.log(p / q)) for p, q in zip(found.policies[row], policies[row], strict=True) if p > 0)
        for row in (0, 1, 4, 5, 6, 7)
    ]
    assert found.policy_divergence == pytest.approx(np.mean(divergences), rel=1e-3)
    nothing = replace(positions, policies=np.zeros_like(policies))
    again = Reanalysis(game, config, np.random.default_rng(5)).search(some_search(config, game), nothing)
    assert math.isnan(again.policy_divergence)


def looked_at(keys: list[int], versions: list[int]) -> SequenceBatch:
    """Rows that tell their keys."""
    number = len(keys)
    columns = {
        "observation": np.array(keys, np.uint8)[:, None, None],
        "search_policy": np.zeros((number, 1, 9), np.float16),
        "search_value": np.array(keys, np.float32)[:, None],
        "search_version": np.array(versions, np.uint32)[:, None],
        "reanalysed_at": np.zeros((number, 1)),
    }
    return SequenceBatch(
        columns,
        np.array(keys, np.uint64),
        np.full(number, 0.1),
        np.ones(number, np.int32),
        np.zeros(number, np.uint64),
        np.zeros(number, np.bool_),
        10,
    )


def test_the_oldest_searches_come_first() -> None:
    """Each step once, none that the weights at hand or newer ones have searched; those of an age as they were drawn."""
    seen = looked_at([7, 3, 7, 9, 1, 5, 4], [2, 0, 2, 5, 2, 6, 2])
    chosen = choose_positions(seen, 5, 3)
    assert chosen is not None
    assert chosen.keys.tolist() == [3, 7, 1]
    assert chosen.values.tolist() == [3, 7, 1]
    assert chosen.observations[:, 0].tolist() == [3, 7, 1]
    everything = choose_positions(seen, 5, 100)
    assert everything is not None
    assert everything.keys.tolist() == [3, 7, 1, 4]
    assert choose_positions(seen, 0, 3) is None


@pytest.mark.parametrize("name", ["triangle", "tic_tac_toe"])
def test_nothing_is_looked_at_but_the_position(name: str) -> None:
    """No step after it, and no column that tells what followed: the search must not know more than in play."""
    assert set(WINDOWS.values()) == {1}
    columns = {spec.name for spec in self_play_signature(make_game(name, {}))}
    assert set(WINDOWS) <= columns
    assert not {"action", "reward", "discount", "chance_code"} & set(WINDOWS)


def counted(inserted: int, updated: int) -> TableInfo:
    """What a server says of its table."""
    config = self_play_table(ExperimentConfig(), make_game("tic_tac_toe", {}))
    limiter = RateLimiterInfo(config.rate_limiter, 0, 0, 0, 0)
    return TableInfo(config, 0, 0, inserted, 0, 0, "", "", 0, 0, limiter, 0, 0.0, updated)


def test_the_pace_is_that_of_play_and_shared() -> None:
    """What all did since the first look counts, by a ratio to what was played since; a new server counts anew."""
    pace = Pace(0.5)
    assert not pace.allows(counted(1000, 300))
    assert pace.allows(counted(1010, 304))
    assert not pace.allows(counted(1010, 305))
    assert not pace.allows(counted(1012, 0))  # it has begun again
    assert pace.allows(counted(1020, 3))
    assert not pace.allows(counted(1020, 4))
    assert Pace(0).allows(counted(0, 10**6))
