"""A table with real games in it and nobody who adds any, and learners that run on it."""

from pathlib import Path
from threading import Event

from actors.actor import ActorSettings, run_actor
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.learner import LearnerSettings, run_learner
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.roles import running, wait_until
from zero.config import ExperimentConfig, parse_config
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes
from zero.self_play_table import TABLE_NAME, self_play_table

OVERRIDES = (
    "game.name=tic_tac_toe",
    "network.channels=8",
    "network.blocks=1",
    "network.support_min=-1.0",
    "network.support_max=1.0",
    "network.value_transform=false",
    "search.num_simulations=4",
    "search.max_num_considered_actions=4",
    "self_play.games_per_actor=16",
    "self_play.max_moves=9",
    "self_play.dtype=float32",
    "replay.capacity=2000",
    "replay.min_size_to_sample=200",
    "replay.samples_per_insert=0",
    "learner.batch_size=16",
    "learner.td_steps=9",
    "learner.publish_interval_steps=5",
)


def small_config(*overrides: str) -> ExperimentConfig:
    """Of a learner whose training steps take milliseconds, and whom no rate limiter holds."""
    return parse_config("", [*OVERRIDES, *overrides])


def fill(data_dir: Path, config: ExperimentConfig) -> None:
    """Let an actor play some hundred steps into the table of a server that ends then."""
    game = make_game(config.game.name, config.game.options)
    with ReplayServer(ReplayServerSettings(data_dir)) as bound, ReplayClient(bound.address) as client:
        client.create_table(self_play_table(config, game))
        client.publish_weights(weights_to_bytes(make_network(game, config.network, config.seed)), 0)
        with running(lambda stop: run_actor(config, ActorSettings(bound.address, entropy=1), stop)):
            wait_until(lambda: client.server_info().tables[TABLE_NAME].inserted_steps >= 300)


def learn_until(config: ExperimentConfig, data_dir: Path, run_dir: Path, max_steps: int) -> Checkpoint:
    """Start a server on its data and a learner that goes on up to a training step; returns its checkpoint."""
    with ReplayServer(ReplayServerSettings(data_dir)) as bound:
        run_learner(config, LearnerSettings(bound.address, run_dir, max_steps=max_steps), Event())
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest(config)
    assert checkpoint is not None
    assert checkpoint.training_step == max_steps
    return checkpoint
