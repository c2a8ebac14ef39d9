"""Draws one batch from several servers at once, and carries priorities back to where they belong."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from replay_server.answers import ReplayError, ReplayTimeout, UpdateResult
from replay_server.connection import Backoff, closed_error
from replay_server.ordered_stream import wait_seconds
from replay_server.sharding import Part, ShardedBatch, ShardedUpdates, Share, join_batches, join_tables, split_batch
from replay_server.shards import Shards
from zero.trajectories import PriorityUpdates, SampleSpec, TableShare
from zero.wire import codec
from zero.wire.codec import CodecError, Reason, as_array

Result = TypeVar("Result")

_HELD = (Reason.RATE_LIMITED, Reason.TOO_BUSY)
_REQUEST_SECONDS = 2.0
"""A stream asks again after so long, so that ending it never takes longer."""


class ShardedSampler:
    """Splits batches among the living servers, for any number of threads."""

    def __init__(self, shards: Shards, rng: np.random.Generator) -> None:
        self._shards = shards
        self._rng = rng
        self._lock = threading.Lock()

    def draw(self, table: str, spec: SampleSpec, updates: ShardedUpdates | None, timeout: float) -> ShardedBatch:
        """Draw a batch; rows that a server does not deliver are drawn from the others.

        Args:
            table: its name.
            spec: what the batch is to hold.
            updates: of earlier batches; those for servers that are away are dropped.
            timeout: in seconds.

        Raises:
            ReplayTimeout: too few servers have answered in time.
            ReplayError: one refused.
        """
        deadline = time.monotonic() + timeout
        backoff = Backoff()
        riding = _by_shard(updates)
        parts: list[Part] = []
        shares: dict[int, Share] = {}
        missing = spec.batch_size
        while True:
            living = self._shards.shares(table, max(deadline - time.monotonic(), 0.0))
            shares = {part.shard: shares[part.shard] for part in parts} | living
            drawn, failure = self._draw_once(table, replace(spec, batch_size=missing), living, riding, deadline)
            parts += drawn
            missing -= sum(len(part.batch.keys) for part in drawn)
            if not missing:
                return join_batches(parts, shares, spec.importance_sampling_exponent)
            if failure is None or time.monotonic() >= deadline:
                raise failure or ReplayTimeout("DEADLINE_EXCEEDED", f"no batch within {timeout:g} s")
            if failure.reason in _HELD:
                time.sleep(min(backoff.pause_after(failure), max(deadline - time.monotonic(), 0.0)))

    def draw_mix(self, shares: Sequence[TableShare], spec: SampleSpec, timeout: float) -> ShardedBatch:
        """Draw a batch from several tables at once; each gives its rows as to `draw`.

        Args:
            shares: with ShardedUpdates, where there are updates.
            spec: what the batch is to hold.
            timeout: in seconds.

        Raises:
            ReplayTimeout: too few servers have answered in time.
            ReplayError: one refused, or BAD_MESSAGE, or WRONG_SIGNATURE: the tables have different columns.
        """
        _check_mix(shares, spec)
        with self._lock:
            rows = split_batch(spec.batch_size, np.array([share.fraction for share in shares]), self._rng)
        part = replace(spec, importance_sampling_exponent=0.0)
        with ThreadPoolExecutor(len(shares), thread_name_prefix="mix") as tables:
            calls = [
                tables.submit(self._draw_share, share, replace(part, batch_size=count), timeout)
                for share, count in zip(shares, rows.tolist(), strict=True)
            ]
            return join_tables(results_of(calls), spec.importance_sampling_exponent)

    def _draw_share(self, share: TableShare, spec: SampleSpec, timeout: float) -> ShardedBatch | None:
        """The rows of one table, if it is to give any."""
        updates = cast("ShardedUpdates | None", share.updates)
        if spec.batch_size:
            return self.draw(share.table, spec, updates, timeout)
        if updates is not None:
            self.update(share.table, updates, timeout)
        return None

    def update(self, table: str, updates: ShardedUpdates, timeout: float) -> UpdateResult:
        """Set priorities on the living servers.

        Raises:
            ReplayTimeout: one has not answered in time.
            ReplayError: one refused.
        """
        calls = [
            shard.drawing.submit(shard.patient.update_priorities, table, own, timeout)
            for number, own in _by_shard(updates).items()
            if (shard := self._shards.shards[number]).info is not None
        ]
        results = results_of(calls)
        return UpdateResult(sum(result.updated for result in results), sum(result.evicted for result in results))

    def _draw_once(
        self,
        table: str,
        spec: SampleSpec,
        living: Mapping[int, Share],
        riding: dict[int, PriorityUpdates],
        deadline: float,
    ) -> tuple[list[Part], ReplayTimeout | None]:
        """What the living servers deliver of a batch, and the last failure of one that does not."""
        numbers = list(living)
        with self._lock:
            counts = split_batch(spec.batch_size, np.array([living[number].mass for number in numbers]), self._rng)
        calls: dict[int, Future[Part | None]] = {}
        for number, count in zip(numbers, counts.tolist(), strict=True):
            own = riding.pop(number, None)
            if count or own is not None:
                draw = self._shards.shards[number].drawing.submit
                calls[number] = draw(self._draw_from, number, table, replace(spec, batch_size=count), own, deadline)
        parts: list[Part] = []
        failure: ReplayTimeout | None = None
        for number, call in calls.items():
            try:
                part = call.result()
            except CancelledError:
                raise closed_error() from None
            except ReplayTimeout as error:
                failure = error
                if error.reason not in _HELD and time.monotonic() < deadline:
                    self._shards.set_away(number, error)
            else:
                parts += [part] if part is not None else []
        return parts, failure

    def _draw_from(
        self, number: int, table: str, spec: SampleSpec, updates: PriorityUpdates | None, deadline: float
    ) -> Part | None:
        """What one server delivers, if it is to deliver anything; updates alone go without a draw."""
        client = self._shards.shards[number].hasty
        seconds = max(deadline - time.monotonic(), 0.001)
        if not spec.batch_size:
            if updates is not None:
                client.update_priorities(table, updates, seconds)
            return None
        batch = client.sample(
            table, spec.batch_size, spec.windows, updates, filter=spec.filter, n_step=spec.n_step, timeout=seconds
        )
        return Part(number, batch)


class ShardedSampleStream:
    """An endless iterator of batches from several servers, drawn ahead, for one thread."""

    def __init__(
        self, sampler: ShardedSampler, table: str, spec: SampleSpec, *, in_flight: int, timeout: float
    ) -> None:
        """Use ShardedClient.sample_stream."""
        self._sampler = sampler
        self._table = table
        self._spec = spec
        self._timeout = timeout
        self._trouble: ReplayTimeout | None = None
        self._updates: list[ShardedUpdates] = []
        self._closed = threading.Event()
        self._executor = ThreadPoolExecutor(in_flight, thread_name_prefix=f"draw-{table}")
        self._drawn: deque[Future[ShardedBatch]] = deque()
        for _ in range(in_flight):
            self._ask()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ShardedBatch:
        """The next batch; its arrays are the caller's own.

        Raises:
            ReplayTimeout: none came within the timeout; asking again goes on waiting for it.
            ReplayError: a server refused the request, or the stream is closed.
        """
        if self._closed.is_set():
            raise closed_error()
        drawn = self._drawn[0]
        wait([drawn], wait_seconds(self._timeout))
        if not drawn.done():
            trouble = self._trouble or ReplayTimeout("DEADLINE_EXCEEDED", f"no batch within {self._timeout:g} s")
            raise ReplayTimeout(trouble.reason, trouble.message)
        self._drawn.popleft()
        self._ask()
        return drawn.result()

    def update_priorities(self, updates: ShardedUpdates) -> None:
        """Send priorities of earlier batches with the next request; see ShardedBatch.updates."""
        self._updates.append(updates)

    def close(self) -> None:
        """End drawing and send the priorities that are held.

        Raises:
            ReplayError: a server refused them, or the timeout passed.
        """
        self._end()
        updates = self._take_updates()
        if updates is not None:
            self._sampler.update(self._table, updates, self._timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end()

    def _end(self) -> None:
        self._closed.set()
        self._executor.shutdown(cancel_futures=True)

    def _ask(self) -> None:
        self._drawn.append(self._executor.submit(self._draw, self._take_updates()))

    def _draw(self, updates: ShardedUpdates | None) -> ShardedBatch:
        while not self._closed.is_set():
            try:
                batch = self._sampler.draw(self._table, self._spec, updates, _REQUEST_SECONDS)
            except ReplayTimeout as error:
                self._trouble = error
                updates = None  # they have gone with the first request
            else:
                self._trouble = None
                return batch
        raise closed_error()

    def _take_updates(self) -> ShardedUpdates | None:
        held, self._updates = self._updates, []
        if not held:
            return None
        return ShardedUpdates(
            np.concatenate([updates.keys for updates in held]),
            np.concatenate([updates.priorities for updates in held]),
            np.concatenate([updates.shards for updates in held]),
        )


def _check_mix(shares: Sequence[TableShare], spec: SampleSpec) -> None:
    """Refuse what a server would: none of them sees the whole request."""
    if not shares:
        raise ReplayError(Reason.BAD_MESSAGE, "the mix is empty, must name at least one table")
    for share in shares:
        if share.updates is not None and not isinstance(share.updates, ShardedUpdates):
            raise ReplayError(
                Reason.BAD_MESSAGE, f"updates of table {share.table!r} do not say of which shards; give ShardedUpdates"
            )
    try:
        request = codec.encode_mix_request([replace(share, updates=None) for share in shares], spec)
        codec.decode_table_shares(request)
        codec.decode_sample_spec(request)
    except CodecError as error:
        raise ReplayError(error.reason, error.message) from None


def results_of(calls: Sequence[Future[Result]]) -> list[Result]:
    """All results of calls on threads of shards, when all have ended.

    Raises:
        ReplayError: the client was closed before one had begun.
        Exception: the first that a call raised.
    """
    # Not wait(): it takes no notice of calls that are cancelled.
    errors = [error for call in calls if (error := _error_of(call)) is not None]
    if errors:
        raise errors[0]
    return [call.result() for call in calls]


def _error_of(call: Future[Result]) -> BaseException | None:
    try:
        return call.exception()
    except CancelledError:
        return closed_error()


def _by_shard(updates: ShardedUpdates | None) -> dict[int, PriorityUpdates]:
    if updates is None:
        return {}
    keys = as_array("keys", updates.keys)
    priorities = cast(NDArray[np.float32], as_array("priorities", updates.priorities))
    return {
        number: PriorityUpdates(cast(NDArray[np.uint64], keys)[own], priorities[own])
        for number in np.unique(updates.shards).tolist()
        if len(own := np.flatnonzero(updates.shards == number))
    }
