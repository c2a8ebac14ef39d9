"""Actor, learner and evaluator against a real replay server, in one process: the loop closes, stops and resumes."""

import json
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from actors.actor import ActorSettings, run_actor
from actors.data_collector import DataCollector
from actors.evaluator import EvaluatorSettings, run_evaluator
from actors.weights_client import WeightsClient
from learner.checkpoint import CheckpointStore
from learner.checkpoint_saver import CheckpointSaver
from learner.data_user import DataUser
from learner.learner import MAX_NONFINITE_STEPS, Learner, LearnerLoop, LearnerSettings, run_learner
from learner.metrics import LearnerMetrics
from learner.saving import CursorSource, Saving
from learner.weights_publisher import WeightsPublisher
from replay_server import trajectory_buffer
from replay_server.answers import Weights
from replay_server.client import ReplayClient, ReplayError, ReplayTimeout
from replay_server.sample_stream import StreamState
from replay_server.server import ReplayServer, ReplayServerSettings
from replay_server.trajectory_buffer import BufferClosedError, TrajectoryBuffer, TrajectoryInlet
from tests.roles import running, wait_until
from zero.config import NetworkConfig, parse_config
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes
from zero.search_ages import SEARCH_WINDOWS
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.tables import RateLimiterConfig
from zero.trajectories import PriorityUpdates, SampleSpec, SequenceBatch, Trajectory

pytestmark = pytest.mark.slow

CONFIG = parse_config(
    "",
    [
        "game.name=tic_tac_toe",
        "network.channels=8",
        "network.blocks=1",
        "network.support_min=-1.0",
        "network.support_max=1.0",
        "network.support_size=21",
        "network.value_transform=false",
        "search.num_simulations=8",
        "self_play.games_per_actor=16",
        "self_play.max_moves=9",
        "replay.min_size_to_sample=200",
        "replay.error_buffer=500.0",
        "learner.batch_size=32",
        "learner.td_steps=9",
        "learner.publish_interval_steps=5",
        "evaluation.interval_seconds=0.2",
        "evaluation.num_games=8",
    ],
)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A replay server of the test's own."""
    with ReplayServer(ReplayServerSettings(tmp_path / "replay")) as bound:
        yield bound.address


@pytest.fixture
def client(address: str) -> Iterator[ReplayClient]:
    """A client of it."""
    with ReplayClient(address) as client:
        yield client


def newest_step(run_dir: Path) -> int:
    """The training step of the newest checkpoint."""
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest(CONFIG)
    return checkpoint.training_step if checkpoint else 0


def test_the_loop_closes_stops_with_a_checkpoint_and_resumes(
    address: str, client: ReplayClient, tmp_path: Path
) -> None:
    """Actors and learner drive each other; a stopped run goes on from its checkpoint, its versions too."""
    learner = LearnerSettings(address, tmp_path / "run")
    with (
        running(lambda stop: run_learner(CONFIG, learner, stop)),
        running(lambda stop: run_actor(CONFIG, ActorSettings(address), stop)),
        running(lambda stop: run_evaluator(CONFIG, EvaluatorSettings(address), stop)),
    ):
        wait_until(lambda: client.server_info().weights_version >= 4)
    first_step, first_version = newest_step(tmp_path / "run"), client.server_info().weights_version
    assert first_step >= 15
    with (
        running(lambda stop: run_learner(CONFIG, learner, stop)),
        running(lambda stop: run_actor(CONFIG, ActorSettings(address), stop)),
    ):
        wait_until(lambda: client.server_info().weights_version >= first_version + 3)
    assert newest_step(tmp_path / "run") >= first_step + 10


def test_samples_per_insert_stay_inside_their_band(address: str, client: ReplayClient, tmp_path: Path) -> None:
    """Neither side runs away: samples are within the error buffer of what the inserts allow."""
    with (
        running(lambda stop: run_learner(CONFIG, LearnerSettings(address, tmp_path / "run"), stop)),
        running(lambda stop: run_actor(CONFIG, ActorSettings(address), stop)),
    ):
        wait_until(lambda: client.server_info().weights_version >= 20)
        info = client.server_info().tables[TABLE_NAME]
    replay = CONFIG.replay
    expected = (info.inserted_steps - replay.min_size_to_sample) * replay.samples_per_insert
    # The limiter counts from the insert that reached the minimum size, at most one game of a few steps beyond it.
    assert abs(info.sampled_positions - expected) <= replay.error_buffer + 20 * replay.samples_per_insert


