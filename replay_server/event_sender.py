"""Sends the events of a process to the replay server, from a thread that nobody waits for."""

import logging
import secrets
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from replay_server.answers import InsertResult, ReplayError, ReplayTimeout
from replay_server.recorded_metrics import EventLog
from zero.events import EVENTS_TABLE, EventBatch, batches, events_table, to_trajectory
from zero.tables import TableConfig
from zero.trajectories import Trajectory
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

SEND_INTERVAL_SECONDS = 1.0
MAX_INTERVAL_SECONDS = 20.0
SEND_SHARE = 0.02
"""Of its time that a process sends at most: a server that is slow, since a thousand do so, is sent more at once."""
REQUEST_SECONDS = 5.0
MAX_REQUEST_SECONDS = 20.0
"""One attempt to send may take so long; then it is made again, under the same id, and may take twice as long."""
CLOSING_SECONDS = 5.0
"""So long the end waits for what is left; what a server that is away does not take then is counted as lost."""


def send_pause(seconds: float) -> float:
    """Seconds until events are sent again, after a sending that took so long."""
    return min(max(SEND_INTERVAL_SECONDS, seconds / SEND_SHARE), MAX_INTERVAL_SECONDS)


class StoresEvents(Protocol):
    """What is needed of a client of the replay server."""

    def create_table(self, config: TableConfig, timeout: float = ...) -> bool:
        """Create a table, or confirm that it exists."""
        ...

    def insert(self, table: str, trajectories: Sequence[Trajectory], timeout: float = ...) -> InsertResult:
        """Store trajectories once, however often they are sent."""
        ...


class EventSender:
    """Sends what a log holds, about every second; until the server has taken it the log goes on filling.

    Args:
        client: of the replay server.
        process: who records, for example "actor-0".
        events: what is recorded.
    """

    def __init__(self, client: StoresEvents, process: str, events: EventLog) -> None:
        self._client = client
        self._process = process
        self._events = events
        self._token = secrets.token_hex(8)
        self._num_sent = 0
        self._has_table = False
        self._stop = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name=f"events-{process}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what is left, for at most CLOSING_SECONDS and a request, and join the thread."""
        self._give_up_at = time.monotonic() + CLOSING_SECONDS
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause = SEND_INTERVAL_SECONDS
        while not self._stop.wait(pause):
            started = time.monotonic()
            self._send_all()
            pause = send_pause(time.monotonic() - started)
        self._send_all()

    def _send_all(self) -> None:
        self._num_sent += 1
        for batch in batches(self._events.take(), self._process, f"{self._token}-{self._num_sent}"):
            if not self._send(batch):
                self._events.count_not_sent(len(batch.values))

    def _send(self, batch: EventBatch) -> bool:
        """Send until it is stored; False if it never will be."""
        seconds = REQUEST_SECONDS
        while time.monotonic() < self._give_up_at:
            try:
                if not self._has_table:
                    self._client.create_table(events_table(), timeout=REQUEST_SECONDS)
                    self._has_table = True
                self._client.insert(EVENTS_TABLE, [to_trajectory(batch)], timeout=seconds)
            except ReplayTimeout:
                seconds = min(2 * seconds, MAX_REQUEST_SECONDS)
                continue
            except ReplayError as error:
                if error.reason == Reason.UNKNOWN_TABLE and self._has_table:
                    self._has_table = False  # somebody deleted it
                    continue
                if error.reason != "CANCELLED":
                    logger.exception("%d events of %s are lost", len(batch.values), self._process)
                return False
            else:
                return True
        return False


@contextmanager
def sending_events(client: StoresEvents, process: str, events: EventLog) -> Generator[None]:
    """Send what is recorded meanwhile."""
    sender = EventSender(client, process, events)
    try:
        yield
    finally:
        sender.close()
