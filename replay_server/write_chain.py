"""Writes to Redis as a chain: each takes effect only if the one before it is the last that Redis has seen.

The newest link is kept under the key `last_write`, as `<epoch>-<number>`. An epoch is a Unix time in milliseconds at
which a server began, or began again after a connection was lost, made larger where needed, so epochs grow from server
to server, also on a Redis that has come back empty. From that follows:

- A write that was delayed on its way has no effect once a new epoch has begun.
- A Redis that comes back empty or with an older state refuses the next write instead of taking it.
- Of two servers under one prefix only the one that began last can write; the other one learns it with its next write.
"""

import time
from collections.abc import Sequence
from typing import cast

import redis

from replay_server.errors import TakenOverError

Command = tuple[str | bytes | int | float, ...]
"""A command of Redis with its arguments."""

# Arguments: the link that must be the last, the next link, then every command after the number of its words.
# A script and not MULTI: a transaction cannot be made to depend on a value without a further round trip.
_SCRIPT = """
if (redis.call("GET", KEYS[1]) or "") ~= ARGV[1] then return 0 end
local place = 3
while place <= #ARGV do
  local last = place + tonumber(ARGV[place])
  redis.call(unpack(ARGV, place + 1, last))
  place = last + 1
end
redis.call("SET", KEYS[1], ARGV[2])
return 1
"""


class NotLastWrite(redis.RedisError):
    """The last write that Redis has seen is not ours; nothing was written."""


class WriteChain:
    """The chain of one server; to be used by one thread.

    Attributes:
        has_lost: Redis was found without writes that it had acknowledged; stays set until the owner clears it.
    """

    def __init__(self, prefix: str) -> None:
        """The key begins with the prefix and a colon."""
        self._prefix = prefix
        self._key = f"{prefix}:last_write"
        self._epoch = 0  # the newest one tried; its begin may have been answered or not
        self._last = (0, 0)  # the last link known to be written
        self.has_lost = False

    def begin(self, client: redis.Redis) -> None:
        """Begin a life of the server: whoever wrote under the prefix before can no longer.

        Raises:
            redis.RedisError: it may have begun or not.
        """
        self._begin_epoch(client, self._read(client))

    def resume(self, client: redis.Redis) -> None:
        """Go on in a new epoch, after a write with an unknown outcome; sets `has_lost`.

        Raises:
            redis.RedisError: it may have begun or not.
            TakenOverError: another server has begun since.
        """
        link = self._read(client)
        found = order_of(link)
        if found[0] > self._epoch:
            raise TakenOverError(
                f"another replay server has taken over the Redis keys under {self._prefix!r}, this one has to end; "
                "run one server per Redis prefix"
            )
        # Noted before the new epoch hides it.
        self.has_lost = self.has_lost or found < self._last
        self._begin_epoch(client, link)

    def check(self, client: redis.Redis) -> None:
        """Find out without writing whether the next write will be taken.

        Raises:
            NotLastWrite: it will not.
            redis.RedisError: Redis does not answer.
        """
        if order_of(self._read(client)) != self._last:
            raise self._not_last()

    def next_entries(self, number: int) -> list[str]:
        """Ids for stream entries of the next write: they grow for ever."""
        epoch, last = self._last
        return [f"{epoch}-{last + i}" for i in range(1, number + 1)]

    def write(self, client: redis.Redis, commands: Sequence[Command], num_entries: int = 0) -> None:
        """Execute commands, all or none, in one round trip; the first num_entries of next_entries() are used up.

        Raises:
            NotLastWrite: nothing was written.
            redis.RedisError: they may have been executed or not.
        """
        epoch, last = self._last
        self._advance(client, _link(self._last), (epoch, last + max(num_entries, 1)), commands)

    def _begin_epoch(self, client: redis.Redis, link: str) -> None:
        self._epoch = max(time.time_ns() // 1_000_000, order_of(link)[0] + 1, self._epoch + 1)
        self._advance(client, link, (self._epoch, 0), ())

    def _advance(self, client: redis.Redis, expected: str, new: tuple[int, int], commands: Sequence[Command]) -> None:
        words: list[str | bytes | int | float] = []
        for command in commands:
            words += (len(command), *command)
        if not client.eval(_SCRIPT, 1, self._key, expected, _link(new), *words):
            raise self._not_last()
        self._last = new

    def _read(self, client: redis.Redis) -> str:
        return (cast("bytes | None", client.get(self._key)) or b"").decode()

    def _not_last(self) -> NotLastWrite:
        return NotLastWrite(f"its last write is not ours: it has lost data, or another server uses {self._prefix!r}")


def order_of(entry: str) -> tuple[int, int]:
    """Epoch and number out of a link or the id of a stream entry; (0, 0) for an empty one."""
    epoch, _, number = entry.partition("-")
    return int(epoch or 0), int(number or 0)


def _link(order: tuple[int, int]) -> str:
    return f"{order[0]}-{order[1]}"
