"""Tests of the way from events to points against a real replay server, with crashes in between."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest

from deploy.errors import DeployError
from deploy.run_folder import RunFolder
from deploy.run_records import RunState
from deploy.scrape import get_page
from deploy.statistics import pipeline as pipeline_module
from deploy.statistics.definitions import Aggregation, Statistic, load_statistics
from deploy.statistics.event_reader import EventTable, ServerCounts, ServerEvents
from deploy.statistics.pipeline import Pipeline, PipelineMetrics, RunStatistics, State, StateFile, resumed
from deploy.statistics.run_statistics import EventSource, StatisticsSettings, mlflow_uri, run_statistics
from deploy.statistics.sinks import JsonLinesSink, Sink
from deploy.statistics.windows import Point, Window
from replay_server.client import ReplayClient, ReplayError, registered_process
from replay_server.recorded_metrics import Counter, RecordingRegistry
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerSettings
from tests.roles import wait_until
from zero import events as recorded
from zero.config import ExperimentConfig
from zero.events import EVENTS_TABLE, EventSeries, batches, events_table, to_trajectory
from zero.tables import TableConfig
from zero.trajectories import ColumnSpec

SUM = Statistic(name="sum", event="x", aggregation=Aggregation.SUM, every_steps=10)
TOTAL = Statistic(name="total", event="x", aggregation=Aggregation.TOTAL, every_steps=10)


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoundAddresses]:
    with ReplayServer(ReplayServerSettings(tmp_path_factory.mktemp("server"))) as addresses:
        yield addresses


@pytest.fixture
def client(bound: BoundAddresses) -> Iterator[ReplayClient]:
    with ReplayClient(bound.address) as client:
        client.create_table(events_table())
        client.reset_table(EVENTS_TABLE)
        yield client


def send(client: ReplayClient, steps: Sequence[int], batch_id: str) -> None:
    events = [recorded.Event(EventSeries("x"), 1.0, step, time.time()) for step in steps]
    client.insert(EVENTS_TABLE, [to_trajectory(batch) for batch in batches(events, "actor-0", batch_id)])


def points(path: Path) -> list[tuple[str, float]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [(point["name"], point["value"]) for point in map(json.loads, lines)]


class Undeletable(EventTable):
    """Dies before anything is deleted."""

    def delete(self, batch_ids: Sequence[str]) -> None:  # noqa: ARG002
        """Never."""
        raise ReplayError("UNAVAILABLE", "the process was killed here")


class Unsaved(StateFile):
    """Dies before anything is saved."""

    def save(self, state: State) -> None:  # noqa: ARG002
        """Never."""
        raise OSError("the process was killed here")


@pytest.fixture
def start(client: ReplayClient, tmp_path: Path) -> Callable[..., Pipeline]:
    """Starts a pipeline on what an earlier one left."""

    def start(table: type[EventTable] = EventTable, file: type[StateFile] = StateFile) -> Pipeline:
        states = file(tmp_path / "state.json")
        sinks = [JsonLinesSink(tmp_path / "points.jsonl")]
        return Pipeline(table(client), None, [SUM, TOTAL], states, sinks, PipelineMetrics())

    return start


def end(pipeline: Pipeline) -> None:
    pipeline.finish()
    pipeline.close(pipeline_module.Outcome(RunState.FINISHED))


def test_events_are_aggregated_once_wherever_the_process_dies(
    start: Callable[..., Pipeline], client: ReplayClient, tmp_path: Path
) -> None:
    """Killed before the state is saved, or before the events are deleted: sums are what they are without a kill."""
    send(client, range(5), "a")
    with pytest.raises(OSError, match="killed"):
        start(file=Unsaved).poll()
    start().poll()
    send(client, range(5, 12), "b")
    with pytest.raises(ReplayError, match="killed"):
        start(table=Undeletable).poll()
    assert client.server_info().tables[EVENTS_TABLE].num_trajectories == 1
    last = start()
    last.poll()
    send(client, range(12, 25), "c")
    last.poll()
    assert client.server_info().tables[EVENTS_TABLE].num_trajectories == 0
    end(last)
    assert points(tmp_path / "points.jsonl")[-6:] == [
        ("sum", 10.0),
        ("total", 10.0),
        ("sum", 10.0),
        ("total", 20.0),
        ("sum", 5.0),
        ("total", 25.0),
    ]


def test_what_cannot_be_read_is_no_obstacle(
    start: Callable[..., Pipeline], client: ReplayClient, tmp_path: Path
) -> None:
    """Events whose names are damaged are deleted; those around them count."""
    send(client, [1], "a")
    (batch,) = batches([recorded.Event(EventSeries("{"), 1.0, 0, 0.0)], "me", "b")
    client.insert(EVENTS_TABLE, [to_trajectory(batch)])
    send(client, [2], "c")
    running = start()
    running.poll()
    assert client.server_info().tables[EVENTS_TABLE].num_trajectories == 0
    end(running)
    assert points(tmp_path / "points.jsonl")[0] == ("sum", 2.0)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    """With what to do about it."""
    file = StateFile(tmp_path / "state.json")
    assert file.load() == State()
    for text in ("{", '{"schema_version": 2}', '{"windows": 3}'):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(DeployError, match="remove it to begin statistics anew"):
            file.load()


def test_the_time_for_which_nothing_ran_is_in_no_rate() -> None:
    """An interval that was open goes on as if it had been stopped."""
    windows = resumed({"rate": {"rate": Window(interval=3, since=100.0)}}, 50.0)
    assert windows["rate"]["rate"].since == 150.0


def test_the_numbers_of_the_server_are_events_too(client: ReplayClient, bound: BoundAddresses) -> None:
    """Gauges as they are; of counters what they rose, once, whoever reads them next."""
    client.create_table(TableConfig("self_play", (ColumnSpec("x", "float32"),), 100))
    series = EventSeries("zero_replay_inserted_steps", (("table", EVENTS_TABLE),))

    def read_page() -> str | None:
        return get_page(bound.metrics_address, "/metrics", 5.0)

    def rises(reader: ServerEvents) -> float:
        found = [batch for batch in reader.read(9, 5.0) if series in batch.series]
        assert all((batch.steps == 9).all() and (batch.times == 5.0).all() for batch in found)
        return sum(float(batch.values[batch.index == batch.series.index(series)].sum()) for batch in found)

    first = ServerEvents(read_page, ServerCounts())
    before = rises(first)
    send(client, range(7), f"x{time.time_ns()}")
    assert rises(first) == 7
    assert rises(first) == 0
    send(client, range(4), f"y{time.time_ns()}")
    assert rises(ServerEvents(read_page, first.counts)) == 4
    restarted = ServerCounts(started=1.0, counts=first.counts.counts)
    assert rises(ServerEvents(read_page, restarted)) == before + 11
    gauges = [batch for batch in first.read(0, 0.0) if EventSeries("zero_replay_store_available") in batch.series]
    assert len(gauges) == 1
    assert ServerEvents(lambda: None, ServerCounts()).read(0, 0.0) == []


def test_a_run_ends_with_all_that_its_roles_recorded(
    client: ReplayClient, bound: BoundAddresses, tmp_path: Path
) -> None:
    """Up to the last event before a role ended, with defaults and a statistic of the user's own."""
    (tmp_path / "mine.toml").write_text(
        '[[statistic]]\nname = "mine"\nevent = "my_metric"\naggregation = "sum"\nevery_steps = 1000\n'
    )
    folder = RunFolder(tmp_path / "run")
    settings = StatisticsSettings(("json",), definitions=tmp_path / "mine.toml")
    registry = RecordingRegistry()
    counter = Counter("my_metric", "Help.", registry=registry)
    source = EventSource(bound.address, bound.metrics_address)
    with run_statistics(source, folder, ExperimentConfig(), settings, print) as statistics:
        with registered_process(client, "actor", "actor-0", registry, "127.0.0.1", 0):
            for _ in range(1000):
                counter.inc()
        statistics.drain()
    found = dict(points(folder.points_file))
    assert found["mine"] == 1000
    assert found["total/weights_updates"] == 0


