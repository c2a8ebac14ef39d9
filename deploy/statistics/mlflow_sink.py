"""Keeps a run in MLflow: parameters, metrics, how it ended, and a manifest of what it left."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Before the import: it would report its use over the network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A folder is what a laptop has; MLflow takes databases and servers without this.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.tracking import MlflowClient

from deploy.run_records import RunState
from deploy.statistics.sinks import Outcome, Sink
from deploy.statistics.windows import Point

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
MAX_PARAM_CHARACTERS = 6000
RUN_ID_TAG = "zero.run_id"
ERROR_TAG = "zero.error"
STATUS = {RunState.FINISHED: "FINISHED", RunState.FAILED: "FAILED", RunState.INTERRUPTED: "KILLED"}


@dataclass(frozen=True)
class TrackedRun:
    """The run that MLflow keeps.

    Attributes:
        tracking_uri: where MLflow is: a folder, a database or a server.
        experiment: name of the experiment there.
        name: of the run.
        run_id: what tells it from all others; going on with a run goes on with its entry.
        parameters: the config, nested.
        manifest: reads what the run has left, as JSON; called at the end.
    """

    tracking_uri: str
    experiment: str
    name: str
    run_id: str
    parameters: Mapping[str, Any]
    manifest: Callable[[], str]


class MlflowSink(Sink):
    """One run in MLflow, made when first written to."""

    name = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._client = MlflowClient(run.tracking_uri)
        self._mlflow_run_id: str | None = None

    def write(self, points: Sequence[Point]) -> None:
        """Log metrics, each with its step and wall-clock time."""
        run_id = self._begin()
        metrics = [Metric(point.name, point.value, int(1000 * point.time), point.step) for point in points]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])

    def close(self, outcome: Outcome) -> None:
        """Log the manifest, the error if there was one, and how the run ended."""
        run_id = self._begin()
        self._client.log_text(run_id, self._run.manifest(), "manifest.json")
        if outcome.error:
            self._client.set_tag(run_id, ERROR_TAG, outcome.error)
        self._client.set_terminated(run_id, STATUS[outcome.state])

    def _begin(self) -> str:
        """The id of the run in MLflow: one that was begun before, or a new one with all parameters."""
        if self._mlflow_run_id is None:
            experiment = self._client.get_experiment_by_name(self._run.experiment)
            experiment_id = (
                self._client.create_experiment(self._run.experiment) if experiment is None else experiment.experiment_id
            )
            known = self._client.search_runs([experiment_id], f"tags.`{RUN_ID_TAG}` = '{self._run.run_id}'")
            if known:
                run_id = known[0].info.run_id
                self._client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
                if ERROR_TAG in known[0].data.tags:
                    self._client.delete_tag(run_id, ERROR_TAG)
            else:
                tags = {RUN_ID_TAG: self._run.run_id}
                run_id = self._client.create_run(experiment_id, run_name=self._run.name, tags=tags).info.run_id
            self._log_parameters(run_id, {} if not known else known[0].data.params)
            self._mlflow_run_id = run_id
        return self._mlflow_run_id

    def _log_parameters(self, run_id: str, known: Mapping[str, str]) -> None:
        """Log what is not there yet: MLflow lets no parameter change."""
        params = [
            Param(name, value[:MAX_PARAM_CHARACTERS])
            for name, value in flattened(self._run.parameters)
            if name not in known
        ]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
        changed = {name: value for name, value in flattened(self._run.parameters) if known.get(name, value) != value}
        for name, value in changed.items():
            self._client.log_batch(run_id, tags=[RunTag(f"changed.{name}", value)])


def flattened(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names such as `search.num_simulations`, and their values as text."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
