"""Concurrent inserts share one round trip to Redis; what is acknowledged is in the log, what is not is settled.

What holds, also with a Redis that is restarted or replaced at any moment:

- An acknowledged insert was in Redis when it was acknowledged; of a table with durability `fsync`, on its disk. As long
  as Redis keeps what it has acknowledged, or this server lives on, it stays known and, until it is removed, stored.
- If Redis has come back empty or behind, which is noticed at the next write or check, nothing more is acknowledged
  until Redis has again what memory holds: tables, trajectories, removed ids, replaced values, the newest weights.
  Priorities follow with their next saving. A server that is killed before this is done loses what Redis had lost.
- What became of a write whose answer was lost is known before anything more is acknowledged, and memory follows it.
- If another server has begun under the same prefix, nothing more is written and `run` ends with the reason.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import redis

from replay_server.block import Block
from replay_server.errors import Refusal, gives_no_fsync, was_deleted, was_reset
from replay_server.log_writer import LogWriter, Write
from replay_server.redis_log import RedisLog
from replay_server.redis_store import RedisStore
from replay_server.table import Updated
from replay_server.table_log import LoggedTable, TableLog
from replay_server.verification import Check, Verification, verify_table
from replay_server.write_chain import Command
from zero.tables import Durability
from zero.trajectories import ColumnUpdates
from zero.wire.codec import Reason

_BATCH_BYTES = 16 << 20
_VALUES_PER_WRITE = 4096  # replaced ones; each may need a command of its own

Result = TypeVar("Result")


class Part(NamedTuple):
    """What goes into one table.

    Attributes:
        target: the table.
        block: records that are new.
    """

    target: LoggedTable
    block: Block


class _Waiting(NamedTuple):
    """What waits for its turn.

    Attributes:
        parts: to be stored, all or none.
        act: to be done, with nothing else under way, before this is written alone.
        done: its outcome.
    """

    parts: Sequence[Part]
    act: Callable[[], None] | None
    done: "asyncio.Future[None]"


class GroupCommit:
    """Writes blocks to the log, one batch at a time, and stores each batch in its tables in the order of the log.

    While Redis is away every write fails at once.
    """

    def __init__(self, store: RedisStore, log: RedisLog, observe_seconds: Callable[[float], None]) -> None:
        """observe_seconds is called with the duration of every round trip."""
        self._store = store
        self._log = log
        self._writer = LogWriter(store, log)
        self._observe_seconds = observe_seconds
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._writes: set[asyncio.Task[Any]] = set()  # that callers wait for

    @property
    def down_because(self) -> str:
        """Why Redis is away; empty while it is there."""
        return self._writer.down_because

    @property
    def times_away(self) -> int:
        """How often Redis has gone away: in between it has lost nothing."""
        return self._writer.times_away

    @property
    def gives_fsync(self) -> bool:
        """Whether tables can have durability `fsync` now."""
        return self._store.gives_fsync

    def add_table(self, table: TableLog) -> None:
        """Commit for a durable table."""
        self._writer.tables[table.table.config.name] = table

    def add_recovered_table(self, table: TableLog) -> None:
        """Commit for a table that an earlier server has left: what it holds may never have been acknowledged."""
        self.add_table(table)
        self._writer.may_be_unflushed |= _must_flush([table.target])

    def keep(self, commands: Callable[[], Sequence[Command]]) -> None:
        """Note what Redis must hold besides the log: these commands are executed again when it has lost data."""
        self._writer.keep(commands)

    def first_unsettled_ordinal(self, target: LoggedTable) -> int:
        """All chunks of a durable table before this one are stored, or never will be."""
        return self._log_of(target).first_unsettled_ordinal

    # --- writes that are no inserts ----------------------------------------------------------------------------------

    async def write(self, commands: Sequence[Command] = ()) -> None:
        """Write what is no insert, all or none; also what was removed from tables.

        Raises:
            Refusal: STORE_UNAVAILABLE; it may have been written all the same.
        """
        await self._write(Write(commands, _nothing, _nothing))

    def is_durable(self, targets: Sequence[LoggedTable]) -> bool:
        """Whether everything that tables hold is as durable as they promise."""
        return not (_must_flush(targets) and (self._writer.may_be_unflushed or not self._store.gives_fsync))

    async def make_durable(self, targets: Sequence[LoggedTable]) -> None:
        """Return when everything that tables hold is as durable as they promise.

        Raises:
            Refusal: STORE_UNAVAILABLE, NOT_DURABLE.
        """
        self._check_durable(targets)
        await self._write(Write((), _nothing, _nothing, _must_flush(targets)))

    async def flush_removed(self, target: LoggedTable) -> None:
        """Return when the log has noted what was removed from a durable table.

        Raises:
            Refusal: STORE_UNAVAILABLE; it will be noted later. UNKNOWN_TABLE.
        """
        self._log_of(target)
        await self._write(Write((), _nothing, _nothing, _must_flush([target])))

    async def update_columns(self, target: LoggedTable, updates: ColumnUpdates) -> Updated:
        """Replace values of steps of a durable table.

        Raises:
            Refusal: STORE_UNAVAILABLE, NOT_DURABLE, and some or all may be replaced all the same; UNKNOWN_TABLE.
        """
        done = Updated(0, 0, 0)
        order = np.argsort(updates.keys & np.uint64(0xFFFFFFFF))  # by slot: what is stored together goes together
        number = max(1, _VALUES_PER_WRITE // max(1, len(updates.columns)))
        for i in range(0, max(1, len(order)), number):
            part = await self._to_its_end(self._update_some(target, updates.chosen(order[i : i + number])))
            done = Updated(*np.add(done, part).tolist())
        return done

    async def _update_some(self, target: LoggedTable, updates: ColumnUpdates) -> Updated:
        log = self._log_of(target)
        outcome = Updated(0, 0, 0)

        def apply() -> None:
            nonlocal outcome
            outcome = log.update(updates)

        # One at a time: which steps hold a greater version must not change between the plan and its taking effect.
        async with log.updating:
            self._log_of(target)
            self._check_durable([target])
            self._writer.check_up()
            write = Write(log.plan_update(updates), apply, _nothing, _must_flush([target]))
            await self._settle(self._writer.write(write))
        return outcome

    async def verify(self, target: LoggedTable) -> Verification:
        """Hold the log of a durable table against memory.

        Raises:
            Refusal: STORE_UNAVAILABLE, UNKNOWN_TABLE.
        """
        check = Check(self._log_of(target))
        await self.flush_removed(target)
        try:
            return await verify_table(self._store, self._log, check)
        except redis.RedisError as error:
            raise Refusal(Reason.STORE_UNAVAILABLE, f"Redis did not answer: {error}") from None

    async def check(self) -> None:
        """Find out, also when nothing is inserted, whether Redis has come back empty or another server has begun.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        try:
            await self._writer.check()
        except Refusal:
            self._notice()
            raise

    async def _write(self, write: Write) -> None:
        await self._to_its_end(self._settle(self._writer.write(write)))

    async def _to_its_end(self, writing: Coroutine[Any, Any, Result]) -> Result:
        """Write for a caller, who may go away meanwhile: the writing comes to its end all the same."""
        task = asyncio.create_task(writing)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    async def _settle(self, outcome: Coroutine[Any, Any, None]) -> None:
        try:
            await outcome
        except Refusal:
            self._notice()
            raise

    def _check_durable(self, targets: Sequence[LoggedTable]) -> None:
        if _must_flush(targets) and not self._store.gives_fsync:
            raise gives_no_fsync(self._store.appendfsync)

    # --- tables that begin again or end ------------------------------------------------------------------------------

    async def exclusively(self, act: Callable[[], None]) -> None:
        """Act when everything that waits has been committed and nothing is under way, then write what that changed.

        Raises:
            Refusal: STORE_UNAVAILABLE; if it has acted, that is written later.
        """
        await asyncio.shield(self._enqueue((), act))

    def restart_table(self, old: LoggedTable, new: LoggedTable) -> None:
        """Within `exclusively`: an empty table takes the place of a durable one."""
        name = old.table.config.name
        self._writer.tables[name] = self._writer.tables[name].restarted(new)
        self._refuse_waiting_for(old, was_reset(name))

    def drop_table(self, old: LoggedTable) -> None:
        """Within `exclusively`: a table is no more."""
        name = old.table.config.name
        log = self._writer.tables.pop(name, None)
        self._writer.drop([*self._log.drop_table_commands(name), *(log.wipe_commands() if log else ())])
        self._refuse_waiting_for(old, was_deleted(name))

    def _refuse_waiting_for(self, target: LoggedTable, refusal: Refusal) -> None:
        waiting, self._waiting = self._waiting, deque()
        refused: list[_Waiting] = []
        for one in waiting:
            is_hit = any(part.target is target for part in one.parts)
            (refused if is_hit else self._waiting).append(one)
        _refuse(refused, refusal)

    # --- inserts -----------------------------------------------------------------------------------------------------

    def commit(self, parts: Sequence[Part]) -> "asyncio.Future[None]":
        """A future that is done when blocks are in the log and in their durable tables, all or none.

        Cancelling it changes nothing. For every block the target is told in the end that it was stored or abandoned;
        when an answer of Redis is lost, the future fails at once and this follows when Redis is back.

        Args:
            parts: one per table.

        Raises:
            Refusal: STORE_UNAVAILABLE, NOT_DURABLE, UNKNOWN_TABLE, and the targets are told nothing; or through the
                future.
        """
        for part in parts:
            self._log_of(part.target)
        self._check_durable([part.target for part in parts])
        return self._enqueue(parts, None)

    def _enqueue(self, parts: Sequence[Part], act: Callable[[], None] | None) -> "asyncio.Future[None]":
        self._writer.check_up()
        if self._closing.is_set():
            raise Refusal(Reason.STORE_UNAVAILABLE, "the server is stopping")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(parts, act, done))
        self._wake.set()
        return done

    async def run(self) -> None:
        """Commit until closed; what waits then is committed first, and what is being written comes to its end.

        Raises:
            TakenOverError: nothing can be committed any more.
        """
        while not (self._closing.is_set() and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and not self.down_because:
                await self._commit_batch()
            if self.down_because:
                await self._writer.come_back(self._closing)
        while self._writes:
            await asyncio.wait(self._writes)

    async def _commit_batch(self) -> None:
        batch, commands = self._take_batch()
        targets = [part.target for one in batch for part in one.parts]
        tables = list({id(target): self._log_of(target) for target in targets}.values())
        commands += [table.state_command() for table in tables]
        write = Write(commands, partial(_store_placed, tables), partial(_abandon_placed, tables), _must_flush(targets))
        started = time.perf_counter()
        try:
            await self._settle(self._writer.write(write))
        except Refusal as refusal:
            for one in batch:
                _fail(one.done, refusal)
        else:
            self._observe_seconds(time.perf_counter() - started)
            for one in batch:
                if not one.done.done():
                    one.done.set_result(None)

    def _take_batch(self) -> tuple[list[_Waiting], list[Command]]:
        """What is written together, placed, and the commands that write it."""
        batch: list[_Waiting] = []
        commands: list[Command] = []
        size = 0
        while self._waiting:
            one = self._waiting[0]
            size += sum(len(part.block.message) for part in one.parts)
            try:
                tables = [self._log_of(part.target) for part in one.parts]
            except Refusal as refusal:
                _refuse([self._waiting.popleft()], refusal)
                continue
            if batch and (one.act is not None or size > _BATCH_BYTES or not all(map(_can_place, one.parts))):
                break
            batch.append(self._waiting.popleft())
            if one.act is not None:
                one.act()
                break
            for table, part in zip(tables, one.parts, strict=True):
                commands += table.place(part.block)
        return batch, commands

    def _log_of(self, target: LoggedTable) -> TableLog:
        name = target.table.config.name
        log = self._writer.tables.get(name)
        if log is None:
            raise was_deleted(name)
        if log.target is not target:
            raise was_reset(name)
        return log

    def _notice(self) -> None:
        """Refuse who waits if Redis has just gone away."""
        if self.down_because:
            waiting, self._waiting = self._waiting, deque()
            _refuse(waiting, self._writer.unavailable())
            self._wake.set()

    def close(self) -> None:
        """Let `run` commit what waits, then end."""
        self._closing.set()
        self._wake.set()


def _nothing() -> None:
    pass


def _store_placed(tables: Iterable[TableLog]) -> None:
    for table in tables:
        table.store_placed()


def _abandon_placed(tables: Iterable[TableLog]) -> None:
    for table in tables:
        table.abandon_placed()


def _must_flush(targets: Iterable[LoggedTable]) -> bool:
    return any(target.table.config.durability is Durability.FSYNC for target in targets)


def _can_place(part: Part) -> bool:
    return part.target.table.can_place(part.block)


def _refuse(waiting: Iterable[_Waiting], refusal: Refusal) -> None:
    for one in waiting:
        for target, block in one.parts:
            target.abandoned(block)
        _fail(one.done, refusal)


def _fail(done: "asyncio.Future[None]", refusal: Refusal) -> None:
    if not done.done():
        done.set_exception(refusal)
        done.exception()  # a caller that has gone away does not come for it
