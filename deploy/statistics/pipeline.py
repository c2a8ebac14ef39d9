"""The statistics of a run: takes events, aggregates them, gives points to sinks, and goes on where it stopped."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.errors import BAD_INPUT, DeployError
from deploy.run_records import RunState
from deploy.statistics.definitions import Statistic
from deploy.statistics.event_reader import BATCHES_PER_READ, EventTable, ServerCounts, ServerEvents
from deploy.statistics.sinks import CLOSING_SECONDS, HandOver, Outcome, Sink
from deploy.statistics.windows import Aggregator, Point, Windows
from replay_server.client import ReplayError
from zero.events import EventBatch

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LATENESS_SECONDS = 3.0
"""An interval of seconds is ended by the clock so much later, for events take a second or two to arrive."""
RESTART_SECONDS = (1.0, 5.0, 60.0)
"""Pauses after one unexpected error, two in a row, and any further ones."""
SCHEMA_VERSION = 1


class State(BaseModel):
    """What goes on with a run.

    Attributes:
        schema_version: of this format.
        saved_at: Unix seconds.
        step: the highest that any event had.
        windows: intervals that are open.
        applied: batches of events that are in them or in points, but may still be in their table.
        server: what the replay server had counted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    saved_at: float = 0.0
    step: int = 0
    windows: Windows = Field(default_factory=dict)
    applied: frozenset[str] = frozenset()
    server: ServerCounts = ServerCounts()


class StateFile:
    """The state on disk, complete or as it was before.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> State:
        """What was saved last; a fresh state if nothing was.

        Raises:
            DeployError: the file is damaged or of another version.
        """
        try:
            state = State.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return State()
        except ValidationError as error:
            raise DeployError(
                f"{self._path} is damaged ({error.error_count()} problems): remove it to begin statistics anew",
                BAD_INPUT,
            ) from None
        if state.schema_version != SCHEMA_VERSION:
            raise DeployError(
                f"{self._path} has schema version {state.schema_version}, this program reads {SCHEMA_VERSION}: "
                "remove it to begin statistics anew",
                BAD_INPUT,
            )
        return state

    def save(self, state: State) -> None:
        """Replace what was saved.

        Raises:
            OSError: the disk refused.
        """
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(state.model_dump_json(), encoding="utf-8")
        temporary.replace(self._path)


class PipelineMetrics:
    """Prometheus series of the pipeline itself, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter("zero_statistics_events", "Events aggregated.", registry=self.registry)
        self.points = Counter("zero_statistics_points", "Points made.", registry=self.registry)
        self.lost_points = Counter(
            "zero_statistics_lost_points", "Points that a sink did not take.", ["sink"], registry=self.registry
        )
        self.sink_failures = Counter(
            "zero_statistics_sink_failures", "Attempts of a sink that failed.", ["sink"], registry=self.registry
        )
        self.restarts = Counter(
            "zero_statistics_restarts", "Times that an unexpected error threw it back.", registry=self.registry
        )


