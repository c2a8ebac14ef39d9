"""The one client of the replay server: trajectories in, sequences out, weights both ways, processes registered."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, start_http_server

from replay_server.answers import (
    InsertResult,
    ReplayError,
    ReplayTimeout,
    ServerInfo,
    UpdateResult,
    Verification,
    Weights,
    decode_server_info,
    decode_stored_trajectory,
)
from replay_server.connection import Connection, own
from replay_server.credentials import Credentials, is_loopback
from replay_server.event_sender import sending_events
from replay_server.insert_stream import InsertStream
from replay_server.malloc import tune_malloc
from replay_server.priority_stream import PriorityStream
from replay_server.recorded_metrics import RecordingRegistry
from replay_server.sample_stream import SampleStream, StreamState
from zero.tables import RateLimiterConfig, TableConfig
from zero.trajectories import (
    Lease,
    NStep,
    PriorityUpdates,
    SampleSpec,
    SequenceBatch,
    StepFilter,
    TableShare,
    Trajectory,
    TrajectoryFilter,
    Window,
)
from zero.wire import codec, frames, replay_pb2, replay_pb2_grpc, weights_pb2, weights_pb2_grpc
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_FIRST_CONTACT_SECONDS = 2.0
_REGISTRATION_SECONDS = 10.0
_INSERT = "/zero.v1.ReplayService/Insert"
_SAMPLE = "/zero.v1.ReplayService/Sample"

Result = TypeVar("Result")


class ReplayClient:
    """A connection to a replay server, for any number of threads.

    Every method takes a timeout in seconds for everything it does. Until then, calls are repeated while the server
    cannot be reached, is recovering or too busy, or its rate limiter holds them; every method is safe to repeat, so a
    restart of the server at the same address goes unnoticed.

    Attributes:
        address: host:port.
        newest_weights: the version that the acknowledgement of the last `insert` named; 0 for none.

    Raises:
        ReplayError: the server refused a call for a reason that waiting does not mend.
        ReplayTimeout: the timeout passed.
        CodecError: an array is of a dtype that cannot be sent.
    """

    def __init__(
        self,
        address: str,
        *,
        client_name: str = "client",
        max_message_bytes: int = 64 << 20,
        compress: bool = False,
        credentials: Credentials | None = None,
        repeat: bool = True,
    ) -> None:
        """Connects lazily, and tunes the process's allocator for large messages (`tune_malloc`).

        Args:
            address: host:port.
            client_name: for the server's log.
            max_message_bytes: the largest message sent or taken.
            compress: send columns as zstd frames, for networks slower than a gigabit.
            credentials: what to trust and show; without any nothing is encrypted and no token sent.
            repeat: False lets a call fail with its first attempt; streams go on repeating.

        Raises:
            CredentialsError: a file cannot be used, or others could read the token.
        """
        tune_malloc()
        self.address = address
        self.newest_weights = 0
        self._compress = compress
        self._repeat = repeat
        self._connection = Connection(address, client_name, max_message_bytes, credentials)
        channel = self._connection.channel
        self._replay = replay_pb2_grpc.ReplayServiceStub(channel)
        self._weights = weights_pb2_grpc.WeightsServiceStub(channel)
        # These two move large messages, which are written and read without protobuf.
        self._insert: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_INSERT)
        self._sample: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_SAMPLE)

    # --- tables ---

    def create_table(self, config: TableConfig, timeout: float = 60.0) -> bool:
        """Create a table, or confirm that it exists with this very config; True if it is new."""
        request = replay_pb2.CreateTableRequest(table=codec.encode_table_config(config))
        return self._call(lambda seconds: self._replay.CreateTable(request, timeout=seconds), timeout).created

    def set_rate_limiter(self, table: str, limits: RateLimiterConfig, timeout: float = 60.0) -> None:
        """Change when calls wait, for good."""
        request = replay_pb2.SetRateLimiterRequest(table=table, rate_limiter=codec.encode_rate_limiter(limits))
        self._call(lambda seconds: self._replay.SetRateLimiter(request, timeout=seconds), timeout)

    def reset_table(self, table: str, timeout: float = 60.0) -> int:
        """Delete everything that a table holds and remembers; returns how many trajectories it held."""
        request = replay_pb2.ResetTableRequest(table=table)
        return self._call(lambda seconds: self._replay.ResetTable(request, timeout=seconds), timeout).deleted

    def delete_table(self, table: str, timeout: float = 60.0) -> None:
        """Delete a table."""
        request = replay_pb2.DeleteTableRequest(table=table)
        self._call(lambda seconds: self._replay.DeleteTable(request, timeout=seconds), timeout)

    def verify_table(self, table: str, timeout: float = 600.0) -> Verification:
        """Let the server read the log of a table, check it, and hold it against memory."""
        request = replay_pb2.VerifyTableRequest(table=table)
        # One attempt may take as long as the timeout: a large log is read from its beginning.
        response = self._call(lambda _: self._replay.VerifyTable(request, timeout=timeout), timeout)
        return Verification(response.entries, response.chunks, response.bytes, tuple(response.problems))

    def server_info(self, timeout: float = 60.0) -> ServerInfo:
        """What the server holds, and why calls wait; also while it loads its log."""
        request = replay_pb2.GetServerInfoRequest()
        return decode_server_info(
            self._call(lambda seconds: self._replay.GetServerInfo(request, timeout=seconds), timeout)
        )

    # --- trajectories in ---

    def insert(
        self,
        table: str | Sequence[str],
        trajectories: Sequence[Trajectory],
        timeout: float = 60.0,
        *,
        lease: Lease | None = None,
    ) -> InsertResult:
        """Store trajectories, all or none; returns when they are as durable as the tables promise.

        Args:
            table: its name, or those of several that get the same.
            trajectories: at least one; chunks of one trajectory in their order.
            timeout: in seconds.
            lease: of a name of the first table; the insert is refused (LEASE_LOST) once another producer has it.
        """
        request = frames.encode_insert_request(_names(table), trajectories, compress=self._compress, lease=lease)
        size = _size_metadata(len(request))
        answer = self._call(lambda seconds: self._insert(request, timeout=seconds, metadata=size), timeout)
        response = replay_pb2.InsertResponse.FromString(answer)
        self.newest_weights = response.weights_version
        return InsertResult(response.stored, response.duplicates)

    def insert_stream(
        self,
        table: str | Sequence[str],
        *,
        in_flight: int = 8,
        max_bytes: int = 64 << 20,
        timeout: float = 60.0,
        raise_failures: bool = True,
    ) -> InsertStream:
        """A stream for many inserts, several of which are in flight.

        Args:
            table: its name, or those of several that get the same.
            in_flight: the most inserts without an acknowledgement.
            max_bytes: their most bytes.
            timeout: seconds until an insert that is not acknowledged fails, and for which one waits to be sent.
            raise_failures: let a failed insert also raise in the next one, or in `flush`; False if the outcome of every
                insert is looked at.
        """
        return InsertStream(
            self._connection,
            _names(table),
            compress=self._compress,
            in_flight=in_flight,
            max_bytes=max_bytes,
            timeout=timeout,
            raise_failures=raise_failures,
        )

    def update_columns(
        self,
        table: str,
        keys: NDArray[np.uint64],
        columns: Mapping[str, NDArray[np.generic]],
        timeout: float = 60.0,
        *,
        version_column: str = "",
    ) -> UpdateResult:
        """Replace values of stored steps, as durably as an insert.

        Args:
            table: its name.
            keys: uint64 [N], none twice, as SequenceBatch.keys gave them.
            columns: the new values [N, ...] of any columns of the table.
            timeout: in seconds.
            version_column: one of these, of integers: a step whose stored value of it is greater stays as it is.
        """
        request = codec.encode_update_columns_request(table, keys, columns, version_column)
        size = _size_metadata(request.ByteSize())
        response = self._call(
            lambda seconds: self._replay.UpdateColumns(request, timeout=seconds, metadata=size), timeout
        )
        return UpdateResult(response.updated, response.evicted, response.outdated)

    def delete_trajectories(self, table: str, chosen: TrajectoryFilter, timeout: float = 60.0) -> int:
        """Delete trajectories; returns how many. Their ids stay known."""
        request = replay_pb2.DeleteTrajectoriesRequest(table=table, filter=codec.encode_trajectory_filter(chosen))
        return self._call(lambda seconds: self._replay.DeleteTrajectories(request, timeout=seconds), timeout).deleted

    # --- sequences and trajectories out ---

    def sample(
        self,
        table: str,
        batch_size: int,
        windows: Mapping[str, int | Window],
        updates: PriorityUpdates | None = None,
        *,
        importance_sampling_exponent: float = 0.0,
        filter: StepFilter = StepFilter(),  # noqa: A002, B008 -- as in replay.proto; an immutable value
        n_step: NStep | None = None,
        timeout: float = 60.0,
    ) -> SequenceBatch:
        """Draw a batch of sequences, after applying priority updates.

        Args:
            table: its name.
            batch_size: positions to draw, with replacement.
            windows: name in the batch to what it shows; n for n steps of the column of that name.
            updates: of earlier batches; safe to repeat.
            importance_sampling_exponent: for importance weights; none if 0.
            filter: what may be drawn.
            n_step: returns to compute.
            timeout: in seconds.

        Returns:
            The batch; its arrays are the caller's own.
        """
        spec = SampleSpec(batch_size, windows, importance_sampling_exponent, filter, n_step)
        return self._draw(codec.encode_sample_request(table, spec, updates), timeout)

    def sample_mix(self, shares: Sequence[TableShare], spec: SampleSpec, timeout: float = 60.0) -> SequenceBatch:
        """Draw a batch from several tables; `rows_per_table` says how many rows each gave."""
        return self._draw(codec.encode_mix_request(shares, spec), timeout)

    def peek(
        self,
        table: str,
        batch_size: int,
        windows: Mapping[str, int | Window],
        *,
        filter: StepFilter = StepFilter(),  # noqa: A002, B008 -- as in `sample`
        timeout: float = 60.0,
    ) -> SequenceBatch:
        """Look at stored positions without using them: the rate limiter neither holds nor counts it.

        Every position is equally likely, whatever the table's selector. Waits while there is none.

        Args:
            table: its name.
            batch_size: positions to draw, with replacement.
            windows: as in `sample`.
            filter: what may be drawn.
            timeout: in seconds.
        """
        spec = SampleSpec(batch_size, windows, filter=filter, peek=True)
        return self._draw(codec.encode_sample_request(table, spec, None), timeout)

    def sample_stream(
        self,
        table: str,
        spec: SampleSpec,
        *,
        in_flight: int = 2,
        timeout: float = 60.0,
        shared_memory: bool = True,
        state: StreamState | None = None,
    ) -> SampleStream:
        """An endless iterator of batches.

        Args:
            table: its name.
            spec: what a batch is to hold.
            in_flight: batches drawn ahead; few, so that their priorities are fresh.
            timeout: seconds to wait for a batch.
            shared_memory: take batches through shared memory if the address is on loopback and the server can, which is
                faster; False to take them over gRPC, always.
            state: makes the draws repeatable by its seed, and goes on from what `SampleStream.state` gave; None draws
                at random.
        """
        return SampleStream(
            self._connection,
            table,
            spec,
            in_flight=in_flight,
            timeout=timeout,
            shared_memory=shared_memory and _is_local(self.address),
            state=state,
        )

    def update_priorities(self, table: str, updates: PriorityUpdates, timeout: float = 60.0) -> UpdateResult:
        """Set priorities outside of sampling."""
        request = replay_pb2.UpdatePrioritiesRequest(table=table, updates=codec.encode_priority_updates(updates))
        response = self._call(lambda seconds: self._replay.UpdatePriorities(request, timeout=seconds), timeout)
        return UpdateResult(response.updated, response.evicted)

    def read_priorities(self, table: str, timeout: float = 60.0) -> PriorityUpdates:
        """The priorities of all stored steps as they are now; none of a table that makes no use of them."""
        request = replay_pb2.ReadPrioritiesRequest(table=table)
        return self._call(
            lambda seconds: _join_priorities(list(self._replay.ReadPriorities(request, timeout=seconds))), timeout
        )

    def priority_stream(self, table: str, timeout: float = 60.0) -> PriorityStream:
        """Priority updates without waiting for each: those that come while a call is under way go with the next one."""
        return PriorityStream(self._connection, table, timeout=timeout)

    def read_trajectories(
        self,
        table: str,
        filter: TrajectoryFilter | None = None,  # noqa: A002 -- as in replay.proto
        limit: int = 0,
        timeout: float = 600.0,
        *,
        newest_first: bool = False,
    ) -> Iterator[Trajectory]:
        """Stored trajectories as they are now, oldest first.

        Args:
            table: its name.
            filter: which ones; None for all.
            limit: the most; 0 for all.
            timeout: for all of them; an interrupted reading is not repeated.
            newest_first: the first `limit` are the newest then.
        """
        request = replay_pb2.ReadTrajectoriesRequest(
            table=table,
            filter=None if filter is None else codec.encode_trajectory_filter(filter),
            limit=limit,
            newest_first=newest_first,
        )
        for part in self._read(request, timeout):
            yield from map(decode_stored_trajectory, part.trajectories)

    def read_since(
        self, table: str, cursor: int, columns: Sequence[str] = (), timeout: float = 600.0
    ) -> Iterator[tuple[int, Sequence[Trajectory]]]:
        """What was inserted since a cursor, chunk by chunk in the order in which it was inserted.

        Args:
            table: its name.
            cursor: 0, or one that this method gave.
            columns: their names; all if empty.
            timeout: for all of it; an interrupted reading goes on from the last cursor that was given.

        Yields:
            Some chunks at a time, and the cursor after them.

        Raises:
            ReplayError: UNKNOWN_CURSOR, the table was made anew since that cursor was given.
        """
        request = replay_pb2.ReadTrajectoriesRequest(table=table, since=cursor, columns=columns)
        for part in self._read(request, timeout):
            yield part.cursor, [decode_stored_trajectory(trajectory) for trajectory in part.trajectories]

    def _read(
        self, request: replay_pb2.ReadTrajectoriesRequest, timeout: float
    ) -> Iterator[replay_pb2.ReadTrajectoriesResponse]:
        call = self._connection.call(
            lambda _: self._replay.ReadTrajectories(request, timeout=timeout), timeout, repeat=False
        )
        try:
            while (part := self._connection.call(lambda _: next(call, None), timeout, repeat=False)) is not None:
                yield part
        finally:
            call.cancel()

    # --- leases ---

    def acquire_lease(
        self, table: str, name: str, holder: str, seconds: float, *, shared: bool = False, timeout: float = 60.0
    ) -> Lease:
        """Claim a name for a producer, or let the claim last longer; inserts with an older lease are refused then.

        Args:
            table: that is inserted into.
            name: what is claimed.
            holder: who claims it, of no other producer.
            seconds: from now on.
            shared: others may hold it, too, who say so.
            timeout: in seconds.

        Raises:
            ReplayError: LEASE_HELD, another producer has it.
        """
        request = replay_pb2.AcquireLeaseRequest(
            table=table, name=name, holder=holder, ttl_seconds=seconds, shared=shared
        )
        answer = self._call(lambda seconds: self._replay.AcquireLease(request, timeout=seconds), timeout)
        return Lease(name, answer.token)

    def release_lease(self, table: str, name: str, holder: str, timeout: float = 60.0) -> None:
        """Give a name back; nothing happens if the holder does not have it any more."""
        request = replay_pb2.ReleaseLeaseRequest(table=table, name=name, holder=holder)
        self._call(lambda seconds: self._replay.ReleaseLease(request, timeout=seconds), timeout)

    # --- weights and processes ---

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
        """End streams and the connection; calls in other threads fail, also those that wait to be repeated."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, attempt: Callable[[float], Result], timeout: float) -> Result:
        return self._connection.call(attempt, timeout, repeat=self._repeat)

    def _draw(self, request: replay_pb2.SampleRequest, timeout: float) -> SequenceBatch:
        message = request.SerializeToString()
        return self._call(
            lambda seconds: frames.decode_sample_response(own(self._sample(message, timeout=seconds))), timeout
        )


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
                interval = self._register(_REGISTRATION_SECONDS) / 3
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

    What a RecordingRegistry records is sent to the server meanwhile.

    Args:
        client: of the replay server.
        role: "learner", "actor", "reanalyser", "evaluator" or a role of your own.
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
        if isinstance(registry, RecordingRegistry):
            with sending_events(client, process_id, registry.events):
                yield address
        else:
            yield address
    finally:
        registration.close()
        server.shutdown()
        thread.join()
        server.server_close()


