"""The log of a table read from end to end, every checksum checked, held against what memory has."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import redis
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from replay_server.block import Block
from replay_server.log_entry import EntryHeader, LogError, slots_of
from replay_server.recovery import decode_entries
from replay_server.redis_log import RawEntry, RedisLog, parse_entry
from replay_server.redis_store import RedisStore
from replay_server.table_log import TableLog
from zero.tables import TableConfig
from zero.wire.codec import CodecError

_MOST_PROBLEMS = 100
_PAGE_BYTES = 2 << 20  # as much as is held against memory at once, while calls wait


class Verification(NamedTuple):
    """What a check of a table's log found.

    Attributes:
        entries: read.
        chunks: trajectories and chunks in them that are still stored.
        bytes: of the entries.
        problems: what is wrong, one line each, at most 100.
    """

    entries: int
    chunks: int
    bytes: int
    problems: tuple[str, ...]


class _Chunk(NamedTuple):
    """A chunk that memory has."""

    trajectory_id: str
    digest: bytes
    entry: str
    slots: NDArray[np.int32]


class _Checked(NamedTuple):
    """An entry whose checksums are right."""

    entry: str
    header: EntryHeader
    block: Block


async def verify_table(store: RedisStore, log: RedisLog, check: "Check") -> Verification:
    """Read the log of a table, piece by piece, while the table is in use.

    Args:
        store: to read from.
        log: of all tables.
        check: begun before the log was last told what was removed.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    config = check.config
    removed = await store.run_aside(log.read_removed, config.name)
    after, count = "", 1
    while page := await store.run_aside(log.read_page, config.name, after, count):
        after = page[-1][0].decode()
        checked, problems = await store.run_aside(_check_page, config, page)
        size = sum(len(value) for _, fields in page for value in fields.values())
        check.add(checked, problems, removed, len(page), size)
        count = max(1, min(1024, count * _PAGE_BYTES // max(size, 1)))
    return check.end()


def _check_page(_: redis.Redis, config: TableConfig, page: Sequence[RawEntry]) -> tuple[list[_Checked], list[str]]:
    checked: list[_Checked] = []
    problems: list[str] = []
    for name, fields in page:
        try:
            entry = parse_entry(config.name, name.decode(), fields)
            checked.append(_Checked(entry.entry, entry.header, decode_entries(config, [entry])))
        except (CodecError, DecodeError) as error:
            problems.append(f"entry {name.decode()} is damaged: {error}")
        except LogError as error:
            problems.append(str(error))
    return checked, problems


class Check:
    """Holds entries against memory, as it was in the beginning.

    Attributes:
        config: of the table.
    """

    def __init__(self, table: TableLog) -> None:
        self.config = table.table.config
        self._table = table
        self._expected = dict(_stored(table))
        self._first_later = table.first_unsettled_ordinal
        self._entries = self._chunks = self._bytes = 0
        self._problems: list[str] = []

    def add(
        self, checked: Sequence[_Checked], problems: Sequence[str], removed: set[int], number: int, size: int
    ) -> None:
        """A page was read."""
        self._entries += number
        self._bytes += size
        self._problems += problems
        for one in checked:
            stops = np.cumsum([record.num_steps for record in one.block.records])
            slots = slots_of(one.header.runs)
            for i, ordinal in enumerate(one.header.ordinals):
                if ordinal not in removed and ordinal < self._first_later:
                    steps = slice(int(stops[i]) - one.block.records[i].num_steps, int(stops[i]))
                    self._problems += self._compare(one, i, slots, steps)

    def _compare(self, one: _Checked, i: int, slots: NDArray[np.int32], steps: slice) -> Iterator[str]:
        ordinal = one.header.ordinals[i]
        expected = self._expected.pop(ordinal, None)
        record = one.block.records[i]
        place = f"entry {one.entry}, trajectory {record.trajectory_id!r} from step {record.first_step} on"
        if expected is None:
            yield f"{place}: memory does not have it"
            return
        self._chunks += 1
        same = (record.trajectory_id, record.digest, one.entry) == expected[:3]
        if not same or not np.array_equal(slots[steps], expected.slots):
            yield f"{place}: memory has something else in its place"
        elif not self._is_removed(record.trajectory_id, ordinal):
            columns = self._table.table.read(expected.slots)
            for (name, values), written in zip(columns.items(), one.block.columns, strict=True):
                if not self._table.replaced(name, expected.slots) and not np.array_equal(values, written[steps]):
                    yield f"{place}: memory has other values in column {name!r}"

    def _is_removed(self, trajectory_id: str, ordinal: int) -> bool:
        """Whether a chunk is no longer stored, though it was in the beginning."""
        stored = self._table.table.find_trajectory(trajectory_id)
        return stored is None or all(chunk.ordinal != ordinal for chunk in stored.chunks)

    def end(self) -> Verification:
        """All pages were read."""
        missing = [one for ordinal, one in self._expected.items() if not self._is_removed(one.trajectory_id, ordinal)]
        lost = [f"trajectory {one.trajectory_id!r}: entry {one.entry} is not in the log" for one in missing]
        problems = [" ".join(problem.split())[:500] for problem in (*self._problems, *lost)]
        return Verification(self._entries, self._chunks, self._bytes, tuple(problems[:_MOST_PROBLEMS]))


def _stored(table: TableLog) -> Iterator[tuple[int, _Chunk]]:
    for stored in table.table.trajectories():
        for chunk, slots in stored.parts():
            yield chunk.ordinal, _Chunk(stored.trajectory_id, chunk.digest, chunk.entry, slots)
