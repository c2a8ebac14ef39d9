"""Requests over a stream, answered in their order: bounded, with deadlines, over as many calls as it takes."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.connection import Backoff, Connection, closed_error
from zero.wire.codec import CodecError, Reason

_CALL_SECONDS = 60.0
"""One call lasts at most this long: a server that hangs is noticed, and a token is shown again."""
_SENDING_SECONDS = 30.0
"""After so long nothing more is sent over a call; when what is in flight is answered, the next one begins."""
_FAREWELL_SECONDS = 1.0
_HOLD_SECONDS = 20.0

Answer = TypeVar("Answer")


def hold_seconds(timeout: float) -> float:
    """How long the server may hold one request: it says why it does before a caller's timeout has passed."""
    return min(0.8 * timeout, _HOLD_SECONDS)


@dataclass(frozen=True, eq=False)
class _Pending(Generic[Answer]):
    """A request without an answer.

    Attributes:
        request: its bytes.
        deadline: by the monotonic clock.
        future: of its answer.
    """

    request: bytes
    deadline: float
    future: Future[Answer]


class OrderedStream(Generic[Answer]):
    """Sends requests over calls of one method; a thread of its own reads the answers.

    Requests must be safe to repeat: what was not answered when a call broke is sent again over the next one, in the
    same order. A request that the server refuses fails alone, also one that breaks the call: what was in flight with it
    is sent one by one then.
    """

    def __init__(
        self,
        connection: Connection,
        method: str,
        parse: Callable[[bytes], Answer],
        *,
        max_requests: int,
        max_bytes: int,
        keep_order: bool,
    ) -> None:
        """Connects with the first request.

        Args:
            connection: to the server; when it is closed, so is the stream.
            method: the full name of a bidirectional streaming method.
            parse: turns the bytes of an answer into its value; raises ReplayTimeout if the request was refused and is
                to be repeated, any other ReplayError or CodecError if it was refused for good.
            max_requests: the most in flight.
            max_bytes: the most bytes of requests in flight; a larger one goes alone.
            keep_order: when a request is to be repeated, so are those behind it; else it goes behind them.

        Raises:
            ValueError: a bound that lets nothing pass.
            ReplayError: the connection is closed.
        """
        if max_requests < 1 or max_bytes < 1:
            raise ValueError(f"{max_requests} requests, {max_bytes} bytes in flight: both must be at least 1")
        self._connection = connection
        self._open = connection.channel.stream_stream(method)
        self._parse = parse
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._keep_order = keep_order
        self._backoff = Backoff()
        self._condition = threading.Condition()
        # All of the following is guarded by the condition.
        self._unanswered: deque[_Pending[Answer]] = deque()  # those sent over the present call come first
        self._bytes = 0
        self._sent = 0
        self._one_by_one = False
        self._not_before = 0.0
        self._trouble: ReplayTimeout | None = None
        self._call_number = 0
        self._call: grpc.Call | None = None
        self._cancelled = False
        self._ended_by: BaseException | None = None
        name = f"{method.rpartition('/')[2]}-{connection.address}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        try:
            connection.add_stream(self)
        except ReplayError:
            self.close()
            raise

    def send(self, request: bytes, timeout: float, answer_timeout: float) -> Future[Answer]:
        """Send a request; waits while too much is in flight.

        Args:
            request: its bytes.
            timeout: the most seconds to wait; may be infinite.
            answer_timeout: seconds from now within which the future gets its answer or an error; may be infinite.

        Raises:
            ReplayTimeout: too much was in flight all the time.
            ReplayError: the request is larger than a message may be, or the stream is closed.
        """
        limit = self._connection.max_message_bytes
        if len(request) > limit:
            raise ReplayError(
                Reason.MESSAGE_TOO_LARGE,
                f"a request of {len(request)} bytes, at most {limit} are sent: send less at once, or raise the limit",
            )
        pending = _Pending[Answer](request, time.monotonic() + answer_timeout, Future())
        pending.future.set_running_or_notify_cancel()  # nobody can cancel what may have been sent
        with self._condition:
            if not self._condition.wait_for(lambda: self._ended_by or self._has_room(request), wait_seconds(timeout)):
                raise self._timeout(f"{len(self._unanswered)} requests were in flight for {timeout:g} s")
            if self._ended_by is not None:
                raise closed_error() from self._ended_by
            self._unanswered.append(pending)
            self._bytes += len(request)
            self._condition.notify_all()
        return pending.future

    def drain(self, timeout: float) -> None:
        """Wait until every request has an answer.

        Raises:
            ReplayTimeout: some have none.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: not self._unanswered, wait_seconds(timeout)):
                raise self._timeout(f"{len(self._unanswered)} requests had no answer after {timeout:g} s")

    def timeout(self, otherwise: str) -> ReplayTimeout:
        """What to raise when an answer does not come: the last failure, or else with the text given."""
        with self._condition:
            return self._timeout(otherwise)

    def close(self) -> None:
        """End the call and join the thread; requests without an answer fail."""
        with self._condition:
            self._ended_by = self._ended_by or closed_error()
            self._call_number += 1  # nothing more is sent, which ends an idle call in order
            farewell = 0.0 if self._unanswered else _FAREWELL_SECONDS
            self._condition.notify_all()
        self._thread.join(farewell)
        with self._condition:
            self._cancel_call()
        self._thread.join()
        self._connection.remove_stream(self)

    def _has_room(self, request: bytes) -> bool:
        return not self._unanswered or (
            len(self._unanswered) < self._max_requests and self._bytes + len(request) <= self._max_bytes
        )

    def _timeout(self, otherwise: str) -> ReplayTimeout:
        trouble = self._trouble or ReplayTimeout("DEADLINE_EXCEEDED", otherwise)
        return ReplayTimeout(trouble.reason, trouble.message)

    # --- the thread that reads ---

    def _run(self) -> None:
        try:
            while self._ended_by is None:
                self._fail(self._overdue(), self.timeout(f"{self._connection.address} has not answered in time"))
                if self._wait_until_ready():
                    self._converse()
        except BaseException as error:
            self._ended_by = error
            raise
        finally:
            with self._condition:
                unanswered = list(self._unanswered)
            self._fail(unanswered, closed_error())

    def _wait_until_ready(self) -> bool:
        """Whether there is something to send now; else waits until that may have changed."""
        with self._condition:
            now = time.monotonic()
            if self._unanswered and now >= self._not_before:
                return self._ended_by is None
            self._wait_for_change(now, *((self._not_before,) if self._unanswered else ()))
            return False

    def _wait_for_change(self, now: float, *moments: float) -> None:
        """Wait for a notification, but not beyond the first of these moments and of the deadlines."""
        first = min((*moments, *(pending.deadline for pending in self._unanswered)), default=math.inf)
        if self._ended_by is None:
            self._condition.wait(wait_seconds(max(first - now, 0.0)))

    def _converse(self) -> None:
        """Make one call and read its answers until it ends."""
        with self._condition:
            number = self._call_number
            self._sent = 0
            self._cancelled = False
        failure: ReplayError | None = None
        try:
            call = self._open(self._requests(number), timeout=_CALL_SECONDS)
            self._begin(call)
            failure = self._read(call)
        except grpc.RpcError as error:
            failure = self._connection.translated(error)
        except ValueError:  # what grpc raises for a call on a closed channel
            if not self._connection.closed.is_set():
                raise
        self._finish(failure)

    def _begin(self, call: grpc.Call) -> None:
        with self._condition:
            self._call = call
            if self._ended_by is not None or self._overdue():
                self._cancel_call()

    def _read(self, call: Iterator[bytes]) -> ReplayError | None:
        """Take answers until the call ends or everything is to be sent again; why, if not in order."""
        count = 0
        for answer in call:
            count += 1
            again = self._take(answer)
            if again is not None:
                return again
        with self._condition:
            in_order = count or not self._unanswered
        return None if in_order else ReplayTimeout("UNAVAILABLE", "the server has ended the stream without an answer")

    def _take(self, answer: bytes) -> ReplayTimeout | None:
        """Hand over an answer; the refusal if everything is to be sent again."""
        with self._condition:
            if not self._sent:
                return ReplayTimeout("INTERNAL", "the server has answered what was not asked")
            pending = self._unanswered[0]
        try:
            value = self._parse(answer)
        except ReplayTimeout as again:
            if self._keep_order:
                return again
            self._move_behind(again)
        except (ReplayError, CodecError) as error:
            pending.future.set_exception(_as_replay_error(error))
            self._count_answer()
        else:
            pending.future.set_result(value)
            self._count_answer()
        return None

    def _count_answer(self) -> None:
        with self._condition:
            self._bytes -= len(self._unanswered.popleft().request)
            self._sent -= 1
            self._one_by_one = False
            self._trouble = None
            self._backoff.reset()
            self._condition.notify_all()

    def _move_behind(self, again: ReplayTimeout) -> None:
        with self._condition:
            self._unanswered.append(self._unanswered.popleft())
            self._sent -= 1
            self._pause(again)
            self._condition.notify_all()

    def _finish(self, failure: ReplayError | None) -> None:
        """Forget the call, and see what its failure means."""
        guilty: list[_Pending[Answer]] = []
        with self._condition:
            if self._cancelled:
                failure = None
            self._cancel_call()
            self._call_number += 1
            if isinstance(failure, ReplayTimeout):
                self._pause(failure)
            elif failure is not None:
                if self._one_by_one or len(self._unanswered) == 1:
                    guilty = list(self._unanswered)[:1]
                self._one_by_one = not guilty
            self._condition.notify_all()
        if failure is not None:
            self._fail(guilty, failure)

    def _pause(self, failure: ReplayTimeout) -> None:
        self._trouble = failure
        self._not_before = time.monotonic() + self._backoff.pause_after(failure)

    def _cancel_call(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
            self._cancelled = True

    def _overdue(self) -> list[_Pending[Answer]]:
        with self._condition:
            now = time.monotonic()
            return [pending for pending in self._unanswered if pending.deadline <= now]

    def _fail(self, failed: list[_Pending[Answer]], error: ReplayError) -> None:
        """Give up requests; outside of a call only."""
        if not failed:
            return
        for pending in failed:
            pending.future.set_exception(error)
        with self._condition:
            self._unanswered = deque(pending for pending in self._unanswered if pending not in failed)
            self._bytes = sum(len(pending.request) for pending in self._unanswered)
            self._condition.notify_all()

    # --- gRPC's thread that sends ---

    def _requests(self, number: int) -> Iterator[bytes]:
        until = time.monotonic() + _SENDING_SECONDS
        while (request := self._next_request(number, until)) is not None:
            yield request

    def _next_request(self, number: int, until: float) -> bytes | None:
        """The next request of a call; None when nothing more is to be sent over it."""
        with self._condition:
            while self._call_number == number:
                now = time.monotonic()
                if now >= until:
                    return None
                if self._overdue():
                    self._cancel_call()  # ends the reading, so that the deadline is kept
                    return None
                if now >= self._not_before and self._sent < self._may_send():
                    self._sent += 1
                    return self._unanswered[self._sent - 1].request
                self._wait_for_change(now, until, *((self._not_before,) if now < self._not_before else ()))
            return None

    def _may_send(self) -> int:
        return min(len(self._unanswered), 1) if self._one_by_one else len(self._unanswered)


def wait_seconds(seconds: float) -> float | None:
    """What the threading module takes for it."""
    return None if seconds == math.inf else seconds


def _as_replay_error(error: ReplayError | CodecError) -> ReplayError:
    return error if isinstance(error, ReplayError) else ReplayError(error.reason, error.message)
