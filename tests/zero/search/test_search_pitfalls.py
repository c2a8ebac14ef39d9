"""What other implementations got wrong, one test each."""

import dataclasses

import numpy as np
import pytest

from tests.zero.search.models import Edge, HashWorld, ListedWorld, Node, hash_network
from tests.zero.search.searches import assert_same, search_of, seeds_of
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.tree_search import SearchResult

BUSY = HashWorld(num_actions=10, terminal=0.1, chance=0.2, num_players=2)


def test_rewards_on_the_path_count_and_later_ones_are_discounted(root_policy: str) -> None:
    """1 now and nothing later beats nothing now and 1.05 one step later at discount 0.9."""
    nodes = {
        "root": Node(edges={0: Edge("early", 1.0), 1: Edge("late")}),
        "early": Node(edges={0: Edge("end")}),
        "late": Node(edges={0: Edge("end", 1.05)}),
        "end": Node(),
    }
    world = ListedWorld(2, 0.9, nodes)
    search = search_of(root_policy, world, 1, num_simulations=64)
    result = search.run(world.positions("root"), seeds_of(1), 0.0)
    assert result.actions[0] == 0
    early, late = search.tree.child_q[0, 0, :2]
    assert early == pytest.approx(1.0)
    # The first visit of the node found nothing yet, all others the reward behind it.
    visits = result.visit_counts[0, 1]
    assert visits > 8
    assert late == pytest.approx(0.9 * 1.05 * (visits - 1) / visits, rel=1e-5)


def test_the_value_of_an_ended_game_is_zero_whatever_the_model_says(root_policy: str) -> None:
    """Return-to-go after the end is 0, on the first visit and on every other one."""
    nodes = {"root": Node(value=5.0, edges={0: Edge("end", 1.0), 1: Edge("end", -1.0)}), "end": Node(value=100.0)}
    world = ListedWorld(2, 0.9, nodes)
    search = search_of(root_policy, world, 1, num_simulations=30)
    result = search.run(world.positions("root"), seeds_of(1), 0.0)
    np.testing.assert_allclose(search.tree.child_q[0, 0, :2], [1.0, -1.0])
    visits = result.visit_counts[0]
    assert search.tree.node_value[0, 0] == pytest.approx((5.0 + visits[0] - visits[1]) / 31, rel=1e-5)


def test_a_real_game_that_is_over_is_worth_nothing_more(root_policy: str) -> None:
    """A network that promises 7 everywhere cannot make winning tic-tac-toe worth more than 1."""
    game = TicTacToe()
    model = AlphaZeroModel(game, lambda encoded: (np.zeros((len(encoded), 9), np.float32), _filled(encoded, 7)), 1.0)
    states = game.initial(np.zeros((1, 0), np.int64))
    for action in (0, 3, 1, 4):
        states = game.apply(states, np.array([action])).states
    search = search_of(root_policy, model, 1, num_simulations=20)
    search.run(states, seeds_of(1), 0.0)
    winning = search.tree.child_action[0, 0].tolist().index(2)
    assert search.tree.child_q[0, 0, winning] == 1.0
    assert model.root(game.apply(states, np.array([2])).states).values[0] == 0


def _filled(encoded: np.ndarray, value: float) -> np.ndarray:
    return np.full(len(encoded), value, np.float32)


def test_every_simulation_makes_a_leaf_of_its_own(root_policy: str) -> None:
    """Without chance and ends no simulation is spent on a node seen before: selection never works on stale trees."""
    search = search_of(root_policy, HashWorld(num_actions=5), 8, num_simulations=150)
    result = search.run(seeds_of(8)[:, None], seeds_of(8))
    assert (result.num_unique_leaves == 150).all()
    assert (search.tree.node_visits > 0).all()


def test_a_game_is_searched_alone_as_among_others(root_policy: str) -> None:
    """All outputs of each of 64 games are bit for bit those of the game alone, also in a search used before."""
    positions = seeds_of(64)[:, None]
    together = search_of(root_policy, BUSY, 64)
    together.run(positions[::-1].copy(), seeds_of(64))
    result = together.run(positions, seeds_of(64))
    alone = search_of(root_policy, BUSY, 1)
    for game in range(64):
        one = slice(game, game + 1)
        single = alone.run(positions[one], seeds_of(64)[one])
        assert_same(single, SearchResult(*(getattr(result, field.name)[one] for field in dataclasses.fields(result))))
        np.testing.assert_array_equal(alone.tree.node_visits[0], together.tree.node_visits[game])


def test_a_real_game_is_searched_alone_as_among_others(root_policy: str) -> None:
    """The same with the puzzle's own rules and chance."""
    game = Triangle()
    model = AlphaZeroModel(game, hash_network(game.num_actions), 0.99)
    states = game.initial(game.draw_chance(np.random.default_rng(0), 16))
    result = search_of(root_policy, model, 16).run(states, seeds_of(16))
    alone = search_of(root_policy, model, 1)
    for index in range(16):
        single = alone.run(states[index : index + 1], seeds_of(16)[index : index + 1])
        np.testing.assert_array_equal(single.visit_counts[0], result.visit_counts[index])


