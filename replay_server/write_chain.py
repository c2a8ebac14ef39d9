"""Writes to Redis as a chain: each takes effect only if the one before it is the last that Redis has seen.

The newest link is kept under the key `last_write`, as `<epoch>-<number>`. An epoch is a Unix time in milliseconds at
which a server began, or began again after a connection was lost, made larger where needed, so epochs grow from server
to server, also on a Redis that has come back empty. One connection watches that key all the time, and every write is a
transaction on it that also sets the next link. From that follows:

- A write that was delayed on its way has no effect once a new epoch has begun.
- A Redis that comes back empty or with an older state refuses the next write instead of taking it.
- Of two servers under one prefix only the one that began last can write; the other one learns it with its next write.
- What became of a write whose answer was lost is known as soon as the server has begun again.
"""

import time
from collections.abc import Sequence
from typing import cast

import redis
from redis.connection import Connection

from replay_server.errors import TakenOverError

Command = tuple[str | bytes | int | float, ...]
"""A command of Redis with its arguments."""

_Reply = bytes | int | list["_Reply"] | redis.ResponseError | None


class NotLastWrite(redis.RedisError):
    """The last write that Redis has seen is not ours; nothing was written."""


class WriteInDoubtError(redis.RedisError):
    """The answer was lost: Redis has executed the write or not, all or none of it."""


