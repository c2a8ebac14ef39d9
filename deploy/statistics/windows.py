"""Turns events into points: every event goes into exactly one interval of every statistic that takes it."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from deploy.statistics.definitions import Aggregation, Statistic
from zero.events import EventBatch, EventSeries

PROCESS = "process"
"""The label that says which process an event came from, unless it says itself which one it is about."""


class Point(NamedTuple):
    """One value of a statistic.

    Attributes:
        name: of the statistic, with the label's value if it has one series for each.
        value: finite.
        step: the highest of its events, in optimizer updates.
        time: of its newest event, Unix seconds.
    """

    name: str
    value: float
    step: int
    time: float


class Rows(NamedTuple):
    """Events in the order of their times.

    Attributes:
        values: float64 [N].
        steps: int64 [N].
        times: float64 [N], Unix seconds.
        is_denominator: bool [N], what a rate is relative to.
    """

    values: NDArray[np.float64]
    steps: NDArray[np.int64]
    times: NDArray[np.float64]
    is_denominator: NDArray[np.bool_]

    def part(self, chosen: slice | NDArray[np.bool_] | NDArray[np.intp]) -> "Rows":
        """Some of them."""
        return Rows(self.values[chosen], self.steps[chosen], self.times[chosen], self.is_denominator[chosen])


class Window(BaseModel):
    """What is known of an interval that is not over; numbers alone, so that it can be saved.

    Attributes:
        interval: number of the interval that is open.
        since: when it began, Unix seconds.
        ever: sum of all events ever.
        count: events in it.
        total: their sum.
        mean: of them.
        squares: sum of their squared differences from the mean.
        least: of them.
        largest: of them.
        latest: the newest.
        step: the highest.
        time: of the newest.
        denominator: sum of the events that a rate is relative to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval: int
    since: float
    ever: float = 0.0
    count: int = 0
    total: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    least: float = 0.0
    largest: float = 0.0
    latest: float = 0.0
    step: int = 0
    time: float = 0.0
    denominator: float = 0.0

    def plus(self, rows: Rows) -> Self:
        """With more events in it; moments by Chan, Golub and LeVeque (1979)."""
        relative = float(rows.values[rows.is_denominator].sum())
        rows = rows.part(~rows.is_denominator)
        values, count = rows.values, len(rows.values)
        if count == 0:
            return self.model_copy(update={"denominator": self.denominator + relative})
        together, difference = self.count + count, float(values.mean()) - self.mean
        squares = float(((values - values.mean()) ** 2).sum()) + difference**2 * self.count * count / together
        is_newer = rows.times[-1] >= self.time
        return self.model_copy(
            update={
                "ever": self.ever + float(values.sum()),
                "count": together,
                "total": self.total + float(values.sum()),
                "mean": self.mean + difference * count / together,
                "squares": self.squares + squares,
                "least": min(float(values.min()), self.least if self.count else math.inf),
                "largest": max(float(values.max()), self.largest if self.count else -math.inf),
                "latest": float(values[-1]) if is_newer else self.latest,
                "step": max(self.step, int(rows.steps.max())),
                "time": max(self.time, float(rows.times[-1])),
                "denominator": self.denominator + relative,
            }
        )

    def value(self, aggregation: Aggregation, denominator: float) -> float:
        """What a point says; NaN for a rate relative to nothing."""
        match aggregation:
            case Aggregation.RATE:
                return self.total / denominator if denominator > 0 else math.nan
            case Aggregation.STD:
                return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
            case _:
                return {
                    Aggregation.LATEST: self.latest,
                    Aggregation.MEAN: self.mean,
                    Aggregation.SUM: self.total,
                    Aggregation.MIN: self.least,
                    Aggregation.MAX: self.largest,
                    Aggregation.COUNT: float(self.count),
                    Aggregation.TOTAL: self.ever,
                }[aggregation]


Windows = dict[str, dict[str, Window]]
"""By statistic, and by name of its points."""


