"""Writes in the order in which they are asked for, each settled in the end, and Redis given back what it has lost."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import redis

from replay_server.errors import Refusal, ReplayServerError, TakenOverError
from replay_server.log_book import Changes
from replay_server.redis_log import RedisLog
from replay_server.redis_store import RedisStore
from replay_server.table_log import TableLog
from replay_server.write_chain import Command, WriteInDoubtError
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

_RECONNECT_SECONDS = 0.25
_PIECE_BYTES = 8 << 20


class Write(NamedTuple):
    """A write, and what follows from its outcome.

    Attributes:
        commands: all or none are executed; where it takes time to make them, what makes them on the thread of Redis.
        done: called when they were.
        undone: called when they were not.
        flushed: it is done only when it is on the disk of Redis.
    """

    commands: Sequence[Command] | Callable[[], Sequence[Command]]
    done: Callable[[], None]
    undone: Callable[[], None]
    flushed: bool = False


class LogWriter:
    """The one way to Redis of everything that is written.

    What is removed from a table goes out with the next write, whatever that is, so the log never says of two chunks
    that they are stored in the same slot.

    Attributes:
        tables: by name.
        down_because: why Redis is away; empty while it is there.
        times_away: how often it has gone away.
        may_be_unflushed: something that has to be on the disk of Redis is in Redis, but maybe not on its disk.
    """

    def __init__(self, store: RedisStore, log: RedisLog) -> None:
        self.tables: dict[str, TableLog] = {}
        self.down_because = ""
        self.times_away = 0
        self.may_be_unflushed = False
        self._store = store
        self._log = log
        self._kept: list[Callable[[], Sequence[Command]]] = []
        self._dropping: list[Command] = []  # of deleted tables, not written yet
        self._doubted: Write | None = None
        self._ended: TakenOverError | None = None

    def keep(self, commands: Callable[[], Sequence[Command]]) -> None:
        """Note what Redis must hold besides the log: these commands are executed again when it has lost data."""
        self._kept.append(commands)

    def drop(self, commands: Sequence[Command]) -> None:
        """Have the next write begin with these, which may be executed again and again."""
        self._dropping += commands

    def write(self, write: Write) -> Coroutine[Any, Any, None]:
        """Write, after all writes before, and with it everything that was removed; the outcome has to be awaited.

        When an answer of Redis is lost, this raises at once, but the write is settled when Redis is back.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        self.check_up()
        removed = self._take_changes()
        dropping, self._dropping = self._dropping, []

        def undo() -> None:
            self._dropping[:0] = dropping
            _give_back_changes(removed)
            write.undone()

        first = [*dropping, *_change_commands(removed)]
        wait = write.flushed and self._store.must_be_asked
        executing = self._store.submit(self._execute, first, write.commands, wait)
        return self._settle_write(executing, write._replace(undone=undo))

    async def _settle_write(self, executing: "asyncio.Future[None]", write: Write) -> None:
        try:
            await executing
        except WriteInDoubtError as error:
            self._doubted = write
            self.fail(error)
        except redis.RedisError as error:
            write.undone()
            self.fail(error)
        except TakenOverError as error:
            self._ended = error
            self.fail(error)
        else:
            if write.flushed and self._store.gives_fsync:
                self.may_be_unflushed = False
            write.done()
            return
        raise self.unavailable()

    def _execute(
        self,
        _: redis.Redis,
        first: Sequence[Command],
        others: Sequence[Command] | Callable[[], Sequence[Command]] = (),
        wait: bool = False,
    ) -> None:
        commands = [*first, *(others() if callable(others) else others)]
        self._log.chain.write(commands, flushed=wait)
        self._store.note_written(sum(len(command[-1]) for command in commands if isinstance(command[-1], bytes)))

    def _take_changes(self) -> list[tuple[TableLog, Changes]]:
        taken = [(table, table.take_changes()) for table in self.tables.values()]
        return [(table, changes) for table, changes in taken if changes]

    async def check(self) -> None:
        """Find out without writing whether Redis is there and has lost nothing, and no other server has begun.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        self.check_up()
        try:
            await self._store.run(self._log.chain.check)
            await self._store.tend()
        except redis.RedisError as error:
            self.fail(error)
            raise self.unavailable() from None

    # --- when Redis is away ------------------------------------------------------------------------------------------

    def check_up(self) -> None:
        """Go on only while Redis is there.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        if self.down_because:
            raise self.unavailable()

    def unavailable(self) -> Refusal:
        """What to answer while Redis is away."""
        return Refusal(
            Reason.STORE_UNAVAILABLE, f"Redis did not take it, the call may be repeated: {self.down_because}"
        )

    def fail(self, error: Exception) -> None:
        """Redis is away until `come_back` has returned."""
        if not self.down_because:
            self.times_away += 1
            logger.error("Redis is away, inserts are refused until it is back: %s", _line(error))
        self.down_because = _line(error)

    async def come_back(self, stop: asyncio.Event) -> None:
        """Try until Redis is there, everything is settled and it has everything again, or `stop` is set.

        Raises:
            TakenOverError: this server can write no more.
        """
        if self._ended is not None:
            raise self._ended
        while not stop.is_set():
            try:
                await self._store.connect()
                await self._store.run(self._log.chain.resume, flushed=self._must_flush_doubted())
                self._settle()
                if self._log.chain.has_lost:
                    await self._give_back()
            except TakenOverError as error:
                self.down_because = str(error)
                raise
            except (redis.RedisError, ReplayServerError) as error:
                self.down_because = _line(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _RECONNECT_SECONDS)
            else:
                self.down_because = ""
                logger.warning("Redis is back")
                return

    def _must_flush_doubted(self) -> bool:
        return self._doubted is not None and self._doubted.flushed and self._store.must_be_asked

    def _settle(self) -> None:
        """Follow what became of the write whose answer was lost."""
        doubted, self._doubted = self._doubted, None
        if doubted is None:
            return
        executed = self._log.chain.was_executed
        self.may_be_unflushed |= executed and doubted.flushed and not self._store.gives_fsync
        (doubted.done if executed else doubted.undone)()

    async def _give_back(self) -> None:
        """Write again what Redis has lost.

        Raises:
            redis.RedisError: some of it may have been written; it can be done again.
        """
        logger.error("Redis has lost what it had acknowledged; it gets everything again that memory holds")
        removed = self._take_changes()
        kept = [command for commands in self._kept for command in commands()]
        try:
            for commands in _pieces([*self._dropping, *_change_commands(removed), *kept]):
                await self._store.run(self._execute, commands)
        except redis.RedisError:
            _give_back_changes(removed)
            raise
        self._dropping = []
        for name, table in self.tables.items():
            present = await self._store.run(self._log.read_ids, name)
            await self._store.run(self._execute_all, table.plan_rewriting(present))
            logger.warning("table %s: written again as far as it was lost", name)
        self._log.chain.has_lost = False

    def _execute_all(self, client: redis.Redis, writes: Iterable[Sequence[Command]]) -> None:
        for commands in writes:
            self._execute(client, commands)


def _pieces(commands: Iterable[Command]) -> Iterator[list[Command]]:
    """Commands that may be executed again and again, in writes that are done within the timeout of Redis."""
    piece: list[Command] = []
    size = 0
    for command in commands:
        piece.append(command)
        size += sum(len(word) for word in command if isinstance(word, bytes))
        if size >= _PIECE_BYTES:
            yield piece
            piece, size = [], 0
    yield piece


def _give_back_changes(taken: Iterable[tuple[TableLog, Changes]]) -> None:
    for table, changes in taken:
        table.give_back(changes)  # one that has ended or begun again meanwhile is not asked any more


def _change_commands(taken: Iterable[tuple[TableLog, Changes]]) -> list[Command]:
    return [command for table, changes in taken for command in table.change_commands(changes)]


def _line(error: Exception) -> str:
    if isinstance(error, redis.TimeoutError):
        return "it did not answer in time"
    return (str(error) or type(error).__name__).splitlines()[0]
