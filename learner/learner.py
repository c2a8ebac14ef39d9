"""The learner role: draws batches, trains, sends priorities back, publishes weights, saves checkpoints."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from learner.batches import BatchMaker
from learner.calibration import value_calibration
from learner.checkpoint import Checkpoint, CheckpointStore, KeepPolicy
from learner.checkpoint_saver import CheckpointSaver
from learner.data_user import DataUser
from learner.generators import generator_states, restore_generators
from learner.losses import PRIORITY_FLOOR, Loss, TrainingBatch, compute_loss
from learner.metrics import LearnerMetrics
from learner.replay_cursor import restore_priorities
from learner.saving import CursorSource, Saving
from learner.weights_publisher import WeightsPublisher
from replay_server.client import ReplayClient, create_table_when_reachable, registered_process
from replay_server.credentials import Credentials
from replay_server.sample_stream import StreamState
from replay_server.trajectory_buffer import BufferClosedError, TrajectoryBuffer
from zero.config import ExperimentConfig, LearnerConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.residual import ResidualNetwork
from zero.networks.weights import load_weights, weights_to_bytes
from zero.search_ages import SEARCH_WINDOWS, search_ages
from zero.seeds import process_seeds
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.trajectories import PriorityUpdates, SampleSpec, SequenceBatch

logger = logging.getLogger(__name__)

LOSS_REPORT_INTERVAL_STEPS = 10
"""Reading a loss for the metrics waits for the device, so not every step does."""
MAX_NONFINITE_STEPS = 10
"""So many batches in a row without a finite loss and gradient end the learner: it is not the batch."""


@dataclass(frozen=True)
class LearnerSettings:
    """Where a learner runs.

    Attributes:
        replay_address: host:port of the replay server.
        run_dir: the run's folder; checkpoints are in its subfolder.
        metrics_host: interface that serves /metrics.
        metrics_port: its port; 0 takes a free one.
        num_threads: torch threads.
        device: a torch device, or "auto" for a GPU if there is one.
        credentials: for the replay server.
        max_steps: training steps of the run after which the learner is done; None for never.
        best_step: says which training step did best so far; its checkpoint is kept.
        statistics: what else is kept with every checkpoint, as JSON data by name.
    """

    replay_address: str
    run_dir: Path
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    num_threads: int = 1
    device: str = "auto"
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    max_steps: int | None = None
    best_step: Callable[[], int | None] = lambda: None
    statistics: Callable[[], Mapping[str, JsonValue]] = dict[str, JsonValue]


def learning_rate(config: LearnerConfig, training_step: int) -> float:
    """The learning rate of a step: linear warm-up, then constant or a cosine down to the final fraction."""
    warmup = min(1.0, (training_step + 1) / (config.warmup_steps + 1))
    if config.schedule == "constant":
        return config.learning_rate * warmup
    progress = min(1.0, training_step / config.schedule_steps)
    final = config.final_learning_rate_fraction
    return config.learning_rate * warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


class Learner:
    """The network in training and its optimizer.

    Attributes:
        network: what is trained.
        training_step: optimizer updates made.
    """

    def __init__(self, config: ExperimentConfig, game: Game, device: torch.device) -> None:
        self._config = config
        self._batches = BatchMaker(config, game, device)
        self.network: ResidualNetwork = make_network(game, config.network, config.seed).to(device)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learner.learning_rate, weight_decay=config.learner.weight_decay
        )
        self.training_step = 0

    def windows(self) -> dict[str, int]:
        """Steps needed of every column."""
        return self._batches.windows()

    def prepare(self, batch: SequenceBatch) -> TrainingBatch:
        """Encode the drawn positions and compute their targets."""
        return self._batches.prepare(batch)

    def train(self, batch: TrainingBatch) -> tuple[Loss, Tensor]:
        """Make one optimizer update; returns the loss before it and the gradient's norm before clipping.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; the weights are as they were.
        """
        loss = self.loss(batch)
        norm = self.differentiate(loss)
        self.update()
        return loss, norm

    def loss(self, batch: TrainingBatch) -> Loss:
        """What the network is wrong by.

        Raises:
            FloatingPointError: it is not finite.
        """
        output = self.network.unroll(batch.encoded, batch.actions, batch.chance_codes)
        loss = compute_loss(output, batch, self.network.support, self._config.learner, self._later_latents(batch))
        if not torch.isfinite(loss.total):
            raise FloatingPointError(f"the loss of training step {self.training_step} is {float(loss.total.detach())}")
        return loss

    def differentiate(self, loss: Loss) -> Tensor:
        """Leave the clipped gradient of a loss with the weights; returns its norm before clipping.

        Raises:
            FloatingPointError: it is not finite.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._config.learner.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient of training step {self.training_step} is not finite")
        return norm

    def update(self) -> None:
        """Change the weights by their gradient: one training step."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._config.learner, self.training_step)
        self._optimizer.step()
        self.training_step += 1

    @torch.no_grad()
    def _later_latents(self, batch: TrainingBatch) -> Tensor | None:
        """[B, K, ...], what the network makes of the positions that really followed; None if they are not asked for."""
        later = batch.encoded_later
        return None if later is None else self.network.trunk(later.flatten(0, 1)).unflatten(0, later.shape[:2])

    def checkpoint(self) -> Checkpoint:
        """Everything of this process that is needed to go on from here, a copy."""
        state = self._optimizer.state_dict()["state"]
        tensors = {
            f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
            for index, values in state.items()
            for name, value in values.items()
        }
        return Checkpoint(
            self.training_step,
            weights_to_bytes(self.network),
            tensors,
            learning_rate(self._config.learner, self.training_step),
            generator_states(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            WeightsMismatchError: it is of another network.
        """
        load_weights(self.network, checkpoint.model)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.optimizer.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})
        self.training_step = checkpoint.training_step
        if checkpoint.generators is not None:
            restore_generators(checkpoint.generators)


