"""The tables of a server: created once, found by name, changed, reset, deleted, brought back at the start."""

import asyncio
import gc
import logging
from collections.abc import Coroutine, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import numpy as np

from replay_server.errors import Refusal, gives_no_fsync, was_deleted, was_reset
from replay_server.group_commit import GroupCommit
from replay_server.limits import Limits
from replay_server.log_entry import LogError
from replay_server.metrics import ServerMetrics
from replay_server.priority_log import PriorityPages, give_back_priorities, page_commands, take_priorities
from replay_server.rate_limiter import LimiterCounts
from replay_server.recovery import recover_table
from replay_server.redis_log import RedisLog
from replay_server.redis_store import RedisStore
from replay_server.removers import REMOVERS
from replay_server.selectors import SELECTORS
from replay_server.served_table import ServedTable
from replay_server.table import Table, memory_of
from replay_server.table_log import new_log, recovered_log
from replay_server.verification import Verification
from replay_server.write_chain import Command
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

_FIRST_ORDINALS = 1 << 30
_MAX_COLUMNS = 256
_MAX_TABLES = 64  # each has series of its own in the metrics, and is looked through at every scrape

R = TypeVar("R")


class RecoveryProgress(NamedTuple):
    """How far the loading of the log is.

    Attributes:
        table: that is being loaded.
        entries_loaded: of all tables, so far.
        entries_total: of all tables.
    """

    table: str
    entries_loaded: int
    entries_total: int


