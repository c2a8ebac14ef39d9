"""The AlphaZero search model: what it reports of a step is what the rules do and the network says of the result."""

import numpy as np
import pytest

from tests.zero.search.models import hash_network
from zero.games.game import Game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions
from zero.search.alphazero_model import AlphaZeroModel

GAMES = [TicTacToe(), Triangle(), Triangle(TriangleOptions(rows=2, cols=4, playable_ranges=((0, 4), (0, 4))))]


def random_legal(game: Game, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mask = game.legal_action_mask(states)
    return np.where(mask, rng.random(mask.shape), -1).argmax(1)


@pytest.mark.parametrize("game", GAMES, ids=["tic_tac_toe", "triangle", "small triangle"])
def test_a_step_is_what_the_rules_do(game: Game) -> None:
    """Rewards, ends, masks and predictions of a step are those of `Game.step` with the outcomes of the uniforms."""
    rng = np.random.default_rng(0)
    evaluate = hash_network(game.num_actions)
    model = AlphaZeroModel(game, evaluate, 0.9)
    states = game.initial(game.draw_chance(rng, 32))
    seen = {"chance": False, "over": False}
    for _ in range(9):
        actions = np.where(game.terminated(states), 0, random_legal(game, states, rng))
        uniforms = rng.random((32, game.chance_size))
        before = states.copy()
        step = model.step(states, actions, uniforms)
        expected = game.step(states, actions, game.chance_from_uniforms(uniforms))
        logits, values = evaluate(game.encode(game.observation(expected.states)))
        np.testing.assert_array_equal(states, before)
        np.testing.assert_allclose(step.rewards + step.chance_rewards, expected.rewards)
        np.testing.assert_array_equal(step.values, np.where(expected.terminated, 0, values))
        np.testing.assert_array_equal(step.logits, logits)
        np.testing.assert_array_equal(step.embeddings, game.apply(states, actions).states)
        certain = ~step.is_chance
        np.testing.assert_array_equal(step.terminated, expected.terminated & certain)
        mask = game.search_action_mask(expected.states)
        np.testing.assert_array_equal(step.legal_action_mask[certain], mask[certain])
        seen["chance"] |= bool(step.is_chance.any())
        seen["over"] |= bool(expected.terminated.any())
        states = expected.states
    assert seen["chance"] == (game.chance_size > 0)
    assert seen["over"] or game is GAMES[1]


def test_the_root_is_evaluated_as_it_is() -> None:
    """Logits and values of the network, the mask of the search, value 0 where the game is over."""
    game = TicTacToe()
    evaluate = hash_network(9)
    states = game.initial(np.zeros((2, 0), np.int64))
    for actions in ([0, 0], [3, 3], [1, 1], [4, 4], [2, 5]):
        states = game.apply(states, np.array(actions)).states
    root = AlphaZeroModel(game, evaluate, 1.0).root(states)
    logits, values = evaluate(game.encode(game.observation(states)))
    np.testing.assert_array_equal(root.logits, logits)
    np.testing.assert_array_equal(root.values, [0, values[1]])
    np.testing.assert_array_equal(root.legal_action_mask, game.search_action_mask(states))


def test_afterstates_are_sampled_again_beside_ordinary_steps() -> None:
    """Action -1 deals another hand to an afterstate, with no reward of a move, and leaves other rows alone."""
    game = Triangle(TriangleOptions(num_slots=2, reward_alive=3.0))
    evaluate = hash_network(game.num_actions)
    model = AlphaZeroModel(game, evaluate, 0.9)
    rng = np.random.default_rng(1)
    states = game.initial(game.draw_chance(rng, 4))
    states = game.apply(states, random_legal(game, states, rng)).states
    waiting = game.apply(states, random_legal(game, states, rng))
    assert waiting.chance_pending.all()
    mixed = np.where([[True], [False], [True], [False]], waiting.states, states)
    actions = np.where([True, False, True, False], -1, random_legal(game, states, rng))
    draws = []
    for _ in range(2):
        uniforms = rng.random((4, 2))
        step = model.step(mixed, actions, uniforms)
        dealt = game.resolve(waiting.states, game.chance_from_uniforms(uniforms)).states
        values = evaluate(game.encode(game.observation(dealt)))[1]
        assert step.is_chance.all()
        np.testing.assert_array_equal(step.embeddings[::2], waiting.states[::2])
        np.testing.assert_array_equal(step.values[::2], values[::2])
        np.testing.assert_array_equal(step.rewards[::2], 0)
        assert (step.rewards[1::2] > 0).all()
        np.testing.assert_array_equal(step.chance_rewards, 3.0)
        draws.append(step.values)
    assert (draws[0][::2] != draws[1][::2]).any()


def test_discounts_are_negative_when_the_turn_passes() -> None:
    """Zero-sum in tic-tac-toe, the same player throughout in the puzzle."""
    rng = np.random.default_rng(2)
    for game, sign in ((GAMES[0], -1), (GAMES[1], 1)):
        model = AlphaZeroModel(game, hash_network(game.num_actions), 0.75)
        states = game.initial(game.draw_chance(rng, 3))
        step = model.step(states, random_legal(game, states, rng), rng.random((3, game.chance_size)))
        np.testing.assert_array_equal(step.discounts, np.full(3, sign * 0.75, np.float32))


def test_the_network_sees_full_batches_only() -> None:
    """Finished games and afterstates are evaluated along, so the network has one shape to run in."""
    game = Triangle()
    shapes = []

    def evaluate(encoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shapes.append(encoded.shape)
        return np.zeros((len(encoded), game.num_actions), np.float32), np.ones(len(encoded), np.float32)

    model = AlphaZeroModel(game, evaluate, 0.9)
    states = game.initial(game.draw_chance(np.random.default_rng(0), 4))
    states[:2] = game.apply(states[:2], np.full(2, game.num_actions)).states
    model.root(states)
    step = model.step(states, np.full(4, -1), np.zeros((4, game.chance_size)))
    assert step.values[:2].tolist() == [0, 0]
    assert shapes == [(4, game.encoded_size)] * 2


@pytest.mark.parametrize("discount", [0.0, -0.5, 1.01, float("nan")])
def test_discounts_outside_their_range_are_refused(discount: float) -> None:
    """The discount is above 0 and at most 1."""
    with pytest.raises(ValueError, match="discount"):
        AlphaZeroModel(TicTacToe(), hash_network(9), discount)


@pytest.mark.parametrize("chance_draws", [2, 5])
def test_several_draws_are_averaged(chance_draws: int) -> None:
    """Value and reward of an afterstate are the means over its draws, as a single draw of each gives them."""
    game = Triangle(TriangleOptions(num_slots=2, reward_alive=3.0))
    evaluate = hash_network(game.num_actions)
    single, several = (AlphaZeroModel(game, evaluate, 0.9, draws) for draws in (1, chance_draws))
    assert several.chance_size == chance_draws * game.chance_size
    rng = np.random.default_rng(1)
    states = game.initial(game.draw_chance(rng, 6))
    one_shape_left = game.apply(states, random_legal(game, states, rng)).states
    states = np.where(np.arange(6)[:, None] < 3, one_shape_left, states)
    actions = random_legal(game, states, rng)
    for resampling in (False, True):
        uniforms = rng.random((6, several.chance_size))
        step = several.step(states, actions, uniforms)
        draws = [single.step(states, actions, part) for part in np.split(uniforms, chance_draws, axis=1)]
        assert step.is_chance.tolist() == [True] * 3 + [False] * 3
        for name in ("values", "chance_rewards"):
            mean = np.mean([getattr(draw, name) for draw in draws], axis=0)
            expected = np.where(step.is_chance, mean, getattr(draws[0], name))
            np.testing.assert_allclose(getattr(step, name), expected, rtol=1e-5, atol=1e-6)
        assert np.std([draw.values[0] for draw in draws]) > 0
        for name in ("embeddings", "rewards", "discounts", "terminated", "is_chance"):
            np.testing.assert_array_equal(getattr(step, name), getattr(draws[0], name))
        if not resampling:
            states = np.where(step.is_chance[:, None], step.embeddings, states)
            actions = np.where(step.is_chance, -1, actions)


def test_several_draws_are_evaluated_in_full_batches() -> None:
    """However many afterstates there are, the network sees its one shape."""
    game = Triangle(TriangleOptions(num_slots=1))
    shapes = []

    def evaluate(encoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shapes.append(encoded.shape)
        return np.zeros((len(encoded), game.num_actions), np.float32), np.ones(len(encoded), np.float32)

    model = AlphaZeroModel(game, evaluate, 0.9, 3)
    states = game.initial(game.draw_chance(np.random.default_rng(0), 4))
    model.step(states, random_legal(game, states, np.random.default_rng(0)), np.full((4, 3), 0.5))
    assert shapes == [(4, game.encoded_size)] * 3


def test_no_draws_are_refused() -> None:
    """Chance is sampled at least once."""
    with pytest.raises(ValueError, match="chance_draws"):
        AlphaZeroModel(TicTacToe(), hash_network(9), 1.0, 0)
