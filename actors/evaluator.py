"""The evaluator role: measures the newest weights on fixed seeds, at intervals or once."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from threading import Event

import torch

from actors.contests import Contest, Evaluation, EvaluationReport, OnGames
from actors.evaluator_metrics import EvaluatorMetrics
from actors.weights_client import WeightsClient
from replay_server.client import ReplayClient, registered_process
from replay_server.credentials import Credentials
from zero.config import ExperimentConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatorSettings:
    """Where an evaluator runs.

    Attributes:
        replay_address: host:port of the replay server.
        metrics_host: interface that serves /metrics.
        metrics_port: its port; 0 takes a free one.
        credentials: for the replay server.
        baselines: names of baselines to measure too; None for those of the game that are quick.
        simulations: numbers of simulations per move to search with, besides the experiment's own.
    """

    replay_address: str
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    baselines: tuple[str, ...] | None = None
    simulations: tuple[int, ...] = ()


def evaluate_weights(evaluation: Evaluation, payload: bytes, on_games: OnGames) -> EvaluationReport:
    """Measure the baselines and the players of some weights once.

    Args:
        evaluation: whom to measure on which games.
        payload: the weights, as published or saved.
        on_games: called after every move with the contest and the number of its games that ended with it.

    Raises:
        WeightsMismatchError: the weights are of another network.
    """
    torch.set_num_threads(1)
    for contests in (evaluation.measure_baselines(on_games), evaluation.measure_network(payload, on_games)):
        for _ in contests:
            pass
    return evaluation.report()


def run_evaluator(config: ExperimentConfig, settings: EvaluatorSettings, stop: Event) -> None:
    """Be an evaluator until `stop`: measure the baselines once and the newest weights at every interval.

    Raises:
        ConfigError, GameError: the experiment cannot be built.
        ReplayError: the replay server refused.
    """
    torch.set_num_threads(1)
    evaluation = Evaluation(config, config.evaluation.num_games, settings.baselines, settings.simulations)
    metrics = EvaluatorMetrics()

    def end_if_stopped(_: Contest, __: int) -> None:
        if stop.is_set():
            raise _StoppedError

    with (
        ReplayClient(settings.replay_address, credentials=settings.credentials) as client,
        registered_process(
            client, "evaluator", "evaluator", metrics.registry, settings.metrics_host, settings.metrics_port
        ),
        closing(WeightsClient(client)) as weights_client,
        suppress(_StoppedError),
    ):
        _measure(evaluation, evaluation.measure_baselines(end_if_stopped), metrics)
        while not stop.wait(config.evaluation.interval_seconds):
            weights = weights_client.wait_for_newer(stop)
            if weights is None:
                return
            started = time.monotonic()
            _measure(evaluation, evaluation.measure_network(weights.payload, end_if_stopped), metrics)
            metrics.evaluations.inc()
            metrics.evaluation_seconds.set(time.monotonic() - started)
            metrics.weights_version.set(weights.version)


class _StoppedError(Exception):
    """The role ends in the middle of an evaluation."""


def _measure(evaluation: Evaluation, contests: Iterator[Contest], metrics: EvaluatorMetrics) -> None:
    """Play contests and show what came of each at once."""
    for contest in contests:
        report = evaluation.report()
        metrics.show(report)
        score = report.contests[contest]
        logger.info("%s: %.2f ± %.2f on %d games", contest, score.mean, score.standard_error, score.num_games)
