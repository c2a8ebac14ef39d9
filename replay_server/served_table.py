"""A table as calls meet it: held by the rate limiter, counted, deleted from, and saying why calls wait."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from replay_server.block import Block
from replay_server.errors import Refusal
from replay_server.group_commit import GroupCommit
from replay_server.limits import InFlight
from replay_server.metrics import TableMetrics, TableState
from replay_server.rate_limiter import LimiterCounts, RateLimiter, WaitingLine
from replay_server.stored import Stored
from replay_server.table import Drawn, Table, Updated
from zero.tables import Durability, RateLimiterConfig
from zero.trajectories import ColumnUpdates, PriorityUpdates, SampleSpec, TrajectoryFilter
from zero.wire.codec import Reason

_DELETED_AT_ONCE = 4096  # trajectories: some 60 ms of the event loop


class ServedTable:
    """All calls on one table; to be used in one event loop, which needs no lock then.

    An insert: `settled`, `table.check_new`, `pass_insert`, then `store` or, in a logged table, `expect` and a commit
    that ends in `stored` or `abandoned`. A sample: `check_batch`, `pass_sample`, then `draw` or `give_back_sample`.

    Attributes:
        table: the table in memory.
        logged: whether it goes through the log.
        limiter: its rate limiter.
    """

    def __init__(
        self,
        table: Table,
        commit: GroupCommit,
        metrics: TableMetrics,
        rate_limiter: RateLimiterConfig | None = None,
        counts: LimiterCounts | None = None,
    ) -> None:
        """With limits other than those of the config, and counts of an earlier life, if given."""
        self.table = table
        self.logged = table.config.durability is not Durability.MEMORY
        self._commit = commit
        self._metrics = metrics
        counts = counts or LimiterCounts(inserted=table.num_items)
        self.limiter = RateLimiter(rate_limiter or table.config.rate_limiter, counts)
        self._inserts = WaitingLine(
            lambda amount: self.limiter.can_insert(amount, self.table.num_items), self.limiter.admit
        )
        self._samples = WaitingLine(self._can_sample, self._promise)
        self._promised = 0  # positions of samples that have passed and not drawn yet
        self._pending: dict[str, asyncio.Future[Any]] = {}  # by trajectory: done when its insert has come to an end
        self._expected: dict[int, int] = {}  # items by the identity of a block that is under way
        self._grown = asyncio.Event()
        self._closed: Refusal | None = None
        self._removed_trajectories = table.removed_trajectories
        self._removed_steps = table.inserted_steps - table.num_steps

    @property
    def name(self) -> str:
        """The table's."""
        return self.table.config.name

    # --- inserting ---------------------------------------------------------------------------------------------------

    def pending(self, trajectory_ids: Iterable[str]) -> "set[asyncio.Future[Any]]":
        """The inserts under way of these trajectories: until they are done nobody can say whether they are new."""
        return {self._pending[one] for one in trajectory_ids if one in self._pending}

    def set_pending(self, trajectory_ids: Iterable[str], done: "asyncio.Future[Any]") -> None:
        """Inserts of these trajectories are under way until `done`."""
        for one in trajectory_ids:
            self._pending[one] = done

    def clear_pending(self, trajectory_ids: Iterable[str]) -> None:
        """They have come to an end."""
        for one in trajectory_ids:
            self._pending.pop(one, None)

    async def pass_insert(self, num_items: int, deadline: float, in_flight: InFlight) -> bool:
        """Wait until the rate limiter lets items in; whether it had to wait.

        Raises:
            Refusal: BAD_LENGTH, RATE_LIMITED, TOO_BUSY, or what the table was closed with.
        """
        self.check_open()
        self.limiter.check_insert(num_items)
        if self._inserts.try_pass(num_items):
            return False
        await self._wait(self._inserts, num_items, deadline, in_flight, self.withdraw)
        return True

    def withdraw(self, num_items: int) -> None:
        """Items that were let in do not come."""
        self.limiter.withdraw(num_items)
        self._inserts.advance()

    def store(self, block: Block, num_items: int) -> None:
        """Store a block that was let in; of a table without a log."""
        self.table.store(block, self.table.place(block))
        self._note_stored(block, num_items)

    def expect(self, block: Block, num_items: int) -> None:
        """A block that was let in is under way to the log."""
        self._expected[id(block)] = num_items

    def stored(self, block: Block) -> None:
        """The log and the table have a block; see group_commit.LoggedTable."""
        self._note_stored(block, self._expected.pop(id(block)))

    def abandoned(self, block: Block) -> None:
        """A block was not stored; see group_commit.LoggedTable."""
        self.withdraw(self._expected.pop(id(block)))

    def _note_stored(self, block: Block, num_items: int) -> None:
        self._metrics.inserted_steps.inc(block.num_steps)
        self._metrics.inserted_bytes.inc(block.num_steps * self.table.step_bytes)
        self._metrics.inserted_trajectories.inc(sum(not record.first_step for record in block.records))
        self._count_removed("evicted")
        self.limiter.store(num_items)
        self._grown.set()
        self._grown = asyncio.Event()
        self._samples.advance()
        self._inserts.advance()

    def count_duplicates(self, number: int) -> None:
        """So many trajectories were known already."""
        self._metrics.duplicates.inc(number)

    # --- sampling ----------------------------------------------------------------------------------------------------

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that can never be drawn.

        Raises:
            Refusal: BAD_LENGTH.
        """
        self.limiter.check_sample(batch_size)
        times = self.table.config.max_times_sampled
        most = (self.limiter.config.queue_size or self.table.config.capacity) * times
        if times and batch_size > most:
            raise Refusal(
                Reason.BAD_LENGTH,
                f"a batch of {batch_size} can never be drawn: the table gives out at most {most} positions",
            )

    def _can_sample(self, batch_size: int) -> bool:
        return self.limiter.can_sample(batch_size) and self.table.can_draw(batch_size + self._promised)

    def _promise(self, batch_size: int) -> None:
        self.limiter.sample(batch_size)
        self._promised += batch_size

    async def pass_sample(self, batch_size: int, deadline: float, in_flight: InFlight) -> None:
        """Wait until the rate limiter and the table allow a batch.

        Raises:
            Refusal: RATE_LIMITED, TOO_BUSY, BAD_LENGTH, or what the table was closed with.
        """
        self.check_open()
        if not self._samples.try_pass(batch_size):
            await self._wait(self._samples, batch_size, deadline, in_flight, self.give_back_sample)

    def give_back_sample(self, batch_size: int) -> None:
        """A batch that was allowed is not drawn."""
        self._promised -= batch_size
        self.limiter.sample(-batch_size)
        self._samples.advance()

    def can_draw(self, batch_size: int) -> bool:
        """Whether what was allowed can still be drawn: something may have been deleted since."""
        return self._closed is None and self.table.can_draw(batch_size)

    def draw(self, spec: SampleSpec, rng: np.random.Generator | None = None) -> Drawn:
        """Draw a batch that was allowed and can be drawn; see Table.draw."""
        self._count_removed("evicted")
        drawn = self.table.draw(spec, rng)
        self._promised -= spec.batch_size
        self._count_removed("used_up")
        self._metrics.sampled_positions.inc(spec.batch_size)
        self._metrics.sampled_bytes.inc(spec.batch_size * self._bytes_of_sequence(spec))
        self._inserts.advance()
        return drawn

    def count_peeked(self, number: int) -> None:
        """So many positions were looked at."""
        self._metrics.peeked_positions.inc(number)

    def _bytes_of_sequence(self, spec: SampleSpec) -> int:
        row_bytes = self.table.rings.row_bytes
        return sum(row_bytes[window.column] * window.length for window in map(spec.window, spec.windows))

    async def grown(self, deadline: float, in_flight: InFlight) -> None:
        """Wait until something is stored that a filter may match.

        Raises:
            Refusal: RATE_LIMITED, nothing was until the deadline; TOO_BUSY.
        """
        started = time.monotonic()
        with in_flight.waiting():
            try:
                async with asyncio.timeout(deadline - started):
                    await self._grown.wait()
            except TimeoutError:
                raise Refusal(Reason.RATE_LIMITED, f"table {self.name!r}: too few items match the filter") from None
            finally:
                self._metrics.sample_wait(time.monotonic() - started)

    async def _wait(
        self,
        line: WaitingLine,
        amount: int,
        deadline: float,
        in_flight: InFlight,
        give_back: Callable[[int], None],
    ) -> None:
        observe = self._metrics.insert_wait if line is self._inserts else self._metrics.sample_wait
        started = time.monotonic()
        with in_flight.waiting():
            try:
                came = await line.wait(amount, deadline - started, give_back)
            finally:
                observe(time.monotonic() - started)
        if not came:
            why = self.why_inserts_wait() if line is self._inserts else self.why_samples_wait()
            raise Refusal(Reason.RATE_LIMITED, f"table {self.name!r}: {why or 'too many calls'}")

    # --- in place ----------------------------------------------------------------------------------------------------

    def update_priorities(self, updates: PriorityUpdates) -> tuple[int, int]:
        """Set priorities; returns how many were set and how many keys name nothing stored."""
        updated, gone = self.table.update_priorities(updates)
        self._metrics.priorities_updated.inc(updated)
        self._metrics.priorities_gone.inc(gone)
        return updated, gone

    async def update_columns(self, updates: ColumnUpdates) -> Updated:
        """Replace values of stored steps.

        Raises:
            Refusal: NOT_DURABLE; STORE_UNAVAILABLE, and they may be replaced all the same. More than 4096 values, all
                columns together, are replaced in parts: those before the one that failed stay replaced.
        """
        if self.logged:
            done = await self._commit.update_columns(self, updates)
        else:
            done = self.table.replace_values(updates)
        self._metrics.columns_updated.inc(done.updated)
        self._metrics.columns_gone.inc(done.evicted)
        self._metrics.columns_outdated.inc(done.outdated)
        return done

    async def delete(self, wanted: TrajectoryFilter) -> int:
        """Delete the trajectories that a filter matches; how many. As durable as an insert.

        Raises:
            Refusal: STORE_UNAVAILABLE; some or all are no longer served, but may come back with a restart.
                What the table was closed with meanwhile.
        """
        found = self.table.matching(wanted)
        deleted = 0
        for i in range(0, max(1, len(found)), _DELETED_AT_ONCE):
            self.check_open()
            part = [one for one in found[i : i + _DELETED_AT_ONCE] if self._still_holds(one)]
            self._count_removed("evicted")
            self.table.remove(part)
            self._count_removed("deleted")
            self._inserts.advance()
            deleted += len(part)
            if self.logged:
                await self._commit.flush_removed(self)
            else:
                await asyncio.sleep(0)  # lets other calls in between
        return deleted

    def _still_holds(self, stored: Stored) -> bool:
        return self.table.find_trajectory(stored.trajectory_id) is stored

    # --- limits and the end ------------------------------------------------------------------------------------------

    def set_rate_limiter(self, config: RateLimiterConfig) -> None:
        """Put other limits in force: calls that wait pass, wait on or, if they could never pass now, are refused."""
        self.limiter.set_config(config)
        self._samples.review(self.check_batch)
        self._inserts.review(self.limiter.check_insert)

    def close(self, refusal: Refusal) -> None:
        """Refuse whoever waits, and whoever comes."""
        self._closed = refusal
        self._inserts.close(refusal)
        self._samples.close(refusal)
        self._grown.set()

    def check_open(self) -> None:
        """Let a call go on.

        Raises:
            Refusal: what the table was closed with.
        """
        if self._closed is not None:
            raise self._closed

    # --- telling -----------------------------------------------------------------------------------------------------

    def _count_removed(self, cause: str) -> None:
        """Count what was removed since the last time."""
        table = self.table
        self._metrics.removed[cause].inc(table.removed_trajectories - self._removed_trajectories)
        self._removed_trajectories = table.removed_trajectories
        steps = table.inserted_steps - table.num_steps
        if cause == "evicted":
            self._metrics.evicted_steps.inc(steps - self._removed_steps)
        self._removed_steps = steps

    def why_inserts_wait(self) -> str:
        """In words; empty if they do not."""
        if self.logged and self._commit.down_because:
            return f"Redis is away: {self._commit.down_because}"
        return self.limiter.why_inserts_wait(self.table.num_items)

    def why_samples_wait(self) -> str:
        """In words; empty if they do not."""
        why = self.limiter.why_samples_wait()
        if why or self.table.can_draw(1):
            return why
        return "the table holds nothing that may be drawn"

    def state(self) -> TableState:
        """For the metrics."""
        return TableState(
            self.name,
            self.table.num_steps,
            self.table.num_trajectories,
            self.table.num_items,
            self.table.memory_bytes,
            len(self._inserts),
            len(self._samples),
            self.table.mass,
            self.table.priorities.highest,
            self.limiter.config.samples_per_insert,
            self.limiter.config.error_buffer,
            self.limiter.difference,
            self.table.episode_seeds.duplicates,
        )

    @property
    def waiting(self) -> tuple[int, int]:
        """Inserts and samples that wait now."""
        return len(self._inserts), len(self._samples)