def test_a_sink_that_hangs_holds_up_neither_roles_nor_other_sinks(client: ReplayClient, tmp_path: Path) -> None:
    """A role records, sends and ends as ever, its events leave the server, and other sinks get every point."""
    hanging, file = Hanging(), StateFile(tmp_path / "state.json")
    sinks = [hanging, JsonLinesSink(tmp_path / "points.jsonl")]
    pipeline = Pipeline(EventTable(client), None, [SUM, TOTAL], file, sinks, PipelineMetrics())
    registry = RecordingRegistry()
    counter = Counter("x", "Help.", registry=registry)
    with RunStatistics(pipeline) as statistics:
        with registered_process(client, "learner", "learner", registry, "127.0.0.1", 0):
            for step in range(100):
                registry.events.step = step
                counter.inc()
            assert hanging.has_begun.wait(30)  # while the role is still at work
            for _ in range(100):
                counter.inc()
        statistics.drain()
        assert client.server_info().tables[EVENTS_TABLE].num_trajectories == 0
        wait_until(lambda: points(tmp_path / "points.jsonl")[-1:] == [("total", 200.0)])
        hanging.may_end.set()
    assert registry.get_sample_value("zero_events_total", {"outcome": "recorded"}) == 200


class Hanging(Sink):
    """Takes points and does not come back."""

    name = "hanging"

    def __init__(self) -> None:
        self.has_begun, self.may_end = Event(), Event()

    def write(self, points: Sequence[Point]) -> None:  # noqa: ARG002
        """As said."""
        self.has_begun.set()
        self.may_end.wait()

    def close(self, outcome: pipeline_module.Outcome) -> None:
        """Nothing is open."""


