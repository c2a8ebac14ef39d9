"""The reanalyser role: searches stored positions again with the newest weights and writes back what it finds."""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch

from actors.actor import SearchFactory
from actors.reanalyser_metrics import ReanalyserMetrics
from actors.reanalysis import WINDOWS, Reanalysed, Reanalysis, choose_positions
from actors.tuning import tune
from actors.weights_client import WeightsClient
from replay_server.answers import TableInfo
from replay_server.client import (
    ReplayClient,
    ReplayTimeout,
    UpdateResult,
    create_table_when_reachable,
    registered_process,
)
from replay_server.credentials import Credentials
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.search.tree_search import TreeSearch
from zero.search_ages import search_ages
from zero.seeds import process_seeds
from zero.self_play_table import TABLE_NAME, self_play_table

logger = logging.getLogger(__name__)

LOOKED_AT = 4
"""Steps looked at per step that is searched; those searched longest ago are chosen."""
REQUEST_SECONDS = 2.0
"""So long a call is waited for before looking whether to stop."""
TURN_SECONDS = 0.25
"""How often is asked whether it is time to go on."""
MAX_WRITES_IN_FLIGHT = 2


@dataclass(frozen=True)
class ReanalyserSettings:
    """Where a reanalyser runs.

    Attributes:
        replay_address: host:port of the replay server.
        index: which of the run's reanalysers it is.
        metrics_host: interface that serves /metrics.
        metrics_port: its port; 0 takes a free one.
        entropy: tells it from others of its index, as `zero.seeds.entropy_of`; None draws it from the system.
        credentials: for the replay server.
    """

    replay_address: str
    index: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    entropy: int | None = None
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen


class Pace:
    """Holds all reanalysers of a run together to a number of steps per step that is played.

    Each looks at what the server counts of all of them, so any number may come and go; they may be ahead by a batch
    each.

    Args:
        steps_per_insert: steps searched again per step inserted; 0 for no bound.
    """

    def __init__(self, steps_per_insert: float) -> None:
        self._steps_per_insert = steps_per_insert
        self._begun: TableInfo | None = None

    def allows(self, table: TableInfo) -> bool:
        """Whether it is time to go on, by what the server has counted.

        Counted is from the first look on, and anew when a server has begun again.
        """
        if not self._steps_per_insert:
            return True
        if self._begun is None or table.updated_steps < self._begun.updated_steps:
            self._begun = table
        inserted = table.inserted_steps - self._begun.inserted_steps
        return table.updated_steps - self._begun.updated_steps < inserted * self._steps_per_insert