def test_every_role_serves_metrics_and_is_listed(tmp_path: Path) -> None:
    """What the server lists answers with the series of its role, one target a process."""
    with (
        ReplayServer(ReplayServerSettings(tmp_path / "replay")) as bound,
        running(lambda stop: run_learner(CONFIG, LearnerSettings(bound.address, tmp_path / "run"), stop)),
        running(lambda stop: run_actor(CONFIG, ActorSettings(bound.address, index=3), stop)),
    ):
        wait_until(lambda: len(targets(bound.metrics_address)) == 3)
        found = targets(bound.metrics_address)
    assert found["learner"] >= {"zero_learner_training_step", "zero_learner_policy_loss"}
    assert found["actor"] >= {"zero_actor_games", "zero_actor_simulations"}
    assert found["replay_server"] >= {"zero_replay_inserted_steps"}


class NotingBuffer(TrajectoryBuffer):
    """Keeps what it handed over, and ends the role with it."""

    def __init__(self, client: ReplayClient, windows: dict[str, int], stop: Event) -> None:
        super().__init__(client, TABLE_NAME, SampleSpec(64, windows), prefetch=1, stop=stop, state=StreamState(0))
        self._ended = stop
        self.batches: list[SequenceBatch] = []

    def get_data(self) -> SequenceBatch:
        """See TrajectoryBuffer."""
        self.batches.append(super().get_data())
        self._ended.set()
        return self.batches[-1]


def test_the_health_of_learning_is_shown_as_it_is(address: str, client: ReplayClient, tmp_path: Path) -> None:
    """Of real games: how stale and sharp targets are, how many are clamped, how far values are from them at first."""
    network = CONFIG.network.model_copy(update={"support_min": -0.25, "support_max": 0.25})
    config = CONFIG.model_copy(update={"network": network})
    game, stop, metrics = make_game("tic_tac_toe", {}), Event(), LearnerMetrics(tmp_path)
    client.create_table(self_play_table(config, game))
    learner = Learner(config, game, torch.device("cpu"))
    # A new network expects the same of every position, which has no slope.
    torch.nn.init.normal_(learner.network.value[2].weight, generator=torch.Generator().manual_seed(0))
    fresh = Learner(config, game, torch.device("cpu"))
    fresh.network.load_state_dict(learner.network.state_dict())
    store = CheckpointStore(tmp_path / "checkpoints")
    for other in (1, 2):
        client.publish_weights(weights_to_bytes(make_network(game, network, other)), 0)
    with (
        running(lambda stop: run_actor(config, ActorSettings(address), stop)),
        closing(WeightsPublisher(client)) as publisher,
    ):
        wait_until(lambda: client.server_info().tables[TABLE_NAME].inserted_steps >= 200)
        with closing(NotingBuffer(client, learner.windows() | SEARCH_WINDOWS, stop)) as buffer:
            saver = CheckpointSaver(store, config, metrics)
            saving = Saving(learner.checkpoint, CursorSource(client, TABLE_NAME, buffer), dict, saver, 60.0, metrics)
            with closing(saver):
                LearnerLoop(config, learner, DataUser(buffer), publisher, saving, metrics).run(stop)
    batch = buffer.batches[0]
    value = metrics.registry.get_sample_value
    assert value("zero_learner_staleness_versions") == pytest.approx(3 - batch.weights_versions.mean())
    assert value("zero_learner_staleness_versions") > 0.5
    policies = batch.columns["search_policy"][:, 0].astype(float)
    policies /= policies.sum(1, keepdims=True)
    entropies = -(policies * np.log(np.where(policies > 0, policies, 1))).sum(1)
    assert value("zero_learner_target_entropy") == pytest.approx(entropies.mean(), rel=1e-4)
    columns, targets = batch.columns, []
    for row, length in enumerate(np.minimum(batch.lengths, 10)):
        # Draws pay nothing; the loser does not move last. With lambda below 1 search values are mixed in.
        rewards, values = columns["reward"][row, :length], columns["search_value"][row, :length]
        target = rewards[-1]
        for step in range(length - 2, -1, -1):
            mixed = (1 - config.learner.td_lambda) * values[step + 1] + config.learner.td_lambda * target
            target = rewards[step] - config.discount * mixed
        targets.append(target)
    with torch.no_grad():
        output = fresh.network(fresh.prepare(batch).encoded)
        predictions = fresh.network.support.expectation(output.value_logits).numpy()
    clamped = float((np.abs(targets) > 0.25).mean())
    assert 0 < clamped < 1
    assert value("zero_learner_clamped_targets_ratio") == pytest.approx(clamped)
    weights = 1 / batch.probabilities
    assert value("zero_learner_value_bias") == pytest.approx(
        np.average(predictions - targets, weights=weights), abs=1e-5
    )
    slope, _ = np.polyfit(predictions, targets, 1, w=np.sqrt(weights))
    assert value("zero_learner_value_slope") == pytest.approx(slope, rel=1e-3)