class Catalog:
    """All tables."""

    def __init__(
        self, store: RedisStore, log: RedisLog, commit: GroupCommit, limits: Limits, rng: np.random.Generator
    ) -> None:
        """The metrics come with `recover`, which must be called first."""
        self._store = store
        self._log = log
        self._commit = commit
        self._limits = limits
        self._rng = rng
        self._tables: dict[str, ServedTable] = {}
        self._losses = 0  # how often Redis has lost data
        self._saved: dict[str, Mapping[str, int]] = {}  # counters by table
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[object]] = set()
        self._metrics: ServerMetrics | None = None
        self._recovery: RecoveryProgress | None = RecoveryProgress("", 0, 0)
        self._gives_up = False
        commit.keep(self._keep)

    @property
    def recovery(self) -> RecoveryProgress | None:
        """How far `recover` is; None after it."""
        return self._recovery

    @property
    def store_away_because(self) -> str:
        """Why Redis is away; empty while it is there."""
        return self._commit.down_because

    def tables(self) -> list[ServedTable]:
        """All tables, in the order in which they came."""
        return list(self._tables.values())

    def find(self, name: str) -> ServedTable:
        """The table of that name.

        Raises:
            Refusal: UNKNOWN_TABLE.
        """
        table = self._tables.get(name)
        if table is None:
            raise Refusal(Reason.UNKNOWN_TABLE, f"no table {name[:64]!r}; there are {sorted(self._tables) or 'none'}")
        return table

    # --- at the start ------------------------------------------------------------------------------------------------

    async def recover(self, metrics: ServerMetrics) -> None:
        """Bring back all tables.

        Raises:
            redis.RedisError: Redis does not answer.
            LogError: the log is damaged, or of another version.
        """
        self._metrics = metrics
        await self._store.run(self._log.chain.begin)
        configs = await self._store.run(self._log.load_tables)
        limiters = await self._store.run(self._log.load_rate_limiters)
        total = 0
        for config in configs:
            _check_strategies_of_log(config)
            total += await self._store.run(self._log.num_entries, config.name)
        self._recovery = RecoveryProgress("", 0, total)
        with _no_garbage_collection():
            for config in configs:
                await self._recover(config, limiters.get(config.name))
        self._recovery = None

    def give_up_recovery(self) -> None:
        """Let `recover` end soon with a LogError."""
        self._gives_up = True

    async def _recover(self, config: TableConfig, rate_limiter: RateLimiterConfig | None) -> None:
        if config.durability is Durability.MEMORY:
            self._serve(self._new_table(config), rate_limiter)
            return
        assert self._recovery is not None
        progress = self._recovery._replace(table=config.name)

        def loaded(number: int) -> None:
            nonlocal progress
            if self._gives_up:  # on the thread of Redis, which nothing else can interrupt
                raise LogError(f"table {config.name!r} was not loaded to its end")
            progress = progress._replace(entries_loaded=progress.entries_loaded + number)
            self._recovery = progress

        loaded(0)
        recovered = await self._store.run(recover_table, self._log, config, self._rng, loaded)
        served = self._serve(recovered.table, rate_limiter, _limiter_counts(recovered.state))
        self._commit.add_recovered_table(recovered_log(self._log, served, recovered))
        logger.info("table %s holds %d steps", config.name, recovered.table.num_steps)
        if config.durability is Durability.FSYNC and not self._commit.gives_fsync:
            logger.warning("table %s promises fsync, which Redis does not give now: inserts are refused", config.name)

    def _new_table(self, config: TableConfig) -> Table:
        # Nothing tells which keys an earlier table of that name gave out: begin with one that it hardly had.
        first = int(self._rng.integers(_FIRST_ORDINALS))
        try:
            return Table(config, self._rng, logged=_is_logged(config), first_ordinal=first)
        except (ValueError, MemoryError) as error:
            raise Refusal(
                Reason.BAD_CONFIG, f"a table like that cannot be allocated here ({error}); make it smaller"
            ) from None

    def _serve(
        self, table: Table, rate_limiter: RateLimiterConfig | None, counts: LimiterCounts | None = None
    ) -> ServedTable:
        assert self._metrics is not None, "recover() comes first"
        name = table.config.name
        served = ServedTable(table, self._commit, self._metrics.of_table(name), rate_limiter, counts)
        self._tables[name] = served
        return served

    # --- changing ----------------------------------------------------------------------------------------------------

    async def _change(self, change: Coroutine[Any, Any, R]) -> R:
        """Make one change at a time, each to its end although the caller may go away meanwhile."""

        async def change_alone() -> R:
            try:
                async with self._changing:
                    return await change
            finally:
                change.close()

        task = asyncio.create_task(change_alone())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Return when no change is under way."""
        while self._changes:
            await asyncio.wait(self._changes)

    async def create(self, config: TableConfig) -> bool:
        """Create a table, or confirm that it exists as given; whether it is new.

        Raises:
            Refusal: TABLE_CONFLICT, BAD_CONFIG for an unknown strategy or one too large, NOT_DURABLE,
                STORE_UNAVAILABLE.
        """
        return await self._change(self._create(config))

    async def _create(self, config: TableConfig) -> bool:
        existing = self._tables.get(config.name)
        if existing is not None:
            _check_same(existing.table.config, config)
            return False
        self._check_new(config)
        table = self._new_table(config)
        await self._commit.write(self._log.new_table_commands(config))
        served = self._serve(table, None)
        if served.logged:
            self._commit.add_table(new_log(self._log, served))
        size = memory_of(config) / 2**20
        logger.info("created table %s with capacity %d steps, which take %.0f MiB", config.name, config.capacity, size)
        return True

    def _check_new(self, config: TableConfig) -> None:
        problem = _unknown_strategy(config)
        if problem:
            raise Refusal(Reason.BAD_CONFIG, problem)
        if len(self._tables) >= _MAX_TABLES:
            raise Refusal(
                Reason.BAD_CONFIG, f"there are {len(self._tables)} tables and at most {_MAX_TABLES} allowed; delete one"
            )
        if len(config.signature) > _MAX_COLUMNS:
            raise Refusal(Reason.BAD_CONFIG, f"{len(config.signature)} columns; at most {_MAX_COLUMNS} are allowed")
        size, taken = memory_of(config), sum(served.table.memory_bytes for served in self.tables())
        if size + taken > self._limits.table_bytes:
            raise Refusal(
                Reason.BAD_CONFIG,
                f"capacity {config.capacity} takes {size / 2**30:.1f} GiB, all other tables take {taken / 2**30:.1f} "
                f"GiB; together at most {self._limits.table_bytes / 2**30:.1f} GiB are allowed here",
            )
        if config.durability is Durability.FSYNC and not self._commit.gives_fsync:
            raise gives_no_fsync(self._store.appendfsync)

    async def set_rate_limiter(self, name: str, config: RateLimiterConfig) -> None:
        """Put other limits in force, for good.

        Raises:
            Refusal: UNKNOWN_TABLE, BAD_CONFIG, STORE_UNAVAILABLE.
        """
        await self._change(self._set_rate_limiter(name, config))

    async def _set_rate_limiter(self, name: str, config: RateLimiterConfig) -> None:
        served = self.find(name)
        try:
            served.table.config.check_limits(config)
        except ValueError as error:
            raise Refusal(Reason.BAD_CONFIG, str(error)) from None
        await self._commit.write([self._log.rate_limiter_command(name, config)])
        served.set_rate_limiter(config)

    async def reset(self, name: str) -> int:
        """Empty a table and forget all that it remembers; returns how many trajectories it held.

        Raises:
            Refusal: UNKNOWN_TABLE, STORE_UNAVAILABLE; if it is empty then, it stays so.
        """
        return await self._change(self._reset(name))

    async def _reset(self, name: str) -> int:
        old = self.find(name)
        table = self._new_table(old.table.config)
        deleted = 0

        def act() -> None:
            nonlocal deleted
            deleted = old.table.num_trajectories
            old.close(was_reset(name))
            table.first_ordinal, table.next_ordinal = old.table.first_ordinal, old.table.next_ordinal
            new = self._serve(table, old.limiter.config)
            if new.logged:
                self._commit.restart_table(old, new)

        await self._commit.exclusively(act)
        return deleted

    async def delete(self, name: str) -> None:
        """Delete a table.

        Raises:
            Refusal: UNKNOWN_TABLE, STORE_UNAVAILABLE; if it is unknown then, it stays so.
        """
        await self._change(self._delete(name))

    async def _delete(self, name: str) -> None:
        old = self.find(name)

        def act() -> None:
            old.close(was_deleted(name))
            del self._tables[name]
            self._saved.pop(name, None)
            self._commit.drop_table(old)
            assert self._metrics is not None
            self._metrics.forget_table(name)

        await self._commit.exclusively(act)

    # --- keeping -----------------------------------------------------------------------------------------------------

    def _keep(self) -> list[Command]:
        """What Redis must hold of the tables besides their logs."""
        commands: list[Command] = [self._log.forget_tables_command()]
        for served in self.tables():
            config = served.table.config
            commands.append(self._log.table_command(config))
            if served.limiter.config != config.rate_limiter:
                commands.append(self._log.rate_limiter_command(config.name, served.limiter.config))
            served.table.priorities.mark_changed()
        self._saved.clear()
        self._losses += 1
        return commands

    async def save_priorities(self) -> None:
        """Save priorities and counters that have changed; what cannot be saved now is saved the next time."""
        for served in self.tables():
            if not served.logged:
                continue
            name = served.table.config.name
            taken = take_priorities(served.table, self._commit.first_unsettled_ordinal(served))
            state = _counts_of(served)
            try:
                if state != self._saved.get(name):
                    await self._commit.write([self._log.state_command(name, state)])
                    self._saved[name] = state
                if taken is not None:
                    await self._save(served, taken)
            except Refusal as refusal:
                if taken is not None:
                    give_back_priorities(served.table, taken)
                logger.warning("priorities and counters of table %s were not saved: %s", name, refusal)

    async def _save(self, served: ServedTable, taken: PriorityPages) -> None:
        losses = self._losses
        for commands in page_commands(self._log, served.table, taken):
            # The last write makes all pages count: none may have been lost, nor belong to a table that is no more.
            if losses != self._losses or self._tables.get(served.name) is not served:
                return
            await self._commit.write(commands)

    async def verify(self, name: str) -> Verification:
        """Hold the log of a table against memory.

        Raises:
            Refusal: UNKNOWN_TABLE, STORE_UNAVAILABLE.
        """
        served = self.find(name)
        if not served.logged:
            return Verification(0, 0, 0, ())
        return await self._commit.verify(served)


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    """Nothing that is loaded is garbage, and looking for some would take half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_logged(config: TableConfig) -> bool:
    return config.durability is not Durability.MEMORY


