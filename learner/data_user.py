"""Draws batches ahead of the learner, and carries its priorities back with the next request."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock

from replay_server.client import ReplayClient, ReplayTimeout
from zero.trajectories import PriorityUpdates, SequenceBatch

REQUEST_SECONDS = 2.0
"""One request waits this long for the rate limiter; then it is asked again, so that stopping never takes longer."""


class DataUserClosedError(RuntimeError):
    """There will be no further batch: the role stops or the data user was closed."""


class DataUser:
    """Keeps a fixed number of sample requests in flight against one table.

    Few, so that priorities stay fresh: what is in flight was drawn before the newest updates.

    Args:
        client: of the replay server.
        table: the table's name.
        batch_size: positions per batch.
        windows: steps per column.
        prefetch: requests in flight.
        stop: no further request once it is set.
    """

    def __init__(
        self,
        client: ReplayClient,
        table: str,
        batch_size: int,
        windows: Mapping[str, int],
        prefetch: int,
        stop: Event,
    ) -> None:
        self._client = client
        self._table = table
        self._batch_size = batch_size
        self._windows = dict(windows)
        self._stop = stop
        self._closed = Event()
        self._lock = Lock()
        self._updates: deque[PriorityUpdates] = deque()
        self._executor = ThreadPoolExecutor(prefetch, thread_name_prefix="data-user")
        self._batches: deque[Future[SequenceBatch]] = deque(self._executor.submit(self._draw) for _ in range(prefetch))

    def get_data(self) -> SequenceBatch:
        """The next batch, in the order of the requests; waits as long as the rate limiter does.

        Raises:
            DataUserClosedError: stopped or closed meanwhile.
            ReplayError: the server refused the request.
        """
        batch = self._batches.popleft().result()
        self._batches.append(self._executor.submit(self._draw))
        return batch

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Send priorities with the next request."""
        with self._lock:
            self._updates.append(updates)

    def close(self) -> None:
        """Stop drawing; returns when no request is in flight."""
        self._closed.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _draw(self) -> SequenceBatch:
        with self._lock:
            updates = self._updates.popleft() if self._updates else None
        while not (self._stop.is_set() or self._closed.is_set()):
            try:
                return self._client.sample(
                    self._table, self._batch_size, self._windows, updates=updates, timeout=REQUEST_SECONDS
                )
            except ReplayTimeout:
                continue
        raise DataUserClosedError("no further batches: stopped")
