"""Prometheus metrics whose every change is also kept as an event, so that nothing between two scrapes is lost."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Self

import prometheus_client
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from zero.events import MAX_SERIES_CHARACTERS, Event, EventSeries

MAX_EVENTS_WAITING = 100_000
"""Kept while the replay server cannot be reached; about 20 MB. Further ones are dropped and counted."""
OUTCOMES = ("recorded", "not_finite", "full", "not_sent")
"""What becomes of an event: kept for sending, refused for its value, dropped because too many wait or at the end."""


class EventLog:
    """Events that wait to be sent; for any number of threads.

    Attributes:
        step: optimizer updates of the weights in use; stamped on what is recorded.
    """

    def __init__(self, count: Callable[[str, int], None], clock: Callable[[], float] = time.time) -> None:
        """`count(outcome, number)` is told what became of events."""
        self.step = 0
        self._count = count
        self._clock = clock
        self._waiting: deque[Event] = deque()
        self._lock = threading.Lock()

    def record(self, series: EventSeries, value: float) -> None:
        """Keep an event of now; costs about a microsecond and never waits."""
        if not math.isfinite(value):
            self._count("not_finite", 1)
            return
        event = Event(series, float(value), self.step, self._clock())
        with self._lock:
            fits = len(self._waiting) < MAX_EVENTS_WAITING
            if fits:
                self._waiting.append(event)
        self._count("recorded" if fits else "full", 1)

    def take(self) -> list[Event]:
        """All that wait, oldest first; they wait no longer."""
        with self._lock:
            taken, self._waiting = self._waiting, deque()
        return list(taken)

    def count_not_sent(self, number: int) -> None:
        """Say that so many that were taken are lost."""
        self._count("not_sent", number)


class RecordingRegistry(CollectorRegistry):
    """A registry whose metrics record: those of this module that are made with it. Shows the process, too.

    Attributes:
        events: what they record.
    """

    def __init__(self) -> None:
        super().__init__()
        ProcessCollector(registry=self)
        outcomes = prometheus_client.Counter(
            "zero_events", "Metric events of this process, by what became of them.", ["outcome"], registry=self
        )
        counters = {outcome: outcomes.labels(outcome) for outcome in OUTCOMES}
        self.events = EventLog(lambda outcome, number: counters[outcome].inc(number))

    def register(self, collector: Collector) -> None:
        """As in the base class."""
        super().register(collector)
        if isinstance(collector, Counter | Gauge | Histogram | Summary):
            collector.recorder = Recorder(self.events, collector.event_name)


class Recorder:
    """Records for one metric, or for one set of its labels.

    Raises:
        ValueError: name and labels are too long to be sent.
    """

    def __init__(self, events: EventLog, name: str, labels: tuple[tuple[str, str], ...] = ()) -> None:
        self._events = events
        self._series = EventSeries(name, labels)
        if len(self._series.to_text()) > MAX_SERIES_CHARACTERS:
            raise ValueError(f"{self._series.to_text()} is longer than {MAX_SERIES_CHARACTERS} characters")

    def labelled(self, names: tuple[str, ...], values: tuple[str, ...]) -> "Recorder":
        """One that records for these labels."""
        return Recorder(self._events, self._series.name, tuple(sorted(zip(names, values, strict=True))))

    def __call__(self, value: float) -> None:
        """Record a value."""
        self._events.record(self._series, value)


class _Recorded(prometheus_client.metrics.MetricWrapperBase):
    recorder: Recorder | None = None

    @property
    def event_name(self) -> str:
        """Under which its events go: the name that it was made with, so of a counter without `_total`."""
        return self._name

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """As in the base class."""
        child = super().labels(*labelvalues, **labelkwargs)
        if child.recorder is None and self.recorder is not None:
            child.recorder = self.recorder.labelled(tuple(self._labelnames), tuple(child._labelvalues))
        return child

    def _record(self, value: float) -> None:
        if self.recorder is not None:
            self.recorder(value)


class Counter(_Recorded, prometheus_client.Counter):
    """Records what it is raised by."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """As in the base class."""
        super().inc(amount, exemplar)
        self._record(amount)


class Gauge(_Recorded, prometheus_client.Gauge):
    """Records what it is set to."""

    def set(self, value: float) -> None:
        """As in the base class."""
        super().set(value)
        self._record(value)


class Histogram(_Recorded, prometheus_client.Histogram):
    """Records what it observes."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """As in the base class."""
        super().observe(amount, exemplar)
        self._record(amount)


class Summary(_Recorded, prometheus_client.Summary):
    """Records what it observes."""

    def observe(self, amount: float) -> None:
        """As in the base class."""
        super().observe(amount)
        self._record(amount)
