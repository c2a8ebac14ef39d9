"""A table rebuilt from its log: rings, selector, known ids, positions."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import redis
from google.protobuf.message import DecodeError

from replay_server.block import Block, decode_block
from replay_server.priority_log import load_priorities
from replay_server.redis_log import Entry, LogError, RedisLog
from replay_server.table import Stored, Table
from zero.tables import TableConfig
from zero.wire import replay_pb2
from zero.wire.codec import CodecError, Reason

logger = logging.getLogger(__name__)

_GROUP_BYTES = 256 << 10
_NO_LIMIT = 1 << 62  # it was checked when it came


@dataclass(frozen=True)
class Recovered:
    """A table as the log has it.

    Attributes:
        table: rebuilt.
        evicted: what is in the log although the table no longer holds it.
    """

    table: Table
    evicted: Sequence[Stored]


def recover_table(client: redis.Redis, log: RedisLog, config: TableConfig, rng: np.random.Generator) -> Recovered:
    """Rebuild a table.

    Raises:
        LogError: the log is damaged; the text names the entry.
        redis.RedisError: Redis does not answer.
    """
    table: Table | None = None
    evicted: list[Stored] = []
    for group in _groups(log.read(client, config.name, "")):
        if table is None:
            table = Table(config, rng, group[0].position)
            table.inserted_trajectories = group[0].ordinal
        evicted.extend(_replay(table, group))
    table = table or Table(config, rng)
    table.recall_evicted(log.read_evicted(client, config.name))
    load_priorities(client, log.priorities_key(config.name), table)
    return Recovered(table, evicted)


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Consecutive entries, to be decoded together: most of the time goes into handling columns, not bytes."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        group.append(entry)
        size += len(entry.message)
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _replay(table: Table, entries: Sequence[Entry]) -> list[Stored]:
    try:
        block = _decode(table.config, entries)
    except (CodecError, DecodeError) as error:
        if len(entries) > 1:  # too large together, or one of them is damaged
            return [stored for entry in entries for stored in _replay(table, [entry])]
        name, entry = table.config.name, entries[0].entry
        raise LogError(f"entry {entry} of the log of table {name!r} is damaged: {error}") from None
    if entries[0].position != table.head:
        logger.warning(
            "table %s: entry %s was at position %d, is now at %d: Redis has lost entries before it",
            table.config.name,
            entries[0].entry,
            entries[0].position,
            table.head,
        )
    return table.append(block, [entry.entry for entry in entries for _ in entry.digests])


def _decode(config: TableConfig, entries: Sequence[Entry]) -> Block:
    requests = [replay_pb2.InsertRequest.FromString(entry.message) for entry in entries]
    trajectories = [trajectory for request in requests for trajectory in request.trajectories]
    block = decode_block(trajectories, config.signature, b"", config.capacity, _NO_LIMIT)
    written = [digest for entry in entries for digest in entry.written_digests]
    if [record.digest for record in block.records] != written:
        raise CodecError(Reason.BAD_DATA, "the content has another digest than when it was written")
    digests = [digest for entry in entries for digest in entry.digests]
    if digests == written:
        return block
    records = [record._replace(digest=digest) for record, digest in zip(block.records, digests, strict=True)]
    return replace(block, records=records)
