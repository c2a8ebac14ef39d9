"""Gumbel search against a naive reference, against known answers, and against what it promises of its inputs."""

import dataclasses

import numpy as np
import pytest

from tests.zero.search.models import Edge, HashWorld, ListedWorld, Node, hash_network
from tests.zero.search.reference import ReferenceSearch
from zero.config import SearchConfig
from zero.games.game import Game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.gumbel import GumbelSearch, SearchError, SearchResult
from zero.search.model import SearchModel


def seeds_of(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64)


def assert_equals_reference(
    model: SearchModel, config: SearchConfig, positions: np.ndarray, gumbel_scale: float
) -> SearchResult:
    seeds = seeds_of(len(positions), 7)
    result = GumbelSearch(model, config, len(positions)).run(positions, seeds, gumbel_scale)
    for game, seed in enumerate(seeds.tolist()):
        expected = ReferenceSearch(model, config, positions[game], seed, gumbel_scale).run()
        visits = np.zeros(model.num_actions, np.int32)
        visits[list(expected.visits)] = list(expected.visits.values())
        policy = np.zeros(model.num_actions)
        policy[list(expected.policy)] = list(expected.policy.values())
        np.testing.assert_array_equal(result.visit_counts[game], visits)
        assert result.actions[game] == expected.action
        assert result.num_unique_leaves[game] == expected.num_unique_leaves
        np.testing.assert_allclose(result.search_policy[game], policy, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(result.search_value[game], expected.value, rtol=1e-4, atol=1e-5)
    return result


WORLDS = {
    "plain": HashWorld(),
    "terminals": HashWorld(terminal=0.3),
    "chance": HashWorld(chance=0.3),
    "two players": HashWorld(num_players=2, discount=1.0),
    "everything": HashWorld(num_actions=9, terminal=0.1, chance=0.2, num_players=2),
    "narrow": HashWorld(num_actions=3, density=0.2, terminal=0.05),
    "wide and peaked": HashWorld(num_actions=40, chance=0.1, logit_scale=8.0),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_random_worlds_are_searched_like_the_reference(world: HashWorld) -> None:
    """Same visits, action and leaves; same policy and value within float32, on worlds without any structure."""
    positions = np.arange(8, dtype=np.uint64)[:, None] + np.uint64(50)
    assert_equals_reference(world, SearchConfig(num_simulations=48), positions, 1.0)


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(num_simulations=1),
        SearchConfig(num_simulations=5, max_num_considered_actions=16),
        SearchConfig(num_simulations=64, max_num_considered_actions=4),
        SearchConfig(num_simulations=20, max_num_considered_actions=1),
        SearchConfig(c_scale=1.0),
        SearchConfig(c_visit=2.0, c_scale=0.5),
        SearchConfig(min_value_range=0.8),
        SearchConfig(min_value_range=0.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("gumbel_scale", [0.0, 1.0])
def test_every_setting_means_what_it_means_in_the_reference(config: SearchConfig, gumbel_scale: float) -> None:
    """Fewer simulations than actions, one considered action, other scales, other floors, no noise."""
    world = HashWorld(num_actions=12, terminal=0.1, chance=0.1, num_players=2)
    assert_equals_reference(world, config, np.arange(4, dtype=np.uint64)[:, None], gumbel_scale)


@pytest.mark.parametrize("game", [TicTacToe(), Triangle()], ids=lambda game: game.name)
def test_real_games_are_searched_like_the_reference(game: Game) -> None:
    """Positions a few moves into real games, with chance and with ends in reach."""
    model = AlphaZeroModel(game, hash_network(game.num_actions), 0.97)
    states = random_positions(game, batch_size=6, num_moves=5)
    result = assert_equals_reference(model, SearchConfig(num_simulations=40), states, 1.0)
    assert (result.num_unique_leaves < 40).any(), "neither chance nor an end was met: the positions test too little"


def random_positions(game: Game, batch_size: int, num_moves: int) -> np.ndarray:
    """States [B, S] after `num_moves` random legal moves."""
    rng = np.random.default_rng(3)
    states = game.initial(game.draw_chance(rng, batch_size))
    for _ in range(num_moves):
        mask = game.legal_action_mask(states)
        actions = np.where(mask, rng.random(mask.shape), -1).argmax(1)
        states = game.step(states, actions, game.draw_chance(rng, batch_size)).states
    return states


def bandit(rewards: list[float], logits: list[float] | None = None) -> ListedWorld:
    """One decision, then the end; the network predicts nothing but the logits."""
    edges = {action: Edge("end", reward) for action, reward in enumerate(rewards)}
    return ListedWorld(len(rewards), 1.0, {"root": Node(logits=tuple(logits or ()), edges=edges), "end": Node()})


@pytest.mark.parametrize("best", range(8))
def test_the_best_arm_is_found_among_those_considered(best: int) -> None:
    """With every arm considered and no noise, the largest reward wins against the prior."""
    rewards = [0.1 * ((3 * arm) % 8) for arm in range(8)]
    rewards[best] = 1.0
    logits = [0.0] * 8
    logits[(best + 1) % 8] = 1.0
    world = bandit(rewards, logits)
    result = GumbelSearch(world, SearchConfig(num_simulations=24), 1).run(world.positions("root"), seeds_of(1), 0.0)
    assert result.actions[0] == best
    assert result.visit_counts[0].tolist()[best] == max(result.visit_counts[0])
    assert result.search_policy[0].argmax() == best


def test_chance_is_judged_by_its_mean() -> None:
    """A gamble that pays 0 or 2 beats a sure 0.8 and loses to a sure 1.2; every visit is a fresh outcome."""
    gamble = (Edge("end", 0.0), Edge("end", 2.0))
    edges = {0: Edge("gamble"), 1: Edge("end", 0.8)}
    world = ListedWorld(
        2,
        1.0,
        {
            "against 0.8": Node(edges=edges),
            "against 1.2": Node(edges=edges | {1: Edge("end", 1.2)}),
            "gamble": Node(outcomes=gamble),
            "end": Node(),
        },
    )
    positions = world.positions(*(["against 0.8"] * 100 + ["against 1.2"] * 100))
    search = GumbelSearch(world, SearchConfig(num_simulations=200), 200)
    result = search.run(positions, seeds_of(200), 0.0)
    assert (result.actions[:100] == 0).mean() > 0.9
    assert (result.actions[100:] == 1).mean() > 0.9
    assert (result.num_unique_leaves == 2).all()
    gambles = search.tree.child_q[:, 0, 0]
    assert abs(gambles.mean() - 1.0) < 0.03
    assert gambles.std() > 0.01, "all games sampled the same outcomes"


def test_searching_improves_the_policy_in_expectation() -> None:
    """The expected value of the chosen action is above the prior's, even with fewer simulations than actions."""
    rng = np.random.default_rng(1)
    batch_size = 4000
    for num_simulations in (2, 4, 16):
        rewards, logits = rng.normal(size=8), rng.normal(size=8)
        world = bandit(rewards.tolist(), logits.tolist())
        config = SearchConfig(num_simulations=num_simulations, max_num_considered_actions=min(4, num_simulations))
        positions = np.zeros((batch_size, 1), np.int64)
        result = GumbelSearch(world, config, batch_size).run(positions, seeds_of(batch_size))
        prior = np.exp(logits) / np.exp(logits).sum()
        found = rewards[result.actions]
        assert found.mean() > prior @ rewards + 4 * found.std() / np.sqrt(batch_size)
        assert (result.search_policy @ rewards).mean() > prior @ rewards


def test_one_simulation_samples_the_prior() -> None:
    """With a single action considered the search is the Gumbel-max trick: actions follow the network's policy."""
    logits = np.array([0.0, 1.0, -1.0, 2.0])
    batch_size = 20_000
    world = bandit([0.0] * 4, logits.tolist())
    config = SearchConfig(num_simulations=1, max_num_considered_actions=1)
    result = GumbelSearch(world, config, batch_size).run(np.zeros((batch_size, 1), np.int64), seeds_of(batch_size))
    prior = np.exp(logits) / np.exp(logits).sum()
    frequencies = np.bincount(result.actions, minlength=4) / batch_size
    np.testing.assert_allclose(frequencies, prior, atol=4 * np.sqrt(0.25 / batch_size))


def test_visits_sum_to_the_simulations() -> None:
    """Every simulation goes through one action of the root, at most `max_num_considered_actions` of them."""
    world = HashWorld(num_actions=30, terminal=0.2, chance=0.2)
    config = SearchConfig(num_simulations=32, max_num_considered_actions=8)
    result = GumbelSearch(world, config, 16).run(seeds_of(16)[:, None], seeds_of(16))
    assert (result.visit_counts.sum(1) == 32).all()
    assert ((result.visit_counts > 0).sum(1) <= 8).all()
    assert (result.visit_counts[np.arange(16), result.actions] == result.visit_counts.max(1)).all()


def test_a_floor_below_which_values_are_not_told_apart() -> None:
    """Values that differ by far less than `min_value_range` leave the network's policy as it is."""
    logits = [0.3, -0.2, 0.1]
    world = bandit([1e-4, 3e-4, 2e-4], logits)
    prior = np.exp(logits) / np.exp(logits).sum()
    policies = [
        GumbelSearch(world, SearchConfig(min_value_range=floor), 1)
        .run(world.positions("root"), seeds_of(1))
        .search_policy[0]
        for floor in (100.0, 0.0)
    ]
    np.testing.assert_allclose(policies[0], prior, rtol=1e-4)
    assert policies[1][1] > 0.9, "without a floor the same differences decide"


def test_other_batches_and_seeds_are_refused() -> None:
    """A search is made for one batch size."""
    world = HashWorld()
    search = GumbelSearch(world, SearchConfig(), 4)
    with pytest.raises(SearchError, match="takes 4 positions"):
        search.run(seeds_of(3)[:, None], seeds_of(3))
    with pytest.raises(SearchError, match="takes 4 positions"):
        search.run(seeds_of(4)[:, None], seeds_of(3))
    with pytest.raises(SearchError, match="uint64"):
        search.run(seeds_of(4)[:, None], np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="batch_size"):
        GumbelSearch(world, SearchConfig(), 0)


class Broken(HashWorld):
    """A world whose model gives one number throughout one field, of the root or of every step."""

    def root(self, positions):
        """As HashWorld, spoilt."""
        output = super().root(positions)
        return dataclasses.replace(output, **self.spoil(output, {"logits", "values"} if self.at_root else set()))

    def step(self, embeddings, actions, uniforms):
        """As HashWorld, spoilt."""
        output = super().step(embeddings, actions, uniforms)
        fields = set() if self.at_root else {"rewards", "chance_rewards", "discounts", "values", "logits"}
        return dataclasses.replace(output, **self.spoil(output, fields))

    def spoil(self, output, fields):
        """The field to replace, if it is among those given."""
        if self.field not in fields:
            return {}
        return {self.field: np.full_like(getattr(output, self.field), self.number)}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("at_root", "field"),
    [
        (True, "logits"),
        (True, "values"),
        (False, "logits"),
        (False, "values"),
        (False, "rewards"),
        (False, "chance_rewards"),
        (False, "discounts"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(at_root: bool, field: str, number: float) -> None:
    """Diverged weights stop the search; they do not play."""
    model = Broken()
    for name, value in {"at_root": at_root, "field": field, "number": number}.items():
        object.__setattr__(model, name, value)
    with pytest.raises(SearchError, match="not finite"):
        GumbelSearch(model, SearchConfig(num_simulations=4), 2).run(seeds_of(2)[:, None], seeds_of(2))


def test_more_actions_than_announced_are_refused() -> None:
    """A model that allows more than `max_legal_actions` is caught before memory is overwritten."""

    class Liar(HashWorld):
        @property
        def max_legal_actions(self) -> int:
            return 2

    with pytest.raises(SearchError, match="more than the 2 actions"):
        GumbelSearch(Liar(density=1.0), SearchConfig(), 2).run(seeds_of(2)[:, None], seeds_of(2))


def test_arrays_of_any_layout_are_searched_alike() -> None:
    """Read-only and strided outputs of a model give what contiguous ones give."""

    class Strided(HashWorld):
        def root(self, positions):
            output = super().root(positions)
            logits = np.asfortranarray(output.logits)
            logits.flags.writeable = False
            return dataclasses.replace(output, logits=logits)

    results = [
        GumbelSearch(model, SearchConfig(), 4).run(seeds_of(4)[:, None], seeds_of(4))
        for model in (HashWorld(), Strided())
    ]
    np.testing.assert_array_equal(results[0].visit_counts, results[1].visit_counts)


def test_noise_may_outweigh_any_prior() -> None:
    """Actions whose prior is 0 in float32 can be the only ones visited; their values count all the same."""
    nodes = {"root": Node(logits=(0.0, -300.0), edges={0: Edge("end", 1.0), 1: Edge("end", 2.0)}), "end": Node()}
    world = ListedWorld(2, 1.0, nodes)
    config = SearchConfig(num_simulations=1)
    result = GumbelSearch(world, config, 64).run(np.zeros((64, 1), np.int64), seeds_of(64), 1e4)
    assert set(result.actions.tolist()) == {0, 1}
    assert np.isfinite(result.search_policy).all()
    np.testing.assert_allclose(result.search_policy.sum(1), 1)
