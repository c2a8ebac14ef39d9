"""Both searches find what is known to be right: in bandits, gambles, random trees, and tic-tac-toe."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from tests.zero.search.models import Edge, ListedWorld, Node
from tests.zero.search.searches import random_positions, search_of, seeds_of
from zero.games.tic_tac_toe import TicTacToe
from zero.search.alphazero_model import AlphaZeroModel


def bandit(rewards: list[float], logits: list[float] | None = None) -> ListedWorld:
    """One decision, then the end; the network predicts nothing but the logits."""
    edges = {action: Edge("end", reward) for action, reward in enumerate(rewards)}
    return ListedWorld(len(rewards), 1.0, {"root": Node(logits=tuple(logits or ()), edges=edges), "end": Node()})


@pytest.mark.parametrize("best", range(8))
def test_the_best_arm_is_found(root_policy: str, best: int) -> None:
    """Without noise the largest reward wins against the prior, in policy, visits and action."""
    rewards = [0.1 * ((3 * arm) % 8) for arm in range(8)]
    rewards[best] = 1.0
    logits = [0.0] * 8
    logits[(best + 1) % 8] = 1.0
    world = bandit(rewards, logits)
    search = search_of(root_policy, world, 1, num_simulations=24 if root_policy == "gumbel" else 64)
    result = search.run(world.positions("root"), seeds_of(1), 0.0)
    assert result.actions[0] == best
    assert result.visit_counts[0].tolist()[best] == max(result.visit_counts[0])
    assert result.search_policy[0].argmax() == best


GAMBLE = (Edge("end", 0.0), Edge("end", 2.0))


def test_chance_is_judged_by_its_mean(root_policy: str) -> None:
    """A gamble that pays 0 or 2 beats a sure 0.8 and loses to a sure 1.2; every visit is a fresh outcome."""
    edges = {0: Edge("gamble"), 1: Edge("end", 0.8)}
    nodes = {
        "against 0.8": Node(edges=edges),
        "against 1.2": Node(edges=edges | {1: Edge("end", 1.2)}),
        "gamble": Node(outcomes=GAMBLE),
        "end": Node(),
    }
    world = ListedWorld(2, 1.0, nodes)
    positions = world.positions(*(["against 0.8"] * 100 + ["against 1.2"] * 100))
    # PUCT all but gives up on an arm that began badly: a large bonus lets the law of large numbers do its work.
    search = search_of(root_policy, world, 200, num_simulations=200, pb_c_init=8.0)
    result = search.run(positions, seeds_of(200), 0.0)
    assert (result.actions[:100] == 0).mean() > 0.9
    assert (result.actions[100:] == 1).mean() > 0.9
    assert (result.num_unique_leaves == 2).all()
    gambles = search.tree.child_q[:, 0, 0]
    assert abs(gambles.mean() - 1.0) < 0.05
    assert gambles.std() > 0.01, "all games sampled the same outcomes"


def test_common_chance_gives_root_actions_the_same_luck(root_policy: str) -> None:
    """Of two gambles on the same outcomes, one always pays 0.1 more: with shared draws that is what the values say."""
    better = tuple(replace(edge, reward=edge.reward + 0.1) for edge in GAMBLE)
    nodes = {
        "root": Node(edges={0: Edge("gamble"), 1: Edge("better")}),
        "gamble": Node(outcomes=GAMBLE),
        "better": Node(outcomes=better),
        "end": Node(),
    }
    world = ListedWorld(2, 1.0, nodes)
    right: list[float] = []
    for common_chance in (False, True):
        search = search_of(root_policy, world, 256, num_simulations=8, common_chance=common_chance, pb_c_init=1000.0)
        result = search.run(np.zeros((256, 1), np.int64), seeds_of(256), 0.0)
        values = search.tree.child_q[:, 0, :2]
        assert (result.visit_counts == 4).all()
        if common_chance:
            np.testing.assert_allclose(values[:, 1] - values[:, 0], 0.1, rtol=1e-5)
            assert values[:, 0].std() > 0.3, "the visits of an action drew one and the same outcome"
        right.append((result.actions == 1).mean())
    assert right[0] < 0.9
    assert right[1] == 1.0


class RandomTrees:
    """Random trees with rewards, turns, ends and gambles, in one world, and their exact values."""

    def __init__(self, num_trees: int, num_players: int) -> None:
        self._rng = np.random.default_rng(num_players)
        self._num_players = num_players
        self._nodes: dict[str, Node] = {"end": Node()}
        self.roots = [self._grow(3) for _ in range(num_trees)]
        self.world = ListedWorld(3, 0.9, self._nodes)

    def _grow(self, depth: int) -> str:
        """Add a tree; returns its root's name."""
        name = str(len(self._nodes))
        self._nodes[name] = Node()
        if 0 < depth < 3 and self._rng.random() < 0.25:
            outcomes = tuple(Edge("end", reward) for reward in self._rng.normal(size=2))
            self._nodes[name] = Node(outcomes=outcomes, passes_turn=self._num_players == 2)
        elif depth:
            edges = {action: Edge(self._grow(depth - 1), float(self._rng.normal())) for action in range(3)}
            self._nodes[name] = Node(edges=edges, passes_turn=self._num_players == 2)
        return name

    @functools.cache  # noqa: B019 - lives as long as the test
    def value(self, name: str) -> float:
        """Exact return-to-go for the player to move; of a gamble, the mean, for the player who moved."""
        node = self._nodes[name]
        if node.outcomes:
            return float(np.mean([edge.reward for edge in node.outcomes]))
        return max((self.action_value(name, action) for action in node.edges or {}), default=0.0)

    def action_value(self, name: str, action: int) -> float:
        """Exact value of an action."""
        edge = self._nodes[name].edges[action]
        reached = self._nodes[edge.to]
        discount = 1.0 if reached.outcomes else -0.9 if reached.passes_turn else 0.9
        return edge.reward + discount * self.value(edge.to)


