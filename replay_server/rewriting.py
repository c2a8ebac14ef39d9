"""What memory holds and a Redis that came back empty or behind has lost, planned to be written to the log again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.log_book import LogBook
from replay_server.log_entry import EntryHeader, runs_of
from replay_server.redis_log import RedisLog
from replay_server.stored import StoredChunk
from replay_server.table import Table
from replay_server.write_chain import Command, order_of
from zero.trajectories import Trajectory
from zero.wire import frames

_ENTRY_BYTES = 1 << 20
_CHUNK_BYTES = 256  # besides its steps, roughly


class _Lost(NamedTuple):
    """A stored chunk whose entry Redis has lost.

    Attributes:
        chunk: it.
        trajectory: the values of its trajectory but the steps.
        stored_at: Unix time.
        slots: int32 [steps].
    """

    chunk: StoredChunk
    trajectory: Trajectory
    stored_at: float
    slots: NDArray[np.int32]


@dataclass(frozen=True)
class Rewriting:
    """A new entry for chunks whose entry is lost.

    Attributes:
        entry: its id.
        chunks: consecutive ones.
    """

    entry: str
    chunks: Sequence[_Lost]

    def command(self, log: RedisLog, table: Table) -> Command:
        """Adds the entry, with the steps as they are in memory."""
        wholes = [replace(lost.trajectory, columns=table.read(lost.slots)) for lost in self.chunks]
        message = frames.encode_insert_request([table.config.name], wholes)
        header = EntryHeader(
            [lost.chunk.ordinal for lost in self.chunks],
            [lost.stored_at for lost in self.chunks],
            [lost.chunk.digest for lost in self.chunks],
            runs_of(np.concatenate([lost.slots for lost in self.chunks])),
        )
        return log.append_command(table.config.name, self.entry, header, message)


def plan_rewriting(log: RedisLog, table: Table, book: LogBook, newest: tuple[int, int]) -> list[Rewriting]:
    """Give new entries to all chunks whose entry comes after the newest one that Redis has.

    The table and the book are told at once, so that it may be broken off anywhere and planned again.
    """
    lost = sorted(_lost_chunks(table, newest), key=lambda one: one.chunk.ordinal)
    runs = list(_runs(lost, table.step_bytes))
    entries = [log.chain.new_entry() for _ in runs]
    book.drop_after(newest)
    moved = {one.chunk.ordinal: entry for run, entry in zip(runs, entries, strict=True) for one in run}
    for stored in table.trajectories():
        stored.chunks = [chunk._replace(entry=moved.get(chunk.ordinal, chunk.entry)) for chunk in stored.chunks]
    for run, entry in zip(runs, entries, strict=True):
        book.add(entry, len(run))
    return [Rewriting(entry, run) for run, entry in zip(runs, entries, strict=True)]


def _lost_chunks(table: Table, newest: tuple[int, int]) -> Iterator[_Lost]:
    for stored in table.trajectories():
        for chunk, slots in stored.parts():
            if order_of(chunk.entry) > newest:
                is_last = chunk is stored.chunks[-1]
                weights_version, stored_at = table.origin_of(int(slots[0]))
                part = stored.as_chunk(chunk.first_step, {}, is_last=is_last)
                # What only the last one says must not be there before it, should Redis be lost again in between.
                stats = part.stats if is_last else {}
                yield _Lost(chunk, replace(part, weights_version=weights_version, stats=stats), stored_at, slots)


def _runs(lost: Sequence[_Lost], step_bytes: int) -> Iterator[list[_Lost]]:
    """Consecutive chunks that share an entry."""
    run: list[_Lost] = []
    size = 0
    for one in lost:
        run.append(one)
        size += one.chunk.num_steps * step_bytes + _CHUNK_BYTES
        if size >= _ENTRY_BYTES:
            yield run
            run, size = [], 0
    if run:
        yield run
