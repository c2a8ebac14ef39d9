"""The one client of the replay server: trajectories in, sequences out, weights both ways, processes registered."""

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import grpc
from prometheus_client import CollectorRegistry, start_http_server

from replay_server.channel import open_channel
from replay_server.credentials import Credentials
from replay_server.malloc import tune_malloc
from zero.tables import TableConfig
from zero.trajectories import PriorityUpdates, SequenceBatch, Trajectory
from zero.wire import codec, replay_pb2, replay_pb2_grpc, weights_pb2, weights_pb2_grpc
from zero.wire.codec import REASON_METADATA_KEY, Reason

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_ATTEMPT_SECONDS = 20.0
"""One attempt of a call lasts at most this long, so that a server that hangs is tried again."""
_FIRST_CONTACT_SECONDS = 2.0
_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 2.0
_RETRIED_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by a server that stops while it holds the call
)

Result = TypeVar("Result")


class ReplayError(Exception):
    """The replay server refused a call.

    Attributes:
        reason: a Reason of replay.proto, or the gRPC status code's name where the server gave none.
        message: one line that says what was wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class ReplayTimeout(ReplayError):  # noqa: N818 -- a timeout is what it is
    """The caller's timeout passed: the server could not be reached, or its rate limiter held the call."""


@dataclass(frozen=True)
class InsertResult:
    """What became of an insert, in trajectories.

    Attributes:
        stored: new ones.
        duplicates: known already, with the same content.
    """

    stored: int
    duplicates: int


@dataclass(frozen=True)
class PriorityResult:
    """What became of priority updates, in positions.

    Attributes:
        updated: set.
        evicted: no longer stored, skipped.
    """

    updated: int
    evicted: int


@dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        version: given by the server, 1, 2, 3, ...
        training_step: optimizer updates made so far.
        payload: the bytes as they were published.
    """

    version: int
    training_step: int
    payload: bytes


@dataclass(frozen=True)
class TableInfo:
    """State of a table; sizes in steps unless they say otherwise.

    Attributes:
        config: what the table is.
        num_steps: stored now.
        num_trajectories: trajectories stored now.
        inserted_steps: ever inserted.
        inserted_trajectories: trajectories ever inserted.
        sampled_positions: positions ever drawn and delivered.
        insert_blocked_because: why inserts wait now; empty if they do not.
        sample_blocked_because: why samples wait now; empty if they do not.
    """

    config: TableConfig
    num_steps: int
    num_trajectories: int
    inserted_steps: int
    inserted_trajectories: int
    sampled_positions: int
    insert_blocked_because: str
    sample_blocked_because: str


@dataclass(frozen=True)
class ServerInfo:
    """State of the server.

    Attributes:
        tables: by name.
        weights_version: of the newest weights; 0 before any.
        appendfsync: how soon Redis flushes what it acknowledges: "always", "everysec" or "no".
    """

    tables: Mapping[str, TableInfo]
    weights_version: int
    appendfsync: str


class ReplayClient:
    """A connection to a replay server, for any number of threads.

    Every method takes a timeout in seconds for everything it does. Until then, calls are repeated while the server
    cannot be reached, is recovering, or its rate limiter holds them; every method is safe to repeat, so a restart of
    the server at the same address goes unnoticed.

    Raises:
        ReplayError: the server refused a call for a reason that waiting does not mend.
        ReplayTimeout: the timeout passed.
    """

    def __init__(
        self,
        address: str,
        *,
        client_name: str = "client",
        max_message_bytes: int = 64 << 20,
        compress: bool = False,
        credentials: Credentials | None = None,
    ) -> None:
        """Connects lazily, and tunes the process's allocator for large messages (`tune_malloc`).

        Args:
            address: host:port.
            client_name: for the server's log.
            max_message_bytes: the largest message taken.
            compress: send columns as zstd frames, for networks slower than a gigabit.
            credentials: what to trust and show; without any nothing is encrypted and no token sent.

        Raises:
            CredentialsError: a file cannot be used, or others could read the token.
        """
        tune_malloc()
        self.address = address
        self._compress = compress
        options = _channel_options(client_name, max_message_bytes)
        self._channel = open_channel(address, credentials or Credentials(), options)
        self._replay = replay_pb2_grpc.ReplayServiceStub(self._channel)
        self._weights = weights_pb2_grpc.WeightsServiceStub(self._channel)
        self._closed = threading.Event()

    def create_table(self, config: TableConfig, timeout: float = 60.0) -> bool:
        """Create a table, or confirm that it exists with this very config; True if it is new."""
        request = replay_pb2.CreateTableRequest(table=codec.encode_table_config(config))
        return self._call(lambda seconds: self._replay.CreateTable(request, timeout=seconds), timeout).created

    def insert(self, table: str, trajectories: Sequence[Trajectory], timeout: float = 60.0) -> InsertResult:
        """Store trajectories, all or none; returns when they are as durable as the table promises."""
        request = replay_pb2.InsertRequest(
            table=table,
            trajectories=[codec.encode_trajectory(trajectory, compress=self._compress) for trajectory in trajectories],
        )
        response = self._call(lambda seconds: self._replay.Insert(request, timeout=seconds), timeout)
        return InsertResult(response.stored, response.duplicates)

    def sample(
        self,
        table: str,
        batch_size: int,
        windows: Mapping[str, int],
        updates: PriorityUpdates | None = None,
        timeout: float = 60.0,
    ) -> SequenceBatch:
        """Draw a batch of sequences, after applying priority updates.

        Args:
            table: its name.
            batch_size: positions to draw, with replacement.
            windows: steps of each column.
            updates: of earlier batches; safe to repeat.
            timeout: in seconds.
        """
        request = codec.encode_sample_request(table, batch_size, windows, updates)
        return codec.decode_sequence_batch(
            self._call(lambda seconds: self._replay.Sample(request, timeout=seconds), timeout)
        )

    def update_priorities(self, table: str, updates: PriorityUpdates, timeout: float = 60.0) -> PriorityResult:
        """Set priorities outside of sampling."""
        request = replay_pb2.UpdatePrioritiesRequest(table=table, updates=codec.encode_priority_updates(updates))
        response = self._call(lambda seconds: self._replay.UpdatePriorities(request, timeout=seconds), timeout)
        return PriorityResult(response.updated, response.evicted)

    def server_info(self, timeout: float = 60.0) -> ServerInfo:
        """What the server holds, and why calls wait."""
        request = replay_pb2.GetServerInfoRequest()
        response = self._call(lambda seconds: self._replay.GetServerInfo(request, timeout=seconds), timeout)
        tables = [_table_info(info) for info in response.tables]
        return ServerInfo({info.config.name: info for info in tables}, response.weights_version, response.appendfsync)

    def publish_weights(self, payload: bytes, training_step: int, timeout: float = 60.0) -> int:
        """Publish weights and return their version; the newest payload again gives the same version."""
        header = weights_pb2.WeightsHeader(
            training_step=training_step, total_bytes=len(payload), sha256=hashlib.sha256(payload).digest()
        )
        response = self._call(
            lambda seconds: self._weights.PublishWeights(_publication(header, payload), timeout=seconds), timeout
        )
        return response.weights_version

    def get_weights(self, newer_than: int, timeout: float = 60.0) -> Weights | None:
        """The newest weights if their version is above `newer_than`, else None; checked against their sha256."""
        request = weights_pb2.GetWeightsRequest(newer_than=newer_than)
        return self._call(lambda seconds: _collect_weights(self._weights.GetWeights(request, timeout=seconds)), timeout)

    def register_process(
        self, role: str, process_id: str, metrics_address: str, pid: int, timeout: float = 60.0
    ) -> float:
        """Say that a process is alive; returns the seconds within which to say so again."""
        request = replay_pb2.RegisterProcessRequest(
            role=role, process_id=process_id, metrics_address=metrics_address, pid=pid
        )
        return self._call(lambda seconds: self._replay.RegisterProcess(request, timeout=seconds), timeout).ttl_seconds

    def close(self) -> None:
        """End the connection; calls in other threads fail, also those that wait to be repeated."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, attempt: Callable[[float], Result], timeout: float) -> Result:
        """Repeat an attempt, which takes its seconds, until it succeeds, is refused for good, or the timeout passes."""
        deadline = time.monotonic() + timeout
        backoff = _MIN_BACKOFF_SECONDS
        while True:
            seconds = min(max(deadline - time.monotonic(), 0.001), _ATTEMPT_SECONDS)
            try:
                return self._attempt(attempt, seconds)
            except ReplayTimeout as failure:
                # A held call has waited at the server already; only an unreachable server needs the pause.
                held = failure.reason == Reason.RATE_LIMITED
                pause = 0.0 if held else backoff * random.uniform(0.5, 1.5)  # noqa: S311 -- jitter
                if time.monotonic() + pause >= deadline:
                    raise
            backoff = _MIN_BACKOFF_SECONDS if held else min(backoff * 2, _MAX_BACKOFF_SECONDS)
            self._closed.wait(pause)

    def _attempt(self, attempt: Callable[[float], Result], seconds: float) -> Result:
        if self._closed.is_set():
            raise ReplayError("CANCELLED", "the client is closed")
        try:
            return attempt(seconds)
        except grpc.RpcError as error:
            if self._closed.is_set():
                raise ReplayError("CANCELLED", "the client is closed") from None
            raise _replay_error(error) from None
        except ValueError as error:
            # What grpc raises when another thread closes the channel just before a call starts.
            if self._closed.is_set():
                raise ReplayError("CANCELLED", "the client is closed") from error
            raise


