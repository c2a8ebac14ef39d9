"""Buffers on a replay server: a built-in one as a table of its own, any other one fed from a table."""

import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from replay_server.answers import ReplayError
from replay_server.client import ReplayClient
from replay_server.data_buffer import DataBuffer, FedBuffer
from replay_server.data_queue import Overflow, QueueCounts
from replay_server.inlets import OpenedInlets
from replay_server.replacement_buffer import DictRandomReplacementBuffer, RandomReplacementBuffer
from replay_server.sample_ring import STAMP
from replay_server.sequential_buffer import DictSequentialBuffer, SequentialBuffer
from replay_server.state_file import StateError, read_state, write_state
from replay_server.table_inlet import InletOptions, TableInlet
from zero.tables import Durability, EpisodeEnd, SequenceRule, TableConfig
from zero.trajectories import PriorityUpdates, SequenceBatch, Signature, Trajectory
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

R = TypeVar("R")

_AS_TABLES = (SequentialBuffer, DictSequentialBuffer, RandomReplacementBuffer, DictRandomReplacementBuffer)
_MOST_CHUNK_STEPS = 256
_INSERT_STEPS = 4096
_SINGLE_INSERT_STEPS = 128
_SINGLE_ROOM = 1024
"""Of a table whose samples go one by one: room for what is on its way, of some producers at once."""


@dataclass(frozen=True)
class ServedOptions:
    """How a buffer is served.

    Attributes:
        overflow: what a collector does when `max_queue_size` samples wait to be sent.
        max_queue_size: the most of them; None for what the buffer says, which is small for a small one.
        block_seconds: how long "block" waits.
        lease_seconds: after so long without a sign of life another producer may take over.
        durability: what the server promises before a sample counts as stored.
        history: of a buffer that is fed: samples that the server keeps for it.
    """

    overflow: Overflow | str = Overflow.DROP_OLDEST
    max_queue_size: int | None = None
    block_seconds: float = 60.0
    lease_seconds: float = 15.0
    durability: Durability = Durability.REDIS
    history: int = 100_000


def on_server(
    buffer: DataBuffer[Any, R], client: ReplayClient, table: str, signature: Signature, **options: Any
) -> FedBuffer[Any, R]:
    """The same buffer, on a replay server: collectors and users may be anywhere, and what is stored outlives them.

    A SequentialBuffer and a RandomReplacementBuffer become tables with their size and probability, shared by all users.
    Any other buffer, also one of a subclass, stays where it is made and takes in what comes into a table, from where it
    was the last time.

    Args:
        buffer: new and empty.
        client: of the replay server.
        table: its name; the table is created if there is none.
        signature: the fields of a sample.
        options: those of ServedOptions.

    Raises:
        ValueError: the buffer's names are not those of the signature, or it is not empty.
        ReplayError: the server refused, for example because the table exists with another size.
    """
    if len(buffer):
        raise ValueError(f"the buffer holds {len(buffer)} samples: give a new one, the server has its own")
    names = [spec.name for spec in signature]
    if buffer.collecting_data_names is not None and set(buffer.collecting_data_names) != set(names):
        raise ValueError(f"the buffer has the fields {buffer.collecting_data_names}, the signature {names}")
    served = ServedOptions(**options)
    if type(buffer) in _AS_TABLES:  # what a subclass does of its own, a table would not do
        return TableBuffer[R](buffer, client, table, signature, served)
    return MirroredBuffer[R](buffer, client, table, signature, served)


