"""Sends trajectories to the replay server, a bounded number of inserts in flight."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from replay_server.client import ReplayClient, ReplayTimeout
from zero.trajectories import Trajectory

REQUEST_SECONDS = 5.0
"""One insert waits this long for the rate limiter or the store; then it is sent again, under the same id."""


class DataCollector:
    """Inserts beside the playing thread; when the bound is reached, collecting waits, so memory cannot grow.

    An insert is repeated until it is acknowledged, which is safe because trajectories carry their idempotency key.

    Args:
        client: of the replay server.
        table: the table's name.
        max_in_flight: inserts that may be unacknowledged.
        stop: once it is set, unacknowledged inserts are given up at their next time-out.
    """

    def __init__(self, client: ReplayClient, table: str, max_in_flight: int, stop: Event) -> None:
        self._client = client
        self._table = table
        self._max_in_flight = max_in_flight
        self._stop = stop
        self._executor = ThreadPoolExecutor(max_in_flight, thread_name_prefix="data-collector")
        self._in_flight: deque[Future[None]] = deque()

    def collect(self, trajectory: Trajectory) -> None:
        """Send a trajectory; waits while the bound is reached.

        Raises:
            ReplayError: the server refused an earlier trajectory.
        """
        while self._in_flight and (self._in_flight[0].done() or len(self._in_flight) >= self._max_in_flight):
            self._in_flight.popleft().result()
        self._in_flight.append(self._executor.submit(self._insert, trajectory))

    def close(self) -> None:
        """Wait for what is in flight.

        Raises:
            ReplayError: the server refused a trajectory.
        """
        self._executor.shutdown(wait=True)
        while self._in_flight:
            self._in_flight.popleft().result()

    def _insert(self, trajectory: Trajectory) -> None:
        while True:
            try:
                self._client.insert(self._table, [trajectory], timeout=REQUEST_SECONDS)
            except ReplayTimeout:
                if self._stop.is_set():
                    return
            else:
                return
