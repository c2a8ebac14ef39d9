"""A table rebuilt from its log: every step in its slot, what is known, what was replaced, priorities, counters."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import redis
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from replay_server.block import Block, Record, decode_block
from replay_server.column_log import ColumnLog
from replay_server.log_book import LogBook
from replay_server.log_entry import LogError
from replay_server.priority_log import load_priorities
from replay_server.redis_log import Entry, RedisLog
from replay_server.table import Placement, Table
from zero.tables import TableConfig
from zero.wire import replay_pb2
from zero.wire.codec import CodecError, Reason

_GROUP_BYTES = 256 << 10
_GROUP_SECONDS = 1.0
_NO_LIMIT = 1 << 62  # it was checked when it came


@dataclass(frozen=True)
class Recovered:
    """A table as the log has it.

    Attributes:
        table: rebuilt.
        book: what its log holds.
        columns: what was replaced.
        state: all counters that were kept.
    """

    table: Table
    book: LogBook
    columns: ColumnLog
    state: Mapping[str, int]


@dataclass(frozen=True)
class _Chunks:
    """Some chunks of the log that are stored, in order, with consecutive ordinals.

    Attributes:
        block: they.
        ordinal: of the first one.
        slots: int32 [steps].
        entries: one per chunk.
        stored_at: Unix time of the first one.
    """

    block: Block
    ordinal: int
    slots: NDArray[np.int32]
    entries: Sequence[str]
    stored_at: float


def recover_table(
    client: redis.Redis, log: RedisLog, config: TableConfig, rng: np.random.Generator, loaded: Callable[[int], None]
) -> Recovered:
    """Rebuild a table.

    Args:
        client: of Redis.
        log: of all tables.
        config: of the table.
        rng: for what the table draws.
        loaded: called again and again with the number of entries loaded since the last call.

    Raises:
        LogError: the log is damaged; the text names the entry.
        redis.RedisError: Redis does not answer.
    """
    table = Table(config, rng, logged=True)
    book = LogBook(log, table)
    columns = ColumnLog(log, config)
    ordinals = np.full(config.capacity, -1, np.int64)  # by slot
    removed = log.read_removed(client, config.name)
    for group in _groups(log.read(client, config.name)):
        for entry in group:
            gone = sorted(removed.intersection(entry.header.ordinals.tolist()))
            book.add(entry.entry, len(entry.header.ordinals) - len(gone), gone)
        for chunks in _stored_chunks(config, group, removed):
            _restore(table, chunks, ordinals)
        loaded(len(group))
    table.settle()
    table.recall_removed(log.read_evicted(client, config.name))
    columns.load(client, table)
    load_priorities(client, log, table, ordinals)
    state = log.load_state(client, config.name)
    set_counters(table, state)
    return Recovered(table, book, columns, state)


def counters(table: Table) -> dict[str, int]:
    """What a table counts for good."""
    return {
        "next_ordinal": table.next_ordinal,
        "inserted_steps": table.inserted_steps,
        "inserted_trajectories": table.inserted_trajectories,
        "removed_trajectories": table.removed_trajectories,
    }


def set_counters(table: Table, state: Mapping[str, int]) -> None:
    """Count on from where the counters were."""
    table.next_ordinal = max(table.next_ordinal, state.get("next_ordinal", 0))
    for name in ("inserted_steps", "inserted_trajectories", "removed_trajectories", "sampled_positions"):
        setattr(table, name, state.get(name, getattr(table, name)))


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


def _stored_chunks(config: TableConfig, entries: Sequence[Entry], removed: set[int]) -> Iterator[_Chunks]:
    """What is stored of some entries, in as few pieces as possible."""
    try:
        block = decode_entries(config, entries)
    except (CodecError, DecodeError) as error:
        if len(entries) > 1:  # too large together, or one of them is damaged
            for entry in entries:
                yield from _stored_chunks(config, [entry], removed)
            return
        raise LogError(f"entry {entries[0].entry} of the log of table {config.name!r} is damaged: {error}") from None
    headers = [entry.header for entry in entries]
    ordinals = np.concatenate([header.ordinals for header in headers])
    slots = np.concatenate([header.slots for header in headers])
    stored_at = np.concatenate([header.stored_at for header in headers])
    names = [entry.entry for entry in entries for _ in entry.header.ordinals]
    stops = np.cumsum([record.num_steps for record in block.records])
    kept = np.array([ordinal not in removed for ordinal in ordinals.tolist()], np.bool_)
    # A piece ends where ordinals do not follow each other, and where times differ by more than is promised.
    breaks = (np.diff(ordinals) != 1) | (np.diff(stored_at // _GROUP_SECONDS) != 0) | (np.diff(kept) != 0)
    for piece in np.split(np.arange(len(ordinals)), np.flatnonzero(breaks) + 1):
        first, last = int(piece[0]), int(piece[-1])
        if kept[first]:
            steps = slice(int(stops[first]) - block.records[first].num_steps, int(stops[last]))
            chosen = slice(first, last + 1)
            part = Block(block.records[chosen], [column[steps] for column in block.columns], b"")
            yield _Chunks(part, int(ordinals[first]), slots[steps], names[chosen], float(stored_at[first]))


def decode_entries(config: TableConfig, entries: Sequence[Entry]) -> Block:
    """All chunks of some entries, those that are no longer stored too.

    Raises:
        CodecError: they are not what was written.
        DecodeError: a message that is none.
    """
    requests = [replay_pb2.InsertRequest.FromString(entry.message) for entry in entries]
    trajectories = [trajectory for request in requests for trajectory in request.trajectories]
    block = decode_block(trajectories, config.signature, b"", _NO_LIMIT, _NO_LIMIT)
    headers = [entry.header for entry in entries]
    if [len(request.trajectories) for request in requests] != [len(header.ordinals) for header in headers]:
        raise CodecError(Reason.BAD_DATA, "the message holds another number of trajectories than its header says")
    if block.num_steps != sum(len(header.slots) for header in headers):
        raise CodecError(Reason.BAD_DATA, "the message holds another number of steps than its header says")
    written = [digest for header in headers for digest in header.written_digests or header.digests]
    if [record.digest for record in block.records] != written:
        raise CodecError(Reason.BAD_DATA, "the content has another digest than when it was written")
    digests = [digest for header in headers for digest in header.digests]
    if digests == written:
        return block
    records: list[Record] = [
        record._replace(digest=digest) for record, digest in zip(block.records, digests, strict=True)
    ]
    return replace(block, records=records)


def _restore(table: Table, chunks: _Chunks, ordinals: NDArray[np.int64]) -> None:
    table.restore(chunks.block, Placement(chunks.ordinal, chunks.slots, chunks.stored_at), chunks.entries)
    lengths = [record.num_steps for record in chunks.block.records]
    ordinals[chunks.slots] = np.repeat(chunks.ordinal + np.arange(len(lengths)), lengths)