def _counts_of(served: ServedTable) -> dict[str, int]:
    """Counters that are kept now and then, not with every insert."""
    counts = served.limiter.counts()
    return {
        "sampled_positions": served.table.sampled_positions,
        "removed_trajectories": served.table.removed_trajectories,
        "limiter_inserted": counts.inserted,
        "limiter_sampled": counts.sampled,
        "limiter_origin": -1 if counts.origin is None else counts.origin,
    }


def _limiter_counts(state: Mapping[str, int]) -> LimiterCounts | None:
    if "limiter_inserted" not in state:
        return None
    origin = state["limiter_origin"]
    return LimiterCounts(state["limiter_inserted"], state["limiter_sampled"], None if origin < 0 else origin)


def _unknown_strategy(config: TableConfig) -> str:
    """Which strategy of a table is not known; empty if all are."""
    if config.selector not in SELECTORS:
        return f"selector {config.selector[:40]!r} is not known; there are {', '.join(SELECTORS)}"
    if config.remover not in REMOVERS:
        return f"remover {config.remover[:40]!r} is not known; there are {', '.join(REMOVERS)}"
    return ""


def _check_strategies_of_log(config: TableConfig) -> None:
    problem = _unknown_strategy(config)
    if problem:
        raise LogError(f"table {config.name!r} was written by another version: {problem}")


def _check_same(existing: TableConfig, given: TableConfig) -> None:
    for field in fields(TableConfig):
        old, new = getattr(existing, field.name), getattr(given, field.name)
        if old != new:
            raise Refusal(
                Reason.TABLE_CONFLICT, f"table {given.name!r} exists with {field.name} {old!r}, asked for {new!r}"[:500]
            )