class PoisonedBuffer(TrajectoryBuffer):
    """Hands out a few batches with NaN, a good one, and then NaN for ever."""

    def __init__(self, client: ReplayClient, windows: dict[str, int], stop: Event) -> None:
        super().__init__(client, TABLE_NAME, SampleSpec(64, windows), prefetch=1, stop=stop, state=StreamState(0))
        self.handed_out = 0

    def get_data(self) -> SequenceBatch:
        """See TrajectoryBuffer."""
        batch = super().get_data()
        self.handed_out += 1
        if self.handed_out == 3:
            return batch
        poisoned = np.full_like(batch.columns["reward"], np.nan)
        return replace(batch, columns={**batch.columns, "reward": poisoned})


def test_a_batch_without_a_finite_loss_is_left_out_and_counted(
    address: str, client: ReplayClient, tmp_path: Path
) -> None:
    """One does not end the learner, many in a row do; the weights are those of the good batch alone."""
    game, stop, metrics = make_game("tic_tac_toe", {}), Event(), LearnerMetrics(tmp_path)
    client.create_table(self_play_table(CONFIG, game))
    client.publish_weights(weights_to_bytes(make_network(game, CONFIG.network, 1)), 0)
    learner = Learner(CONFIG, game, torch.device("cpu"))
    store = CheckpointStore(tmp_path / "checkpoints")
    with (
        running(lambda stop: run_actor(CONFIG, ActorSettings(address), stop)),
        closing(WeightsPublisher(client)) as publisher,
    ):
        wait_until(lambda: client.server_info().tables[TABLE_NAME].inserted_steps >= 200)
        with (
            closing(PoisonedBuffer(client, learner.windows() | SEARCH_WINDOWS, stop)) as buffer,
            closing(CheckpointSaver(store, CONFIG, metrics)) as saver,
        ):
            saving = Saving(learner.checkpoint, CursorSource(client, TABLE_NAME, buffer), dict, saver, 60.0, metrics)
            loop = LearnerLoop(CONFIG, learner, DataUser(buffer), publisher, saving, metrics)
            with pytest.raises(FloatingPointError, match="training step 1"):
                loop.run(stop)
    assert learner.training_step == 1
    assert buffer.handed_out == 2 + 1 + MAX_NONFINITE_STEPS
    assert metrics.registry.get_sample_value("zero_learner_nonfinite_steps_total") == 2 + MAX_NONFINITE_STEPS


def targets(metrics_address: str) -> dict[str, set[str]]:
    """Role to the names of its metrics, by way of service discovery."""
    listed = json.loads(read(f"http://{metrics_address}/sd"))
    return {
        group["labels"]["role"]: {
            family.name for family in text_string_to_metric_families(read(f"http://{group['targets'][0]}/metrics"))
        }
        for group in listed
    }


