"""A client's connection: calls with deadlines, repeated while that may help, and their errors in our words."""

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.channel import open_channel
from replay_server.credentials import Credentials
from zero.wire.codec import REASON_METADATA_KEY, CodecError, Reason

_ATTEMPT_SECONDS = 20.0
"""One attempt of a call lasts at most this long, so that a server that hangs is tried again."""
_LEAST_HELD_SECONDS = 0.05
"""A call that the rate limiter holds is not repeated for less: its time would run out on the way, and say nothing."""
_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 2.0
_TOO_LARGE = (
    "the message is larger than the server takes (--max-message-mib) or this client (max_message_bytes); send fewer "
    "trajectories per call, or chunks"
)
_TOO_MANY_CALLS = "Concurrent RPC limit exceeded"
"""What a gRPC server says when it has more calls than it may, before any of our code sees the call."""
_SIGNS_OF_TLS = ("Socket closed", "Connection reset", "recvmsg")
"""What gRPC says where a server ends a connection that does not begin with a TLS handshake."""
_TLS_HINT = "if the server asks for TLS, give this client its CA file"
_STATUS_METADATA_KEY = "grpc-status-details-bin"
_RETRIED_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by a server that stops while it holds the call
)
_RETRIED_REASONS = (Reason.RATE_LIMITED, Reason.TOO_BUSY, Reason.STORE_UNAVAILABLE, Reason.RECOVERING)

Result = TypeVar("Result")


class Backoff:
    """How long to pause before the next attempt: what the server asks for, else longer and longer, with jitter."""

    def __init__(self) -> None:
        self._seconds = _MIN_BACKOFF_SECONDS

    def pause_after(self, failure: ReplayTimeout) -> float:
        """The seconds to pause after a failure."""
        if failure.reason == Reason.RATE_LIMITED:  # it has waited at the server already
            self.reset()
            return failure.pause_seconds
        pause = max(self._seconds, failure.pause_seconds) * random.uniform(0.5, 1.5)  # noqa: S311 -- jitter
        self._seconds = min(self._seconds * 2, _MAX_BACKOFF_SECONDS)
        return pause

    def reset(self) -> None:
        """An attempt has succeeded."""
        self._seconds = _MIN_BACKOFF_SECONDS


class Closable(Protocol):
    """What a connection closes before itself."""

    def close(self) -> None:
        """End; waits for threads."""


class Connection:
    """A channel to one server, for any number of threads.

    Attributes:
        address: host:port.
        max_message_bytes: the largest message sent or taken.
        channel: for stubs.
        closed: set once `close` was called.
    """

    def __init__(
        self,
        address: str,
        client_name: str = "client",
        max_message_bytes: int = 64 << 20,
        credentials: Credentials | None = None,
    ) -> None:
        self.address = address
        self.max_message_bytes = max_message_bytes
        options = channel_options(client_name, max_message_bytes)
        credentials = credentials or Credentials()
        self._plain = credentials.ca_file is None
        self.channel = open_channel(address, credentials, options)
        self.closed = threading.Event()
        self._streams: set[Closable] = set()
        self._lock = threading.Lock()

    def call(self, attempt: Callable[[float], Result], timeout: float, *, repeat: bool = True) -> Result:
        """Repeat an attempt, which takes its seconds, until it succeeds, is refused for good, or the timeout passes.

        Args:
            attempt: makes the call.
            timeout: in seconds.
            repeat: False to make one attempt only.

        Raises:
            ReplayError: refused for good, or the connection was closed.
            ReplayTimeout: the timeout passed, or the only attempt failed; with the server's reason if it gave one.
        """
        deadline = time.monotonic() + timeout
        backoff = Backoff()
        explained: ReplayTimeout | None = None
        while True:
            seconds = min(max(deadline - time.monotonic(), 0.001), _ATTEMPT_SECONDS)
            try:
                return self._attempt(attempt, seconds)
            except ReplayTimeout as failure:
                pause = backoff.pause_after(failure)
                held = failure.reason == Reason.RATE_LIMITED
                if not repeat or time.monotonic() + pause + _LEAST_HELD_SECONDS * held >= deadline:
                    # Where our own time ran out, the server would have said what it has said before.
                    raise (failure.reason == "DEADLINE_EXCEEDED" and explained) or failure from None
                explained = failure if failure.reason in _RETRIED_REASONS else None
            self.closed.wait(pause)

    def _attempt(self, attempt: Callable[[float], Result], seconds: float) -> Result:
        if self.closed.is_set():
            raise closed_error()
        try:
            return attempt(seconds)
        except CodecError as error:
            raise ReplayError(error.reason, error.message) from None
        except grpc.RpcError as error:
            raise self.translated(error) from None
        except ValueError as error:
            # What grpc raises when another thread closes the channel just before a call starts.
            if self.closed.is_set():
                raise closed_error() from error
            raise

    def translated(self, error: grpc.RpcError) -> ReplayError:
        """The error of a call in our words; a ReplayTimeout if repeating the call may help."""
        return closed_error() if self.closed.is_set() else _replay_error(error, self._plain)

    def add_stream(self, stream: Closable) -> None:
        """Close a stream with this connection.

        Raises:
            ReplayError: the connection is closed.
        """
        with self._lock:
            if self.closed.is_set():
                raise closed_error()
            self._streams.add(stream)

    def remove_stream(self, stream: Closable) -> None:
        """Forget a stream that is closed."""
        with self._lock:
            self._streams.discard(stream)

    def close(self) -> None:
        """End streams and the connection; calls in other threads fail, also those that wait to be repeated."""
        with self._lock:
            self.closed.set()
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        self.channel.close()