@pytest.mark.parametrize("num_players", [1, 2])
def test_random_trees_are_solved(root_policy: str, num_players: int) -> None:
    """With simulations enough, the chosen action is the one of exact backward induction.

    Always so in PUCT. Below the root, Gumbel search tries what its network or a first value speaks for, and here the
    network speaks for nothing.
    """
    trees = RandomTrees(60, num_players)
    search = search_of(root_policy, trees.world, len(trees.roots), num_simulations=400)
    result = search.run(trees.world.positions(*trees.roots), seeds_of(len(trees.roots)), 0.0)
    regret = [
        trees.value(root) - trees.action_value(root, int(action))
        for root, action in zip(trees.roots, result.actions, strict=True)
    ]
    assert np.mean(np.array(regret) < 0.1) >= (1.0 if root_policy == "puct" else 0.85)


def negamax(game: TicTacToe, state: tuple[int, int]) -> float:
    """Exact value for the player to move."""
    return max((value for _, value in action_values(game, state)), default=0.0)


@functools.cache
def action_values(game: TicTacToe, state: tuple[int, int]) -> list[tuple[int, float]]:
    """Every legal action with its exact value."""
    states = np.array([state], np.uint64)
    values: list[tuple[int, float]] = []
    for action in np.flatnonzero(game.legal_action_mask(states)[0]):
        after = game.apply(states, np.array([action]))
        words = (int(after.states[0, 0]), int(after.states[0, 1]))
        values.append((int(action), float(after.rewards[0]) - negamax(game, words)))
    return values


@pytest.mark.parametrize("num_moves", [4, 5])
def test_tic_tac_toe_is_played_perfectly(root_policy: str, num_moves: int) -> None:
    """An ignorant network under 300 simulations never gives away what exhaustive search would not."""
    game = TicTacToe()
    states = random_positions(game, 64, num_moves)
    states = states[~game.terminated(states)]
    size = len(states)
    model = AlphaZeroModel(
        game, lambda encoded: (np.zeros((len(encoded), 9), np.float32), np.zeros(len(encoded), np.float32)), 1.0
    )
    result = search_of(root_policy, model, size, num_simulations=300).run(states, seeds_of(size), 0.0)
    for state, action in zip(states, result.actions, strict=True):
        values = dict(action_values(game, (int(state[0]), int(state[1]))))
        assert values[int(action)] == max(values.values())
    assert size > 40


@pytest.mark.parametrize(
    ("root_policy", "num_simulations"), [("gumbel", 2), ("gumbel", 4), ("gumbel", 16), ("puct", 8), ("puct", 24)]
)
def test_searching_improves_the_policy_in_expectation(root_policy: str, num_simulations: int) -> None:
    """Action and policy are worth more than the prior; in Gumbel search even with fewer simulations than actions."""
    rng = np.random.default_rng(num_simulations)
    batch_size = 1500
    for _ in range(2):
        rewards, logits = rng.normal(size=8), rng.normal(size=8)
        world = bandit(rewards.tolist(), logits.tolist())
        search = search_of(
            root_policy,
            world,
            batch_size,
            num_simulations=num_simulations,
            max_num_considered_actions=min(4, num_simulations),
        )
        result = search.run(np.zeros((batch_size, 1), np.int64), seeds_of(batch_size))
        prior = np.exp(logits) / np.exp(logits).sum()
        found = rewards[result.actions]
        assert found.mean() > prior @ rewards + 4 * found.std() / np.sqrt(batch_size)
        assert (result.search_policy @ rewards).mean() > prior @ rewards
