"""Metric events: one number that a process has seen, with name, labels, step and time, and the table they travel in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.tables import TableConfig
from zero.trajectories import ColumnSpec, Signature, Trajectory

EVENTS_TABLE = "events"
MAX_EVENTS_STORED = 2**19
"""Events that wait for somebody to read them; a learner and ten actors fill this in about ten minutes."""
MAX_SERIES_PER_BATCH = 64
"""A batch names its series in its stats, of which there may be so many."""
MAX_SERIES_CHARACTERS = 128
"""Of name and labels together, as they are sent."""
MAX_EVENTS_PER_BATCH = 8192


class EventSeries(NamedTuple):
    """What an event is about.

    Attributes:
        name: of the metric.
        labels: names and values, sorted.
    """

    name: str
    labels: tuple[tuple[str, str], ...] = ()

    def to_text(self) -> str:
        """As it is sent: the name, then the labels as a JSON object if there are any."""
        return self.name + (json.dumps(dict(self.labels), separators=(",", ":")) if self.labels else "")

    @classmethod
    def from_text(cls, text: str) -> "EventSeries":
        """The reverse of `to_text`.

        Raises:
            ValueError: the labels are no JSON object of strings.
        """
        name, brace, labels = text.partition("{")
        if not brace:
            return cls(name)
        loaded = json.loads(brace + labels)
        if not all(isinstance(value, str) for value in loaded.values()):
            raise ValueError(f"labels of {name} must be texts, got {loaded}")
        return cls(name, tuple(sorted(loaded.items())))


class Event(NamedTuple):
    """One number, when and where in the training it was seen.

    Attributes:
        series: what it is about.
        value: finite.
        step: optimizer updates of the weights in use.
        time: Unix time in seconds.
    """

    series: EventSeries
    value: float
    step: int
    time: float


@dataclass(frozen=True)
class EventBatch:
    """Events of one process, as columns.

    Attributes:
        batch_id: unique; sent again, it is stored once.
        process: who saw them, for example "actor-0".
        series: what they are about.
        index: uint16 [T], into `series`.
        values: float64 [T].
        steps: int64 [T].
        times: float64 [T], Unix seconds.
    """

    batch_id: str
    process: str
    series: tuple[EventSeries, ...]
    index: NDArray[np.uint16]
    values: NDArray[np.float64]
    steps: NDArray[np.int64]
    times: NDArray[np.float64]


def events_signature() -> Signature:
    """The columns of a batch: `series` is an index into the names that its stats give."""
    return (
        ColumnSpec("series", "uint16"),
        ColumnSpec("value", "float64"),
        ColumnSpec("step", "int64"),
        ColumnSpec("time", "float64"),
    )


def events_table() -> TableConfig:
    """Where events wait until they are read and deleted; the oldest make room if nobody does."""
    return TableConfig(EVENTS_TABLE, events_signature(), MAX_EVENTS_STORED, selector="fifo")


def batches(events: Sequence[Event], process: str, id_prefix: str) -> list[EventBatch]:
    """Events in their order, cut so that every part can be sent.

    Args:
        events: of this process.
        process: who saw them.
        id_prefix: of the batch ids, unlike any other; at most 48 characters.
    """
    cut: list[EventBatch] = []
    known: dict[EventSeries, int] = {}
    start = 0
    for position, event in enumerate(events):
        is_full = event.series not in known and len(known) == MAX_SERIES_PER_BATCH
        if is_full or position - start == MAX_EVENTS_PER_BATCH:
            cut.append(_batch(events[start:position], known, process, f"{id_prefix}-{len(cut)}"))
            known, start = {}, position
        known.setdefault(event.series, len(known))
    if events:
        cut.append(_batch(events[start:], known, process, f"{id_prefix}-{len(cut)}"))
    return cut


def to_trajectory(batch: EventBatch) -> Trajectory:
    """A batch as what the table stores."""
    return Trajectory(
        trajectory_id=batch.batch_id,
        actor_id=batch.process,
        weights_version=0,
        episode_seed=0,
        terminated=True,
        truncated=False,
        columns={"series": batch.index, "value": batch.values, "step": batch.steps, "time": batch.times},
        stats={series.to_text(): float(index) for index, series in enumerate(batch.series)},
    )


def from_trajectory(trajectory: Trajectory) -> EventBatch:
    """The reverse of `to_trajectory`.

    Raises:
        ValueError: an index names no series, or the names are damaged.
    """
    names = sorted(trajectory.stats, key=lambda name: trajectory.stats[name])
    columns = trajectory.columns
    index = columns["series"].astype(np.uint16, copy=False)
    if [trajectory.stats[name] for name in names] != list(range(len(names))) or index.max() >= len(names):
        raise ValueError(f"events {trajectory.trajectory_id} of {trajectory.actor_id}: series without a name")
    return EventBatch(
        trajectory.trajectory_id,
        trajectory.actor_id,
        tuple(EventSeries.from_text(name) for name in names),
        index,
        columns["value"].astype(np.float64, copy=False),
        columns["step"].astype(np.int64, copy=False),
        columns["time"].astype(np.float64, copy=False),
    )


def _batch(events: Sequence[Event], known: dict[EventSeries, int], process: str, batch_id: str) -> EventBatch:
    return EventBatch(
        batch_id,
        process,
        tuple(known),
        np.array([known[event.series] for event in events], np.uint16),
        np.array([event.value for event in events], np.float64),
        np.array([event.step for event in events], np.int64),
        np.array([event.time for event in events], np.float64),
    )
