"""Says where the time of learning goes, by some seconds of it on a replay server of its own."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from rich.table import Table

from actors.self_play import SelfPlay
from deploy.private_replay_server import private_replay_server
from deploy.profile_tables import rate_rows, shares_table
from deploy.stopwatch import Stopwatch, watch
from learner.checkpoint import CheckpointStore, KeepPolicy
from learner.checkpoint_saver import CheckpointSaver
from learner.data_user import DataUser
from learner.learner import Learner, LearnerLoop, train_batches
from learner.metrics import LearnerMetrics
from learner.saving import CursorSource, Saving
from learner.weights_publisher import WeightsPublisher
from replay_server.client import ReplayClient
from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.search.make_search import make_search
from zero.seeds import process_seeds
from zero.self_play_table import TABLE_NAME, self_play_table

WAITING, PREPARING, FORWARD, BACKWARD = "waiting for data", "preparing", "forward", "backward"
OPTIMIZER, PRIORITIES, PUBLISHING, SAVING = "optimizer", "priorities", "publishing", "saving"
PHASES = (WAITING, PREPARING, FORWARD, BACKWARD, OPTIMIZER, PRIORITIES, PUBLISHING, SAVING)

WARM_UP_STEPS = 3
_MIN_STEPS = 1_000
"""At least so many steps are stored, and no fewer than _BATCHES batches."""
_BATCHES = 4
_GAMES = 64
_SIMULATIONS = 2


@dataclass(frozen=True)
class LearnerProfile:
    """Where the time of some training went.

    Attributes:
        device: that computed.
        batch_size: positions per training step.
        unroll_steps: over which a learned model was unrolled; 0 without one.
        parameters: of the network.
        wall_seconds: that training lasted.
        cpu_seconds: of this process meanwhile; much less than wall_seconds on a busy machine.
        training_steps: that were made meanwhile.
        training_steps_per_second: by the clock.
        training_steps_per_cpu_second: the same, as on a machine that does nothing else.
        shares: of wall_seconds, per phase of PHASES; what is missing to 1 is metrics and this measurement.
    """

    device: str
    batch_size: int
    unroll_steps: int
    parameters: int
    wall_seconds: float
    cpu_seconds: float
    training_steps: int
    training_steps_per_second: float
    training_steps_per_cpu_second: float
    shares: Mapping[str, float]


def profile_learner(config: ExperimentConfig, seconds: float) -> LearnerProfile:
    """Be the learner for some seconds, with fresh weights, after a warm-up.

    A replay server in a process of its own serves games that were played with hardly any search, and no rate limiter
    holds anybody: waiting for data is what drawing costs where the table is full.

    Raises:
        DeployError: the replay server cannot start.
        GameError: the game cannot be built.
        FloatingPointError: the loss does not become finite.
    """
    torch.set_num_threads(1)
    replay = config.replay.model_copy(update={"min_size_to_sample": 1, "samples_per_insert": 0.0})
    config = config.model_copy(update={"replay": replay})
    game = make_game(config.game.name, config.game.options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = Learner(config, game, device)
    with (
        tempfile.TemporaryDirectory(prefix="zero-profile-") as name,
        private_replay_server(Path(name) / "replay") as address,
        ReplayClient(address) as client,
    ):
        client.create_table(self_play_table(config, game))
        _fill(config, game, learner, client)
        return _measure(config, learner, client, Path(name), seconds)


def learner_table(profile: LearnerProfile) -> Table:
    """Shares, the largest first, then rates."""
    rows = (
        *rate_rows("training steps", profile.training_steps_per_second, profile.training_steps_per_cpu_second),
        ("training steps", f"{profile.training_steps:,}"),
    )
    title = f"Batches of {profile.batch_size}, {profile.parameters:,} parameters on {profile.device}"
    return shares_table(title, profile.shares, rows)


class _Until(Event):
    """Set as soon as some seconds are over, counted from when it is asked for the first time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.started: tuple[float, float] | None = None
        self.ended = (0.0, 0.0)

    def is_set(self) -> bool:
        now = (time.perf_counter(), time.process_time())
        self.started = self.started or now
        if not super().is_set() and now[0] - self.started[0] >= self._seconds:
            self.ended = now
            self.set()
        return super().is_set()