def read(url: str) -> str:
    """The body of a page."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def trajectory(number: int, steps: int = 10) -> Trajectory:
    """A trajectory that fits the table of tic-tac-toe."""
    game = make_game("tic_tac_toe", {})
    states = np.repeat(game.initial(np.zeros((1, 0), np.int64)), steps, axis=0)
    columns = {
        "observation": game.observation(states),
        "action": np.zeros(steps, np.uint16),
        "reward": np.zeros(steps, np.float32),
        "discount": np.ones(steps, np.float32),
        "search_policy": np.full((steps, 9), 1 / 9, np.float16),
        "search_value": np.zeros(steps, np.float32),
        "search_version": np.zeros(steps, np.uint32),
        "reanalysed_at": np.zeros(steps),
    }
    return Trajectory(f"t-{number}", "a", 0, number, True, False, columns, {"score": 0.0})


def test_data_user_carries_priorities_back(client: ReplayClient) -> None:
    """A position whose priority is raised far above the others is what is drawn from then on."""
    config = CONFIG.model_copy(update={"replay": CONFIG.replay.model_copy(update={"samples_per_insert": 0.0})})
    client.create_table(self_play_table(config, make_game("tic_tac_toe", {})))
    client.insert(TABLE_NAME, [trajectory(number) for number in range(30)])
    buffer = TrajectoryBuffer(client, TABLE_NAME, SampleSpec(64, {"action": 1}), prefetch=2, stop=Event())
    user = DataUser(buffer)
    batch = user.get_data()
    favourite = batch.keys[0]
    user.update_priorities(PriorityUpdates(batch.keys, np.zeros(64, np.float32)))
    user.update_priorities(PriorityUpdates(favourite[None], np.array([1e9], np.float32)))
    wait_until(lambda: float((user.get_data().keys == favourite).mean()) > 0.9)
    buffer.close()


def test_data_user_ends_when_the_role_stops(client: ReplayClient) -> None:
    """A learner that waits for data which never comes can still be stopped."""
    client.create_table(self_play_table(CONFIG, make_game("tic_tac_toe", {})))
    stop = Event()
    buffer = TrajectoryBuffer(client, TABLE_NAME, SampleSpec(8, {"action": 1}), prefetch=2, stop=stop)
    Timer(0.1, stop.set).start()
    with pytest.raises(BufferClosedError):
        DataUser(buffer).get_data()
    buffer.close()


def test_data_collector_hands_over_what_the_server_refused(client: ReplayClient) -> None:
    """A trajectory of another signature is an error of the actor, not lost in silence; good ones are all stored."""
    client.create_table(self_play_table(CONFIG, make_game("tic_tac_toe", {})))
    collector = DataCollector(TrajectoryInlet(client, TABLE_NAME, max_in_flight=2, stop=Event()))
    for number in range(5):
        collector.collect(trajectory(number))
    broken = trajectory(6)
    columns = {name: column for name, column in broken.columns.items() if name != "reward"}
    collector.collect(Trajectory("broken", "a", 0, 0, True, False, columns))
    with pytest.raises(ReplayError, match="WRONG_SIGNATURE"):
        collector.close()
    assert client.server_info().tables[TABLE_NAME].inserted_trajectories == 5


@pytest.mark.parametrize("learner_catches_up", [True, False])
def test_an_actor_that_stops_delivers_what_it_holds(
    client: ReplayClient, monkeypatch: pytest.MonkeyPatch, learner_catches_up: bool
) -> None:
    """What the rate limiter holds back at the stop arrives when the learner has caught up; if never, it is given up."""
    monkeypatch.setattr(trajectory_buffer, "INSERT_SECONDS", 0.1)
    monkeypatch.setattr(trajectory_buffer, "DELIVERY_SECONDS", 60.0 if learner_catches_up else 0.3)
    limits = RateLimiterConfig(min_size_to_sample=5, samples_per_insert=1.0, error_buffer=20.0)
    client.create_table(replace(self_play_table(CONFIG, make_game("tic_tac_toe", {})), rate_limiter=limits))
    stop = Event()
    inlet = TrajectoryInlet(client, TABLE_NAME, max_in_flight=8, stop=stop)
    for number in range(8):
        inlet.put(trajectory(number), 0.0)
    wait_until(lambda: client.server_info().tables[TABLE_NAME].insert_blocked_because != "")
    stop.set()
    with ThreadPoolExecutor(1) as executor:
        closed = executor.submit(inlet.close)
        while learner_catches_up and not closed.done():
            with suppress(ReplayTimeout):
                client.sample(TABLE_NAME, 5, {"action": 1}, timeout=0.1)
        closed.result(timeout=30)
    arrived = client.server_info().tables[TABLE_NAME].inserted_trajectories
    assert arrived == 8 if learner_catches_up else arrived < 8


def test_published_weights_reach_a_waiting_actor(client: ReplayClient) -> None:
    """What the publisher sends is what the weights client hands over, once."""
    network = make_network(make_game("tic_tac_toe", {}), NetworkConfig(channels=8), seed=0)
    publisher, receiver = WeightsPublisher(client), WeightsClient(client)
    assert publisher.publish(network, training_step=7)
    newer = receiver.wait_for_newer(Event())
    publisher.wait()
    assert newer is not None
    assert (newer.version, newer.training_step) == (publisher.version, 7) == (receiver.version, 7)
    assert newer.payload == weights_to_bytes(network)
    assert receiver.poll() is None
    publisher.close()
    receiver.close()


def wait_for_newer(receiver: WeightsClient, seconds: float) -> Weights | None:
    stop = Event()
    timer = Timer(seconds, stop.set)
    timer.start()
    newer = receiver.wait_for_newer(stop)
    timer.cancel()
    return newer


def test_an_insert_tells_an_actor_of_new_weights(client: ReplayClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who inserts learns from the acknowledgement that there are newer weights, and asks for them without delay."""
    client.create_table(self_play_table(CONFIG, make_game("tic_tac_toe", {})))
    monkeypatch.setattr("actors.weights_client.poll_pause", lambda _: 3600.0)
    with closing(WeightsClient(client)) as receiver:
        assert wait_for_newer(receiver, 0.3) is None  # has asked once, and asks no more for an hour
        version = client.publish_weights(b"newer", 1)
        assert wait_for_newer(receiver, 0.3) is None
        client.insert(TABLE_NAME, [trajectory(1)])
        assert client.newest_weights == version
        newer = wait_for_newer(receiver, 10.0)
        assert newer is not None
        assert newer.version == version


