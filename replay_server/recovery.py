"""A table rebuilt from its log: rings, selector, known ids, positions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import redis
from google.protobuf.message import DecodeError

from replay_server.block import decode_insert
from replay_server.priority_log import load_priorities
from replay_server.redis_log import Entry, LogError, RedisLog
from replay_server.table import Stored, Table
from zero.tables import TableConfig
from zero.wire.codec import CodecError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """A table as the log has it.

    Attributes:
        table: rebuilt.
        last_entry: the newest entry; empty without one.
        evicted: what is in the log although the table no longer holds it.
    """

    table: Table
    last_entry: str
    evicted: Sequence[Stored]


def recover_table(client: redis.Redis, log: RedisLog, config: TableConfig, rng: np.random.Generator) -> Recovered:
    """Rebuild a table.

    Raises:
        LogError: the log is damaged; the text names the entry.
        redis.RedisError: Redis does not answer.
    """
    table: Table | None = None
    last_entry = ""
    evicted: list[Stored] = []
    for entry in log.read(client, config.name, ""):
        if table is None:
            table = Table(config, rng, entry.position)
            table.inserted_trajectories = entry.ordinal
        evicted.extend(_replay(table, entry))
        last_entry = entry.entry
    table = table or Table(config, rng)
    table.recall_evicted(log.read_evicted(client, config.name))
    load_priorities(client, log.priorities_key(config.name), table)
    return Recovered(table, last_entry, evicted)


def _replay(table: Table, entry: Entry) -> list[Stored]:
    name = table.config.name
    try:
        block = decode_insert(entry.message, table.config.signature)
    except (CodecError, DecodeError) as error:
        raise LogError(f"entry {entry.entry} of the log of table {name!r} is damaged: {error}") from None
    if [record.digest for record in block.records] != list(entry.digests):
        raise LogError(f"entry {entry.entry} of the log of table {name!r} is damaged: its content has another digest")
    if entry.position != table.head:
        logger.warning(
            "table %s: entry %s was at position %d, is now at %d: Redis has lost entries before it",
            name,
            entry.entry,
            entry.position,
            table.head,
        )
    return table.append(block, entry.entry)
