"""The evaluator role: measures the newest weights on fixed seeds, at intervals or once."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from threading import Event

import torch

from actors.evaluation import EvaluationScore, evaluate_player, num_slots
from actors.metrics import EvaluatorMetrics
from actors.players import GreedyPlayer, Player, PolicyPlayer, RandomPlayer, SearchPlayer
from actors.weights_client import WeightsClient
from replay_server.client import ReplayClient, registered_process
from replay_server.credentials import Credentials
from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.inference import InferenceNetwork, fastest_dtype
from zero.networks.residual import make_network
from zero.networks.weights import load_weights
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.gumbel import GumbelSearch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatorSettings:
    """Where an evaluator runs.

    Attributes:
        replay_address: host:port of the replay server.
        metrics_host: interface that serves /metrics.
        metrics_port: its port; 0 takes a free one.
        credentials: for the replay server.
    """

    replay_address: str
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen


class Evaluation:
    """Measures players of one experiment on its fixed seeds."""

    def __init__(self, config: ExperimentConfig, num_games: int) -> None:
        self._config = config
        self._num_games = num_games
        self._game: Game = make_game(config.game.name, config.game.options)

    def baselines(self) -> Iterator[tuple[str, Player]]:
        """The players that need no network, by name."""
        yield "random", RandomPlayer(self._game)
        yield "greedy", GreedyPlayer(self._game)

    def network_players(self, payload: bytes) -> Iterator[tuple[str, Player]]:
        """The players of some weights, by name.

        Raises:
            WeightsMismatchError: the weights are of another network.
        """
        network = make_network(self._game, self._config.network, self._config.seed)
        load_weights(network, payload)
        dtype = fastest_dtype(network, num_slots(self._num_games), time.perf_counter)
        inference = InferenceNetwork(network, dtype)
        yield "policy", PolicyPlayer(self._game, inference)
        model = AlphaZeroModel(self._game, inference, self._config.discount)
        yield "search", SearchPlayer(GumbelSearch(model, self._config.search, num_slots(self._num_games)))

    def measure(self, player: Player, on_move: Callable[[int], None]) -> EvaluationScore:
        """Play the fixed seeds with a player; `on_move` as in evaluate_player."""
        return evaluate_player(
            self._game,
            player,
            GreedyPlayer(self._game),
            self._num_games,
            self._config.evaluation.seed,
            self._config.self_play.max_moves,
            on_move,
        )


def evaluate_weights(
    config: ExperimentConfig, payload: bytes, num_games: int, on_games: Callable[[str, int], None]
) -> dict[str, EvaluationScore]:
    """Measure both baselines, the policy alone and the policy under search, each on the same seeds.

    Args:
        config: the experiment.
        payload: the weights, as published or saved.
        num_games: seeds per player.
        on_games: called after every move with the player's name and the number of games that ended with it.

    Raises:
        WeightsMismatchError: the weights are of another network.
    """
    torch.set_num_threads(1)
    evaluation = Evaluation(config, num_games)
    scores: dict[str, EvaluationScore] = {}
    for players in (evaluation.baselines(), evaluation.network_players(payload)):
        for name, player in players:
            scores[name] = evaluation.measure(player, lambda ended, name=name: on_games(name, ended))
    return scores


def run_evaluator(config: ExperimentConfig, settings: EvaluatorSettings, stop: Event) -> None:
    """Be an evaluator until `stop`: measure the baselines once and the newest weights at every interval.

    Raises:
        ConfigError, GameError: the experiment cannot be built.
        ReplayError: the replay server refused.
    """
    torch.set_num_threads(1)
    evaluation = Evaluation(config, config.evaluation.num_games)
    metrics = EvaluatorMetrics()
    with (
        ReplayClient(settings.replay_address, credentials=settings.credentials) as client,
        registered_process(
            client, "evaluator", "evaluator", metrics.registry, settings.metrics_host, settings.metrics_port
        ),
        closing(WeightsClient(client)) as weights_client,
        suppress(_StoppedError),
    ):
        _measure_all(evaluation.baselines(), evaluation, metrics, stop)
        while not stop.wait(config.evaluation.interval_seconds):
            weights = weights_client.wait_for_newer(stop)
            if weights is None:
                return
            started = time.monotonic()
            _measure_all(evaluation.network_players(weights.payload), evaluation, metrics, stop)
            metrics.evaluations.inc()
            metrics.evaluation_seconds.set(time.monotonic() - started)
            metrics.weights_version.set(weights.version)


class _StoppedError(Exception):
    """The role ends in the middle of an evaluation."""


def _measure_all(
    players: Iterable[tuple[str, Player]], evaluation: Evaluation, metrics: EvaluatorMetrics, stop: Event
) -> None:
    def end_if_stopped(_: int) -> None:
        if stop.is_set():
            raise _StoppedError

    for name, player in players:
        score = evaluation.measure(player, end_if_stopped)
        metrics.score.labels(name).set(score.mean)
        logger.info("%s scores %.2f ± %.2f on %d games", name, score.mean, score.standard_error, score.num_games)
