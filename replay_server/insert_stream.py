"""Inserts over a stream: many in flight, in order, each trajectory stored exactly once."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress

from replay_server.answers import InsertResult
from replay_server.connection import Connection, refusal
from replay_server.flushed import FlushedStream
from replay_server.ordered_stream import OrderedStream, hold_seconds
from zero.trajectories import Trajectory
from zero.wire import frames, replay_pb2

_METHOD = "/zero.v1.ReplayService/InsertStream"


class InsertStream(FlushedStream):
    """Inserts over a stream, for any number of threads; as a context it ends with everything stored, or an error.

    What a dead or restarted server did not acknowledge is sent again; trajectories carry their idempotency key, so each
    is stored once. Trajectories are stored in the order of the calls; only if the rate limiter or a busy server has
    refused one for now may those behind it, which were in flight, overtake it. Chunks of one trajectory never do.
    """

    def __init__(
        self,
        connection: Connection,
        tables: Sequence[str],
        *,
        compress: bool,
        in_flight: int,
        max_bytes: int,
        timeout: float,
        raise_failures: bool,
    ) -> None:
        """Use ReplayClient.insert_stream."""
        self._tables = tables
        self._compress = compress
        self._timeout = timeout
        self._raise_failures = raise_failures
        self._failures: deque[BaseException] = deque()
        self._stream = OrderedStream(
            connection, _METHOD, _parse, max_requests=in_flight, max_bytes=max_bytes, keep_order=True
        )

    def insert(self, trajectories: Sequence[Trajectory]) -> Future[InsertResult]:
        """Send trajectories, of which all or none are stored; waits while too much is in flight.

        Returns:
            The outcome: a ReplayError if they were refused, a ReplayTimeout if nothing was heard in time. Its callbacks
            must not insert.

        Raises:
            ReplayTimeout: too much was in flight for the timeout.
            ReplayError: an earlier insert failed, see `raise_failures` of ReplayClient.insert_stream; or the stream is
                closed.
            CodecError: a column's dtype cannot be sent.
        """
        self._raise_failure()
        request = frames.encode_insert_stream_request(
            self._tables, trajectories, compress=self._compress, hold_seconds=hold_seconds(self._timeout)
        )
        outcome = self._stream.send(request, self._timeout, self._timeout)
        if self._raise_failures:
            outcome.add_done_callback(self._note)
        return outcome

    def flush(self) -> None:
        """Wait until everything is acknowledged.

        Raises:
            ReplayTimeout: the timeout passed.
            ReplayError: an insert failed, see `raise_failures` of ReplayClient.insert_stream.
        """
        self._stream.drain(self._timeout)
        self._raise_failure()

    def close(self) -> None:
        """End the stream; inserts that are not acknowledged fail."""
        self._stream.close()

    def _note(self, outcome: Future[InsertResult]) -> None:
        failure = outcome.exception()
        if failure is not None:
            self._failures.append(failure)

    def _raise_failure(self) -> None:
        """Raise the first failure since the last time; those behind it often follow from it."""
        with suppress(IndexError):  # there is none
            first = self._failures.popleft()
            self._failures.clear()
            raise first


def _parse(answer: bytes) -> InsertResult:
    response = replay_pb2.InsertStreamResponse.FromString(answer)
    if response.HasField("refused"):
        refused = response.refused
        raise refusal(refused.reason, refused.message, refused.retry_after_ms / 1000)
    return InsertResult(response.inserted.stored, response.inserted.duplicates)