def test_roots_without_actions_and_extreme_logits_give_no_nan(root_policy: str) -> None:
    """Finished games in the batch answer -1 and zeros; logits of any finite size give a distribution."""

    class Extreme(HashWorld):
        def root(self, positions):
            output = super().root(positions)
            mask = output.legal_action_mask.copy()
            mask[:3] = False
            logits = np.where(output.legal_action_mask, output.logits * 1e30, -np.inf).astype(np.float32)
            return dataclasses.replace(output, logits=logits, legal_action_mask=mask)

    result = search_of(root_policy, Extreme(num_actions=7, terminal=0.2), 8).run(seeds_of(8)[:, None], seeds_of(8))
    assert result.actions[:3].tolist() == [-1, -1, -1]
    assert (result.visit_counts[:3] == 0).all()
    assert (result.search_policy[:3] == 0).all()
    assert (result.num_unique_leaves[:3] == 0).all()
    np.testing.assert_array_equal(result.search_value[:3], result.raw_value[:3])
    np.testing.assert_allclose(result.search_policy[3:].sum(1), 1, rtol=1e-5)
    assert (result.actions[3:] >= 0).all()
    for field in dataclasses.fields(SearchResult):
        assert np.isfinite(getattr(result, field.name)).all()


def test_finished_real_games_stay_in_the_batch(root_policy: str) -> None:
    """A puzzle that is over beside one that goes on: action -1, value 0, and the other one unaffected."""
    game = Triangle()
    model = AlphaZeroModel(game, hash_network(game.num_actions), 0.99)
    states = game.initial(game.draw_chance(np.random.default_rng(0), 2))
    running = states.copy()
    states[0] = game.apply(states[:1], np.array([game.num_actions])).states[0]
    assert game.terminated(states).tolist() == [True, False]
    search = search_of(root_policy, model, 2)
    result, expected = search.run(states, seeds_of(2)), search.run(running, seeds_of(2))
    assert (result.actions[0], result.search_value[0]) == (-1, 0)
    np.testing.assert_array_equal(result.visit_counts[1], expected.visit_counts[1])


def test_priors_are_normalised_over_legal_actions_at_every_node(root_policy: str) -> None:
    """What the network thinks of illegal actions changes nothing, and priors are the softmax over the others."""

    class Distracted(HashWorld):
        def _predict(self, states):
            logits, values, mask = super()._predict(states)
            return np.where(mask, logits, np.float32(1e6)), values, mask

    plain, distracted = (search_of(root_policy, world, 8) for world in (HashWorld(), Distracted()))
    results = [search.run(seeds_of(8)[:, None], seeds_of(8), 0.0) for search in (plain, distracted)]
    assert_same(*results)
    tree = distracted.tree
    for game, node in np.argwhere(tree.node_visits > 1):
        count = tree.num_children[game, node]
        logits = tree.child_logit[game, node, :count].astype(np.float64)
        softmax = np.exp(logits) / np.exp(logits).sum()
        assert logits.max() == 0
        np.testing.assert_allclose(tree.child_prior[game, node, :count], softmax, rtol=1e-5)


