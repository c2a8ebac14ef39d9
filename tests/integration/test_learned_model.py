"""A model of the game is learned from self-play that searches by it: actor, replay server, learner and evaluator."""

from pathlib import Path

import numpy as np
import pytest

from actors.actor import ActorSettings, run_actor
from actors.evaluator import EvaluatorSettings, run_evaluator
from learner.checkpoint import CheckpointStore
from learner.learner import LearnerSettings, run_learner
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.ring import DISCOUNT, LIKELY, SIZE, VALUES, Ring, following
from tests.roles import running, wait_until
from zero.config import parse_config
from zero.games.registry import register_game
from zero.networks.inference import InferenceModel, make_inference
from zero.networks.make_network import make_network
from zero.networks.weights import load_weights

pytestmark = pytest.mark.slow

NAME = "ring.py:Ring"
CONFIG = parse_config(
    "",
    [
        f'game.name="{NAME}"',
        "game.options={is_random = true, pays_after_chance = false}",
        f"discount={DISCOUNT}",
        "network.model=learned",
        "network.channels=32",
        "network.blocks=1",
        "network.support_min=-2.0",
        "network.support_max=2.0",
        "network.support_size=5",
        "network.value_transform=false",
        "search.num_simulations=8",
        "self_play.games_per_actor=16",
        "self_play.max_moves=12",
        "replay.min_size_to_sample=200",
        "replay.samples_per_insert=16.0",
        "replay.error_buffer=2000.0",
        "learner.batch_size=64",
        "learner.unroll_steps=3",
        "learner.td_steps=3",
        "learner.learning_rate=0.01",
        "learner.publish_interval_steps=10",
        "evaluation.interval_seconds=1.0",
        "evaluation.num_games=4",
    ],
)


def test_a_run_learns_the_model_that_it_searches_by(tmp_path: Path) -> None:
    """After a few hundred steps, and a restart, the model foresees rewards and chance far better than a fresh one."""
    register_game(NAME, lambda options: Ring(**options), CONFIG.game.options)
    with ReplayServer(ReplayServerSettings(tmp_path / "replay")) as bound, ReplayClient(bound.address) as client:
        settings = LearnerSettings(bound.address, tmp_path / "run")
        with (
            running(lambda stop: run_learner(CONFIG, settings, stop)),
            running(lambda stop: run_actor(CONFIG, ActorSettings(bound.address), stop)),
            running(lambda stop: run_evaluator(CONFIG, EvaluatorSettings(bound.address), stop)),
        ):
            wait_until(lambda: client.server_info().weights_version >= 25, 240)
        version = client.server_info().weights_version
        with running(lambda stop: run_learner(CONFIG, settings, stop)):
            wait_until(lambda: client.server_info().weights_version > version)
    checkpoint = CheckpointStore(tmp_path / "run/checkpoints").newest(CONFIG)
    assert checkpoint is not None
    assert checkpoint.training_step >= 250
    game = Ring(is_random=True, pays_after_chance=False)
    network = make_network(game, CONFIG.network, 0)
    assert error_of(game, make_inference(network)) > 0.3, "a fresh model foresees as much"
    load_weights(network, checkpoint.model)
    assert error_of(game, make_inference(network)) < 0.1


def error_of(game: Ring, model: object) -> float:
    """Mean error of rewards, of the chance of chance, and of its probabilities, after either action from any number."""
    assert isinstance(model, InferenceModel)
    errors: list[float] = []
    for action in range(2):
        latents = model.represent(game.encode(np.arange(SIZE, dtype=np.uint64)[:, None]))
        reached = [following(number, action, 0) for number in range(SIZE)]
        afterstates, rewards = model.foresee(latents, np.full(SIZE, action))
        errors.extend(np.abs(rewards - (VALUES - DISCOUNT * VALUES[reached])))
        follows, (probabilities,) = model.expect_chance(afterstates)
        errors.extend(np.abs(follows - action))
        if action == 1:
            errors.extend(np.abs(probabilities[:, 0] - LIKELY))
    return float(np.mean(errors))
