"""Several replay servers as one: inserts by trajectory id, batches from all, updates to where they belong."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from replay_server.answers import InsertResult, ServerInfo, UpdateResult
from replay_server.client import ReplayClient
from replay_server.credentials import Credentials
from replay_server.flushed import FlushedStream
from replay_server.insert_stream import InsertStream
from replay_server.sharded_sampling import ShardedSampler, ShardedSampleStream, results_of
from replay_server.sharding import Placement, ShardedBatch, ShardedUpdates
from replay_server.shards import Shards
from zero.tables import RateLimiterConfig, TableConfig
from zero.trajectories import NStep, SampleSpec, StepFilter, TableShare, Trajectory, TrajectoryFilter, Window
from zero.wire.codec import as_array

Result = TypeVar("Result")


class ShardedClient:
    """Several replay servers as one, for any number of threads; a table is on all of them, each with its own limits.

    A trajectory is on the server that its id is hashed to, wherever it is inserted from. A batch is drawn from all
    servers at once, from each in proportion to what it holds; one that is away is left out, and taken back when it
    answers again. Timeouts and errors as in ReplayClient. What concerns one server, such as weights, is its
    ReplayClient's business.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: Credentials | None = None,
        divert_inserts: bool = False,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Connects, and looks at the servers every second from a thread of its own.

        Args:
            addresses: host:port of every server, spelled alike by all clients: trajectories are placed by them.
            credentials: what to trust and show, to all of them.
            divert_inserts: insert what belongs to a server that is away into the next one, instead of waiting. This
                client remembers where its last 100,000 trajectories went; one that is inserted again by another client,
                or later, may be stored twice.
            rng: splits batches.

        Raises:
            ValueError: no address, or one twice.
            CredentialsError: as ReplayClient.
        """
        self._shards = Shards(addresses, credentials)
        self._placement = Placement(addresses, divert=divert_inserts)
        self._sampler = ShardedSampler(self._shards, rng or np.random.default_rng())

    # --- tables, on all servers ---

    def create_table(self, config: TableConfig, timeout: float = 60.0) -> bool:
        """Create a table on every server; True if it is new on one. Sizes and limits are those of each server."""
        created = self._on_all(lambda client: client.create_table(config, timeout))
        self._shards.look()
        return any(created)

    def set_rate_limiter(self, table: str, limits: RateLimiterConfig, timeout: float = 60.0) -> None:
        """Change when calls wait, on every server."""
        self._on_all(lambda client: client.set_rate_limiter(table, limits, timeout))

    def reset_table(self, table: str, timeout: float = 60.0) -> int:
        """Delete everything that a table holds and remembers; returns how many trajectories it held."""
        return sum(self._on_all(lambda client: client.reset_table(table, timeout)))

    def delete_table(self, table: str, timeout: float = 60.0) -> None:
        """Delete a table from every server."""
        self._on_all(lambda client: client.delete_table(table, timeout))

    def server_infos(self) -> dict[str, ServerInfo | None]:
        """The state of every server by its address, at most about a second old; None of one that is away."""
        return {shard.address: shard.info for shard in self._shards.shards}

    # --- trajectories in ---

    def insert(
        self, table: str | Sequence[str], trajectories: Sequence[Trajectory], timeout: float = 60.0
    ) -> InsertResult:
        """Store trajectories; all or none of those that belong to one server.

        Raises:
            ReplayError: a server refused; others may have stored theirs. Repeating the call is safe.
        """
        results = [
            self._shards.shards[shard].inserting.submit(
                self._shards.shards[shard].patient.insert, table, group, timeout
            )
            for shard, group in self._groups_of(trajectories).items()
        ]
        return _sum_of(results_of(results))

    def insert_stream(
        self, table: str | Sequence[str], *, in_flight: int = 8, max_bytes: int = 64 << 20, timeout: float = 60.0
    ) -> "ShardedInsertStream":
        """A stream for many inserts; the bounds are those of each server."""
        streams = [
            shard.patient.insert_stream(table, in_flight=in_flight, max_bytes=max_bytes, timeout=timeout)
            for shard in self._shards.shards
        ]
        return ShardedInsertStream(
            streams, lambda trajectories: self._placement.groups(trajectories, self._shards.is_alive)
        )

    def update_columns(
        self,
        table: str,
        keys: NDArray[np.uint64],
        shards: NDArray[np.int32],
        columns: Mapping[str, NDArray[np.generic]],
        timeout: float = 60.0,
        *,
        version_column: str = "",
    ) -> UpdateResult:
        """Replace values of stored steps; as ReplayClient.update_columns.

        Args:
            table: its name.
            keys: uint64 [N], as ShardedBatch.keys gave them.
            shards: int32 [N], as ShardedBatch.shards gave them.
            columns: the new values [N, ...].
            timeout: in seconds.
            version_column: as in ReplayClient.update_columns.
        """
        key_array = cast(NDArray[np.uint64], as_array("keys", keys))
        arrays = {name: as_array(name, values) for name, values in columns.items()}
        updates: list[Future[UpdateResult]] = []
        for number in np.unique(shards):
            own = shards == number
            values = {name: array[own] for name, array in arrays.items()}
            shard = self._shards.shards[number]
            update = partial(shard.patient.update_columns, version_column=version_column)
            updates.append(shard.inserting.submit(update, table, key_array[own], values, timeout))
        results = results_of(updates)
        return UpdateResult(
            sum(result.updated for result in results),
            sum(result.evicted for result in results),
            sum(result.outdated for result in results),
        )

    def delete_trajectories(self, table: str, chosen: TrajectoryFilter, timeout: float = 60.0) -> int:
        """Delete trajectories from every server; returns how many."""
        return sum(self._on_all(lambda client: client.delete_trajectories(table, chosen, timeout)))

    # --- sequences and trajectories out ---

    def sample(
        self,
        table: str,
        batch_size: int,
        windows: Mapping[str, int | Window],
        updates: ShardedUpdates | None = None,
        *,
        importance_sampling_exponent: float = 0.0,
        filter: StepFilter = StepFilter(),  # noqa: A002, B008 -- as in ReplayClient
        n_step: NStep | None = None,
        timeout: float = 60.0,
    ) -> ShardedBatch:
        """Draw a batch from all servers; as ReplayClient.sample. Updates for one that is away are dropped."""
        spec = SampleSpec(batch_size, windows, importance_sampling_exponent, filter, n_step)
        return self._sampler.draw(table, spec, updates, timeout)

    def sample_mix(self, shares: Sequence[TableShare], spec: SampleSpec, timeout: float = 60.0) -> ShardedBatch:
        """Draw a batch from several tables; as ReplayClient.sample_mix, from all servers.

        Each table is drawn from by itself: what one has given, and hands out no more, is lost if another gives nothing
        within the timeout.

        Args:
            shares: the tables, whose updates are ShardedUpdates of the rows that each gave.
            spec: what the batch is to hold.
            timeout: in seconds.
        """
        return self._sampler.draw_mix(shares, spec, timeout)

    def sample_stream(
        self, table: str, spec: SampleSpec, *, in_flight: int = 2, timeout: float = 60.0
    ) -> ShardedSampleStream:
        """An endless iterator of batches; as ReplayClient.sample_stream."""
        return ShardedSampleStream(self._sampler, table, spec, in_flight=in_flight, timeout=timeout)

    def update_priorities(self, table: str, updates: ShardedUpdates, timeout: float = 60.0) -> UpdateResult:
        """Set priorities outside of sampling; those for a server that is away are dropped, and not counted."""
        return self._sampler.update(table, updates, timeout)

    def read_trajectories(
        self,
        table: str,
        filter: TrajectoryFilter | None = None,  # noqa: A002 -- as in ReplayClient
        timeout: float = 600.0,
    ) -> Iterator[Trajectory]:
        """Stored trajectories, of one server after the other; the timeout is for each."""
        return itertools.chain.from_iterable(
            shard.patient.read_trajectories(table, filter, timeout=timeout) for shard in self._shards.shards
        )

    def close(self) -> None:
        """End all connections; calls in other threads fail."""
        self._shards.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _groups_of(self, trajectories: Sequence[Trajectory]) -> Mapping[int, Sequence[Trajectory]]:
        return self._placement.groups(trajectories, self._shards.is_alive)

    def _on_all(self, call: Callable[[ReplayClient], Result]) -> list[Result]:
        return results_of([shard.inserting.submit(call, shard.patient) for shard in self._shards.shards])


class ShardedInsertStream(FlushedStream):
    """Inserts over a stream to every server; as InsertStream, in order for each of them."""

    def __init__(
        self,
        streams: Sequence[InsertStream],
        groups_of: Callable[[Sequence[Trajectory]], Mapping[int, Sequence[Trajectory]]],
    ) -> None:
        """Use ShardedClient.insert_stream."""
        self._streams = streams
        self._groups_of = groups_of

    def insert(self, trajectories: Sequence[Trajectory]) -> Future[InsertResult]:
        """Send trajectories, each to its server; waits while one of these has too much in flight.

        Returns:
            The outcome: an error if one server refused; others may have stored theirs.

        Raises:
            ReplayError: as InsertStream.insert.
        """
        groups = self._groups_of(trajectories)
        return _joined([self._streams[shard].insert(group) for shard, group in groups.items()])

    def flush(self) -> None:
        """Wait until everything is acknowledged; as InsertStream.flush."""
        for stream in self._streams:
            stream.flush()

    def close(self) -> None:
        """End the streams; inserts that are not acknowledged fail."""
        for stream in self._streams:
            stream.close()


def _sum_of(results: Sequence[InsertResult]) -> InsertResult:
    return InsertResult(sum(result.stored for result in results), sum(result.duplicates for result in results))


def _joined(parts: Sequence[Future[InsertResult]]) -> Future[InsertResult]:
    """The sum of what several servers have stored, when the last has answered."""
    if len(parts) == 1:
        return parts[0]
    whole: Future[InsertResult] = Future()
    whole.set_running_or_notify_cancel()
    lock = threading.Lock()
    waiting = len(parts)

    def finish(_: Future[InsertResult]) -> None:
        nonlocal waiting
        with lock:
            waiting -= 1
            if waiting:
                return
        errors = [error for part in parts if (error := part.exception()) is not None]
        if errors:
            whole.set_exception(errors[0])
        else:
            whole.set_result(_sum_of([part.result() for part in parts]))

    for part in parts:
        part.add_done_callback(finish)
    return whole
