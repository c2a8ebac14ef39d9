"""Takes events from where they wait: those of the roles from their table, those of the replay server from /metrics."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field

from replay_server.client import ReplayClient
from zero.events import EVENTS_TABLE, Event, EventBatch, EventSeries, batches, events_table, from_trajectory
from zero.trajectories import TrajectoryFilter

logger = logging.getLogger(__name__)

BATCHES_PER_READ = 2000
REQUEST_SECONDS = 10.0
SERVER = "replay-server"
START_TIME = "process_start_time_seconds"
PREFIX = "zero_replay_"


class EventTable:
    """The table of events on a replay server.

    Reading leaves them there; they are deleted once what they say is kept elsewhere.

    Args:
        client: of the replay server.

    Raises (all methods):
        ReplayError: the server refused.
        ReplayTimeout: it does not answer; nothing is lost by that.
    """

    def __init__(self, client: ReplayClient) -> None:
        self._client = client
        self._is_there = False

    def read(self) -> list[EventBatch]:
        """The oldest batches, at most BATCHES_PER_READ."""
        if not self._is_there:
            self._client.create_table(events_table(), timeout=REQUEST_SECONDS)
            self._is_there = True
        found: list[EventBatch] = []
        stored = self._client.read_trajectories(EVENTS_TABLE, limit=BATCHES_PER_READ, timeout=REQUEST_SECONDS)
        for trajectory in stored:
            try:
                found.append(from_trajectory(trajectory))
            except ValueError as error:
                # It would come again with every read.
                logger.warning("events that cannot be read are deleted: %s", error)
                self.delete([trajectory.trajectory_id])
        return found

    def delete(self, batch_ids: Sequence[str]) -> None:
        """Delete batches; those that are gone already do not matter."""
        if batch_ids:
            chosen = TrajectoryFilter(trajectory_ids=tuple(batch_ids))
            self._client.delete_trajectories(EVENTS_TABLE, chosen, timeout=REQUEST_SECONDS)


class ServerCounts(BaseModel):
    """What a replay server had counted when it was last asked.

    Attributes:
        started: which process it was, by its start in Unix seconds.
        counts: by series.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    started: float = 0.0
    counts: Mapping[str, float] = Field(default_factory=dict[str, float])


class ServerEvents:
    """The replay server's own metrics as events: gauges as they are, counters by what they rose.

    Args:
        read_page: fetches its /metrics; None if it is away.
        counts: what it had counted when somebody last looked, so that nothing is counted twice or left out.

    Attributes:
        counts: the same, now.
    """

    def __init__(self, read_page: Callable[[], str | None], counts: ServerCounts) -> None:
        self.counts = counts
        self._read_page = read_page
        self._num_reads = 0

    def read(self, step: int, now: float) -> list[EventBatch]:
        """Events of now.

        Args:
            step: optimizer updates, which the server does not know.
            now: Unix seconds.
        """
        page = self._read_page()
        if page is None:
            return []
        families = list(text_string_to_metric_families(page))
        started = next(
            (sample.value for family in families if family.name == START_TIME for sample in family.samples), 0.0
        )
        before = self.counts.counts if started == self.counts.started else {}
        counts: dict[str, float] = {}
        events: list[Event] = []
        for family in families:
            if not family.name.startswith(PREFIX) or family.type not in {"gauge", "counter"}:
                continue
            for sample in family.samples:
                series = EventSeries(family.name, tuple(sorted(sample.labels.items())))
                value = sample.value
                if family.type == "counter":
                    counts[series.to_text()] = sample.value
                    value -= before.get(series.to_text(), 0.0)
                if np.isfinite(value) and (value or family.type == "gauge"):
                    events.append(Event(series, value, step, now))
        self.counts = ServerCounts(started=started, counts=counts)
        self._num_reads += 1
        return batches(events, SERVER, f"{SERVER}-{time.time_ns()}-{self._num_reads}")
