"""Drawn positions are shown under symmetries of the game, with all that belongs to them."""

import numpy as np
import pytest
import torch

from learner.learner import Learner
from learner.symmetries import SymmetricViews, all_symmetries
from zero.config import parse_config
from zero.games.game import Game, States
from zero.games.registry import make_game
from zero.trajectories import SequenceBatch

BATCH_SIZE = 64
KEYS = np.arange(BATCH_SIZE, dtype=np.uint64)


@pytest.fixture(params=["connect_four", "tic_tac_toe"])
def game(request: pytest.FixtureRequest) -> Game:
    return make_game(request.param, {})


def positions(game: Game) -> States:
    """Three random moves into the game."""
    rng = np.random.default_rng(0)
    nothing = np.zeros((BATCH_SIZE, 0), np.int64)
    states = game.initial(nothing)
    for _ in range(3):
        states = game.step(states, random_actions(game, states, rng), nothing).states
    return states


def random_actions(game: Game, states: States, rng: np.random.Generator) -> np.ndarray:
    legal = game.legal_action_mask(states)
    return np.where(legal, rng.random(legal.shape), -1.0).argmax(axis=1)


def test_views_are_games_that_could_have_been_played(game: Game) -> None:
    """From the shown position the shown action leads to the shown next position, and is legal."""
    states, nothing = positions(game), np.zeros((BATCH_SIZE, 0), np.int64)
    actions = random_actions(game, states, np.random.default_rng(1))
    after = game.step(states, actions, nothing).states
    views = SymmetricViews(all_symmetries(game), KEYS)
    observations = np.stack([game.observation(states), game.observation(after)], axis=1)
    shown = views.observations(observations)
    shown_states = game.decode(shown[:, 0])
    legal = views.per_action(game.legal_action_mask(states)[:, None])[:, 0]
    assert np.array_equal(legal, game.legal_action_mask(shown_states))
    played = views.actions(actions[:, None])[:, 0]
    assert np.array_equal(game.observation(game.step(shown_states, played, nothing).states), shown[:, 1])
    changed = (shown != observations).reshape(BATCH_SIZE, -1).any(axis=1)
    assert 0.3 < changed.mean() < 1


def drawn(columns: dict[str, np.ndarray]) -> SequenceBatch:
    """Windows in the middle of games."""
    return SequenceBatch(
        columns,
        keys=KEYS,
        probabilities=np.full(BATCH_SIZE, 0.01),
        lengths=np.full(BATCH_SIZE, 9, np.int32),
        weights_versions=np.ones(BATCH_SIZE, np.uint64),
        terminated=np.zeros(BATCH_SIZE, np.bool_),
        table_size=100,
    )


def test_a_batch_shows_positions_with_their_policies(game: Game) -> None:
    """Position, policy and mask are under one symmetry, which no policy is the same under; values stay."""
    states = positions(game)
    legal = game.legal_action_mask(states)
    policies = np.where(legal, np.random.default_rng(2).random(legal.shape), 0).astype(np.float32)
    policies /= policies.sum(-1, keepdims=True)
    batch = drawn(
        {
            "observation": game.observation(states)[:, None],
            "search_policy": policies[:, None],
            "reward": np.zeros((BATCH_SIZE, 3), np.float32),
            "discount": np.ones((BATCH_SIZE, 3), np.float32),
            "search_value": np.repeat(np.linspace(-1, 1, BATCH_SIZE, dtype=np.float32)[:, None], 3, axis=1),
        }
    )
    plain, shown = (
        Learner(
            parse_config("", [f"game.name={game.name}", "learner.td_steps=2", f"learner.use_symmetries={shown}"]),
            game,
            torch.device("cpu"),
        ).prepare(batch)
        for shown in ("false", "true")
    )
    observations = game.observation(states).reshape(BATCH_SIZE, -1)
    as_they_are = 0
    for row in range(BATCH_SIZE):
        (symmetry,) = (
            one
            for one in all_symmetries(game)
            if np.allclose(policies[row, one.actions], shown.target_policy[row, 0].numpy())
        )
        image = observations[row, symmetry.observation].reshape(1, *game.observation_spec.shape)
        assert np.array_equal(shown.encoded[row].numpy(), game.encode(image)[0])
        assert np.array_equal(shown.policy_mask[row, 0].numpy(), legal[row, symmetry.actions])
        as_they_are += np.array_equal(symmetry.actions, np.arange(game.num_actions))
    assert 0 < as_they_are < BATCH_SIZE
    assert np.array_equal(plain.encoded.numpy(), game.encode(game.observation(states)))
    assert torch.equal(plain.target_value, shown.target_value)


def test_a_batch_shows_what_was_played_from_there_on_alike(game: Game) -> None:
    """For a learned model, too: actions, policies and positions that follow are under the symmetry of the first."""
    states = positions(game)
    actions = random_actions(game, states, np.random.default_rng(1))
    after = game.step(states, actions, np.zeros((BATCH_SIZE, 0), np.int64)).states
    observations = np.stack([game.observation(states), game.observation(after)], axis=1)
    policies = np.random.default_rng(2).dirichlet(np.ones(game.num_actions), (BATCH_SIZE, 2)).astype(np.float32)
    config = parse_config(
        "",
        [
            f"game.name={game.name}",
            "network.model=learned",
            "learner.unroll_steps=1",
            "learner.td_steps=2",
            "learner.consistency_loss_weight=1",
        ],
    )
    sequences = drawn(
        {
            "observation": observations,
            "action": actions[:, None].astype(np.uint16),
            "search_policy": policies,
            "reward": np.zeros((BATCH_SIZE, 4), np.float32),
            "discount": np.ones((BATCH_SIZE, 4), np.float32),
            "search_value": np.zeros((BATCH_SIZE, 4), np.float32),
        }
    )
    batch, views = (
        Learner(config, game, torch.device("cpu")).prepare(sequences),
        SymmetricViews(all_symmetries(game), KEYS),
    )
    shown = views.observations(observations)
    assert np.array_equal(batch.encoded.numpy(), game.encode(shown[:, 0]))
    assert batch.encoded_later is not None
    assert np.array_equal(batch.encoded_later[:, 0].numpy(), game.encode(shown[:, 1]))
    assert np.array_equal(batch.actions.numpy(), views.actions(actions[:, None]))
    assert np.allclose(batch.target_policy.numpy(), views.per_action(policies))


def test_what_is_shown_follows_from_the_batch(game: Game) -> None:
    """A learner that is restored sees the same as one that never stopped; another batch is shown otherwise."""
    first, again = SymmetricViews(all_symmetries(game), KEYS), SymmetricViews(all_symmetries(game), KEYS)
    other = SymmetricViews(all_symmetries(game), KEYS + np.uint64(1))
    actions = np.zeros((BATCH_SIZE, 1), np.int64)
    assert np.array_equal(first.actions(actions), again.actions(actions))
    assert not np.array_equal(first.actions(actions), other.actions(actions))