class LearnerLoop:
    """One learner's way through its run: draw, train, report, publish, save.

    Its batches have the columns of `Learner.windows` and, for the metrics, of SEARCH_WINDOWS.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        learner: Learner,
        data_user: DataUser[SequenceBatch],
        publisher: WeightsPublisher,
        saving: Saving,
        metrics: LearnerMetrics,
        max_steps: int | None = None,
    ) -> None:
        self._config = config
        self._max_steps = math.inf if max_steps is None else max_steps
        self._learner = learner
        self._data_user = data_user
        self._publisher = publisher
        self._saving = saving
        self._metrics = metrics
        self._nonfinite_steps = 0

    def run(self, stop: Event) -> None:
        """Train until `stop` or the last step that is wanted, then save.

        Raises:
            FloatingPointError: MAX_NONFINITE_STEPS batches in a row had no finite loss and gradient.
        """
        publish_interval = self._config.learner.publish_interval_steps
        try:
            self._publish_first(stop)
            while not stop.is_set() and self._learner.training_step < self._max_steps:
                self._step()
                if self._learner.training_step % publish_interval == 0:
                    self._publish()
                self._saving.save_if_due()
        except BufferClosedError:
            pass
        finally:
            # Whatever ended it: the weights are those of a complete step.
            self._saving.finish()

    def _step(self) -> None:
        started = time.perf_counter()
        batch = self._data_user.get_data()
        drawn = time.perf_counter()
        self._metrics.batch_wait.inc(drawn - started)
        training_batch = self._learner.prepare(batch)
        try:
            loss, norm = self._learner.train(training_batch)
        except FloatingPointError as error:
            self._give_up_step(error)
            return
        self._nonfinite_steps = 0
        self._data_user.update_priorities(PriorityUpdates(batch.keys, loss.priorities.cpu().numpy()))
        self._metrics.step_seconds.observe(time.perf_counter() - drawn)
        self._metrics.registry.events.step = self._learner.training_step
        self._metrics.training_steps.inc()
        self._metrics.training_step.set(self._learner.training_step)
        if self._learner.training_step % LOSS_REPORT_INTERVAL_STEPS == 1:
            self._report(batch, training_batch, loss, norm)

    def _give_up_step(self, error: FloatingPointError) -> None:
        """Count a step that left the weights as they were; raise the error if one batch after another does."""
        self._metrics.nonfinite_steps.inc()
        self._nonfinite_steps += 1
        if self._nonfinite_steps >= MAX_NONFINITE_STEPS:
            raise error
        logger.warning("%s; the batch is left out", error)

    def _report(self, batch: SequenceBatch, training_batch: TrainingBatch, loss: Loss, norm: Tensor) -> None:
        metrics = self._metrics
        metrics.total_loss.set(float(loss.total.detach()))
        metrics.policy_entropy.set(float(loss.policy_entropy))
        metrics.td_error.set(float(loss.priorities.mean()) - PRIORITY_FLOOR)
        metrics.importance_sampling_exponent.set(self._config.learner.importance_sampling_exponent)
        metrics.policy_loss.set(float(loss.policy))
        metrics.value_loss.set(float(loss.value))
        metrics.target_entropy.set(float(loss.target_entropy))
        target_value = training_batch.target_value[:, 0].cpu().numpy()
        metrics.target_value.set(float(target_value.mean()))
        metrics.clamped_targets.set(float(loss.clamped_targets))
        metrics.unrolled_policy_loss.set(float(loss.unrolled_policy))
        metrics.unrolled_value_loss.set(float(loss.unrolled_value))
        metrics.reward_loss.set(float(loss.reward))
        metrics.chance_loss.set(float(loss.chance))
        metrics.consistency_loss.set(float(loss.consistency))
        calibration = value_calibration(loss.values.cpu().numpy(), target_value, batch.probabilities)
        metrics.value_bias.set(calibration.bias)
        metrics.value_slope.set(calibration.slope)
        metrics.gradient_norm.set(float(norm))
        metrics.learning_rate.set(learning_rate(self._config.learner, self._learner.training_step))
        version = self._publisher.version
        metrics.weights_version.set(version)
        metrics.staleness.set(max(0.0, version - float(batch.weights_versions.mean())) if version else 0.0)
        metrics.report_searches(search_ages(batch, version, time.time()))

    def _publish_first(self, stop: Event) -> None:
        """Publish until the server has it: before that nobody plays, and there would never be a batch."""
        while self._publisher.version == 0 and not stop.is_set():
            self._publish()
            self._publisher.wait()

    def _publish(self) -> None:
        self._publisher.publish(self._learner.network, self._learner.training_step)


def run_learner(config: ExperimentConfig, settings: LearnerSettings, stop: Event) -> None:
    """Be a learner until `stop`: go on from the run's newest checkpoint, train, save at the end.

    Raises:
        ConfigError, GameError: the experiment cannot be built.
        CheckpointError: the run's checkpoints do not fit or are damaged.
        ReplayError: the replay server refused.
    """
    torch.set_num_threads(settings.num_threads)
    name = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    game = make_game(config.game.name, config.game.options)
    learner = Learner(config, game, torch.device(name))
    keep = KeepPolicy(
        config.learner.keep_last_checkpoints, config.learner.keep_checkpoint_every_steps, settings.best_step
    )
    store = CheckpointStore(settings.run_dir / "checkpoints", keep)
    checkpoint = store.newest(config)
    settings.run_dir.mkdir(parents=True, exist_ok=True)  # the metrics tell how much room its disk has
    metrics = LearnerMetrics(settings.run_dir)
    if checkpoint is not None:
        learner.restore(checkpoint)
        logger.info("resuming at training step %d", learner.training_step)
        metrics.registry.events.step = learner.training_step
        metrics.training_step.set(learner.training_step)
    with ReplayClient(settings.replay_address, credentials=settings.credentials) as client:
        if not create_table_when_reachable(client, self_play_table(config, game), stop):
            return
        with (
            registered_process(
                client, "learner", "learner", metrics.registry, settings.metrics_host, settings.metrics_port
            ),
            closing(WeightsPublisher(client)) as publisher,
            closing(train_batches(config, learner, client, checkpoint, stop)) as batches,
            closing(CheckpointSaver(store, config, metrics)) as saver,
        ):
            place = CursorSource(client, TABLE_NAME, batches)
            interval = config.learner.checkpoint_interval_seconds
            saving = Saving(learner.checkpoint, place, settings.statistics, saver, interval, metrics)
            LearnerLoop(config, learner, DataUser(batches), publisher, saving, metrics, settings.max_steps).run(stop)


def train_batches(
    config: ExperimentConfig, learner: Learner, client: ReplayClient, checkpoint: Checkpoint | None, stop: Event
) -> TrajectoryBuffer:
    """The batches from where the learner stood on, of a table with the priorities that it had then."""
    windows = learner.windows() | SEARCH_WINDOWS
    cursor = None if checkpoint is None else checkpoint.replay
    if cursor is None:
        state = StreamState(int(process_seeds(config.seed, "learner", 0, 0).generate_state(1, np.uint64)[0]))
    else:
        restore_priorities(client, cursor)
        state = cursor.stream
        if not cursor.fits(config.learner.batch_size, windows):
            state = StreamState(state.seed, state.next_number)
    return TrajectoryBuffer(
        client,
        TABLE_NAME,
        SampleSpec(config.learner.batch_size, windows),
        prefetch=config.learner.prefetch_batches,
        stop=stop,
        state=state,
    )