class Pipeline:
    """Events to points to sinks, in order and each once.

    Whatever happens in between, an event is aggregated once: the state names the batches that it holds until they are
    deleted. Points are given to the sinks before the state is saved, so a crash can repeat the newest, never lose one.

    Args:
        table: where the roles' events wait.
        server: the replay server's own; None without.
        statistics: which ones.
        file: where the state is saved.
        sinks: who takes points.
        metrics: of this pipeline.

    Raises:
        DeployError: the state that was saved is damaged.
    """

    def __init__(
        self,
        table: EventTable,
        server: ServerEvents | None,
        statistics: Sequence[Statistic],
        file: StateFile,
        sinks: Sequence[Sink],
        metrics: PipelineMetrics,
    ) -> None:
        self._table = table
        self._server = server
        self._statistics = statistics
        self._file = file
        self._metrics = metrics
        self._take_up(file.load())
        self._hand_overs = [self._hand_over(sink) for sink in sinks]

    def restart(self) -> None:
        """Go on from what was saved last, after an error from which nobody knows what it has left; sinks stay.

        Raises:
            DeployError: the state that was saved is damaged.
        """
        self._metrics.restarts.inc()
        self._take_up(self._file.load())

    def poll(self) -> None:
        """Take in all events that wait, and give on the points that are complete.

        Raises:
            ReplayError: the replay server is away or refused; nothing is lost.
            OSError: the state cannot be saved.
        """
        while self._take_in() == BATCHES_PER_READ:
            pass

    def finish(self) -> None:
        """Make a point of every interval, whether it is over or not."""
        self._give(self._aggregator.close_all(time.time()))
        self._save()

    def close(self, outcome: Outcome, timeout: float = CLOSING_SECONDS) -> None:
        """End the sinks; those that are not done after so many seconds are left behind."""
        for hand_over in self._hand_overs:
            hand_over.finish(outcome)
        deadline = time.monotonic() + timeout
        for hand_over in self._hand_overs:
            hand_over.join(max(0.0, deadline - time.monotonic()))

    def _take_up(self, state: State) -> None:
        self._aggregator = Aggregator(self._statistics, resumed(state.windows, time.time() - state.saved_at))
        self._step = state.step
        self._applied = set(state.applied)
        if self._server is not None:
            self._server.counts = state.server

    def _take_in(self) -> int:
        """Returns how many batches were there."""
        found = self._table.read()
        now = time.time()
        new = [batch for batch in found if batch.batch_id not in self._applied]
        self._step = max([self._step, *(int(batch.steps.max()) for batch in new)])
        arrived: list[EventBatch] = [*new, *([] if self._server is None else self._server.read(self._step, now))]
        self._give(self._aggregator.add(arrived, now) + self._aggregator.close_due(now - LATENESS_SECONDS))
        self._metrics.events.inc(sum(len(batch.values) for batch in arrived))
        self._applied = {batch.batch_id for batch in found}
        self._save()
        self._table.delete(list(self._applied))
        return len(found)

    def _give(self, points: Sequence[Point]) -> None:
        self._metrics.points.inc(len(points))
        for hand_over in self._hand_overs:
            hand_over.offer(points)

    def _save(self) -> None:
        self._file.save(
            State(
                saved_at=time.time(),
                step=self._step,
                windows=self._aggregator.windows,
                applied=frozenset(self._applied),
                server=ServerCounts() if self._server is None else self._server.counts,
            )
        )

    def _hand_over(self, sink: Sink) -> HandOver:
        lost = self._metrics.lost_points.labels(sink.name)
        failures = self._metrics.sink_failures.labels(sink.name)
        return HandOver(sink, lost.inc, failures.inc)


def resumed(windows: Windows, pause_seconds: float) -> Windows:
    """Open intervals as if the time for which nothing ran had not been: it belongs to no rate."""
    return {
        statistic: {
            name: window.model_copy(update={"since": window.since + max(0.0, pause_seconds)})
            for name, window in found.items()
        }
        for statistic, found in windows.items()
    }


class RunStatistics:
    """A pipeline in a thread of its own; a context manager, which ends it with what came of the run.

    An error that nobody has foreseen throws the pipeline back to what it saved last, and it goes on from there.

    Args:
        pipeline: what to run.

    Attributes:
        state: how the run has ended, unless an error ended it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.state = RunState.INTERRUPTED
        self._pipeline = pipeline
        self._stop = threading.Event()
        self._drained = threading.Event()
        self._thread = threading.Thread(target=self._run, name="statistics", daemon=True)

    def drain(self, timeout: float = CLOSING_SECONDS) -> None:
        """Take in what is left and make the last points, once nothing more will come; waits for that."""
        self._stop.set()
        self._drained.wait(timeout)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drain()
        self._thread.join(CLOSING_SECONDS)
        if error is None:
            outcome = Outcome(self.state)
        else:
            outcome = Outcome(RunState.FAILED, " ".join(str(error).split()) or type(error).__name__)
        self._pipeline.close(outcome)

    def _run(self) -> None:
        try:
            self._poll_until_stopped()
            self._poll(said=False)
            self._pipeline.finish()
        except Exception:
            logger.exception("statistics end: what comes from now on waits for the next start")
        finally:
            self._drained.set()

    def _poll_until_stopped(self) -> None:
        said, errors, pause = False, 0, POLL_SECONDS
        while not self._stop.wait(pause):
            try:
                said = self._poll(said)
                errors, pause = 0, POLL_SECONDS
            except Exception:
                pause = RESTART_SECONDS[min(errors, len(RESTART_SECONDS) - 1)]
                errors += 1
                logger.exception("statistics go on in %g s from where they were saved last", pause)
                self._pipeline.restart()

    def _poll(self, said: bool) -> bool:
        """One poll; returns whether the log knows that it does not work."""
        try:
            self._pipeline.poll()
        except (ReplayError, OSError) as error:
            if not said:
                logger.warning("statistics wait: %s", error)
            return True
        return False
