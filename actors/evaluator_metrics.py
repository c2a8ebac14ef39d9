"""Prometheus metrics of evaluators, whose every change is an event, too."""

from actors.best_weights import BestManifest
from actors.contests import EvaluationReport
from replay_server.recorded_metrics import Counter, Gauge, RecordingRegistry


class EvaluatorMetrics:
    """All series of one evaluator, in a registry of its own; a player has none before it was measured."""

    def __init__(self) -> None:
        self.registry = RecordingRegistry()
        self.score = self._gauge(
            "score", "Mean score over the fixed seeds; in two-player games the mean result against all baselines."
        )
        self.score_standard_error = self._gauge("score_standard_error", "Standard error of zero_evaluator_score.")
        self.score_median = self._gauge("score_median", "Median of the scores.")
        self.result = self._gauge("result", "Mean result of a two-player game, -1 to 1.", "opponent")
        self.rating = self._gauge("rating_elo", "Elo rating in a two-player game; the first baseline has 0.")
        self.rating_standard_error = self._gauge(
            "rating_standard_error_elo", "Standard error of zero_evaluator_rating_elo."
        )
        self.weights_version = Gauge(
            "zero_evaluator_weights_version", "Version of the weights measured last.", registry=self.registry
        )
        self.best_score = Gauge(
            "zero_evaluator_best_score",
            "Score of the best weights, which the run's folder keeps; NaN before any.",
            registry=self.registry,
        )
        self.best_score.set(float("nan"))
        self.best_training_step = Gauge(
            "zero_evaluator_best_training_step",
            "Optimizer updates that the best weights had; NaN before any.",
            registry=self.registry,
        )
        self.best_training_step.set(float("nan"))
        self.evaluations = Counter("zero_evaluator_evaluations", "Evaluations finished.", registry=self.registry)
        self.evaluation_seconds = Gauge(
            "zero_evaluator_evaluation_seconds", "Duration of the last evaluation.", registry=self.registry
        )

    def show(self, report: EvaluationReport) -> None:
        """Set what was measured."""
        for player, score in report.scores.items():
            self.score.labels(player).set(score.mean)
            self.score_standard_error.labels(player).set(score.standard_error)
            self.score_median.labels(player).set(score.median)
        for contest, score in report.contests.items():
            if contest.opponent is not None:
                self.result.labels(contest.player, contest.opponent).set(score.mean)
        for player, rating in report.ratings.items():
            self.rating.labels(player).set(rating.elo)
            self.rating_standard_error.labels(player).set(rating.standard_error)

    def show_best(self, best: BestManifest) -> None:
        """Set what is known of the best weights."""
        self.best_score.set(best.score)
        self.best_training_step.set(best.training_step)

    def _gauge(self, noun: str, text: str, *more_labels: str) -> Gauge:
        return Gauge(f"zero_evaluator_{noun}", text, ["player", *more_labels], registry=self.registry)