def _measure(
    config: ExperimentConfig, learner: Learner, client: ReplayClient, folder: Path, seconds: float
) -> LearnerProfile:
    stopwatch = Stopwatch(PHASES, time.perf_counter)
    metrics = LearnerMetrics(folder)
    store = CheckpointStore(folder / "checkpoints", KeepPolicy(config.learner.keep_last_checkpoints))
    with ExitStack() as stack:
        publisher = stack.enter_context(closing(WeightsPublisher(client)))
        batches = stack.enter_context(closing(train_batches(config, learner, client, None, Event())))
        saver = stack.enter_context(closing(CheckpointSaver(store, config, metrics)))
        place = CursorSource(client, TABLE_NAME, batches)
        saving = Saving(learner.checkpoint, place, dict, saver, config.learner.checkpoint_interval_seconds, metrics)
        data_user = DataUser(batches)
        for phase, owner, method in (
            (WAITING, data_user, "get_data"),
            (PREPARING, learner, "prepare"),
            (FORWARD, learner, "loss"),
            (BACKWARD, learner, "differentiate"),
            (OPTIMIZER, learner, "update"),
            (PRIORITIES, data_user, "update_priorities"),
            (PUBLISHING, publisher, "publish"),
            (SAVING, saving, "save_if_due"),
        ):
            watch(stopwatch, phase, owner, (method,))
        LearnerLoop(config, learner, data_user, publisher, saving, metrics, WARM_UP_STEPS).run(Event())
        stopwatch.reset()
        until = _Until(seconds)
        LearnerLoop(config, learner, data_user, publisher, saving, metrics).run(until)
    return _profile(config, learner, until, stopwatch)


def _profile(config: ExperimentConfig, learner: Learner, until: _Until, stopwatch: Stopwatch) -> LearnerProfile:
    if until.started is None:
        raise AssertionError("a loop that never asked whether to stop")
    wall_seconds, cpu_seconds = (end - start for start, end in zip(until.started, until.ended, strict=True))
    steps = learner.training_step - WARM_UP_STEPS
    return LearnerProfile(
        device=next(learner.network.parameters()).device.type,
        batch_size=config.learner.batch_size,
        unroll_steps=config.learner.unroll_steps,
        parameters=sum(tensor.numel() for tensor in learner.network.parameters()),
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        training_steps=steps,
        training_steps_per_second=steps / wall_seconds,
        training_steps_per_cpu_second=steps / cpu_seconds,
        shares={name: spent / wall_seconds for name, spent in stopwatch.seconds.items()},
    )


def _fill(config: ExperimentConfig, game: Game, learner: Learner, client: ReplayClient) -> None:
    """Play games with hardly any search until there are enough steps."""
    quick = config.search.model_copy(
        update={"num_simulations": _SIMULATIONS, "max_num_considered_actions": _SIMULATIONS}
    )
    config = config.model_copy(update={"search": quick})
    search = make_search(game, make_inference(learner.network), config, _GAMES)
    seeds = process_seeds(config.seed, "actor", 0, 0)
    self_play = SelfPlay(game, config.self_play, _SIMULATIONS, "actor-0", seeds, _GAMES)
    missing = min(config.replay.capacity, max(_MIN_STEPS, _BATCHES * config.learner.batch_size))
    while missing > 0:
        trajectories, _ = self_play.play_move(search, 0)
        if trajectories:
            client.insert(TABLE_NAME, trajectories)
        missing -= sum(trajectory.num_steps for trajectory in trajectories)