class Aggregator:
    """All statistics of a run.

    An interval is over when an event or, of seconds, the clock is beyond its end. An event that comes later than that
    goes into the interval that is open then, so none is left out, and no point changes once it was made.

    Args:
        statistics: with names that differ.
        windows: what an earlier aggregator left open.

    Attributes:
        windows: what is open.
    """

    def __init__(self, statistics: Sequence[Statistic], windows: Windows | None = None) -> None:
        self._statistics = {statistic.name: statistic for statistic in statistics}
        if len(self._statistics) != len(statistics):
            raise ValueError("two statistics have the same name")
        saved = windows or {}
        self.windows: Windows = {name: dict(saved.get(name, {})) for name in self._statistics}
        self._takers: dict[EventSeries, list[_Taker]] = {}

    def add(self, arrived: Iterable[EventBatch], now: float) -> list[Point]:
        """Take in events; returns the points that they complete.

        Args:
            arrived: from any processes.
            now: Unix seconds; an event that claims to be from later counts as from now.
        """
        parts: dict[tuple[str, str], list[Rows]] = {}
        for series, rows in _by_series(arrived).items():
            for taker in self._takers_of(series):
                flags = np.full(len(rows.values), taker.as_denominator)
                parts.setdefault((taker.statistic, taker.name), []).append(rows._replace(is_denominator=flags))
        return [
            point
            for (statistic, name), found in parts.items()
            for point in self._add(self._statistics[statistic], name, _in_order(found, now))
        ]

    def close_due(self, now: float) -> list[Point]:
        """The points whose intervals of seconds are over."""
        points: list[Point] = []
        for statistic in self._statistics.values():
            if statistic.every_seconds is not None:
                interval = _interval(statistic, 0, now)
                for name, window in self.windows[statistic.name].items():
                    if window.interval < interval:
                        points += self._close(statistic, name, interval, now)
        return points

    def close_all(self, now: float) -> list[Point]:
        """A point of every interval that has events, whether it is over or not."""
        return [
            point
            for statistic in self._statistics.values()
            for name, window in self.windows[statistic.name].items()
            for point in self._close(statistic, name, window.interval, now)
        ]

    def _takers_of(self, series: EventSeries) -> list["_Taker"]:
        if series not in self._takers:
            self._takers[series] = [
                _Taker(statistic.name, name, as_denominator)
                for statistic in self._statistics.values()
                for event, as_denominator in ((statistic.event, False), (statistic.denominator, True))
                if event is not None and (name := statistic.takes(series, event)) is not None
            ]
        return self._takers[series]

    def _add(self, statistic: Statistic, name: str, rows: Rows) -> list[Point]:
        windows = self.windows[statistic.name]
        if statistic.every_steps is not None:
            intervals = rows.steps // statistic.every_steps
        else:
            intervals = np.floor(rows.times / (statistic.every_seconds or 1)).astype(np.int64)
        if name not in windows:
            since = float(rows.times[0])
            if statistic.every_seconds is not None:
                since = int(intervals[0]) * statistic.every_seconds
            windows[name] = Window(interval=int(intervals[0]), since=since)
        # What is late belongs to what is open.
        intervals = np.maximum.accumulate(np.maximum(intervals, windows[name].interval))
        starts = np.flatnonzero(np.diff(intervals, prepend=intervals[0] - 1))
        points: list[Point] = []
        for start, stop in zip(starts, [*starts[1:], len(intervals)], strict=True):
            if intervals[start] > windows[name].interval:
                points += self._close(statistic, name, int(intervals[start]), float(rows.times[start]))
            windows[name] = windows[name].plus(rows.part(slice(start, stop)))
        return points

    def _close(self, statistic: Statistic, name: str, interval: int, now: float) -> list[Point]:
        """End what is open if it has anything to say; else it goes on, so that a rate covers idle time too."""
        windows = self.windows[statistic.name]
        window = windows[name]
        end = now
        if statistic.every_seconds is not None and interval > window.interval:
            end = min(now, interval * statistic.every_seconds)
        value = math.nan
        if window.count > 0:
            seconds = end - window.since
            value = window.value(
                statistic.aggregation, seconds if statistic.denominator is None else window.denominator
            )
        if math.isnan(value):
            windows[name] = window.model_copy(update={"interval": interval})
            return []
        windows[name] = Window(interval=interval, since=max(window.since, end), ever=window.ever)
        return [Point(name, value, window.step, window.time)]


class _Taker(NamedTuple):
    """Where a series of events goes: the statistic, the name of its points."""

    statistic: str
    name: str
    as_denominator: bool


def _interval(statistic: Statistic, step: int, time: float) -> int:
    if statistic.every_steps is not None:
        return step // statistic.every_steps
    return math.floor(time / (statistic.every_seconds or 1))


def _by_series(arrived: Iterable[EventBatch]) -> dict[EventSeries, Rows]:
    """The events of all batches; one that is not finite says nothing."""
    parts: dict[EventSeries, list[Rows]] = {}
    for batch in arrived:
        nothing = np.zeros(len(batch.values), np.bool_)
        rows = Rows(batch.values, batch.steps, batch.times, nothing)
        is_finite = np.isfinite(batch.values) & np.isfinite(batch.times)
        for index, series in enumerate(batch.series):
            chosen = (batch.index == index) & is_finite
            if chosen.any():
                labels = {PROCESS: batch.process} | dict(series.labels)
                parts.setdefault(EventSeries(series.name, tuple(sorted(labels.items()))), []).append(rows.part(chosen))
    return {series: _joined(found) for series, found in parts.items()}


def _in_order(parts: list[Rows], now: float) -> Rows:
    rows = _joined(parts)
    rows = rows._replace(times=np.minimum(rows.times, now))
    return rows.part(np.argsort(rows.times, kind="stable"))


def _joined(parts: list[Rows]) -> Rows:
    return Rows(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.steps for part in parts]),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.is_denominator for part in parts]),
    )
