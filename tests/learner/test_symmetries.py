"""Drawn positions are shown under symmetries of the game, with all that belongs to them."""

import numpy as np
import torch
from numpy.typing import NDArray

from learner.learner import Learner
from learner.symmetries import SymmetricViews
from tests.learner.test_prepare import sequence_batch
from zero.config import parse_config
from zero.games.registry import make_game

GAME = make_game("triangle", {})
BATCH_SIZE = 64


def shapes(observations: NDArray[np.generic]) -> NDArray[np.generic]:
    return observations[..., -3:]


def test_views_are_games_that_could_have_been_played() -> None:
    """From the shown position the shown action leads to the shown next position, and is legal."""
    rng = np.random.default_rng(0)
    states = GAME.initial(GAME.draw_chance(rng, BATCH_SIZE))
    legal = GAME.legal_action_mask(states)
    actions = np.where(legal, rng.random(legal.shape), -1.0).argmax(axis=1)
    after = GAME.step(states, actions, GAME.draw_chance(rng, BATCH_SIZE)).states
    views = SymmetricViews(GAME, np.arange(BATCH_SIZE, dtype=np.uint64))
    observations = np.stack([GAME.observation(states), GAME.observation(after)], axis=1)
    shown = views.observations(observations)
    played = views.actions(actions[:, None])[:, 0]
    shown_states = GAME.decode(shown[:, 0])
    assert views.per_action(legal[:, None])[np.arange(BATCH_SIZE), 0, played].all()
    assert np.array_equal(views.per_action(legal[:, None])[:, 0], GAME.legal_action_mask(shown_states))
    next_states = GAME.step(shown_states, played, GAME.draw_chance(rng, BATCH_SIZE)).states
    assert np.array_equal(GAME.observation(next_states), shown[:, 1])
    assert np.array_equal(views.codes(shapes(observations).astype(np.int64)), shapes(shown))
    changed = (shown != observations).any(axis=(1, 2))
    assert 0.5 < changed.mean() < 1


def test_a_batch_shows_positions_with_their_policies() -> None:
    """The policy's mass stays on actions that the mask allows, and the encoded position is another one."""
    plain, views = (
        Learner(
            parse_config("", ["learner.td_steps=2", f"learner.use_symmetries={shown}"]), GAME, torch.device("cpu")
        ).prepare(sequence_batch(BATCH_SIZE))
        for shown in ("false", "true")
    )
    assert not torch.equal(plain.encoded, views.encoded)
    assert (views.target_policy[~views.policy_mask] == 0).all()
    assert torch.allclose(views.target_policy.sum(-1), torch.ones(BATCH_SIZE, 1), atol=1e-6)
    assert torch.equal(views.target_value, plain.target_value)


def test_what_is_shown_follows_from_the_batch() -> None:
    """A learner that is restored sees the same as one that never stopped; another batch is shown otherwise."""
    first, again = (SymmetricViews(GAME, np.arange(BATCH_SIZE, dtype=np.uint64)) for _ in range(2))
    other = SymmetricViews(GAME, np.arange(1, BATCH_SIZE + 1, dtype=np.uint64))
    actions = np.zeros((BATCH_SIZE, 1), np.int64)
    assert np.array_equal(first.actions(actions), again.actions(actions))
    assert not np.array_equal(first.actions(actions), other.actions(actions))
