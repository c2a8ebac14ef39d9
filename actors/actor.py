"""The actor role: plays with the newest weights and sends what it played."""

import logging
import secrets
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch

from actors.data_collector import DataCollector
from actors.inference_client import Address, InferenceClient
from actors.metrics import ActorMetrics
from actors.outbox import Outbox
from actors.self_play import SelfPlay
from actors.served_play import GAMES, HALVES, Half, play_in_halves
from actors.tuning import Tuning, tune
from actors.weights_client import WeightsClient
from replay_server.client import ReplayClient, create_table_when_reachable, registered_process
from replay_server.credentials import Credentials, is_loopback
from replay_server.trajectory_buffer import TrajectoryInlet
from zero.config import ConfigError, ExperimentConfig
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

logger = logging.getLogger(__name__)

MAX_INSERTS_IN_FLIGHT = 8


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
        inference: URL of a served agent that evaluates the leaves of the searches; None evaluates them here.
    """

    replay_address: str
    index: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    entropy: int | None = None
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    inference: str | None = None


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
        outbox: Outbox,
        metrics: ActorMetrics,
    ) -> None:
        self._self_play = self_play
        self._searches = searches
        self._weights_client = weights_client
        self._outbox = outbox
        self._metrics = metrics

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
            self._outbox.send(trajectories)
            newer = self._weights_client.poll()
            if newer is not None:
                search = self._searches.build(newer.payload)
                self._metrics.registry.events.step = newer.training_step


class _Actor:
    """What an actor is made of, wherever its network is.

    Args:
        config: the experiment.
        settings: where it runs.

    Raises:
        GameError: the game cannot be built.
    """

    def __init__(self, config: ExperimentConfig, settings: ActorSettings) -> None:
        self.config = config
        self.settings = settings
        self.game = make_game(config.game.name, config.game.options)
        self.name = f"actor-{settings.index}"
        self.metrics = ActorMetrics()
        entropy = secrets.randbits(128) if settings.entropy is None else settings.entropy
        self.seeds = process_seeds(config.seed, "actor", settings.index, entropy)
        logger.info("%s plays with entropy %d", self.name, entropy)

    def self_play(self, seeds: np.random.SeedSequence, num_games: int) -> SelfPlay:
        """Games, none moved yet."""
        config = self.config
        return SelfPlay(self.game, config.self_play, config.search.num_simulations, self.name, seeds, num_games)

    @contextmanager
    def joined(self, stop: Event) -> Generator[tuple[WeightsClient, Outbox] | None]:
        """Be registered with the replay server and able to send games; None if `stop` was set before it answered."""
        settings = self.settings
        # Of a real step zstd leaves a fifth, which is worth its time between machines, and in their Redis.
        away = not is_loopback(settings.replay_address.rpartition(":")[0])
        with ReplayClient(settings.replay_address, compress=away, credentials=settings.credentials) as client:
            if not create_table_when_reachable(client, self_play_table(self.config, self.game), stop):
                yield None
                return
            registry = self.metrics.registry
            with (
                registered_process(client, "actor", self.name, registry, settings.metrics_host, settings.metrics_port),
                closing(WeightsClient(client)) as weights_client,
                DataCollector(TrajectoryInlet(client, TABLE_NAME, MAX_INSERTS_IN_FLIGHT, stop)) as collector,
            ):
                yield weights_client, Outbox(collector, self.metrics)


def run_actor(config: ExperimentConfig, settings: ActorSettings, stop: Event) -> None:
    """Be an actor until `stop`.

    Raises:
        ConfigError, GameError: the experiment cannot be built.
        InferenceError: the served agent cannot be used.
        ReplayError: the replay server refused.
        WeightsMismatchError: the published weights are of another network.
    """
    torch.set_num_threads(1)
    actor = _Actor(config, settings)
    if settings.inference is None:
        _play_here(actor, stop)
    else:
        _play_served(actor, Address(settings.inference), stop)


def _play_here(actor: _Actor, stop: Event) -> None:
    config, game = actor.config, actor.game
    network = make_network(game, config.network, config.seed)
    try:
        with compiling_unless(stop.is_set):
            tuning = tune(game, network, config, time.process_time)
    except CompilationStopped:
        return
    logger.info(
        "%s plays %d games at once in %s: %d simulations/s, measured in %.1f s",
        actor.name,
        tuning.games,
        tuning.dtype,
        tuning.simulations_per_second,
        tuning.seconds,
    )
    actor.metrics.report_tuning(tuning)
    self_play = actor.self_play(actor.seeds, tuning.games)
    searches = SearchFactory(config, game, network, tuning)
    with actor.joined(stop) as joined:
        if joined is not None:
            weights_client, outbox = joined
            ActorLoop(self_play, searches, weights_client, outbox, actor.metrics).run(stop)


def _play_served(actor: _Actor, address: Address, stop: Event) -> None:
    config, game = actor.config, actor.game
    if config.network.model != "rules":
        raise ConfigError('--inference needs network.model "rules": what a learned model foresees stays where it is')
    asked = config.self_play.games_per_actor
    num_games = max(1, (GAMES if asked == "auto" else asked) // HALVES)
    logger.info("%s plays %d x %d games, evaluated at %s", actor.name, HALVES, num_games, address.url)
    actor.metrics.games_at_once.set(HALVES * num_games)
    with actor.joined(stop) as joined, ExitStack() as clients:
        if joined is None:
            return
        halves: list[Half] = []
        for seeds in actor.seeds.spawn(HALVES):
            client = clients.enter_context(closing(InferenceClient(address, game, actor.metrics, stop)))
            search = make_search(game, client, config, num_games)
            halves.append(Half(actor.self_play(seeds, num_games), search, client))
            if not client.wait_until_served(config.game):
                return
        with compiling_unless(stop.is_set):
            play_in_halves(halves, joined[1], actor.metrics, stop)
