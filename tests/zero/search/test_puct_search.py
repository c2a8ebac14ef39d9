"""What is PUCT search's own: Dirichlet noise, visits as policy, and going on with a subtree."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from tests.zero.search.models import Edge, HashWorld, ListedWorld, Node, hash_network
from tests.zero.search.reference import ReferencePuct, TreeNode
from tests.zero.search.searches import assert_same, random_positions, search_of, seeds_of
from tests.zero.search.test_search_answers import bandit
from tests.zero.search.test_search_reference import assert_one_equals
from zero.config import SearchConfig
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.tree_search import SearchError, SearchResult, TreeSearch


def root_priors(search: TreeSearch) -> np.ndarray:
    """Priors [B, K] of the roots, where all have equally many actions."""
    return search.tree.child_prior[:, 0, : search.tree.num_children[0, 0]].astype(np.float64)


def test_noise_is_dirichlet_distributed() -> None:
    """With nothing but noise the priors have the moments of the distribution, its concentration shared out."""
    world = bandit([0.0] * 5, [1.0, 0.0, 0.0, 0.0, -1.0])
    search = search_of("puct", world, 8000, num_simulations=1, dirichlet_fraction=1.0, dirichlet_alpha=3.0)
    search.run(np.zeros((8000, 1), np.int64), seeds_of(8000))
    priors = root_priors(search)
    np.testing.assert_allclose(priors.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(priors.mean(0), 0.2, atol=0.01)
    np.testing.assert_allclose(priors.var(0), 0.2 * 0.8 / (3.0 + 1), rtol=0.1)
    np.testing.assert_allclose(np.corrcoef(priors.T)[np.triu_indices(5, 1)], -0.25, atol=0.05)


def test_noise_is_mixed_into_the_root_alone() -> None:
    """At the root a fraction of the priors gives way, as much of it as the scale says; below nothing does."""
    world = HashWorld(num_actions=8)
    shares: list[np.ndarray] = []
    for noise_scale in (0.0, 0.5, 1.0):
        search = search_of("puct", world, 8, num_simulations=40, dirichlet_fraction=0.6)
        search.run(seeds_of(8)[:, None], seeds_of(8), noise_scale)
        tree = search.tree
        shares.append(tree.child_prior[:, 0].copy())
        for game, node in np.argwhere(tree.node_visits > 1):
            count = tree.num_children[game, node]
            weights = np.exp(tree.child_logit[game, node, :count].astype(np.float64))
            if node > 0 or noise_scale == 0:
                np.testing.assert_allclose(tree.child_prior[game, node, :count], weights / weights.sum(), rtol=1e-5)
    without, half, full = shares
    assert (abs(full - without).max(1) > 0.05).mean() > 0.8
    np.testing.assert_allclose(half, (full + without) / 2, atol=1e-6)


@pytest.mark.parametrize("noise_scale", [-0.1, 4.1, np.nan])
def test_a_fraction_of_noise_that_is_none_is_refused(noise_scale: float) -> None:
    """Priors cannot give way by more than all of them."""
    with pytest.raises(SearchError, match="within 0 to 1"):
        search_of("puct", HashWorld(), 1).run(seeds_of(1)[:, None], seeds_of(1), noise_scale)


def test_the_policy_is_the_distribution_of_visits() -> None:
    """Shares of the visits, and the most visited action is played."""
    result = search_of("puct", HashWorld(num_actions=9, chance=0.2, terminal=0.1), 32).run(
        seeds_of(32)[:, None], seeds_of(32)
    )
    np.testing.assert_allclose(result.search_policy, result.visit_counts / 32, rtol=1e-6)
    assert (result.visit_counts.sum(1) == 32).all()
    assert (result.visit_counts[np.arange(32), result.actions] == result.visit_counts.max(1)).all()


def test_the_better_one_of_equally_visited_actions_is_played() -> None:
    """Three visits of three arms: the value decides, not the place."""
    world = bandit([0.1, 0.3, 0.2])
    search = search_of("puct", world, 1, num_simulations=3, pb_c_init=1e4)
    result = search.run(world.positions("root"), seeds_of(1), 0.0)
    assert result.visit_counts[0].tolist() == [1, 1, 1]
    assert result.actions[0] == 1


REUSE = {"reuse_subtree": True, "num_simulations": 24}


Choice = Callable[..., int]


class Line:
    """Games in a HashWorld, played move by move by a search, each beside a reference that keeps its tree."""

    def __init__(self, world: HashWorld, num_games: int) -> None:
        self.config = SearchConfig.model_validate({"root_policy": "puct"} | REUSE)
        self.world = world
        self.search = search_of("puct", world, num_games, **REUSE)
        self.positions = seeds_of(num_games, 400)[:, None]
        self.kept: list[TreeNode | None] = [None] * num_games
        self.num_kept = 0

    def play(self, move: int, num_plies: int, choose: Choice) -> None:
        """Search everywhere, compare, and make as many plies as said, chosen by their visits."""
        seeds = seeds_of(len(self.positions), 1000 * move)
        result = self.search.run(self.positions, seeds)
        for game, seed in enumerate(seeds.tolist()):
            kept = self.kept[game]
            reference = ReferencePuct(self.world, self.config, self.positions[game], seed, 1.0, kept)
            assert_one_equals(result, game, reference.run())
            self.num_kept += kept is not None
            node: TreeNode | None = reference.root
            for _ in range(num_plies):
                node = node.children[choose(node.visits, key=node.visits.__getitem__)] if node.visits else None
                if node is None or not node.logits:
                    break
            self._go_on(game, node, move)

    def _go_on(self, game: int, node: TreeNode | None, move: int) -> None:
        if node is None or not node.logits:
            self.kept[game] = None
            self.positions[game] = 7_000_000 + 1000 * move + game
        else:
            self.kept[game] = node
            self.positions[game] = node.embedding[0] >> np.uint64(1)


@pytest.mark.parametrize(("num_plies", "choose"), [(1, max), (2, max), (1, min)])
@pytest.mark.parametrize(
    "world",
    [HashWorld(), HashWorld(num_actions=4, terminal=0.15, chance=0.15, num_players=2)],
    ids=["plain", "everything"],
)
def test_a_kept_subtree_is_searched_on_like_the_reference(world: HashWorld, num_plies: int, choose: Choice) -> None:
    """Whole games, also if somebody else makes every other move, or a move that was visited once at most."""
    line = Line(world, 12)
    for move in range(8):
        line.play(move, num_plies, choose)
    assert line.num_kept > 20


def positions_after(world: HashWorld, positions: np.ndarray, result: SearchResult) -> np.ndarray:
    """Positions [B, 1] of a HashWorld after the chosen actions."""
    uniforms = np.zeros((len(positions), world.chance_size))
    return world.step(world.root(positions).embeddings, result.actions, uniforms).embeddings >> np.uint64(1)


def test_noise_is_anew_and_only_once() -> None:
    """The root of a kept subtree has the priors of its logits, mixed with the noise of its own seed."""
    world = HashWorld()
    search = search_of("puct", world, 16, **REUSE)
    positions = seeds_of(16)[:, None]
    first = search.run(positions, seeds_of(16))
    search.run(positions_after(world, positions, first), seeds_of(16), 0.0)
    tree = search.tree
    assert (tree.num_kept > 0).sum() > 10
    for game in range(16):
        count = tree.num_children[game, 0]
        weights = np.exp(tree.child_logit[game, 0, :count].astype(np.float64))
        np.testing.assert_allclose(tree.child_prior[game, 0, :count], weights / weights.sum(), rtol=1e-5)


def test_visits_of_a_kept_subtree_count() -> None:
    """All simulations come on top of what the chosen action had: its visits less the one that made it."""
    world, positions = HashWorld(), seeds_of(16)[:, None]
    search = search_of("puct", world, 16, **REUSE)
    first = search.run(positions, seeds_of(16))
    chosen = first.visit_counts[np.arange(16), first.actions]
    second = search.run(positions_after(world, positions, first), seeds_of(16))
    np.testing.assert_array_equal(second.visit_counts.sum(1), 24 + chosen - 1)
    np.testing.assert_array_equal(search.tree.num_kept, chosen - 1)
    assert (second.num_unique_leaves == 24).all()


def test_without_reuse_nothing_is_kept() -> None:
    """The default searches the next position as if it were the first."""
    world, positions = HashWorld(), seeds_of(16)[:, None]
    search = search_of("puct", world, 16)
    following = positions_after(world, positions, search.run(positions, seeds_of(16)))
    assert_same(search.run(following, seeds_of(16)), search_of("puct", world, 16).run(following, seeds_of(16)))


def test_other_positions_are_searched_anew() -> None:
    """A position that is not below the last root, the last root itself included, has nothing to go on from."""
    search = search_of("puct", HashWorld(), 16, **REUSE)
    for positions in (seeds_of(16)[:, None], seeds_of(16, 100)[:, None], seeds_of(16, 100)[:, None]):
        fresh = search_of("puct", HashWorld(), 16, **REUSE).run(positions, seeds_of(16))
        assert_same(search.run(positions, seeds_of(16)), fresh)


def test_a_subtree_that_leaves_no_room_is_dropped() -> None:
    """On a path without choices everything is kept until the slots are full; then the search begins anew."""
    length = 40
    nodes = {str(index): Node(value=1.0, edges={0: Edge(str(index + 1))}) for index in range(length)}
    world = ListedWorld(1, 0.9, nodes | {str(length): Node()})
    search = search_of("puct", world, 1, num_simulations=4, reuse_subtree=True)
    visits = [int(search.run(world.positions(str(move)), seeds_of(1)).visit_counts.sum()) for move in range(8)]
    assert visits == [4, 7, 10, 13, 16, 4, 7, 10]


def test_games_that_keep_subtrees_do_not_touch_each_other() -> None:
    """Move by move, 64 games together are bit for bit what each is alone."""
    world = HashWorld(num_actions=4, terminal=0.15, chance=0.15, num_players=2)
    together, alone = search_of("puct", world, 64, **REUSE), search_of("puct", world, 1, **REUSE)
    moves = [seeds_of(64)[:, None]]
    results: list[SearchResult] = []
    for move in range(4):
        results.append(together.run(moves[-1], seeds_of(64, move)))
        moves.append(positions_after(world, moves[-1], results[-1]))
    for game in range(0, 64, 3):
        for move, result in enumerate(results):
            single = alone.run(moves[move][game : game + 1], seeds_of(64, move)[game : game + 1])
            one = (getattr(result, field.name)[game : game + 1] for field in dataclasses.fields(result))
            assert_same(single, SearchResult(*one))


def test_a_real_game_is_searched_on() -> None:
    """In tic-tac-toe the tree goes along from move to move; after the end the batch goes on with other games."""
    game = TicTacToe()
    model = AlphaZeroModel(game, hash_network(9), 1.0)
    search = search_of("puct", model, 8, num_simulations=32, reuse_subtree=True)
    states = game.initial(np.zeros((8, 0), np.int64))
    kept: list[int] = []
    for move in range(12):
        result = search.run(states, seeds_of(8, move))
        kept += search.tree.num_kept.tolist()
        np.testing.assert_array_equal(search.tree.node_visits[:, 0] - 1, result.visit_counts.sum(1))
        states = game.apply(states, result.actions).states
        over = game.terminated(states)
        states[over] = game.initial(np.zeros((int(over.sum()), 0), np.int64))
    assert np.mean(np.array(kept) > 0) > 0.6


def test_nothing_is_kept_across_chance() -> None:
    """With one slot every move of the puzzle deals: the tree knows none of the positions that follow."""
    game = Triangle(TriangleOptions(num_slots=1))
    model = AlphaZeroModel(game, hash_network(game.num_actions), 0.99)
    search = search_of("puct", model, 16, **REUSE)
    states = random_positions(game, 16, 2)
    result = search.run(states, seeds_of(16))
    rng = np.random.default_rng(0)
    following = game.step(states, result.actions, game.draw_chance(rng, 16)).states
    assert game.apply(states, result.actions).chance_pending.all()
    fresh = search_of("puct", model, 16, **REUSE).run(following, seeds_of(16))
    assert_same(search.run(following, seeds_of(16)), fresh)
