"""A table as calls meet it: exactly once, rate limited, through the log, counted."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from replay_server.block import Block, decode_block
from replay_server.errors import Refusal
from replay_server.group_commit import GroupCommit
from replay_server.metrics import TableMetrics
from replay_server.rate_limiter import RateLimiter, WaitingLine
from replay_server.table import Stored, Table
from zero.tables import Durability
from zero.trajectories import PriorityUpdates, SequenceBatch
from zero.wire import replay_pb2
from zero.wire.codec import Reason


class _Pending(NamedTuple):
    """A trajectory on its way into the log."""

    digest: bytes
    done: "asyncio.Future[None]"


class Inserted(NamedTuple):
    """What became of an insert, in trajectories."""

    stored: int
    duplicates: int


class ServedTable:
    """All calls on one table; to be used in one event loop, which needs no lock then.

    Attributes:
        table: the table in memory.
    """

    def __init__(self, table: Table, commit: GroupCommit, metrics: TableMetrics, max_bytes: int) -> None:
        """max_bytes bounds a batch and what an insert takes when unpacked."""
        self.table = table
        self._commit = commit
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._limiter = RateLimiter(table.config.rate_limiter, table.num_steps)
        self._inserts = WaitingLine(self._limiter.can_insert, self._limiter.admit)
        self._samples = WaitingLine(self._limiter.can_sample, self._limiter.sample)
        self._pending: dict[str, _Pending] = {}
        durable = table.config.durability is Durability.REDIS
        self._first_position = 0 if durable else table.head  # positions of a durable table count from its creation

    @property
    def inserted_steps(self) -> int:
        """Steps ever inserted; of a table in memory only, since it was made."""
        return self.table.head - self._first_position

    async def insert(self, request: replay_pb2.InsertRequest, message: bytes, seconds: float) -> Inserted:
        """Store the trajectories that are new, all or none.

        Args:
            request: the trajectories.
            message: its bytes.
            seconds: how long the rate limiter may hold it.

        Raises:
            CodecError: a trajectory that this table does not take.
            Refusal: CONTENT_CONFLICT, BAD_LENGTH, RATE_LIMITED, STORE_UNAVAILABLE.
        """
        table = self.table
        deadline = time.monotonic() + seconds
        block = decode_block(
            request.trajectories, table.config.signature, message, table.config.capacity, self._max_bytes
        )
        fresh = await self._fresh(block)
        while fresh:
            steps = sum(block.records[i].num_steps for i in fresh)
            self._limiter.check_insert(steps)
            waited = await self._pass(self._inserts, steps, deadline, self._withdraw, self._metrics.insert_wait)
            if waited and (now := await self._fresh_after_wait(block, steps)) != fresh:
                self._withdraw(steps)
                fresh = now
                continue
            await self._store(block if len(fresh) == len(block.records) else self._part(request, fresh), steps)
            break
        duplicates = len(block.records) - len(fresh)
        self._metrics.duplicates.inc(duplicates)
        return Inserted(len(fresh), duplicates)

    async def _fresh(self, block: Block) -> list[int]:
        """Which trajectories are not known, once nothing is under way that could make them known."""
        while True:
            fresh, pending = self._compare(block)
            if not pending:
                return fresh
            await asyncio.wait(pending)

    async def _fresh_after_wait(self, block: Block, steps: int) -> list[int]:
        """The same for a block let in after a wait, in which another call may have brought the same trajectories."""
        try:
            return await self._fresh(block)
        except BaseException:
            self._withdraw(steps)
            raise

    def _compare(self, block: Block) -> tuple[list[int], set["asyncio.Future[None]"]]:
        fresh: dict[str, int] = {}
        pending: set[asyncio.Future[None]] = set()
        for i, record in enumerate(block.records):
            known = self.table.digest_of(record.trajectory_id)
            under_way = self._pending.get(record.trajectory_id)
            if known is None and under_way is not None and not under_way.done.done():
                pending.add(under_way.done)
                known = under_way.digest
            if known is None and record.trajectory_id in fresh:
                known = block.records[fresh[record.trajectory_id]].digest
            if known is None:
                fresh[record.trajectory_id] = i
            elif known != record.digest:
                raise Refusal(
                    Reason.CONTENT_CONFLICT, f"trajectory {record.trajectory_id!r} is known with other content"
                )
        return list(fresh.values()), pending

    def _part(self, request: replay_pb2.InsertRequest, chosen: Sequence[int]) -> Block:
        part = replay_pb2.InsertRequest(table=request.table, trajectories=[request.trajectories[i] for i in chosen])
        config = self.table.config
        return decode_block(
            part.trajectories, config.signature, part.SerializeToString(), config.capacity, self._max_bytes
        )

    async def _store(self, block: Block, steps: int) -> None:
        """Store a block that the rate limiter has let in."""
        if self.table.config.durability is Durability.MEMORY:
            self.apply(block, "")
            return
        try:
            done = self._commit.commit(self, block)
        except Refusal:
            self._withdraw(steps)
            raise
        for record in block.records:
            self._pending[record.trajectory_id] = _Pending(record.digest, done)
        done.add_done_callback(lambda done: self._settled(block, done))
        # The log may have it even if the caller goes away now.
        await asyncio.shield(done)

    def _settled(self, block: Block, done: "asyncio.Future[None]") -> None:
        for record in block.records:
            if self._pending[record.trajectory_id].done is done:
                del self._pending[record.trajectory_id]
        if done.exception() is not None:
            self._withdraw(block.num_steps)

    def _withdraw(self, steps: int) -> None:
        self._limiter.withdraw(steps)
        self._inserts.advance()

    def apply(self, block: Block, entry: str) -> list[Stored]:
        """Store a block that the rate limiter has let in and, in a durable table, the log holds."""
        size = self.table.num_steps
        evicted = self.table.append(block, [entry] * len(block.records))
        self._metrics.inserted_steps.inc(block.num_steps)
        self._metrics.inserted_trajectories.inc(len(block.records))
        self._metrics.evicted_steps.inc(size + block.num_steps - self.table.num_steps)
        self._limiter.store(block.num_steps)
        self._samples.advance()
        self._inserts.advance()
        return evicted

    def take_over(self, block: Block, entry: str) -> list[Stored]:
        """Store a block that was found in the log."""
        self._limiter.admit(block.num_steps)
        return self.apply(block, entry)

    async def sample(self, batch_size: int, windows: Mapping[str, int], seconds: float) -> SequenceBatch:
        """Draw a batch.

        Args:
            batch_size: positions.
            windows: steps of each column.
            seconds: how long the rate limiter may hold it.

        Raises:
            Refusal: BAD_MESSAGE, WRONG_SIGNATURE, BAD_LENGTH, MESSAGE_TOO_LARGE, RATE_LIMITED.
        """
        self.table.check_windows(batch_size, windows, self._max_bytes)
        self._limiter.check_sample(batch_size)
        deadline = time.monotonic() + seconds
        await self._pass(self._samples, batch_size, deadline, self._undraw, self._metrics.sample_wait)
        batch = self.table.sample(batch_size, windows)
        self._metrics.sampled_positions.inc(batch_size)
        self._inserts.advance()
        return batch

    def _undraw(self, batch_size: int) -> None:
        self._limiter.sample(-batch_size)
        self._samples.advance()

    async def _pass(
        self,
        line: WaitingLine,
        amount: int,
        deadline: float,
        give_back: Callable[[int], None],
        observe_wait: Callable[[float], None],
    ) -> bool:
        """Wait for the turn; whether it had to wait.

        Raises:
            Refusal: RATE_LIMITED.
        """
        if line.try_pass(amount):
            return False
        started = time.monotonic()
        try:
            came = await line.wait(amount, deadline - started, give_back)
        finally:
            observe_wait(time.monotonic() - started)
        if not came:
            why = (self.why_inserts_wait() if line is self._inserts else self.why_samples_wait()) or "too many calls"
            raise Refusal(Reason.RATE_LIMITED, f"table {self.table.config.name!r}: {why}")
        return True

    def update_priorities(self, updates: PriorityUpdates) -> tuple[int, int]:
        """Set priorities; returns how many were set and how many keys name nothing stored."""
        return self.table.update_priorities(updates)

    def why_inserts_wait(self) -> str:
        """In words; empty if they do not."""
        if self.table.config.durability is Durability.REDIS and self._commit.down_because:
            return f"Redis is away: {self._commit.down_because}"
        return self._limiter.why_inserts_wait()

    def why_samples_wait(self) -> str:
        """In words; empty if they do not."""
        return self._limiter.why_samples_wait()