def closed_error() -> ReplayError:
    """What calls of a closed client raise."""
    return ReplayError("CANCELLED", "the client is closed")


def refusal(reason: str, message: str, pause_seconds: float) -> ReplayError:
    """The error of a request that was refused on a stream; a ReplayTimeout if repeating it may help."""
    if reason in _RETRIED_REASONS:
        return ReplayTimeout(reason, message, pause_seconds)
    return ReplayError(reason, message)


def own(answer: bytes) -> bytes:
    """The memory of an answer that nobody else holds, for writing: views of it are writable, as PyTorch wants them."""
    return cast(bytes, np.asarray(_Memory(answer)).data)


class _Memory:
    """Bytes as writable memory to NumPy."""

    def __init__(self, data: bytes) -> None:
        view = np.frombuffer(data, np.uint8)
        self.__array_interface__ = view.__array_interface__ | {"data": (view.ctypes.data, False)}
        self.data = data  # lives as long as arrays over it


def channel_options(client_name: str, max_message_bytes: int) -> list[tuple[str, int | str]]:
    """How gRPC is to treat the connection of a client."""
    # Without keepalive a partition is noticed after a minute and work resumes most of a minute after it has healed.
    return [
        ("grpc.primary_user_agent", client_name),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _replay_error(error: grpc.RpcError, plain: bool) -> ReplayError:
    if not isinstance(error, grpc.Call):
        raise error
    code = error.code()
    details = error.details() or "no details"
    given = {datum.key: datum.value for datum in error.trailing_metadata() or ()}
    reason = str(given.get(REASON_METADATA_KEY, code.name))
    if reason == Reason.TOO_BUSY:
        return ReplayTimeout(reason, details, _asked_pause(given.get(_STATUS_METADATA_KEY, b"")))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_MANY_CALLS in details:
        return ReplayTimeout(Reason.TOO_BUSY, details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and REASON_METADATA_KEY not in given:
        # gRPC itself refuses what is far too large, in words that know of no option; the answer may be what is.
        reason, details = str(Reason.MESSAGE_TOO_LARGE), f"{_TOO_LARGE} ({details})"
    if code is grpc.StatusCode.UNAVAILABLE and plain and any(sign in details for sign in _SIGNS_OF_TLS):
        details = f"{details} ({_TLS_HINT})"
    return ReplayTimeout(reason, details) if code in _RETRIED_CODES else ReplayError(reason, details)


def _asked_pause(status: str | bytes) -> float:
    """The seconds of the google.rpc.RetryInfo in a call's status details; 0 without one."""
    info = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(bytes(status) if isinstance(status, bytes) else b"").details:
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    return 0.0
