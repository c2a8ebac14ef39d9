"""What is Gumbel search's own: its noise, Sequential Halving, and the scale of values against logits."""

import numpy as np

from tests.zero.search.models import Edge, HashWorld, ListedWorld, Node
from tests.zero.search.searches import seeds_of
from tests.zero.search.test_search_answers import bandit
from zero.config import SearchConfig
from zero.search.gumbel import GumbelSearch


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


def test_noise_belongs_to_actions() -> None:
    """Forbidding one action leaves the noise of the others as it was."""
    search = GumbelSearch(HashWorld(density=1.0), SearchConfig(num_simulations=1), 1)
    search.run(seeds_of(1)[:, None], seeds_of(1))
    everything = dict(zip(search.tree.child_action[0, 0].tolist(), search.tree.root_gumbel[0].tolist(), strict=True))
    search = GumbelSearch(HashWorld(density=0.3), SearchConfig(num_simulations=1), 1)
    search.run(seeds_of(1)[:, None], seeds_of(1))
    count = search.tree.num_children[0, 0]
    assert 0 < count < len(everything)
    for action, noise in zip(search.tree.child_action[0, 0, :count], search.tree.root_gumbel[0], strict=False):
        assert everything[int(action)] == noise


def test_noise_may_outweigh_any_prior() -> None:
    """Actions whose prior is 0 in float32 can be the only ones visited; their values count all the same."""
    nodes = {"root": Node(logits=(0.0, -300.0), edges={0: Edge("end", 1.0), 1: Edge("end", 2.0)}), "end": Node()}
    world = ListedWorld(2, 1.0, nodes)
    config = SearchConfig(num_simulations=1)
    result = GumbelSearch(world, config, 64).run(np.zeros((64, 1), np.int64), seeds_of(64), 1e4)
    assert set(result.actions.tolist()) == {0, 1}
    assert np.isfinite(result.search_policy).all()
    np.testing.assert_allclose(result.search_policy.sum(1), 1)