class _Served(FedBuffer[Mapping[str, Any], R]):
    """What both have in common: the table, its inlets, the cursor of one user."""

    kind = "buffer"

    def __init__(
        self,
        buffer: DataBuffer[Any, R],
        client: ReplayClient,
        config: TableConfig,
        signature: Signature,
        options: ServedOptions,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the buffer has said it already
            super().__init__(buffer.max_queue_size if options.max_queue_size is None else options.max_queue_size)
        self._names = frozenset(spec.name for spec in signature)
        self._ordered_names = [spec.name for spec in signature]
        self._collecting_data_names = buffer.collecting_data_names
        self._max_size = buffer.max_size
        self._client = client
        self._signature = signature
        self._table = config.name
        self._options = options
        self._inlets = OpenedInlets()
        self._chunk_steps, self._insert_steps = 1, 1
        self._misses_what_is_gone = True
        self._cursor = 0
        self._missed = 0
        self._is_reading = False  # what was removed before its first look, a user has not missed
        client.create_table(config)

    def open_inlet(self, *, exclusive: bool = True) -> TableInlet:
        """Where a collector attaches; it sends from a thread of its own.

        Raises:
            KeyError: another producer has claimed the table.
        """
        inlet = TableInlet(
            self._client,
            self._table,
            self._signature,
            InletOptions(
                max_queue_size=self._max_queue_size,
                overflow=self._options.overflow,
                block_seconds=self._options.block_seconds,
                chunk_steps=self._chunk_steps,
                insert_steps=self._insert_steps,
                lease_seconds=self._options.lease_seconds,
            ),
            exclusive=exclusive,
        )
        self._inlets.add(inlet)
        return inlet

    def counts(self) -> QueueCounts:
        """See FedBuffer."""
        return self._inlets.counts()

    def add(self, data: Mapping[str, Any]) -> None:
        """Store one sample; returns when it is as durable as promised. A collector is the fast way."""
        inlet = self.open_inlet(exclusive=False)
        inlet.put(data, time.time())
        inlet.close()

    @property
    def missed(self) -> int:
        """See FedBuffer; of a table of random slots none, for what it did not keep is not missed."""
        return self._missed

    def _news(self, columns: Sequence[str] = ()) -> Iterator[Sequence[Trajectory]]:
        """Chunks that this user has not read; those that were given out count as read when it asks for more."""
        try:
            for cursor, chunks in self._client.read_since(self._table, self._cursor, columns):
                yield chunks
                self._go_on(cursor, len(chunks))
        except ReplayError as error:
            if error.reason != Reason.UNKNOWN_CURSOR:
                raise
            logger.warning("table %s was made anew: what was not read of the old one is lost", self._table)
            self._cursor, self._is_reading = 0, False
            yield from self._news(columns)

    def _go_on(self, cursor: int, num_chunks: int) -> None:
        """Note how far this user has read, and what was removed before it could: chunks are numbered one by one."""
        missed = cursor - self._cursor - num_chunks
        if missed > 0 and self._is_reading and self._misses_what_is_gone:
            self._missed += missed
            logger.warning(
                "%d chunks of up to %d samples of table %s were removed before they were read: update more often, or "
                "let the server keep more",
                missed,
                self._chunk_steps,
                self._table,
            )
        self._cursor, self._is_reading = cursor, True

    def _save_cursor(self, path: Path) -> None:
        write_state(path, self.kind, {"table": self._table, "cursor": self._cursor})

    def _saved_cursor(self, path: Path) -> int:
        state = read_state(path, self.kind)
        if state["table"] != self._table:
            raise StateError(f"{path} is of table {state['table']!r}, not of {self._table!r}")
        return state["cursor"]


class TableBuffer(_Served[R]):
    """A table that keeps what a SequentialBuffer or a RandomReplacementBuffer would keep.

    Values come back as NumPy arrays and numbers of the signature's dtypes. A draw shows up to 256 samples more than the
    newest `max_size`, which are on their way out.
    """

    kind = "TableBuffer"

    def __init__(
        self,
        buffer: DataBuffer[Any, R],
        client: ReplayClient,
        table: str,
        signature: Signature,
        options: ServedOptions | None = None,
    ) -> None:
        """Use `on_server`."""
        options = options or ServedOptions()
        size = cast(int, buffer.max_size)
        replaces = isinstance(buffer, RandomReplacementBuffer)
        chunk_steps = 1 if replaces else max(1, min(_MOST_CHUNK_STEPS, size // 8))
        config = TableConfig(
            table,
            (*signature, STAMP),
            capacity=size + (_SINGLE_ROOM if replaces else chunk_steps),
            selector="prioritized",
            priority_exponent=1.0,
            durability=options.durability,
            remover="random" if replaces else "fifo",
            sequences=SequenceRule(episode_end=EpisodeEnd.CONTINUE),
            keep_steps=size if replaces else 0,
            replace_probability=buffer.replace_probability if replaces else 1.0,
        )
        super().__init__(buffer, client, config, signature, options)
        self._size = size
        self._replaces = replaces
        self._misses_what_is_gone = not replaces
        self._chunk_steps = chunk_steps
        self._insert_steps = min(_SINGLE_INSERT_STEPS, size) if replaces else min(_INSERT_STEPS, size)

    def pull(self) -> Iterator[Sequence[float]]:
        """See what has come; only when it was collected is read."""
        for chunks in self._news((STAMP.name,)):
            yield self._joined([chunk.columns for chunk in chunks], STAMP.name).tolist()

    def __len__(self) -> int:
        return min(self._client.server_info().tables[self._table].num_steps, self._size)

    def get_data(self) -> R:
        """Everything stored, in the order in which it was collected."""
        parts = [chunk.columns for _, chunks in self._client.read_since(self._table, 0) for chunk in chunks]
        return self._given_out({name: self._joined(parts, name)[-self._size :] for name in self._ordered_names})

    def snapshot(self, chunk_size: int) -> Iterator[R]:
        """Everything stored, as it is read from the server."""
        skip = max(0, self._client.server_info().tables[self._table].num_steps - self._size)
        held: list[Mapping[str, NDArray[Any]]] = []
        size = -skip
        for _, chunks in self._client.read_since(self._table, 0):
            for chunk in chunks:
                size += chunk.num_steps
                held.append(chunk.columns)
                if size >= chunk_size:
                    columns = {name: self._joined(held, name)[-size:] for name in self._ordered_names}
                    full = size - size % chunk_size
                    for start in range(0, full, chunk_size):
                        yield self._given_out({n: c[start : start + chunk_size] for n, c in columns.items()})
                    held = [{name: column[full:] for name, column in columns.items()}]
                    size -= full
        if size > 0:
            yield self._given_out({name: self._joined(held, name)[-size:] for name in self._ordered_names})

    def _joined(self, parts: Sequence[Mapping[str, NDArray[Any]]], name: str) -> NDArray[Any]:
        return np.concatenate([part[name] for part in parts]) if parts else np.empty(0)

    def _given_out(self, columns: Mapping[str, NDArray[Any]]) -> R:
        lists = {name: list(column) for name, column in columns.items()}
        if self._collecting_data_names is not None:
            return cast(R, {name: lists[name] for name in self._collecting_data_names})
        return cast(R, [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)])

    def sample(self, batch_size: int, sequence_length: int, rng: np.random.Generator) -> SequenceBatch:  # noqa: ARG002
        """Draw sequences of one producer, by the server's own generator and by priority.

        At the newest end `lengths` says where they end; they are zero beyond.

        Raises:
            ValueError: sequences, which a table of random slots does not have.
            ReplayTimeout: there is nothing to draw.
        """
        if self._replaces and sequence_length != 1:
            raise ValueError(f"slots are in no order: sequence_length is {sequence_length}, must be 1")
        return self._client.sample(
            self._table, batch_size, dict.fromkeys(self._ordered_names, sequence_length), timeout=5.0
        )

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Set priorities on the server; keys of what is gone are passed over."""
        self._client.update_priorities(self._table, updates)

    def save_state(self, path: Path) -> None:
        """Write how far this user has read; what is stored, the server keeps."""
        self._save_cursor(path)

    def load_state(self, path: Path) -> None:
        """Go on reading from there.

        Raises:
            StateError: damaged, or of another table.
        """
        self._cursor, self._is_reading = self._saved_cursor(path), True


class MirroredBuffer(_Served[R]):
    """A buffer of this process that takes in what comes into a table; every user has one of its own."""

    kind = "MirroredBuffer"

    def __init__(
        self,
        buffer: DataBuffer[Any, R],
        client: ReplayClient,
        table: str,
        signature: Signature,
        options: ServedOptions | None = None,
    ) -> None:
        """Use `on_server`."""
        options = options or ServedOptions()
        config = TableConfig(
            table,
            (*signature, STAMP),
            capacity=options.history + _MOST_CHUNK_STEPS,
            durability=options.durability,
            sequences=SequenceRule(episode_end=EpisodeEnd.CONTINUE),
        )
        super().__init__(buffer, client, config, signature, options)
        self._buffer = buffer
        self._refused = 0
        self._chunk_steps = min(_MOST_CHUNK_STEPS, options.history)
        self._insert_steps = min(_INSERT_STEPS, options.history)

    def pull(self) -> Iterator[Sequence[float]]:
        """Add what has come; a sample that the buffer does not take is left out, counted and logged."""
        for chunks in self._news():
            for chunk in chunks:
                yield self._add_chunk(chunk)

    @property
    def refused(self) -> int:
        """See FedBuffer."""
        return self._refused

    def _add_chunk(self, chunk: Trajectory) -> list[float]:
        times: list[float] = []
        columns = [list(chunk.columns[name]) for name in self._ordered_names]
        for row, collected_at in zip(zip(*columns, strict=True), chunk.columns[STAMP.name].tolist(), strict=True):
            try:
                self._buffer.add(dict(zip(self._ordered_names, row, strict=True)))
            except Exception:
                self._refused += 1
                logger.exception("a sample was left out: %s does not take it", type(self._buffer).__name__)
            else:
                times.append(collected_at)
        return times

    def __len__(self) -> int:
        return len(self._buffer)

    def get_data(self) -> R:
        """What the buffer gives."""
        return self._buffer.get_data()

    def snapshot(self, chunk_size: int) -> Iterator[R]:
        """What the buffer gives."""
        return self._buffer.snapshot(chunk_size)

    def sample(self, batch_size: int, sequence_length: int, rng: np.random.Generator) -> SequenceBatch:
        """Drawn by the buffer."""
        return self._buffer.sample(batch_size, sequence_length, rng)

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Of the buffer."""
        self._buffer.update_priorities(updates)

    def save_state(self, path: Path) -> None:
        """Write the buffer, and how far it has read, into a folder.

        Raises:
            NotImplementedError: the buffer cannot be saved.
        """
        path.mkdir()
        try:
            self._buffer.save_state(path / "buffer")
            self._save_cursor(path / "cursor")
        except BaseException:
            shutil.rmtree(path)
            raise

    def load_state(self, path: Path) -> None:
        """Go on from there.

        Raises:
            NotImplementedError: the buffer cannot be saved.
            StateError: damaged, or of another table or buffer.
        """
        cursor = self._saved_cursor(path / "cursor")
        self._buffer.load_state(path / "buffer")
        self._cursor, self._is_reading = cursor, True
        self._refused = 0
