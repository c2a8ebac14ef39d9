"""The evaluator role: measures the newest weights on fixed seeds, at intervals or once."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch

from actors.best_weights import BestWeights, Candidate
from actors.contests import SEARCH, Contest, Evaluation, EvaluationReport, OnGames
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
        baselines: names of baselines to measure too; None for the experiment's.
        simulations: numbers of simulations per move to search with, besides those of the experiment.
        run_dir: the run's folder, whose subfolder keeps the best weights; None keeps none.
    """

    replay_address: str
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    baselines: tuple[str, ...] | None = None
    simulations: tuple[int, ...] = ()
    run_dir: Path | None = None


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
        BestWeightsError: the best weights in the run's folder are damaged, or of another game or network.
        ReplayError: the replay server refused.
        WeightsMismatchError: the published weights are of another network.
    """
    torch.set_num_threads(1)
    evaluation = Evaluation(config, config.evaluation.num_games, settings.baselines, settings.simulations)
    best = None
    if settings.run_dir is not None:
        best = BestWeights(settings.run_dir / "best", config, evaluation.opponents)
    loop = EvaluatorLoop(evaluation, best, EvaluatorMetrics(), config.evaluation.interval_seconds)
    with (
        ReplayClient(settings.replay_address, credentials=settings.credentials) as client,
        registered_process(
            client, "evaluator", "evaluator", loop.metrics.registry, settings.metrics_host, settings.metrics_port
        ),
        closing(WeightsClient(client)) as weights_client,
    ):
        loop.run(weights_client, stop)


class EvaluatorLoop:
    """One evaluator's way through its run: measure, show, keep the best.

    Args:
        evaluation: whom to measure on which games.
        best: where the best weights are kept; None for nowhere.
        metrics: where to show what came of it.
        interval_seconds: between evaluations.
    """

    def __init__(
        self, evaluation: Evaluation, best: BestWeights | None, metrics: EvaluatorMetrics, interval_seconds: float
    ) -> None:
        self.metrics = metrics
        self._evaluation = evaluation
        self._best = best
        self._interval_seconds = interval_seconds

    def run(self, weights_client: WeightsClient, stop: Event) -> None:
        """Measure until `stop`."""

        def end_if_stopped(_: Contest, __: int) -> None:
            if stop.is_set():
                raise _StoppedError

        with suppress(_StoppedError):
            self._measure(self._evaluation.measure_baselines(end_if_stopped))
            if self._best is not None and self._best.outdated is not None:
                # Scores by another measure do not compare: what was best is measured again.
                self._measure_weights(self._best.outdated, end_if_stopped)
            self._show_best()
            while not stop.wait(self._interval_seconds):
                weights = weights_client.wait_for_newer(stop)
                if weights is None:
                    return
                candidate = Candidate(weights.payload, weights.training_step, weights.version)
                self._measure_weights(candidate, end_if_stopped)

    def _measure_weights(self, candidate: Candidate, on_games: OnGames) -> None:
        started = time.monotonic()
        self.metrics.registry.events.step = candidate.training_step
        self._measure(self._evaluation.measure_network(candidate.payload, on_games))
        self.metrics.evaluations.inc()
        self.metrics.evaluation_seconds.set(time.monotonic() - started)
        self.metrics.weights_version.set(candidate.weights_version)
        if self._best is not None and self._best.offer(candidate, self._evaluation.report().scores[SEARCH]):
            logger.info("training step %d is the best so far", candidate.training_step)
            self._show_best()

    def _measure(self, contests: Iterator[Contest]) -> None:
        """Play contests and show what came of each at once."""
        for contest in contests:
            report = self._evaluation.report()
            self.metrics.show(report)
            score = report.contests[contest]
            logger.info("%s: %.2f ± %.2f on %d games", contest, score.mean, score.standard_error, score.num_games)

    def _show_best(self) -> None:
        if self._best is not None and self._best.manifest is not None:
            self.metrics.show_best(self._best.manifest)


class _StoppedError(Exception):
    """The role ends in the middle of an evaluation."""