class ProcessRegistration:
    """Keeps a process registered with the replay server while it lives, from a thread of its own."""

    def __init__(self, client: ReplayClient, role: str, process_id: str, metrics_address: str, pid: int) -> None:
        self._register: Callable[[float], float] = lambda timeout: client.register_process(
            role, process_id, metrics_address, pid, timeout
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"registration-{process_id}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        interval = 1.0
        while True:
            try:
                interval = self._register(2.0) / 3
            except ReplayTimeout:
                interval = 1.0
            except ReplayError as error:
                if error.reason != "CANCELLED":
                    logger.exception("this process will not be found at /sd")
                return
            if self._stop.wait(interval):
                return

    def close(self) -> None:
        """Stop registering and join the thread; the server drops the process after its time to live."""
        self._stop.set()
        self._thread.join()


def create_table_when_reachable(client: ReplayClient, config: TableConfig, stop: threading.Event) -> bool:
    """Create a table as soon as the server answers, however long that takes; says in the log that it waits.

    Returns:
        Whether the table is there; False if `stop` was set first.

    Raises:
        ReplayError: the server refused.
    """
    said = False
    while not stop.is_set():
        try:
            client.create_table(config, timeout=_FIRST_CONTACT_SECONDS)
        except ReplayTimeout as error:
            if not said:
                logger.warning("waiting for the replay server at %s: %s", client.address, error.message)
            said = True
        else:
            return True
    return False


@contextmanager
def registered_process(
    client: ReplayClient, role: str, process_id: str, registry: CollectorRegistry, host: str, port: int
) -> Generator[str]:
    """Serve a process's metrics and keep it registered, so that Prometheus finds it at the server's `/sd`.

    Args:
        client: of the replay server.
        role: "learner", "actor", "evaluator" or a role of your own.
        process_id: unique among live processes.
        registry: what /metrics shows.
        host: interface that serves it, as others reach this machine.
        port: its port; 0 takes a free one.

    Yields:
        host:port of /metrics.

    Raises:
        OSError: the port is taken.
    """
    server, thread = start_http_server(port, host, registry)
    address = f"{host}:{server.server_port}"
    registration = ProcessRegistration(client, role, process_id, address, os.getpid())
    try:
        yield address
    finally:
        registration.close()
        server.shutdown()
        thread.join()
        server.server_close()


def _channel_options(client_name: str, max_message_bytes: int) -> list[tuple[str, int | str]]:
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


def _replay_error(error: grpc.RpcError) -> ReplayError:
    """The error to raise; a ReplayTimeout if repeating the call may help."""
    if not isinstance(error, grpc.Call):
        raise error
    code = error.code()
    given = {datum.key: str(datum.value) for datum in error.trailing_metadata() or ()}
    reason = given.get(REASON_METADATA_KEY, code.name)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and REASON_METADATA_KEY not in given:
        reason = str(Reason.MESSAGE_TOO_LARGE)  # gRPC itself refuses what is far too large
    kind = ReplayTimeout if code in _RETRIED_CODES else ReplayError
    return kind(reason, error.details() or "no details")


def _publication(header: weights_pb2.WeightsHeader, payload: bytes) -> Iterator[weights_pb2.PublishWeightsRequest]:
    yield weights_pb2.PublishWeightsRequest(header=header)
    for start in range(0, len(payload), _CHUNK_BYTES):
        yield weights_pb2.PublishWeightsRequest(chunk=payload[start : start + _CHUNK_BYTES])


def _collect_weights(parts: Iterator[weights_pb2.GetWeightsResponse]) -> Weights | None:
    header = next(parts).header
    payload = b"".join(part.chunk for part in parts)
    if header.total_bytes == 0:
        return None
    if hashlib.sha256(payload).digest() != header.sha256:
        raise ReplayError(Reason.BAD_WEIGHTS, f"weights {header.weights_version} arrived damaged")
    return Weights(header.weights_version, header.training_step, payload)


def _table_info(info: replay_pb2.TableInfo) -> TableInfo:
    return TableInfo(
        config=codec.decode_table_config(info.config),
        num_steps=info.num_steps,
        num_trajectories=info.num_trajectories,
        inserted_steps=info.inserted_steps,
        inserted_trajectories=info.inserted_trajectories,
        sampled_positions=info.sampled_positions,
        insert_blocked_because=info.insert_blocked_because,
        sample_blocked_because=info.sample_blocked_because,
    )
