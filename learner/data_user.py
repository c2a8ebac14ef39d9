"""Draws batches ahead of the learner, and carries its priorities back with the next request."""

from collections.abc import Mapping
from contextlib import suppress
from threading import Event

from replay_server.client import ReplayClient, ReplayError, ReplayTimeout
from zero.trajectories import PriorityUpdates, SampleSpec, SequenceBatch

REQUEST_SECONDS = 2.0
"""So long a batch is waited for before looking whether to stop."""


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
        stop: no further batch once it is set.
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
        self._stop = stop
        self._closed = False
        self._batches = client.sample_stream(
            table, SampleSpec(batch_size, dict(windows)), in_flight=prefetch, timeout=REQUEST_SECONDS
        )

    def get_data(self) -> SequenceBatch:
        """The next batch; waits as long as the rate limiter does.

        Raises:
            DataUserClosedError: stopped or closed meanwhile.
            ReplayError: the server refused the request.
        """
        while not (self._stop.is_set() or self._closed):
            with suppress(ReplayTimeout):
                return next(self._batches)
        raise DataUserClosedError("no further batches: stopped")

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Send priorities with the next request."""
        self._batches.update_priorities(updates.keys, updates.priorities)

    def close(self) -> None:
        """Stop drawing."""
        self._closed = True
        with suppress(ReplayError):  # the last priorities are not worth an end with an error
            self._batches.close()
