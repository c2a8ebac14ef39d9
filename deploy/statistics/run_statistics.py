"""Puts the statistics of a run together: from its replay server, into its folder and wherever else is asked for."""

import importlib.util
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BAD_INPUT, DeployError
from deploy.run_folder import RunFolder
from deploy.scrape import get_page
from deploy.statistics.definitions import load_statistics
from deploy.statistics.event_reader import EventTable, ServerCounts, ServerEvents
from deploy.statistics.pipeline import Pipeline, PipelineMetrics, RunStatistics, StateFile
from deploy.statistics.sinks import ConsoleSink, JsonLinesSink, Sink
from replay_server.client import ReplayClient, registered_process
from replay_server.credentials import Credentials
from zero.config import ExperimentConfig

SINKS = ("json", "tensorboard", "mlflow", "console")
MLFLOW_STORE = "mlruns"
PAGE_SECONDS = 2.0


@dataclass(frozen=True)
class StatisticsSettings:
    """Where statistics go.

    Attributes:
        sinks: names out of SINKS; None for json, tensorboard if it is installed, and mlflow if a URI is given.
        mlflow_uri: of MLflow; None for a folder beside the run.
        definitions: a file of further statistics; None for the defaults alone.
    """

    sinks: tuple[str, ...] | None = None
    mlflow_uri: str | None = None
    definitions: Path | None = None

    def check(self) -> None:
        """Refuse what cannot be, before anything is started.

        Raises:
            DeployError: a sink that there is not, or whose library is not installed; a file that says what cannot be.
        """
        self.chosen()
        load_statistics(self.definitions)

    def chosen(self) -> tuple[str, ...]:
        """The sinks to use.

        Raises:
            DeployError: there is no such sink, or what it needs is not installed.
        """
        if self.sinks is None:
            tensorboard = ("tensorboard",) if is_installed("tensorboard") else ()
            return ("json", *tensorboard, *(("mlflow",) if self.mlflow_uri else ()))
        for name in self.sinks:
            if name not in SINKS:
                raise DeployError(f"there is no sink {name!r}; there are {', '.join(SINKS)}", BAD_INPUT)
            if name in {"tensorboard", "mlflow"}:
                refuse_missing(name)
        return self.sinks


@dataclass(frozen=True)
class EventSource:
    """Where the events of a run are.

    Attributes:
        replay_address: host:port of the replay server.
        metrics_address: of its /metrics; None leaves its own numbers out.
        credentials: for the replay server.
        host: interface that serves the metrics of the statistics themselves.
        metrics_port: its port; 0 takes a free one.
    """

    replay_address: str
    metrics_address: str | None
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    host: str = "127.0.0.1"
    metrics_port: int = 0


def is_installed(module: str) -> bool:
    """Whether an optional library is there."""
    return importlib.util.find_spec(module) is not None


def refuse_missing(extra: str) -> None:
    """Refuse what needs an extra that is not installed.

    Raises:
        DeployError: with the command that installs it.
    """
    if not is_installed(extra):
        raise DeployError(f"{extra} is not installed: pip install 'zero-selfplay[{extra}]'", BAD_INPUT)


def mlflow_uri(run_dir: Path, given: str | None) -> str:
    """Where MLflow keeps a run: as given, else in a folder beside all runs of the same root."""
    return given or (run_dir.parent / MLFLOW_STORE).absolute().as_uri()


@contextmanager
def run_statistics(
    source: EventSource,
    folder: RunFolder,
    config: ExperimentConfig,
    settings: StatisticsSettings,
    print_line: Callable[[str], None],
) -> Generator[RunStatistics]:
    """Keep statistics meanwhile.

    Args:
        source: where events come from.
        folder: the run's.
        config: the experiment.
        settings: where points go.
        print_line: what the console sink prints with.

    Raises:
        DeployError: a sink that cannot be, or a damaged state of earlier statistics.
    """
    folder.statistics.mkdir(parents=True, exist_ok=True)
    state_file = StateFile(folder.statistics_state)
    sinks = [_make_sink(name, folder, config, settings, print_line) for name in settings.chosen()]
    metrics = PipelineMetrics()
    server = None
    if source.metrics_address is not None:
        address = source.metrics_address
        server = ServerEvents(lambda: get_page(address, "/metrics", PAGE_SECONDS), ServerCounts())
    statistics = load_statistics(settings.definitions)
    with (
        ReplayClient(source.replay_address, credentials=source.credentials) as client,
        registered_process(client, "statistics", "statistics", metrics.registry, source.host, source.metrics_port),
        RunStatistics(Pipeline(EventTable(client), server, statistics, state_file, sinks, metrics)) as running,
    ):
        yield running


def _make_sink(
    name: str,
    folder: RunFolder,
    config: ExperimentConfig,
    settings: StatisticsSettings,
    print_line: Callable[[str], None],
) -> Sink:
    if name == "json":
        return JsonLinesSink(folder.points_file)
    if name == "console":
        return ConsoleSink(print_line)
    if name == "tensorboard":
        from deploy.statistics.tensorboard_sink import TensorBoardSink  # noqa: PLC0415 - an extra

        return TensorBoardSink(folder.tensorboard)
    from deploy.statistics.mlflow_sink import MlflowSink, TrackedRun  # noqa: PLC0415 - an extra

    return MlflowSink(
        TrackedRun(
            tracking_uri=mlflow_uri(folder.path, settings.mlflow_uri),
            experiment=config.name,
            name=folder.path.name,
            run_id=folder.run_id(),
            parameters=config.model_dump(mode="json"),
            manifest=folder.manifest_file.read_text,
        )
    )