class ResultWriter:
    """Writes results back beside the searching thread, a bounded number of them in flight.

    A write is repeated until it is acknowledged, which is safe: a step takes nothing of older weights than it has.

    Args:
        client: of the replay server.
        on_written: told what became of each; called in the thread that calls `write` or `close`.
        stop: once it is set, what is not acknowledged is given up at its next time-out.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        client: ReplayClient,
        on_written: Callable[[UpdateResult], None],
        stop: Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._on_written = on_written
        self._stop = stop
        self._clock = clock
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="result-writer")
        self._in_flight: deque[Future[UpdateResult | None]] = deque()

    def write(self, found: Reanalysed, weights_version: int) -> None:
        """Send what weights of a version found; waits while too much is in flight.

        Raises:
            ReplayError: the server refused an earlier one.
        """
        while self._in_flight and (self._in_flight[0].done() or len(self._in_flight) >= MAX_WRITES_IN_FLIGHT):
            self._settle()
        self._in_flight.append(self._executor.submit(self._send, found, weights_version, self._clock()))

    def close(self) -> None:
        """Wait for what is in flight.

        Raises:
            ReplayError: the server refused one.
        """
        self._executor.shutdown(wait=True)
        while self._in_flight:
            self._settle()

    def _settle(self) -> None:
        result = self._in_flight.popleft().result()
        if result is not None:
            self._on_written(result)

    def _send(self, found: Reanalysed, weights_version: int, now: float) -> UpdateResult | None:
        number = len(found.keys)
        columns = {
            "search_policy": found.policies.astype(np.float16),
            "search_value": found.values,
            "search_version": np.full(number, weights_version, np.uint32),
            "reanalysed_at": np.full(number, now, np.float64),
        }
        while True:
            try:
                return self._client.update_columns(
                    TABLE_NAME, found.keys, columns, REQUEST_SECONDS, version_column="search_version"
                )
            except ReplayTimeout:
                if self._stop.is_set():
                    return None


class ReanalyserLoop:
    """One reanalyser's way through its life: swap weights, look, search, write back.

    Args:
        client: of the replay server.
        reanalysis: what is done to positions.
        searches: builds the search for new weights.
        weights_client: where these come from.
        writer: where results go.
        pace: says whether it is time to go on.
        metrics: what it does.
    """

    def __init__(
        self,
        client: ReplayClient,
        reanalysis: Reanalysis,
        searches: SearchFactory,
        weights_client: WeightsClient,
        writer: ResultWriter,
        pace: Pace,
        metrics: ReanalyserMetrics,
    ) -> None:
        self._client = client
        self._reanalysis = reanalysis
        self._searches = searches
        self._weights_client = weights_client
        self._writer = writer
        self._pace = pace
        self._metrics = metrics

    def run(self, stop: Event) -> None:
        """Search until `stop`, from the first published weights on."""
        weights = self._weights_client.wait_for_newer(stop)
        if weights is None:
            return
        search = self._searches.build(weights.payload)
        while not stop.is_set():
            version = self._weights_client.version
            self._metrics.weights_version.set(version)
            if not self._search_some(search, version):
                self._metrics.waited.inc(TURN_SECONDS)
                stop.wait(TURN_SECONDS)
            newer = self._weights_client.poll()
            if newer is not None:
                search = self._searches.build(newer.payload)

    def _search_some(self, search: TreeSearch, version: int) -> bool:
        """Search a batch again; False if it is not the time, or there is nothing to search."""
        try:
            table = self._client.server_info(REQUEST_SECONDS).tables.get(TABLE_NAME)
            if table is None or not self._pace.allows(table):
                return False
            seen = self._client.peek(TABLE_NAME, LOOKED_AT * search.batch_size, WINDOWS, timeout=REQUEST_SECONDS)
        except ReplayTimeout:
            return False
        self._metrics.report_seen(search_ages(seen, version, time.time()))
        positions = choose_positions(seen, version, search.batch_size)
        if positions is None:
            return False
        found = self._reanalysis.search(search, positions)
        self._metrics.report_searched(found)
        self._writer.write(found, version)
        return True


def run_reanalyser(config: ExperimentConfig, settings: ReanalyserSettings, stop: Event) -> None:
    """Be a reanalyser until `stop`.

    Raises:
        ConfigError, GameError: the experiment cannot be built.
        ReplayError: the replay server refused.
        WeightsMismatchError: the published weights are of another network.
    """
    torch.set_num_threads(1)
    game = make_game(config.game.name, config.game.options)
    reanalyser_id = f"reanalyser-{settings.index}"
    entropy = secrets.randbits(128) if settings.entropy is None else settings.entropy
    rng = np.random.default_rng(process_seeds(config.seed, "reanalyser", settings.index, entropy))
    network = make_network(game, config.network, config.seed)
    # One position has nothing to do with the one before it.
    config = config.model_copy(update={"search": config.search.model_copy(update={"reuse_subtree": False})})
    tuning = tune(game, network, config, time.process_time)
    logger.info("%s searches %d positions at once in %s", reanalyser_id, tuning.games, tuning.dtype)
    metrics = ReanalyserMetrics()
    with ReplayClient(settings.replay_address, credentials=settings.credentials) as client:
        if not create_table_when_reachable(client, self_play_table(config, game), stop):
            return
        with (
            registered_process(
                client, "reanalyser", reanalyser_id, metrics.registry, settings.metrics_host, settings.metrics_port
            ),
            closing(WeightsClient(client)) as weights_client,
            closing(ResultWriter(client, metrics.report_written, stop)) as writer,
        ):
            searches = SearchFactory(config, game, network, tuning)
            reanalysis, pace = Reanalysis(game, config, rng), Pace(config.reanalyse.steps_per_insert)
            ReanalyserLoop(client, reanalysis, searches, weights_client, writer, pace, metrics).run(stop)