def _is_local(address: str) -> bool:
    return address.startswith("unix:") or is_loopback(address.rpartition(":")[0])


def _names(table: str | Sequence[str]) -> Sequence[str]:
    return (table,) if isinstance(table, str) else table


def _size_metadata(num_bytes: int) -> tuple[tuple[str, str]]:
    """Says beforehand how large a message is: the server then keeps no room for the largest while it arrives."""
    return ((codec.MESSAGE_BYTES_METADATA_KEY, str(num_bytes)),)


def _publication(header: weights_pb2.WeightsHeader, payload: bytes) -> Iterator[weights_pb2.PublishWeightsRequest]:
    yield weights_pb2.PublishWeightsRequest(header=header)
    for start in range(0, len(payload), _CHUNK_BYTES):
        yield weights_pb2.PublishWeightsRequest(chunk=payload[start : start + _CHUNK_BYTES])


def _join_priorities(parts: Sequence[replay_pb2.ReadPrioritiesResponse]) -> PriorityUpdates:
    updates = [codec.decode_priority_updates(part.priorities) for part in parts]
    none = PriorityUpdates(np.empty(0, np.uint64), np.empty(0, np.float32))
    return PriorityUpdates(
        np.concatenate([none.keys, *(one.keys for one in updates)]),
        np.concatenate([none.priorities, *(one.priorities for one in updates)]),
    )


def _collect_weights(parts: Iterator[weights_pb2.GetWeightsResponse]) -> Weights | None:
    header = next(parts).header
    payload = b"".join(part.chunk for part in parts)
    if header.total_bytes == 0:
        return None
    if hashlib.sha256(payload).digest() != header.sha256:
        raise ReplayError(Reason.BAD_WEIGHTS, f"weights {header.weights_version} arrived damaged")
    return Weights(header.weights_version, header.training_step, payload)
