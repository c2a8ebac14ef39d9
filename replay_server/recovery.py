"""A table rebuilt from its log: every step in its slot, what is known, what was replaced, priorities, counters."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import redis
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from replay_server.block import Block, Record
from replay_server.column_log import ColumnLog
from replay_server.log_book import LogBook
from replay_server.log_entry import LogError, slots_of
from replay_server.priority_log import load_priorities
from replay_server.redis_log import Entry, RedisLog
from replay_server.table import Placement, Table
from zero.tables import TableConfig
from zero.trajectories import Signature
from zero.wire import codec, replay_pb2, trajectory_pb2
from zero.wire.codec import CodecError, Reason

_GROUP_BYTES = 256 << 10
_GROUP_SECONDS = 1.0
_RAW = trajectory_pb2.ENCODING_RAW
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
            gone = removed.intersection(entry.header.ordinals)
            book.add(entry.entry, len(entry.header.ordinals) - len(gone), gone)
        for chunks in _stored_chunks(config, group, removed):
            _check_free(config, chunks, ordinals)
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
        "first_ordinal": table.first_ordinal,
        "next_ordinal": table.next_ordinal,
        "inserted_steps": table.inserted_steps,
        "inserted_trajectories": table.inserted_trajectories,
        "removed_trajectories": table.removed_trajectories,
    }


def set_counters(table: Table, state: Mapping[str, int]) -> None:
    """Count on from where the counters were."""
    table.first_ordinal = state.get("first_ordinal", table.first_ordinal)
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
    headers = [entry.header for entry in entries]
    block = _decode(config, entries)
    ordinals = np.array([ordinal for header in headers for ordinal in header.ordinals], np.int64)
    stored_at = np.array([time for header in headers for time in header.stored_at])
    slots = slots_of([run for header in headers for run in header.runs])
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
            part = Block(block.records[chosen], [column[steps] for column in block.columns])
            yield _Chunks(part, int(ordinals[first]), slots[steps], names[chosen], float(stored_at[first]))


def _decode(config: TableConfig, entries: Sequence[Entry]) -> Block:
    try:
        return decode_entries(config, entries)
    except (CodecError, DecodeError):
        for entry in entries:
            try:
                decode_entries(config, [entry])
            except (CodecError, DecodeError) as error:
                raise LogError(f"entry {entry.entry} of the log of table {config.name!r} is damaged: {error}") from None
        raise


def decode_entries(config: TableConfig, entries: Sequence[Entry]) -> Block:
    """All chunks of some entries, those that are no longer stored too.

    What they hold was checked when it came and has its checksum still, so no value is looked at.

    Raises:
        CodecError: they do not belong to this table.
        DecodeError: a message that is none.
    """
    records: list[Record] = []
    parts: list[Sequence[bytes]] = []
    row_bytes = codec.row_bytes(config.signature[0])
    for entry in entries:
        trajectories = replay_pb2.InsertRequest.FromString(entry.message).trajectories
        if len(trajectories) != len(entry.header.digests):
            raise CodecError(Reason.BAD_DATA, "the message holds something else than its header says")
        for trajectory, digest in zip(trajectories, entry.header.digests, strict=True):
            data = _columns_of(trajectory, config.signature)
            parts.append(data)
            records.append(_record_of(trajectory, digest, len(data[0]) // row_bytes))
    total = sum(record.num_steps for record in records)
    joined = (b"".join(column) for column in zip(*parts, strict=True))
    columns = [codec.array_of(data, spec, total) for data, spec in zip(joined, config.signature, strict=True)]
    return Block(records, columns)


def _columns_of(trajectory: trajectory_pb2.Trajectory, signature: Signature) -> Sequence[bytes]:
    """The raw bytes [T, *shape] of every column in the order of the signature."""
    columns = trajectory.columns
    # The usual case is read without a second look: most of the time of a start goes into this.
    if [(column.name, column.encoding) for column in columns] == [(spec.name, _RAW) for spec in signature]:
        return [column.data for column in columns]
    _, data = codec.unpack_trajectory(trajectory, signature, _NO_LIMIT, _NO_LIMIT)
    return data


def _record_of(trajectory: trajectory_pb2.Trajectory, digest: bytes, num_steps: int) -> Record:
    return Record(
        trajectory.trajectory_id,
        digest,
        num_steps,
        trajectory.first_step,
        trajectory.open,
        trajectory.actor_id,
        trajectory.weights_version,
        trajectory.episode_seed,
        trajectory.terminated,
        trajectory.truncated,
        tuple(sorted(trajectory.stats.items())),
        codec.unpack_priorities(trajectory, num_steps),
    )


def _check_free(config: TableConfig, chunks: _Chunks, ordinals: NDArray[np.int64]) -> None:
    """Refuse steps whose slots cannot be theirs: they would be stored over others."""
    slots = chunks.slots
    if int(slots.max()) >= len(ordinals) or (ordinals[slots] != -1).any():
        raise LogError(
            f"entries {chunks.entries[0]} to {chunks.entries[-1]} of the log of table {config.name!r} are damaged: "
            "their steps have slots that do not exist or that hold others"
        )


def _restore(table: Table, chunks: _Chunks, ordinals: NDArray[np.int64]) -> None:
    table.restore(chunks.block, Placement(chunks.ordinal, chunks.slots, chunks.stored_at), chunks.entries)
    lengths = [record.num_steps for record in chunks.block.records]
    ordinals[chunks.slots] = np.repeat(chunks.ordinal + np.arange(len(lengths)), lengths)
