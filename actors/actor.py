"""The actor role: plays with the newest weights and sends what it played."""

import logging
import secrets
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch

from actors.data_collector import DataCollector
from actors.metrics import ActorMetrics
from actors.self_play import SelfPlay
from actors.tuning import Tuning, tune
from actors.weights_client import WeightsClient
from replay_server.client import ReplayClient, create_table_when_reachable, registered_process
from replay_server.credentials import Credentials, is_loopback
from replay_server.trajectory_buffer import TrajectoryInlet
from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.jit import CompilationStopped, compiling_unless
from zero.networks.inference import make_inference
from zero.networks.make_network import make_network
from zero.networks.residual import ResidualNetwork
from zero.networks.weights import load_weights
from zero.search.make_search import make_search
from zero.search.tree_search import TreeSearch
from zero.seeds import process_seeds
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.trajectories import Trajectory

logger = logging.getLogger(__name__)

MAX_INSERTS_IN_FLIGHT = 8
RECENT_GAMES = 100


@dataclass(frozen=True)
class ActorSettings:
    """Where an actor runs.

    Attributes:
        replay_address: host:port of the replay server.
        index: which of the run's actors it is.
        metrics_host: interface that serves /metrics.
        metrics_port: its port; 0 takes a free one.
        entropy: tells it from others of its index, as `zero.seeds.entropy_of`; None draws it from the system, so that a
            restarted actor plays new games. Give a number to play the same games again.
        credentials: for the replay server.
    """

    replay_address: str
    index: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    entropy: int | None = None
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen


class SearchFactory:
    """Builds the search for given weights, in the dtype and for the games that were chosen."""

    def __init__(self, config: ExperimentConfig, game: Game, network: ResidualNetwork, tuning: Tuning) -> None:
        self._config = config
        self._game = game
        self._network = network
        self._tuning = tuning

    def build(self, payload: bytes) -> TreeSearch:
        """A search with these weights.

        Raises:
            WeightsMismatchError: the weights are of another network.
        """
        load_weights(self._network, payload)
        network = make_inference(self._network, self._tuning.dtype)
        return make_search(self._game, network, self._config, self._tuning.games)


class ActorLoop:
    """One actor's way through its life: swap weights, move, send, report."""

    def __init__(
        self,
        self_play: SelfPlay,
        searches: SearchFactory,
        weights_client: WeightsClient,
        collector: DataCollector[Trajectory],
        metrics: ActorMetrics,
    ) -> None:
        self._self_play = self_play
        self._searches = searches
        self._weights_client = weights_client
        self._collector = collector
        self._metrics = metrics
        self._recent_scores: deque[float] = deque(maxlen=RECENT_GAMES)

    def run(self, stop: Event) -> None:
        """Play until `stop`, from the first published weights on."""
        weights = self._weights_client.wait_for_newer(stop)
        if weights is None:
            return
        search = self._searches.build(weights.payload)
        self._metrics.registry.events.step = weights.training_step
        while not stop.is_set():
            version = self._weights_client.version
            trajectories, report = self._self_play.play_move(search, version)
            self._metrics.report_move(report)
            self._metrics.weights_version.set(version)
            for trajectory in trajectories:
                self._send(trajectory)
            newer = self._weights_client.poll()
            if newer is not None:
                search = self._searches.build(newer.payload)
                self._metrics.registry.events.step = newer.training_step

    def _send(self, trajectory: Trajectory) -> None:
        self._recent_scores.append(trajectory.stats["score"])
        self._metrics.report_game(trajectory)
        self._metrics.recent_score.set(float(np.mean(self._recent_scores)))
        started = time.perf_counter()
        self._collector.collect(trajectory)
        self._metrics.insert_wait.inc(time.perf_counter() - started)
        self._metrics.inserts_in_flight.set(self._collector.counts().waiting)


def run_actor(config: ExperimentConfig, settings: ActorSettings, stop: Event) -> None:
    """Be an actor until `stop`.

    Raises:
        ConfigError, GameError: the experiment cannot be built.
        ReplayError: the replay server refused.
        WeightsMismatchError: the published weights are of another network.
    """
    torch.set_num_threads(1)
    game = make_game(config.game.name, config.game.options)
    actor_id = f"actor-{settings.index}"
    entropy = secrets.randbits(128) if settings.entropy is None else settings.entropy
    seeds = process_seeds(config.seed, "actor", settings.index, entropy)
    logger.info("%s plays with entropy %d", actor_id, entropy)
    network = make_network(game, config.network, config.seed)
    try:
        with compiling_unless(stop.is_set):
            tuning = tune(game, network, config, time.process_time)
    except CompilationStopped:
        return
    logger.info(
        "%s plays %d games at once in %s: %d simulations/s, measured in %.1f s",
        actor_id,
        tuning.games,
        tuning.dtype,
        tuning.simulations_per_second,
        tuning.seconds,
    )
    self_play = SelfPlay(game, config.self_play, config.search.num_simulations, actor_id, seeds, tuning.games)
    searches = SearchFactory(config, game, network, tuning)
    metrics = ActorMetrics()
    metrics.report_tuning(tuning)
    # Of a real step zstd leaves a fifth, which is worth its time between machines, and in their Redis.
    away = not is_loopback(settings.replay_address.rpartition(":")[0])
    with ReplayClient(settings.replay_address, compress=away, credentials=settings.credentials) as client:
        if not create_table_when_reachable(client, self_play_table(config, game), stop):
            return
        with (
            registered_process(
                client, "actor", actor_id, metrics.registry, settings.metrics_host, settings.metrics_port
            ),
            closing(WeightsClient(client)) as weights_client,
            DataCollector(TrajectoryInlet(client, TABLE_NAME, MAX_INSERTS_IN_FLIGHT, stop)) as collector,
        ):
            ActorLoop(self_play, searches, weights_client, collector, metrics).run(stop)
