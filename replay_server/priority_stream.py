"""Priority updates sent behind the caller: what comes while a call is under way goes together with the next one."""

import threading
from collections.abc import Callable
from functools import partial

import grpc
import numpy as np
from numpy.typing import NDArray

from replay_server.answers import ReplayError, ReplayTimeout, UpdateResult
from replay_server.connection import Connection, closed_error
from replay_server.flushed import FlushedStream
from replay_server.ordered_stream import wait_seconds
from zero.trajectories import PriorityUpdates
from zero.wire import codec, replay_pb2

_METHOD = "/zero.v1.ReplayService/UpdatePriorities"
_MOST_KEYS = 1 << 16
"""The most that wait for the next call."""


class PriorityStream(FlushedStream):
    """Sends priority updates in their order, for any number of threads; as a context it ends with all of them applied.

    However small the updates are, they cost one call per round trip. A call that fails for now is repeated.
    """

    def __init__(self, connection: Connection, table: str, *, timeout: float) -> None:
        """Use ReplayClient.priority_stream."""
        self._connection = connection
        self._send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(_METHOD)
        self._table = table
        self._timeout = timeout
        self._condition = threading.Condition()
        # All of the following is guarded by the condition.
        self._waiting: list[replay_pb2.PriorityUpdates] = []
        self._num_waiting = 0  # keys
        self._is_sending = False
        self._updated = self._evicted = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._sending: grpc.Future[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"UpdatePriorities-{connection.address}", daemon=True)
        self._thread.start()
        try:
            connection.add_stream(self)
        except ReplayError:
            self.close()
            raise

    def update(self, keys: NDArray[np.uint64], priorities: NDArray[np.float32]) -> None:
        """Set priorities soon; waits while too many updates wait already.

        Args:
            keys: uint64 [N], as SequenceBatch.keys gave them; of one key the last priority counts.
            priorities: [N], finite and not negative, before the exponent.

        Raises:
            CodecError: they are not what they must be.
            ReplayTimeout: there was no room for the timeout.
            ReplayError: earlier updates failed, and these are not sent; or the stream is closed.
        """
        updates = codec.encode_priority_updates(PriorityUpdates(keys, priorities))
        number = len(codec.decode_priority_updates(updates).keys)  # what the server would refuse is refused here
        with self._condition:
            self._wait_for(lambda: not self._num_waiting or self._num_waiting + number <= _MOST_KEYS)
            self._waiting.append(updates)
            self._num_waiting += number
            self._condition.notify_all()

    def flush(self) -> UpdateResult:
        """Wait until everything is applied.

        Returns:
            How many priorities were set since the last time, and how many keys named nothing stored.

        Raises:
            ReplayTimeout: it took longer than the timeout.
            ReplayError: updates failed, which were in one call; or the stream is closed.
        """
        with self._condition:
            self._wait_for(lambda: not self._waiting and not self._is_sending)
            result = UpdateResult(self._updated, self._evicted)
            self._updated = self._evicted = 0
            return result

    @property
    def is_sending(self) -> bool:
        """Whether a call is under way."""
        with self._condition:
            return self._is_sending

    def close(self) -> None:
        """End the stream; what was not applied yet is dropped."""
        with self._condition:
            self._closed = True
            if self._sending is not None:
                self._sending.cancel()
            self._condition.notify_all()
        self._thread.join()
        self._connection.remove_stream(self)

    def _wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait, within the condition; raises what has failed meanwhile, once."""
        came = self._condition.wait_for(lambda: self._failure or self._closed or is_so(), wait_seconds(self._timeout))
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._closed:
            raise closed_error()
        if not came:
            raise ReplayTimeout("DEADLINE_EXCEEDED", f"priorities were not applied within {self._timeout:g} s")

    def _run(self) -> None:
        try:
            while (request := self._next_request()) is not None:
                try:
                    answer = self._connection.call(partial(self._call, request), self._timeout)
                except ReplayError as error:
                    self._end_call(replay_pb2.UpdatePrioritiesResponse(), error)
                else:
                    self._end_call(answer, None)
        except BaseException as error:
            self._end_call(replay_pb2.UpdatePrioritiesResponse(), error)
            raise

    def _next_request(self) -> bytes | None:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            together = replay_pb2.PriorityUpdates(
                keys=b"".join(updates.keys for updates in self._waiting),
                priorities=b"".join(updates.priorities for updates in self._waiting),
            )
            self._waiting.clear()
            self._num_waiting = 0
            self._is_sending = True
            self._condition.notify_all()
        return replay_pb2.UpdatePrioritiesRequest(table=self._table, updates=together).SerializeToString()

    def _call(self, request: bytes, seconds: float) -> replay_pb2.UpdatePrioritiesResponse:
        with self._condition:
            if self._closed:
                raise closed_error()
            self._sending = self._send.future(request, timeout=seconds)
        try:
            return replay_pb2.UpdatePrioritiesResponse.FromString(self._sending.result())
        except grpc.FutureCancelledError:
            raise closed_error() from None

    def _end_call(self, answer: replay_pb2.UpdatePrioritiesResponse, failure: BaseException | None) -> None:
        with self._condition:
            self._is_sending = False
            self._updated += answer.updated
            self._evicted += answer.evicted
            self._failure = self._failure or failure
            self._condition.notify_all()
