"""Concurrent inserts share one round trip to Redis; what is acknowledged is in the log, what is not is settled.

What holds, also with a Redis that is restarted or replaced at any moment:

- An acknowledged insert was in Redis when it was acknowledged. As long as Redis keeps what it has acknowledged, or this
  server lives on, it stays known and, until it is evicted, stored.
- If Redis has come back empty or behind, which is noticed at the next write or check, nothing more is acknowledged
  until Redis has again what memory holds: table configs, trajectories, evicted ids, the newest weights. Priorities
  follow with their next saving. A server that is killed before this is done loses what Redis had lost.
- If another server has begun under the same prefix, nothing more is written and `run` ends with the reason.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Concatenate, NamedTuple, ParamSpec, Protocol

import redis

from replay_server.block import Block, decode_insert
from replay_server.errors import Refusal, ReplayServerError, TakenOverError
from replay_server.redis_log import Append, Entry, RedisLog, Trim
from replay_server.redis_store import RedisStore
from replay_server.rewriting import rewrite_log
from replay_server.table import Stored, Table
from replay_server.write_chain import Command
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

_BATCH_BYTES = 16 << 20
_RECONNECT_SECONDS = 0.25

P = ParamSpec("P")


class LoggedTable(Protocol):
    """A table whose blocks go through the log first."""

    @property
    def table(self) -> Table:
        """The table in memory; only `apply` may append to it."""
        ...

    def apply(self, block: Block, entry: str) -> Sequence[Stored]:
        """Store a block that the log holds as this entry; returns what was evicted."""
        ...

    def take_over(self, block: Block, entry: str) -> Sequence[Stored]:
        """The same for a block that nobody waits for."""
        ...


class _Commit(NamedTuple):
    target: LoggedTable
    block: Block
    done: "asyncio.Future[None]"


class GroupCommit:
    """Writes blocks to the log, one batch at a time, and applies each batch to its tables in the order of the log.

    While Redis is away every write fails at once. Before it goes on afterwards, the tables take over what the log has
    and they do not: batches whose outcome was unknown; and Redis gets what it has lost.
    """

    def __init__(self, store: RedisStore, log: RedisLog, observe_seconds: Callable[[float], None]) -> None:
        """observe_seconds is called with the duration of every round trip."""
        self._store = store
        self._log = log
        self._observe_seconds = observe_seconds
        self._tables: dict[str, LoggedTable] = {}
        self._kept: list[Callable[[], Sequence[Command]]] = []
        self._waiting: deque[_Commit] = deque()
        self._evicted: dict[str, list[Stored]] = {}
        self._wake = asyncio.Event()
        self._down_because = ""
        self._closing = False

    @property
    def down_because(self) -> str:
        """Why Redis is away; empty while it is there."""
        return self._down_because

    def add_table(self, target: LoggedTable, evicted: Sequence[Stored]) -> None:
        """Commit for a table whose state is that of the log; evicted is still to be trimmed."""
        name = target.table.config.name
        self._tables[name] = target
        if evicted:
            self._evicted[name] = list(evicted)

    def keep(self, commands: Callable[[], Sequence[Command]]) -> None:
        """Note what Redis must hold besides the log: these commands are executed again when it has lost data."""
        self._kept.append(commands)

    async def write(self, commands: Sequence[Command]) -> None:
        """Write what is no insert, all or none.

        Raises:
            Refusal: STORE_UNAVAILABLE; it may have been written all the same.
        """
        await self._attempt(self._log.chain.write, commands)

    async def check(self) -> None:
        """Find out, also when nothing is inserted, whether Redis has come back empty or another server has begun.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        await self._attempt(self._log.chain.check)

    async def _attempt(
        self, act: Callable[Concatenate[redis.Redis, P], None], *arguments: P.args, **keywords: P.kwargs
    ) -> None:
        if self._down_because:
            raise _unavailable(self._down_because)
        try:
            await self._store.run(act, *arguments, **keywords)
        except redis.RedisError as error:
            self._fail((), error)
            raise _unavailable(self._down_because) from None

    def commit(self, target: LoggedTable, block: Block) -> "asyncio.Future[None]":
        """A future that is done when the block is in the log and the table; cancelling it changes nothing.

        Raises:
            Refusal: STORE_UNAVAILABLE, also through the future; nothing was stored.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._down_because or self._closing:
            raise _unavailable(self._down_because or "the server is stopping")
        self._waiting.append(_Commit(target, block, done))
        self._wake.set()
        return done

    async def run(self) -> None:
        """Commit until closed; what waits then is committed first.

        Raises:
            TakenOverError: nothing can be committed any more.
        """
        while not (self._closing and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and not self._down_because:
                await self._commit_batch(self._take_batch())
            if self._down_because:
                await self._come_back()

    def _take_batch(self) -> list[_Commit]:
        batch = [self._waiting.popleft()]
        size = len(batch[0].block.message)
        while self._waiting and size + len(self._waiting[0].block.message) <= _BATCH_BYTES:
            size += len(self._waiting[0].block.message)
            batch.append(self._waiting.popleft())
        return batch

    async def _commit_batch(self, batch: Sequence[_Commit]) -> None:
        appends = _appends(batch)
        trims = self._take_trims()
        started = time.perf_counter()
        try:
            entries = await self._store.run(self._log.append, appends, trims)
        except redis.RedisError as error:
            for trim in trims:
                self._evicted.setdefault(trim.table, [])[:0] = trim.evicted
            self._fail(batch, error)
            return
        self._observe_seconds(time.perf_counter() - started)
        for commit, entry in zip(batch, entries, strict=True):
            self._note(commit.target, commit.target.apply(commit.block, entry))
            if not commit.done.done():
                commit.done.set_result(None)

    def _take_trims(self) -> list[Trim]:
        trims = [Trim(name, self._tables[name].table.first_entry, evicted) for name, evicted in self._evicted.items()]
        self._evicted = {}
        return trims

    def _note(self, target: LoggedTable, evicted: Sequence[Stored]) -> None:
        if evicted:
            self._evicted.setdefault(target.table.config.name, []).extend(evicted)

    def _fail(self, batch: Sequence[_Commit], error: Exception) -> None:
        self._down_because = _line(error)
        logger.error("Redis is away, inserts are refused until it is back: %s", self._down_because)
        for commit in (*batch, *self._waiting):
            if not commit.done.done():
                commit.done.set_exception(_unavailable(self._down_because))
                commit.done.exception()  # a caller that has gone away does not come for it
        self._waiting.clear()
        self._wake.set()

    async def _come_back(self) -> None:
        while not self._closing:
            kept = [command for commands in self._kept for command in commands()]
            try:
                await self._store.connect()
                found = await self._store.run(self._settle, kept)
            except TakenOverError as error:
                self._down_because = str(error)
                raise
            except (redis.RedisError, ReplayServerError) as error:
                self._down_because = _line(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _RECONNECT_SECONDS)
                self._wake.clear()
                continue
            for name, entries in found.items():
                self._take_over(self._tables[name], entries)
            self._down_because = ""
            logger.warning("Redis is back")
            return

    def _settle(self, client: redis.Redis, kept: Sequence[Command]) -> dict[str, list[Entry]]:
        """On the thread of the store: end everything under way, give back what is lost, read what is not known."""
        chain = self._log.chain
        chain.resume(client)
        tables = {name: target.table for name, target in self._tables.items()}
        last_entries = {name: table.last_entry for name, table in tables.items()}
        found = {name: list(self._log.read(client, name, last)) for name, last in last_entries.items()}
        if chain.has_lost:
            logger.error("Redis has lost what it had acknowledged; it gets everything again that memory holds")
            chain.write(client, kept)
            for name, table in tables.items():
                number = 0 if found[name] else rewrite_log(client, self._log, table)
                logger.warning("table %s: wrote %d trajectories again", name, number)
            chain.has_lost = False
        return found

    def _take_over(self, target: LoggedTable, entries: Sequence[Entry]) -> None:
        table = target.table
        for entry in entries:
            block = decode_insert(entry.message, table.config.signature)
            logger.info("entry %s of table %s had reached the log", entry.entry, table.config.name)
            self._note(target, target.take_over(block, entry.entry))

    def close(self) -> None:
        """Let `run` commit what waits, then end."""
        self._closing = True
        self._wake.set()


def _appends(batch: Sequence[_Commit]) -> list[Append]:
    """The entries of a batch; positions go on where the table, then the block before, ends."""
    position: dict[str, int] = {}
    ordinal: dict[str, int] = {}
    appends: list[Append] = []
    for target, block, _ in batch:
        table = target.table
        name = table.config.name
        start = position.get(name, table.head)
        first = ordinal.get(name, table.inserted_trajectories)
        appends.append(Append(name, start, first, [record.digest for record in block.records], block.message))
        position[name] = start + block.num_steps
        ordinal[name] = first + len(block.records)
    return appends


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _unavailable(because: str) -> Refusal:
    return Refusal(Reason.STORE_UNAVAILABLE, f"Redis did not take it: {because}")