def test_a_pipeline_that_cannot_go_on_ends_nothing_else(
    start: Callable[..., Pipeline], client: ReplayClient, tmp_path: Path
) -> None:
    """The run goes on, and its events wait for the next start."""
    send(client, [1], "a")
    with RunStatistics(start(file=Unsaved)) as statistics:
        statistics.drain()
    assert client.server_info().tables[EVENTS_TABLE].num_trajectories == 1
    end_with = start()
    end_with.poll()
    end(end_with)
    assert points(tmp_path / "points.jsonl")[-2:] == [("sum", 1.0), ("total", 1.0)]


class Surprising(StateFile):
    """Breaks down as often as it shall, when all else is done."""

    surprises = 3

    def save(self, state: State) -> None:
        """Nobody has foreseen that."""
        if self.surprises:
            self.surprises -= 1
            raise RuntimeError("a surprise")
        super().save(state)


def test_an_error_that_nobody_has_foreseen_ends_no_statistics(
    client: ReplayClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on from what was saved, as often as it happens: every event counts once, and Prometheus sees it."""
    monkeypatch.setattr(pipeline_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(pipeline_module, "RESTART_SECONDS", (0.01, 0.02))
    send(client, range(5), "a")
    metrics, file = PipelineMetrics(), Surprising(tmp_path / "state.json")
    sinks = [JsonLinesSink(tmp_path / "points.jsonl")]
    with RunStatistics(Pipeline(EventTable(client), None, [SUM, TOTAL], file, sinks, metrics)) as statistics:
        wait_until(lambda: client.server_info().tables[EVENTS_TABLE].num_trajectories == 0)
        send(client, range(5, 8), "b")
        statistics.drain()
    assert points(tmp_path / "points.jsonl")[-2:] == [("sum", 8.0), ("total", 8.0)]
    assert metrics.registry.get_sample_value("zero_statistics_restarts_total") == 3


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (StatisticsSettings(("csv",)), "no sink 'csv'; there are json, tensorboard, mlflow, console"),
        (StatisticsSettings(definitions=Path("nowhere.toml")), "No such file"),
    ],
)
def test_what_cannot_be_is_refused_before_it_starts(settings: StatisticsSettings, why: str, tmp_path: Path) -> None:
    """In one line."""
    source = EventSource("127.0.0.1:1", None)
    with (
        pytest.raises(DeployError, match=why),
        run_statistics(source, RunFolder(tmp_path), ExperimentConfig(), settings, print),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("statistic = 3", "statistic: "),
        ("[[statistic]", "no TOML"),
        ('[[statistic]]\nname = "a"\nevent = "b"\naggregation = "median"\nevery_steps = 1', "statistic.0.aggregation"),
    ],
)
def test_a_file_of_statistics_that_cannot_be_is_named(tmp_path: Path, text: str, why: str) -> None:
    """With the place in it."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DeployError, match=why):
        load_statistics(path)


def test_mlflow_is_beside_the_runs_unless_told_otherwise(tmp_path: Path) -> None:
    """Runs of one root are compared in one place."""
    assert mlflow_uri(tmp_path / "run", None) == (tmp_path / "mlruns").as_uri()
    assert mlflow_uri(tmp_path / "run", "http://mlflow:5000") == "http://mlflow:5000"
