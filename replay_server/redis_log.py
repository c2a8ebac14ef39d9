"""The durable log: one Redis stream per table, one entry per insert call, trimmed as trajectories are evicted.

Layout, under a prefix: `tables` hash of name to TableConfig; `epoch` counter of connections; `log:<table>` stream;
`evicted:<table>` list of digest + id; `priorities:<table>` float32 by slot. The id of a stream entry is
`<epoch>-<sequence number>`, given by the server; Redis refuses ids that do not grow. So when a connection is lost while
a command is under way, a new epoch and a fence entry in every stream make sure that the lost command either is in the
log by then or never will be: what is in the log after the fence is the truth, and is read back.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import redis

from replay_server.block import DIGEST_BYTES
from replay_server.table import KNOWN_EVICTED, Stored
from zero.tables import TableConfig
from zero.wire import codec, replay_pb2

# Layout version, position of the first step, trajectories inserted before, number of trajectories.
_HEADER = struct.Struct("<BQQI")
_LAYOUT_VERSION = 1
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
    """

    table: str
    position: int
    ordinal: int
    digests: Sequence[bytes]
    message: bytes


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
        message: the InsertRequest.
    """

    entry: str
    position: int
    ordinal: int
    digests: Sequence[bytes]
    message: bytes


class RedisLog:
    """The log of all tables. Methods take the client, talk to Redis and raise redis.RedisError as it comes."""

    def __init__(self, prefix: str) -> None:
        """Every key begins with the prefix and a colon."""
        self._prefix = prefix
        self._epoch = 0
        self._sequence = 0

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def priorities_key(self, table: str) -> str:
        """The key under which a table's priorities are saved."""
        return self._key("priorities", table)

    def new_epoch(self, client: redis.Redis, tables: Sequence[str]) -> int:
        """Make sure that nothing sent before will still be executed; returns the epoch."""
        self._epoch = client.incr(self._key("epoch"))
        self._sequence = 0
        for table in tables:
            self._fence(client, table)
        return self._epoch

    def _fence(self, client: redis.Redis, table: str) -> None:
        pipeline = client.pipeline(transaction=True)
        entry = f"{self._epoch}-0"
        pipeline.execute_command("XADD", self._key("log", table), entry, "fence", "")
        pipeline.execute_command("XDEL", self._key("log", table), entry)
        pipeline.execute()

    def load_tables(self, client: redis.Redis) -> list[TableConfig]:
        """The configs of all tables, by name."""
        stored = cast("dict[bytes, bytes]", client.hgetall(self._key("tables")))
        return [codec.decode_table_config(replay_pb2.TableConfig.FromString(stored[name])) for name in sorted(stored)]

    def save_table(self, client: redis.Redis, config: TableConfig) -> None:
        """Keep the config of a new table."""
        client.hset(
            self._key("tables"), config.name, cast("Any", codec.encode_table_config(config).SerializeToString())
        )

    def append(self, client: redis.Redis, appends: Sequence[Append], trims: Sequence[Trim]) -> list[str]:
        """Write entries and trim, all or none, in one round trip; returns the ids of the entries."""
        pipeline = client.pipeline(transaction=True)
        entries: list[str] = []
        for append in appends:
            self._sequence += 1
            entries.append(f"{self._epoch}-{self._sequence}")
            header = _HEADER.pack(_LAYOUT_VERSION, append.position, append.ordinal, len(append.digests))
            value = b"".join((header, *append.digests, append.message))
            pipeline.execute_command("XADD", self._key("log", append.table), entries[-1], _FIELD, value)
        for trim in trims:
            pipeline.execute_command("XTRIM", self._key("log", trim.table), "MINID", trim.first_entry)
            evicted = [stored.digest + stored.trajectory_id.encode() for stored in trim.evicted]
            pipeline.execute_command("RPUSH", self._key("evicted", trim.table), *evicted)
            pipeline.execute_command("LTRIM", self._key("evicted", trim.table), -KNOWN_EVICTED, -1)
        pipeline.execute()
        return entries

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

    def last_entry(self, client: redis.Redis, table: str) -> tuple[int, int]:
        """Epoch and sequence number of the newest entry; (0, 0) without one."""
        newest = cast("list[_RawEntry]", client.xrevrange(self._key("log", table), count=1))
        return order_of(newest[0][0].decode()) if newest else (0, 0)

    def read_evicted(self, client: redis.Redis, table: str) -> list[tuple[str, bytes]]:
        """Id and digest of the trajectories evicted last, oldest first."""
        values = cast("list[bytes]", client.lrange(self._key("evicted", table), 0, -1))
        return [(value[DIGEST_BYTES:].decode(), value[:DIGEST_BYTES]) for value in values]


def order_of(entry: str) -> tuple[int, int]:
    """Epoch and sequence number out of the id of an entry."""
    epoch, _, sequence = entry.partition("-")
    return int(epoch), int(sequence)


def _parse(table: str, entry: str, value: bytes) -> Entry:
    if len(value) < _HEADER.size or value[0] != _LAYOUT_VERSION:
        raise LogError(f"entry {entry} of the log of table {table!r} is not in layout {_LAYOUT_VERSION}")
    _, position, ordinal, number = _HEADER.unpack_from(value)
    start = _HEADER.size
    stop = start + number * DIGEST_BYTES
    digests = [value[i : i + DIGEST_BYTES] for i in range(start, stop, DIGEST_BYTES)]
    return Entry(entry, position, ordinal, digests, value[stop:])