class WriteChain:
    """The chain of one server; to be used by one thread.

    Attributes:
        has_lost: Redis was found without writes that it had acknowledged; stays set until the owner clears it.
        was_executed: whether Redis has executed the last write in doubt; known from `resume` on.
    """

    def __init__(self, prefix: str) -> None:
        """The key begins with the prefix and a colon."""
        self._prefix = prefix
        self._key = f"{prefix}:last_write"
        self._watching: Connection | None = None
        self._seen = ""  # the link that the connection watches
        self._last = (0, 0)  # the last link known to be written
        self._doubted: tuple[int, int] | None = None
        self._epoch = 0  # the newest one tried; its begin may have been answered or not
        self._num_entries = 0  # given in this epoch
        self._executed_before: dict[int, bool] = {}  # by epoch tried: was_executed, if that epoch has begun
        self.has_lost = False
        self.was_executed = False

    def begin(self, client: redis.Redis) -> None:
        """Begin a life of the server: whoever wrote under the prefix before can no longer.

        Raises:
            redis.RedisError: it may have begun or not.
        """
        self._watch(client)
        self._begin_epoch(self._next_epoch())

    def resume(self, client: redis.Redis, *, flushed: bool = False) -> None:
        """Go on in a new epoch, over a new connection; sets `has_lost` and `was_executed`.

        Args:
            client: of Redis.
            flushed: wait until Redis has flushed the write in doubt, if it has executed it.

        Raises:
            redis.RedisError: it may have begun or not.
            TakenOverError: another server has begun since.
        """
        self._watch(client)
        found = order_of(self._seen)
        if found[0] > self._epoch:
            raise TakenOverError(
                f"another replay server has taken over the Redis keys under {self._prefix!r}, this one has to end; "
                "run one server per Redis prefix"
            )
        # Noted before the new epoch hides it.
        self.has_lost = self.has_lost or found < self._last
        doubted = self._doubted
        executed = doubted is not None and self._executed_before.get(found[0], found >= doubted)
        epoch = self._next_epoch()
        self._executed_before[epoch] = executed
        self._begin_epoch(epoch, flushed=flushed and executed)
        self.was_executed = executed
        self._doubted = None
        self._executed_before.clear()

    def check(self, client: redis.Redis) -> None:
        """Find out without writing whether the next write will be taken.

        Raises:
            NotLastWrite: it will not.
            redis.RedisError: Redis does not answer.
        """
        link = cast("bytes | None", client.get(self._key)) or b""
        if order_of(link.decode()) != self._last:
            raise self._not_last()

    def new_entry(self) -> str:
        """An id for a stream entry: they grow for ever, and are given once."""
        self._num_entries += 1
        return _link((self._epoch, self._num_entries))

    def write(self, commands: Sequence[Command], *, flushed: bool = False) -> None:
        """Execute commands, all or none, in one round trip.

        Args:
            commands: none of them may fail.
            flushed: wait until Redis has flushed it to its disk, for which WAITAOF is needed.

        Raises:
            WriteInDoubtError: they may have been executed or not.
            redis.RedisError: nothing was written.
            TakenOverError: a command failed, which only another writer under the prefix can bring about.
        """
        if self._seen != _link(self._last):
            raise self._not_last()
        link = (self._last[0], self._last[1] + 1)
        try:
            self._exchange(link, commands, flushed=flushed)
        except WriteInDoubtError:
            self._doubted = link
            raise

    def _watch(self, client: redis.Redis) -> None:
        if self._watching is not None:
            self._watching.disconnect()
        connection = client.connection_pool.get_connection()
        connection.send_packed_command(connection.pack_commands([("WATCH", self._key), ("GET", self._key)]))
        connection.read_response()
        self._seen = _text(cast("_Reply", connection.read_response()))
        self._watching = connection

    def _next_epoch(self) -> int:
        return max(time.time_ns() // 1_000_000, order_of(self._seen)[0] + 1, self._epoch + 1)

    def _begin_epoch(self, epoch: int, *, flushed: bool = False) -> None:
        self._epoch = epoch
        self._num_entries = 0
        self._exchange((epoch, 0), (), flushed=flushed)

    def _exchange(self, link: tuple[int, int], commands: Sequence[Command], *, flushed: bool = False) -> None:
        connection = self._watching
        # Not asked for, redis-py would connect again in silence, and nothing would be watched.
        if connection is None or not connection.is_connected:
            raise redis.ConnectionError("the connection that watches the last write is gone")
        begin: list[Command] = [("MULTI",), *commands, ("SET", self._key, _link(link)), ("EXEC",)]
        wait: list[Command] = [("WAITAOF", 1, 0, 0)] if flushed else []
        replies = _send(connection, [*begin, *wait, ("WATCH", self._key), ("GET", self._key)])
        self._seen = _text(replies[-1])
        executed = replies[len(begin) - 1]
        if not isinstance(executed, list):
            connection.disconnect()  # what is still to come may depend on this write
            raise next((reply for reply in replies if isinstance(reply, redis.ResponseError)), self._not_last())
        self._check_all_done(executed)
        not_flushed = replies[len(begin)]
        if flushed and isinstance(not_flushed, redis.ResponseError):
            connection.disconnect()
            raise WriteInDoubtError(f"Redis has not flushed it: {not_flushed}")
        self._last = link

    def _check_all_done(self, executed: Sequence[_Reply]) -> None:
        failed = next((reply for reply in executed if isinstance(reply, redis.ResponseError)), None)
        if failed is not None:
            if self._watching is not None:
                self._watching.disconnect()
            raise TakenOverError(
                f"Redis executed a part of a write only ({failed}): somebody else writes to the keys under "
                f"{self._prefix!r}, this server has to end; keep the prefix to one server and start it again"
            )

    def _not_last(self) -> NotLastWrite:
        return NotLastWrite(f"its last write is not ours: it has lost data, or another server uses {self._prefix!r}")


def _send(connection: Connection, commands: Sequence[Command]) -> list[_Reply]:
    """Send commands at once, return all replies; refusals are replies."""
    replies: list[_Reply] = []
    try:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands:
            try:
                replies.append(cast("_Reply", connection.read_response()))
            except redis.ResponseError as error:
                replies.append(error)
    except redis.TimeoutError:
        connection.disconnect()
        raise WriteInDoubtError("it did not answer in time") from None
    except redis.RedisError as error:
        connection.disconnect()
        raise WriteInDoubtError(str(error)) from None
    return replies


def order_of(entry: str) -> tuple[int, int]:
    """Epoch and number out of a link or the id of a stream entry; (0, 0) for an empty one."""
    epoch, _, number = entry.partition("-")
    return int(epoch or 0), int(number or 0)


def _link(order: tuple[int, int]) -> str:
    return f"{order[0]}-{order[1]}"


def _text(reply: _Reply) -> str:
    return reply.decode() if isinstance(reply, bytes) else ""
