"""Tests of sinks: what was given is what can be read back, and a sink that hangs or fails keeps nobody waiting."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest

from deploy.run_records import RunState
from deploy.statistics import sinks
from deploy.statistics.sinks import ConsoleSink, HandOver, JsonLinesSink, Outcome, Sink
from deploy.statistics.windows import Point
from tests.roles import wait_until

FINISHED = Outcome(RunState.FINISHED)
POINTS = [Point("loss/total", 2.5, 10, 1700000000.25), Point("loss/total", 1.5, 20, 1700000010.5)]


class Slow(Sink):
    """Takes nothing before it may; fails as often as it shall."""

    name = "slow"

    def __init__(self, failures: int = 0) -> None:
        self.may = Event()
        self.taken: list[Point] = []
        self.outcome: Outcome | None = None
        self._failures = failures

    def write(self, points: Sequence[Point]) -> None:
        """As said."""
        self.may.wait()
        if self._failures:
            self._failures -= 1
            raise ConnectionError("nobody there")
        self.taken += points

    def close(self, outcome: Outcome) -> None:
        """Note it."""
        self.outcome = outcome


def hand_over(sink: Sink) -> tuple[HandOver, list[int], list[str]]:
    lost: list[int] = []
    failures: list[str] = []
    return HandOver(sink, lost.append, lambda: failures.append("failed"), retry_seconds=0.01), lost, failures


def test_a_sink_that_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers return at once, a bounded number waits, the end leaves it behind, and all that is lost is counted."""
    monkeypatch.setattr(sinks, "MAX_POINTS_WAITING", 50)
    sink = Slow()
    handing, lost, _ = hand_over(sink)
    handing.offer(POINTS)
    wait_until(lambda: not handing._waiting)
    started = time.perf_counter()
    for _ in range(1000):
        handing.offer(POINTS)
    offering = time.perf_counter() - started
    handing.finish(FINISHED)
    handing.join(0.05)
    assert offering < 1.0
    assert sum(lost) == 2000
    sink.may.set()


def test_a_sink_that_fails_gets_the_same_points_again() -> None:
    """None is lost, none comes twice, their order stays, and the end is told last."""
    sink = Slow(failures=3)
    handing, lost, failures = hand_over(sink)
    handing.offer(POINTS[:1])
    sink.may.set()
    handing.offer(POINTS[1:])
    wait_until(lambda: len(sink.taken) == 2)
    handing.finish(FINISHED)
    handing.join(5.0)
    assert (sink.taken, sink.outcome, lost, len(failures)) == (POINTS, FINISHED, [], 3)


def test_json_lines_can_be_read_back(tmp_path: Path) -> None:
    """One object per point; later writes append."""
    sink = JsonLinesSink(tmp_path / "points.jsonl")
    sink.write(POINTS[:1])
    sink.write(POINTS[1:])
    read = [Point(**json.loads(line)) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert read == POINTS


def test_the_console_shows_the_newest_by_group() -> None:
    """Not more often than it should, and the rest at the end."""
    lines: list[str] = []
    now = [0.0]
    sink = ConsoleSink(lines.append, 10.0, lambda: now[0])
    sink.write([*POINTS, Point("loss/policy", 0.125, 20, 0.0), Point("speed/games", 12345.0, 20, 0.0)])
    assert lines == ["loss: policy 0.125, total 1.5", "speed: games 1.234e+04"]
    sink.write([Point("loss/total", 1.0, 30, 0.0)])
    assert len(lines) == 2
    sink.close(FINISHED)
    assert lines[2:] == ["loss: total 1"]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    """Value, step and wall-clock time of every point, from real event files; a resumed run adds to them."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    from deploy.statistics.tensorboard_sink import TensorBoardSink  # noqa: PLC0415

    for part in (POINTS[:1], [*POINTS[1:], Point("evaluation/score/search", 0.5, 20, 5.0)]):
        sink = TensorBoardSink(tmp_path)
        sink.write(part)
        sink.close(FINISHED)
    read = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(read.Tags()["scalars"]) == ["evaluation/score/search", "loss/total"]
    scalars = [(event.value, event.step, event.wall_time) for event in read.Scalars("loss/total")]
    assert scalars == [point[1:] for point in POINTS]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (FINISHED, "FINISHED"),
        (Outcome(RunState.INTERRUPTED), "KILLED"),
        (Outcome(RunState.FAILED, "the disk is full"), "FAILED"),
    ],
)
def test_mlflow_keeps_all_of_a_run(tmp_path: Path, outcome: Outcome, status: str) -> None:
    """In a real store: parameters, metrics with times, status, error, manifest; going on adds to the same entry."""
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    from deploy.statistics.mlflow_sink import MlflowSink, TrackedRun  # noqa: PLC0415

    uri = (tmp_path / "mlruns").as_uri()
    parameters = {"seed": 3, "search": {"num_simulations": 64}, "game": {"name": "nim.py:Nim", "options": {"size": 5}}}
    run = TrackedRun(uri, "triangle", "first", "0123456789abcdef", parameters, lambda: '{"files": []}')
    sink = MlflowSink(run)
    sink.write(POINTS[:1])
    sink.close(Outcome(RunState.FAILED, "an earlier failure"))
    again = MlflowSink(run)
    again.write(POINTS[1:])
    again.close(outcome)
    client = MlflowClient(uri)
    assert [experiment.name for experiment in client.search_experiments()] == ["triangle", "Default"]
    experiment = client.get_experiment_by_name("triangle")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert (kept.info.run_name, kept.info.status) == ("first", status)
    assert kept.data.params == {
        "seed": "3",
        "search.num_simulations": "64",
        "game.name": "nim.py:Nim",
        "game.options.size": "5",
    }
    history = client.get_metric_history(kept.info.run_id, "loss/total")
    assert [(metric.value, metric.step, metric.timestamp) for metric in history] == [
        (2.5, 10, 1700000000250),
        (1.5, 20, 1700000010500),
    ]
    assert kept.data.tags.get("zero.error", "") == outcome.error
    (artifact,) = client.list_artifacts(kept.info.run_id)
    path = client.download_artifacts(kept.info.run_id, artifact.path, str(tmp_path))
    assert json.loads(Path(path).read_text()) == {"files": []}
