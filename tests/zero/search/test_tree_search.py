"""What both searches refuse, and which arrays they take."""

import dataclasses

import numpy as np
import pytest

from tests.zero.search.models import HashWorld, hash_network
from tests.zero.search.searches import assert_same, random_positions, search_of, seeds_of
from zero.config import ExperimentConfig, SearchConfig
from zero.games.triangle import Triangle
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.gumbel import GumbelSearch
from zero.search.make_search import make_search
from zero.search.puct import PuctSearch
from zero.search.tree_search import SearchError


def test_other_batches_and_seeds_are_refused(root_policy: str) -> None:
    """A search is made for one batch size."""
    world = HashWorld()
    search = search_of(root_policy, world, 4)
    with pytest.raises(SearchError, match="takes 4 positions"):
        search.run(seeds_of(3)[:, None], seeds_of(3))
    with pytest.raises(SearchError, match="takes 4 positions"):
        search.run(seeds_of(4)[:, None], seeds_of(3))
    with pytest.raises(SearchError, match="uint64"):
        search.run(seeds_of(4)[:, None], np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="batch_size"):
        search_of(root_policy, world, 0)


@pytest.mark.parametrize("num_simulations", [0, -1, 33])
def test_more_simulations_than_there_is_room_for_are_refused(root_policy: str, num_simulations: int) -> None:
    """At least one, at most as many as the search was made for."""
    search = search_of(root_policy, HashWorld(), 2, num_simulations=32)
    with pytest.raises(SearchError, match="1 to 32 simulations"):
        search.run(seeds_of(2)[:, None], seeds_of(2), num_simulations=num_simulations)


def test_a_search_refuses_the_config_of_another_one() -> None:
    """Nobody searches otherwise than the config says."""
    with pytest.raises(ValueError, match="root_policy is 'puct'"):
        GumbelSearch(HashWorld(), SearchConfig(root_policy="puct"), 1)
    with pytest.raises(ValueError, match="root_policy is 'gumbel'"):
        PuctSearch(HashWorld(), SearchConfig(), 1)


def test_the_config_names_the_search(root_policy: str) -> None:
    """An experiment's search is of its kind, discount and draws, and says what one made by hand says."""
    game = Triangle()
    config = ExperimentConfig.model_validate(
        {"discount": 0.5, "search": {"root_policy": root_policy, "num_simulations": 8, "chance_draws": 2}}
    )
    evaluate = hash_network(game.num_actions)
    states = random_positions(game, 4, 3)
    made = make_search(game, evaluate, config, 4)
    by_hand = search_of(root_policy, AlphaZeroModel(game, evaluate, 0.5, 2), 4, num_simulations=8)
    assert made.discount == 0.5
    assert_same(made.run(states, seeds_of(4)), by_hand.run(states, seeds_of(4)))


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
def test_numbers_that_are_not_finite_are_refused(at_root: bool, field: str, number: float, root_policy: str) -> None:
    """Diverged weights stop the search; they do not play."""
    model = Broken()
    for name, value in {"at_root": at_root, "field": field, "number": number}.items():
        object.__setattr__(model, name, value)
    with pytest.raises(SearchError, match="not finite"):
        search_of(root_policy, model, 2, num_simulations=4).run(seeds_of(2)[:, None], seeds_of(2))


def test_more_actions_than_announced_are_refused(root_policy: str) -> None:
    """A model that allows more than `max_legal_actions` is caught before memory is overwritten."""

    class Liar(HashWorld):
        @property
        def max_legal_actions(self) -> int:
            return 2

    with pytest.raises(SearchError, match="more than the 2 actions"):
        search_of(root_policy, Liar(density=1.0), 2).run(seeds_of(2)[:, None], seeds_of(2))


def test_arrays_of_any_layout_are_searched_alike(root_policy: str) -> None:
    """Read-only and strided outputs of a model give what contiguous ones give."""

    class Strided(HashWorld):
        def root(self, positions):
            output = super().root(positions)
            logits = np.asfortranarray(output.logits)
            logits.flags.writeable = False
            return dataclasses.replace(output, logits=logits)

    results = [
        search_of(root_policy, model, 4).run(seeds_of(4)[:, None], seeds_of(4)) for model in (HashWorld(), Strided())
    ]
    assert_same(*results)