@pytest.mark.slow
def test_an_outage_costs_neither_the_learner_nor_its_checkpoint(tmp_path: Path) -> None:
    """The server goes away in mid-training: a learner stopped then still saves, and goes on when the server is back."""
    settings = ReplayServerSettings(tmp_path / "replay")
    server = ReplayServer(settings)
    address = server.start().address
    learner = LearnerSettings(address, tmp_path / "run")
    with running(lambda stop: run_learner(CONFIG, learner, stop)):
        with running(lambda stop: run_actor(CONFIG, ActorSettings(address), stop)), ReplayClient(address) as client:
            wait_until(lambda: client.server_info().weights_version >= 4)
        server.stop()
    saved = newest_step(tmp_path / "run")
    assert saved >= 3 * CONFIG.learner.publish_interval_steps
    with (
        ReplayServer(replace(settings, port=int(address.rpartition(":")[2]))),
        running(lambda stop: run_learner(CONFIG, learner, stop)),
        running(lambda stop: run_actor(CONFIG, ActorSettings(address), stop)),
        ReplayClient(address) as client,
    ):
        before = client.server_info().weights_version
        assert before >= 4
        wait_until(lambda: client.server_info().weights_version >= before + 2)
    assert newest_step(tmp_path / "run") > saved


def test_a_role_that_waits_for_its_server_can_be_stopped(tmp_path: Path) -> None:
    """Nobody answers at the address: learner and actor wait, and end when they are told to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            running(lambda stop: run_learner(CONFIG, LearnerSettings(address, tmp_path / "run"), stop)),
            running(lambda stop: run_actor(CONFIG, ActorSettings(address), stop)),
        ):
            pass


def test_refused_weights_end_the_learner_and_it_still_saves(tmp_path: Path) -> None:
    """Without weights nobody plays: a refusal is raised instead of waiting for data for ever."""
    settings = ReplayServerSettings(tmp_path / "replay", max_weights_bytes=1000)
    with ReplayServer(settings) as bound:
        learner = LearnerSettings(bound.address, tmp_path / "run")
        with pytest.raises(ReplayError):
            run_learner(CONFIG, learner, Event())
    assert CheckpointStore(tmp_path / "run" / "checkpoints").newest(CONFIG) is not None
