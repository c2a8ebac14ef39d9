"""Measures what saving costs training: how long it pauses for a checkpoint, and what share of the time that is.

Run: .venv/bin/python -m tests.benchmarks.checkpoints [--set network.channels=128 --set network.blocks=8]
"""

import argparse
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch

from actors.actor import ActorSettings, run_actor
from deploy.experiment_files import load_experiment
from learner.checkpoint import CheckpointStore
from learner.checkpoint_saver import CheckpointSaver
from learner.learner import Learner, train_batches
from learner.metrics import LearnerMetrics
from learner.saving import CursorSource, Saving
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.roles import running, wait_until
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.networks.weights import weights_to_bytes
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.trajectories import PriorityUpdates

MINUTE = 60.0


@dataclass(frozen=True)
class Measured:
    """What a stretch of training came to.

    Attributes:
        steps_per_second: training steps.
        checkpoints: saved in it.
        pause_seconds: for which training paused, all of them together.
        write_seconds: that the last one took to be written, beside training.
        megabytes: of it.
    """

    steps_per_second: float
    checkpoints: int
    pause_seconds: float
    write_seconds: float
    megabytes: float


def fill(config: ExperimentConfig, client: ReplayClient, learner: Learner, steps: int) -> None:
    """Let an actor play until the table holds so many steps."""
    client.create_table(self_play_table(config, make_game(config.game.name, config.game.options)))
    client.publish_weights(weights_to_bytes(learner.network), 0)
    with running(lambda stop: run_actor(config, ActorSettings(client.address, entropy=1), stop)):
        wait_until(lambda: client.server_info().tables[TABLE_NAME].num_steps >= steps, 600)


def measure(
    config: ExperimentConfig, client: ReplayClient, learner: Learner, folder: Path, seconds: float, interval: float
) -> Measured:
    """Train for some seconds and save at an interval."""
    metrics, store = LearnerMetrics(folder.parent), CheckpointStore(folder)
    value = metrics.registry.get_sample_value
    with (
        closing(train_batches(config, learner, client, None, Event())) as batches,
        closing(CheckpointSaver(store, config, metrics)) as saver,
    ):
        place = CursorSource(client, TABLE_NAME, batches)
        saving = Saving(learner.checkpoint, place, dict, saver, interval, metrics)
        started, steps = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            batch = batches.get_data()
            loss, _ = learner.train(learner.prepare(batch))
            batches.update_priorities(PriorityUpdates(batch.keys, loss.priorities.cpu().numpy()))
            saving.save_if_due()
            steps += 1
        elapsed = time.monotonic() - started
    newest = store.folders()
    return Measured(
        steps / elapsed,
        int(value("zero_learner_saved_checkpoints_total") or 0),
        value("zero_learner_checkpoint_pause_seconds_total") or 0.0,
        value("zero_learner_checkpoint_duration_seconds") or 0.0,
        sum(path.stat().st_size for path in newest[0].iterdir()) / 1e6 if newest else 0.0,
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="triangle")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two stretches")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between checkpoints")
    parser.add_argument("--steps", type=int, default=20_000, help="that the table holds")
    options = parser.parse_args()
    limits = ["replay.samples_per_insert=0", "search.num_simulations=4", "search.max_num_considered_actions=4"]
    config = load_experiment(options.experiment, [*limits, *options.overrides])
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        ReplayServer(ReplayServerSettings(Path(folder) / "replay")) as bound,
        ReplayClient(bound.address) as client,
    ):
        learner = Learner(config, make_game(config.game.name, config.game.options), torch.device("cpu"))
        fill(config, client, learner, options.steps)
        path = Path(folder) / "checkpoints"
        without = measure(config, client, learner, path, options.seconds, float("inf"))
        with_them = measure(config, client, learner, path, options.seconds, options.interval)
    pause = with_them.pause_seconds / max(with_them.checkpoints, 1)
    lost = (1 - with_them.steps_per_second / without.steps_per_second) * options.seconds / max(with_them.checkpoints, 1)
    print(f"training steps/s without checkpoints        {without.steps_per_second:8.1f}")
    print(f"training steps/s, one in {options.interval:g} s               {with_them.steps_per_second:8.1f}")
    print(f"checkpoints, MB each                        {with_them.checkpoints:8d} {with_them.megabytes:8.2f}")
    print(f"written beside training, ms                 {1000 * with_them.write_seconds:8.1f}")
    print(f"pause for one, ms                           {1000 * pause:8.1f}")
    print(f"pause at one a minute, % of the time        {100 * pause / MINUTE:8.3f}   (at most 2)")
    print(f"training that one costs, ms                 {1000 * lost:8.1f}   ({100 * lost / MINUTE:.3f} % of a minute)")


if __name__ == "__main__":
    main()