def test_the_scale_of_rewards_does_not_matter_without_a_floor(root_policy: str) -> None:
    """Rewards and values times 1000 give the same visits and policy, and 1000 times the value."""
    worlds = BUSY, dataclasses.replace(BUSY, reward_scale=1000.0)
    searches = (search_of(root_policy, world, 32, num_simulations=48, min_value_range=0) for world in worlds)
    one, thousand = (search.run(seeds_of(32)[:, None], seeds_of(32)) for search in searches)
    np.testing.assert_array_equal(one.visit_counts, thousand.visit_counts)
    np.testing.assert_allclose(one.search_policy, thousand.search_policy, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(1000 * one.search_value, thousand.search_value, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("passes_turn", [False, True])
def test_every_step_discounts_once(passes_turn: bool, root_policy: str) -> None:
    """On a path with reward 1 per step, simulation k finds the sum of its first k (signed) powers of the discount."""
    length, discount = 12, 0.8
    nodes = {str(index): Node(edges={0: Edge(str(index + 1), 1.0)}, passes_turn=passes_turn) for index in range(length)}
    world = ListedWorld(1, discount, nodes | {str(length): Node()})
    search = search_of(root_policy, world, 1, num_simulations=length)
    search.run(world.positions("0"), seeds_of(1))
    powers = (-discount if passes_turn else discount) ** np.arange(length)
    assert search.tree.node_value[0, 0] == pytest.approx(np.r_[0, powers.cumsum()].mean(), rel=1e-5)


def test_chance_is_no_step_of_its_own(root_policy: str) -> None:
    """What the deal pays counts like the move's own reward, and the value after it is discounted once."""
    options = TriangleOptions(num_slots=1, reward_placed=0.25, reward_alive=2.0)
    game = Triangle(options)
    value, discount = 10.0, 0.5
    logits = np.zeros((1, game.num_actions), np.float32)
    model = AlphaZeroModel(game, lambda encoded: (logits, _filled(encoded, value)), discount)
    states = game.position([], [0])
    search = search_of(root_policy, model, 1, num_simulations=20)
    result = search.run(states, seeds_of(1))
    transition = game.step(states, result.actions, np.zeros((1, 1), np.int64))
    assert transition.rewards[0] == pytest.approx(2.25)
    chosen = search.tree.child_action[0, 0].tolist().index(result.actions[0])
    assert search.tree.child_visits[0, 0, chosen] > 1
    assert search.tree.child_q[0, 0, chosen] == pytest.approx(transition.rewards[0] + discount * value)


def test_chance_rewards_change_sign_with_the_mover_only(root_policy: str) -> None:
    """In a zero-sum game the mover owns what the outcome pays, while the value behind it is the opponent's."""
    nodes = {
        "root": Node(edges={0: Edge("roll", 1.0)}),
        "roll": Node(outcomes=(Edge("next", 0.5),), passes_turn=True),
        "next": Node(value=4.0, edges={0: Edge("next")}),
    }
    world = ListedWorld(1, 0.9, nodes)
    search = search_of(root_policy, world, 1, num_simulations=3)
    search.run(world.positions("root"), seeds_of(1))
    assert search.tree.child_q[0, 0, 0] == pytest.approx(1.0 + 0.5 - 0.9 * 4.0)


def test_every_search_has_noise_of_its_own_and_nothing_is_reused(root_policy: str) -> None:
    """The seed decides everything: the same one gives the same search at any time, another one other noise."""
    search = search_of(root_policy, BUSY, 16)
    positions = seeds_of(16)[:, None]
    first = search.run(positions, seeds_of(16))
    kept = dataclasses.replace(first, visit_counts=first.visit_counts.copy())
    other = search.run(positions, seeds_of(16) + np.uint64(1))
    assert (first.visit_counts != other.visit_counts).any(1).mean() > 0.5
    assert_same(kept, first)
    assert_same(kept, search.run(positions, seeds_of(16)))


def test_values_stay_float32_and_counts_int32(root_policy: str) -> None:
    """The types that are stored and sent are the ones that are computed."""
    search = search_of(root_policy, BUSY, 2)
    result = search.run(seeds_of(2)[:, None], seeds_of(2))
    dtypes = {field.name: getattr(result, field.name).dtype.name for field in dataclasses.fields(result)}
    assert dtypes == {
        "actions": "int64",
        "search_policy": "float32",
        "search_value": "float32",
        "raw_value": "float32",
        "visit_counts": "int32",
        "num_unique_leaves": "int32",
        "policy_entropy": "float32",
        "policy_divergence": "float32",
    }
    assert search.tree.child_q.dtype == search.tree.node_value.dtype == np.float32
    assert search.tree.child_visits.dtype == search.tree.node_visits.dtype == np.int32


def test_the_search_does_not_know_the_real_future(root_policy: str) -> None:
    """What will really be dealt changes nothing; the search's own seeds decide which deals it thinks of."""
    game = Triangle(TriangleOptions(num_slots=1))
    model = AlphaZeroModel(game, hash_network(game.num_actions), 0.99)
    search = search_of(root_policy, model, 4, num_simulations=16)
    states = game.initial(np.arange(4)[:, None])
    results: list[SearchResult] = []
    for real_seed in (1, 2):
        real = np.random.default_rng(real_seed)
        here = search.run(states, seeds_of(4))
        following = game.step(states, here.actions, game.draw_chance(real, 4)).states
        assert search.tree.is_chance[:, 1:][search.tree.node_visits[:, 1:] > 0].all()
        search.run(following, seeds_of(4))
        results.append(search.run(states, seeds_of(4)))
    assert_same(*results)
    elsewhere = search.run(states, seeds_of(4) + np.uint64(9), 0.0)
    assert (elsewhere.search_value != search.run(states, seeds_of(4), 0.0).search_value).all()


def test_entropy_and_divergence_are_those_of_the_policies(root_policy: str) -> None:
    """In nats, over the legal actions, against the network's policy without noise; 0 where there is no choice."""
    world = HashWorld(num_actions=10, density=0.4, terminal=0.1)
    result = search_of(root_policy, world, 64).run(seeds_of(64)[:, None], seeds_of(64))
    root = world.root(seeds_of(64)[:, None])
    weights = np.where(root.legal_action_mask, np.exp(root.logits.astype(np.float64)), 0)
    prior = weights / weights.sum(1, keepdims=True)
    policy = result.search_policy.astype(np.float64)
    used = policy > 0
    log_policy, log_prior = np.log(policy, where=used, out=policy * 0), np.log(prior, where=used, out=policy * 0)
    np.testing.assert_allclose(result.policy_entropy, -(policy * log_policy).sum(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        result.policy_divergence, (policy * (log_policy - log_prior)).sum(1), rtol=1e-3, atol=1e-5
    )
    assert (result.policy_divergence > 0.01).mean() > 0.8
