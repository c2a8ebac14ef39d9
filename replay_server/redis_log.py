"""The durable log: one Redis stream per table, an entry per insert call or trajectory, and what belongs to it.

Layout, under a prefix:

- `last_write`: see write_chain.py.
- `tables`, `rate_limiters`: hashes of name to TableConfig and, where it was changed since, RateLimiterConfig.
- `log:<table>`: the stream. An id is `<epoch>-<number>`, given by the server, and grows; field `h` is a header, see
  log_entry.py, field `m` the InsertRequest as it came.
- `removed:<table>`: set of the ordinals of chunks that are no longer stored although their entry is still there.
- `evicted:<table>`: list of the trajectories removed last.
- `state:<table>`: hash of counters.
- `priorities:<table>:pages`, `priorities:<table>:state`: see priority_log.py.
- `updated:<table>`, `column:<table>:<page>:<column>`: see column_log.py.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import redis
from google.protobuf.message import DecodeError

from replay_server.block import DIGEST_BYTES
from replay_server.log_entry import EntryHeader, LogError, pack_header, unpack_header
from replay_server.stored import KNOWN_REMOVED, Removed, StoredChunk
from replay_server.write_chain import Command, WriteChain, order_of
from zero.tables import RateLimiterConfig, TableConfig
from zero.wire import codec, replay_pb2
from zero.wire.codec import CodecError

_HEADER, _MESSAGE = b"h", b"m"
_VALUES_PER_COMMAND = 1000
_CHUNK_BYTES = 8 << 20
_EVICTED = struct.Struct("<?I")  # open, number of chunks; the chunks follow, then the id
_EVICTED_CHUNK = struct.Struct(f"<II{DIGEST_BYTES}s")  # first step, number of steps, digest

RawEntry = tuple[bytes, dict[bytes, bytes]]
"""Id and fields of an entry as Redis gives them."""


class Entry(NamedTuple):
    """An entry as read.

    Attributes:
        entry: its id.
        header: what it holds.
        message: the InsertRequest.
    """

    entry: str
    header: EntryHeader
    message: bytes


class RedisLog:
    """The log of all tables. Methods that take the client talk to Redis and raise redis.RedisError as it comes.

    Attributes:
        chain: makes every write depend on the one before it.
    """

    def __init__(self, prefix: str) -> None:
        """Every key begins with the prefix and a colon."""
        self._prefix = prefix
        self.chain = WriteChain(prefix)

    def key(self, *parts: str) -> str:
        """A key of the layout."""
        return ":".join((self._prefix, *parts))

    # --- tables ------------------------------------------------------------------------------------------------------

    def load_tables(self, client: redis.Redis) -> list[TableConfig]:
        """The configs of all tables, by name.

        Raises:
            LogError: one that this version cannot read.
        """
        stored = cast("dict[bytes, bytes]", client.hgetall(self.key("tables")))
        configs: list[TableConfig] = []
        for name in sorted(stored):
            try:
                configs.append(codec.decode_table_config(replay_pb2.TableConfig.FromString(stored[name])))
            except (CodecError, DecodeError) as error:
                raise LogError(
                    f"the config of table {name.decode()!r} was written by another version: {error}"
                ) from None
        return configs

    def load_rate_limiters(self, client: redis.Redis) -> dict[str, RateLimiterConfig]:
        """By name of the table, where they are no longer those that the table was created with."""
        stored = cast("dict[bytes, bytes]", client.hgetall(self.key("rate_limiters")))
        messages = {name.decode(): replay_pb2.RateLimiterConfig.FromString(value) for name, value in stored.items()}
        return {name: codec.decode_rate_limiter(message) for name, message in messages.items()}

    def table_command(self, config: TableConfig) -> Command:
        """Keeps the config of a table."""
        return "HSET", self.key("tables"), config.name, codec.encode_table_config(config).SerializeToString()

    def rate_limiter_command(self, table: str, config: RateLimiterConfig) -> Command:
        """Keeps the limits of a table."""
        return "HSET", self.key("rate_limiters"), table, codec.encode_rate_limiter(config).SerializeToString()

    def new_table_commands(self, config: TableConfig) -> list[Command]:
        """Keeps the config of a table that begins now, whatever is left of an earlier one."""
        forget: Command = ("HDEL", self.key("rate_limiters"), config.name)
        return [*self.wipe_commands(config.name), forget, self.table_command(config)]

    def forget_tables_command(self) -> Command:
        """Forgets all tables, for they are going to be kept again."""
        return "UNLINK", self.key("tables"), self.key("rate_limiters")

    def drop_table_commands(self, table: str) -> list[Command]:
        """Forget a table; what it holds is another matter, see `wipe_commands`."""
        return [("HDEL", self.key("tables"), table), ("HDEL", self.key("rate_limiters"), table)]

    def wipe_commands(self, table: str) -> list[Command]:
        """Delete everything that a table holds and remembers, updated columns aside."""
        keys = [self.key(name, table) for name in ("log", "removed", "evicted", "state", "updated")]
        return [("UNLINK", *keys, *(self.key("priorities", table, name) for name in ("pages", "state")))]

    # --- state -------------------------------------------------------------------------------------------------------

    def state_command(self, table: str, state: Mapping[str, int]) -> Command:
        """Keeps counters."""
        return "HSET", self.key("state", table), *(word for item in state.items() for word in item)

    def load_state(self, client: redis.Redis, table: str) -> dict[str, int]:
        """The counters that were kept."""
        stored = cast("dict[bytes, bytes]", client.hgetall(self.key("state", table)))
        return {name.decode(): int(value) for name, value in stored.items()}

    # --- entries -----------------------------------------------------------------------------------------------------

    def append_command(self, table: str, entry: str, header: EntryHeader, message: bytes) -> Command:
        """Adds an entry."""
        return "XADD", self.key("log", table), entry, _HEADER, pack_header(header, message), _MESSAGE, message

    def trim_command(self, table: str, first_entry: str) -> Command:
        """Deletes all entries before one."""
        return "XTRIM", self.key("log", table), "MINID", first_entry

    def delete_commands(self, table: str, entries: Sequence[str]) -> list[Command]:
        """Deletes entries."""
        return [("XDEL", self.key("log", table), *part) for part in _parts(entries)]

    def num_entries(self, client: redis.Redis, table: str) -> int:
        """How many there are."""
        return client.xlen(self.key("log", table))

    def read(self, client: redis.Redis, table: str) -> Iterator[Entry]:
        """All entries, in order.

        Raises:
            LogError: an entry that this server did not write; the text names it.
        """
        for page in self.read_pages(client, table):
            for entry, fields in page:
                yield parse_entry(table, entry.decode(), fields)

    def read_pages(self, client: redis.Redis, table: str) -> Iterator[list[RawEntry]]:
        """All entries as Redis gives them, in order, some MiB at a time."""
        after = ""
        count = 16
        while page := self.read_page(client, table, after, count):
            yield page
            after = page[-1][0].decode()
            size = sum(len(fields.get(_MESSAGE, b"")) for _, fields in page)
            count = max(1, min(1024, count * _CHUNK_BYTES // max(size, 1)))

    def read_page(self, client: redis.Redis, table: str, after: str, count: int) -> list[RawEntry]:
        """At most so many entries after one, or from the first on, as Redis gives them."""
        start = f"({after}" if after else "-"
        return cast("list[RawEntry]", client.xrange(self.key("log", table), start, "+", count))

    def read_ids(self, client: redis.Redis, table: str) -> list[str]:
        """The ids of all entries, in order; takes as long as reading the entries."""
        return [entry.decode() for page in self.read_pages(client, table) for entry, _ in page]

    # --- what is removed ---------------------------------------------------------------------------------------------

    def removed_commands(self, table: str, ordinals: Sequence[int], forgotten: Sequence[int]) -> list[Command]:
        """Notes the ordinals of chunks that are no longer stored, forgets those whose entry is gone."""
        key = self.key("removed", table)
        adds: list[Command] = [("SADD", key, *part) for part in _parts(ordinals)]
        return [*adds, *(("SREM", key, *part) for part in _parts(forgotten))]

    def read_removed(self, client: redis.Redis, table: str) -> set[int]:
        """The ordinals of chunks that are no longer stored."""
        return {int(value) for value in cast("set[bytes]", client.smembers(self.key("removed", table)))}

    def evicted_commands(self, table: str, evicted: Sequence[Removed]) -> list[Command]:
        """Notes removed trajectories, so that they stay known."""
        if not evicted:
            return []
        key = self.key("evicted", table)
        pushes: list[Command] = [
            ("RPUSH", key, *part) for part in _parts([_pack_evicted(one) for one in evicted[-KNOWN_REMOVED:]])
        ]
        return [*pushes, ("LTRIM", key, -KNOWN_REMOVED, -1)]

    def read_evicted(self, client: redis.Redis, table: str) -> list[Removed]:
        """The trajectories removed last, oldest first."""
        values = cast("list[bytes]", client.lrange(self.key("evicted", table), 0, -1))
        return [_unpack_evicted(value) for value in values]


def newest_of(entries: Sequence[str]) -> tuple[int, int]:
    """The order of the last one of entries in their order; (0, 0) without any."""
    return order_of(entries[-1]) if entries else (0, 0)


Word = str | bytes | int


def _parts(values: Sequence[Word]) -> Iterator[Sequence[Word]]:
    return (values[i : i + _VALUES_PER_COMMAND] for i in range(0, len(values), _VALUES_PER_COMMAND))


def parse_entry(table: str, entry: str, fields: Mapping[bytes, bytes]) -> Entry:
    """An entry out of its id and fields.

    Raises:
        LogError: it is damaged, or was written by another version; the text names it.
    """
    if _HEADER not in fields:
        raise LogError(
            f"entry {entry} of the log of table {table!r} was written by an older version, which keeps its data in "
            "another layout"
        )
    try:
        return Entry(entry, unpack_header(fields[_HEADER], fields[_MESSAGE]), fields[_MESSAGE])
    except LogError as error:
        raise LogError(f"entry {entry} of the log of table {table!r} is damaged: {error}") from None


def _pack_evicted(removed: Removed) -> bytes:
    chunks = (_EVICTED_CHUNK.pack(chunk.first_step, chunk.num_steps, chunk.digest) for chunk in removed.chunks)
    prefix = _EVICTED.pack(removed.open, len(removed.chunks))
    return b"".join((prefix, *chunks, removed.trajectory_id.encode()))


def _unpack_evicted(value: bytes) -> Removed:
    is_open, number = cast("tuple[bool, int]", _EVICTED.unpack_from(value))
    stop = _EVICTED.size + number * _EVICTED_CHUNK.size
    chunks = tuple(
        StoredChunk(first_step, num_steps, digest, "", 0)
        for first_step, num_steps, digest in _EVICTED_CHUNK.iter_unpack(value[_EVICTED.size : stop])
    )
    return Removed(value[stop:].decode(), chunks, is_open)
