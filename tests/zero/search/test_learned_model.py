"""A search by a learned model is the search by the rules if the model is right; these it knows at the root alone."""

import numpy as np
import pytest

from tests.ring import DISCOUNT, LIKELY, SIZE, VALUES, Ring, following
from tests.zero.search.searches import assert_same, random_positions, search_of, seeds_of
from tests.zero.search.test_search_reference import assert_equals_reference
from zero.config import NetworkConfig, parse_config
from zero.games.registry import make_game
from zero.games.triangle import Triangle
from zero.networks.inference import InferenceModel, InferenceNetwork, make_inference
from zero.networks.make_network import make_network
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.learned_model import LearnedModel
from zero.search.make_search import make_search

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(SIZE, 2)).astype(np.float32)
PREDICTED = RNG.normal(size=SIZE).astype(np.float32)


class RightNetwork:
    """Foresees the ring as its rules are; a latent is a number and whether chance follows. Predictions are made up."""

    def represent(self, encoded: np.ndarray) -> np.ndarray:
        """Latents [B, 2]."""
        return np.stack([encoded.argmax(-1), np.zeros(len(encoded))], axis=1).astype(np.float32)

    def foresee(self, latents: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Ring.apply, in a game that is random."""
        numbers = latents[:, 0].astype(np.int64)
        reached = np.array([following(n, a, 0) for n, a in zip(numbers.tolist(), actions.tolist(), strict=True)])
        rewards = (VALUES[numbers] - DISCOUNT * VALUES[reached]).astype(np.float32)
        return np.stack([reached, actions == 1], axis=1).astype(np.float32), rewards

    def expect_chance(self, latents: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """As Ring.chance_from_uniforms."""
        return latents[:, 1].copy(), (np.tile(np.array([LIKELY, 1 - LIKELY], np.float32), (len(latents), 1)),)

    def resolve(self, afterstates: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """As Ring.resolve."""
        return np.stack([(afterstates[:, 0] + 3 * codes[:, 0]) % SIZE, np.zeros(len(codes))], axis=1).astype(np.float32)

    def predict(self, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By number."""
        numbers = latents[:, 0].astype(np.int64)
        return LOGITS[numbers], PREDICTED[numbers]


def evaluate(encoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same predictions, for the search by the rules."""
    return LOGITS[encoded.argmax(-1)], PREDICTED[encoded.argmax(-1)]


GAME = Ring(is_random=True, pays_after_chance=False)
NUMBERS = np.arange(14, dtype=np.uint64)[:, None] % np.uint64(SIZE)


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_a_right_model_is_searched_like_the_rules(root_policy: str, noise_scale: float) -> None:
    """Decisions, chance drawn from the same numbers, rewards and values: bit for bit what the rules give."""
    by_rules = search_of(root_policy, AlphaZeroModel(GAME, evaluate, DISCOUNT), 14, num_simulations=48)
    by_model = search_of(root_policy, LearnedModel(GAME, RightNetwork(), DISCOUNT), 14, num_simulations=48)
    result = by_model.run(NUMBERS, seeds_of(14), noise_scale)
    assert_same(by_rules.run(NUMBERS, seeds_of(14), noise_scale), result)
    assert by_model.tree.is_chance.any()
    assert (result.num_unique_leaves < 48).any(), "no afterstate was visited again"


def test_a_learned_model_is_searched_like_the_reference(root_policy: str) -> None:
    """The recursive search on Python objects finds the same."""
    assert_equals_reference(root_policy, LearnedModel(GAME, RightNetwork(), DISCOUNT), NUMBERS, 1.0, num_simulations=40)


def test_a_game_is_searched_alone_as_among_others(root_policy: str) -> None:
    """Nothing of one tree reaches another, afterstates included."""
    model = LearnedModel(GAME, RightNetwork(), DISCOUNT)
    together = search_of(root_policy, model, 14, num_simulations=32).run(NUMBERS, seeds_of(14))
    for row in range(0, 14, 3):
        alone = search_of(root_policy, model, 1, num_simulations=32).run(NUMBERS[row : row + 1], seeds_of(1, row))
        np.testing.assert_array_equal(alone.visit_counts[0], together.visit_counts[row])
        assert alone.search_value[0] == together.search_value[row]


class OtherDeals(Triangle):
    """The puzzle with other luck."""

    def chance_from_uniforms(self, uniforms: np.ndarray) -> np.ndarray:
        """Of other numbers."""
        return super().chance_from_uniforms(1 - uniforms)


def hopeful_network() -> InferenceModel:
    """A network for the puzzle that expects chance after every other action or so."""
    network = make_network(Triangle(), NetworkConfig(model="learned", channels=8, blocks=1), 0)
    model = make_inference(network)
    assert isinstance(model, InferenceModel)
    return model


def test_what_really_follows_is_not_foreseen() -> None:
    """Other deals by the rules change nothing in the search: it draws its outcomes from the model."""
    config = parse_config("", ["network.model=learned", "learner.unroll_steps=1", "search.num_simulations=16"])
    model = hopeful_network()
    states = random_positions(Triangle(), 6, 4)
    results = [make_search(game, model, config, 6).run(states, seeds_of(6)) for game in (Triangle(), OtherDeals())]
    assert_same(*results)


@pytest.mark.parametrize("name", ["tic_tac_toe", "triangle"])
def test_rules_are_read_at_the_root_alone(name: str) -> None:
    """Only what is legal is visited and learned at the root; below it nothing is ruled out and nothing is over."""
    game = make_game(name, {})
    model = make_inference(make_network(game, NetworkConfig(model="learned", channels=8, blocks=1), 0))
    config = parse_config("", ["network.model=learned", "learner.unroll_steps=1", "search.num_simulations=40"])
    search = make_search(game, model, config, 5)
    states = random_positions(game, 5, 3)
    result = search.run(states, seeds_of(5))
    mask = game.search_action_mask(states)
    assert (result.visit_counts[~mask] == 0).all()
    assert (result.search_policy[~mask] == 0).all()
    tree = search.tree
    made = (tree.node_visits > 0) & ~tree.is_chance
    made[:, 0] = False
    assert (tree.num_children[made] == game.num_actions).all()
    assert (tree.discount[made] == (config.discount if game.num_players == 1 else -config.discount)).all()


def test_a_finished_position_is_worth_nothing() -> None:
    """At the root the rules say that a game is over, whatever the network thinks."""
    game = make_game("tic_tac_toe", {})
    states = np.array([[0b111, 0b011000]], np.uint64)
    network = make_network(game, NetworkConfig(model="learned", support_min=-1), 0)
    root = LearnedModel(game, make_inference(network), 1.0).root(states)  # type: ignore[arg-type]
    assert root.values[0] == 0
    assert not root.legal_action_mask.any()


def test_the_network_must_be_what_the_config_names() -> None:
    """A network that was made for the rules has no model to ask."""
    game = make_game("tic_tac_toe", {})
    config = parse_config("", ["network.model=learned", "learner.unroll_steps=1"])
    with pytest.raises(TypeError, match="learned"):
        make_search(game, InferenceNetwork(make_network(game, NetworkConfig(), 0)), config, 1)
