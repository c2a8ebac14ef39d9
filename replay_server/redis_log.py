"""The durable log: one Redis stream per table, one entry per insert call, trimmed as trajectories are evicted.

Layout, under a prefix: `last_write`, see write_chain.py; `tables` hash of name to TableConfig; `log:<table>` stream;
`evicted:<table>` list of digest + id; `priorities:<table>` float32 by slot. The id of a stream entry is
`<epoch>-<number>`, given by the server; ids grow. Every write is a link of the chain: once a new epoch has begun, a
command that was under way before either is in the log or never will be, and what is in the log is the truth.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import redis

from replay_server.block import DIGEST_BYTES
from replay_server.table import KNOWN_EVICTED, Stored
from replay_server.write_chain import Command, WriteChain
from zero.tables import TableConfig
from zero.wire import codec, replay_pb2

# Layout, position of the first step, trajectories inserted before, number of trajectories. The digests of their
# contents follow; in the layout of what was written again, those of the incomplete contents after them; the message.
_HEADER = struct.Struct("<BQQI")
_AS_INSERTED = 1
_WRITTEN_AGAIN = 2
_VALUES_PER_COMMAND = 1000  # a script cannot take many more words at once
_FIELD = b"insert"
_CHUNK_BYTES = 8 << 20
_RawEntry = tuple[bytes, dict[bytes, bytes]]


class LogError(Exception):
    """The log holds what this server did not write; one line."""


class Append(NamedTuple):
    """An entry to be written.

    Attributes:
        table: whose.
        position: of the first step.
        ordinal: trajectories inserted before.
        digests: of its trajectories.
        message: the InsertRequest.
        written_digests: of the trajectories as they are in the message, where this is less than was inserted.
    """

    table: str
    position: int
    ordinal: int
    digests: Sequence[bytes]
    message: bytes
    written_digests: Sequence[bytes] = ()


class Trim(NamedTuple):
    """What a table no longer holds.

    Attributes:
        table: whose.
        first_entry: the oldest entry still needed.
        evicted: trajectories to be known as evicted.
    """

    table: str
    first_entry: str
    evicted: Sequence[Stored]


@dataclass(frozen=True)
class Entry:
    """An entry as read.

    Attributes:
        entry: its id.
        position: of the first step.
        ordinal: trajectories inserted before.
        digests: of its trajectories.
        written_digests: of the trajectories as they are in the message.
        message: the InsertRequest.
    """

    entry: str
    position: int
    ordinal: int
    digests: Sequence[bytes]
    written_digests: Sequence[bytes]
    message: bytes


class RedisLog:
    """The log of all tables. Methods take the client, talk to Redis and raise redis.RedisError as it comes.

    Attributes:
        chain: makes every write depend on the one before it.
    """

    def __init__(self, prefix: str) -> None:
        """Every key begins with the prefix and a colon."""
        self._prefix = prefix
        self.chain = WriteChain(prefix)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def priorities_key(self, table: str) -> str:
        """The key under which a table's priorities are saved."""
        return self._key("priorities", table)

    def load_tables(self, client: redis.Redis) -> list[TableConfig]:
        """The configs of all tables, by name."""
        stored = cast("dict[bytes, bytes]", client.hgetall(self._key("tables")))
        return [codec.decode_table_config(replay_pb2.TableConfig.FromString(stored[name])) for name in sorted(stored)]

    def table_command(self, config: TableConfig) -> Command:
        """Keeps the config of a table."""
        return "HSET", self._key("tables"), config.name, codec.encode_table_config(config).SerializeToString()

    def append(self, client: redis.Redis, appends: Sequence[Append], trims: Sequence[Trim]) -> list[str]:
        """Write entries and trim, all or none, in one round trip; returns the ids of the entries."""
        entries = self.chain.next_entries(len(appends))
        commands: list[Command] = []
        for append, entry in zip(appends, entries, strict=True):
            layout = _WRITTEN_AGAIN if append.written_digests else _AS_INSERTED
            header = _HEADER.pack(layout, append.position, append.ordinal, len(append.digests))
            value = b"".join((header, *append.digests, *append.written_digests, append.message))
            commands.append(("XADD", self._key("log", append.table), entry, _FIELD, value))
        for trim in trims:
            commands.append(self._trim_command(trim.table, trim.first_entry))
            commands += self._evicted_commands(trim.table, [(one.trajectory_id, one.digest) for one in trim.evicted])
        self.chain.write(client, commands, len(entries))
        return entries

    def rewrite_evicted(
        self, client: redis.Redis, table: str, first_entry: str, evicted: Sequence[tuple[str, bytes]]
    ) -> None:
        """Trim before an entry and replace the whole list of evicted trajectories, given by id and digest."""
        commands: list[Command] = [self._trim_command(table, first_entry)] if first_entry else []
        commands.append(("DEL", self._key("evicted", table)))
        self.chain.write(client, [*commands, *self._evicted_commands(table, evicted)])

    def _trim_command(self, table: str, first_entry: str) -> Command:
        return "XTRIM", self._key("log", table), "MINID", first_entry

    def _evicted_commands(self, table: str, evicted: Sequence[tuple[str, bytes]]) -> list[Command]:
        key = self._key("evicted", table)
        values = [digest + trajectory_id.encode() for trajectory_id, digest in evicted]
        starts = range(0, len(values), _VALUES_PER_COMMAND)
        pushes: list[Command] = [("RPUSH", key, *values[i : i + _VALUES_PER_COMMAND]) for i in starts]
        return [*pushes, ("LTRIM", key, -KNOWN_EVICTED, -1)]

    def read(self, client: redis.Redis, table: str, after: str) -> Iterator[Entry]:
        """The entries after one, in order; all of them with an empty `after`.

        Raises:
            LogError: an entry that is not of this layout.
        """
        count = 16
        while True:
            start = f"({after}" if after else "-"
            chunk = cast("list[_RawEntry]", client.xrange(self._key("log", table), start, "+", count))
            size = 0
            for entry, fields in chunk:
                after = entry.decode()
                value = fields.get(_FIELD, b"")
                size += len(value)
                yield _parse(table, after, value)
            if len(chunk) < count:
                return
            count = max(1, min(1024, count * _CHUNK_BYTES // max(size, 1)))

    def last_entry(self, client: redis.Redis, table: str) -> str:
        """The id of the newest entry; empty without one."""
        newest = cast("list[_RawEntry]", client.xrevrange(self._key("log", table), count=1))
        return newest[0][0].decode() if newest else ""

    def read_evicted(self, client: redis.Redis, table: str) -> list[tuple[str, bytes]]:
        """Id and digest of the trajectories evicted last, oldest first."""
        values = cast("list[bytes]", client.lrange(self._key("evicted", table), 0, -1))
        return [(value[DIGEST_BYTES:].decode(), value[:DIGEST_BYTES]) for value in values]


def _parse(table: str, entry: str, value: bytes) -> Entry:
    if len(value) < _HEADER.size or value[0] not in (_AS_INSERTED, _WRITTEN_AGAIN):
        raise LogError(f"entry {entry} of the log of table {table!r} is not in a layout that this server knows")
    layout, position, ordinal, number = _HEADER.unpack_from(value)
    stop = _HEADER.size + number * DIGEST_BYTES
    digests = _digests(value[_HEADER.size : stop])
    if layout == _AS_INSERTED:
        return Entry(entry, position, ordinal, digests, digests, value[stop:])
    written_stop = stop + number * DIGEST_BYTES
    return Entry(entry, position, ordinal, digests, _digests(value[stop:written_stop]), value[written_stop:])


def _digests(data: bytes) -> list[bytes]:
    return [data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES)]
