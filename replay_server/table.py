"""A table in memory: the rings, which positions are whose, what is known, what is drawn; one thread at a time."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.block import Block
from replay_server.errors import Refusal
from replay_server.ring import ColumnRings
from replay_server.selectors import make_selector
from zero.tables import TableConfig
from zero.trajectories import PriorityUpdates, SequenceBatch
from zero.wire.codec import Reason

KNOWN_EVICTED = 100_000
"""How many evicted trajectories a table remembers, so that their late repetition is not stored again."""


class Stored(NamedTuple):
    """A stored trajectory.

    Attributes:
        trajectory_id: its idempotency key.
        digest: stands for its content.
        stop: the position after its last step.
        entry: names the log entry that holds it; empty without one.
    """

    trajectory_id: str
    digest: bytes
    stop: int
    entry: str


class Table:
    """Steps by position: positions count every step ever inserted, position p lives in slot p modulo capacity.

    Stored are the positions tail to head - 1. A key is generation << 32 | slot with generation = p // capacity, so it
    names one position for ever.

    Attributes:
        config: what the table is.
        inserted_trajectories: trajectories ever inserted.
        sampled_positions: positions ever drawn.
    """

    def __init__(self, config: TableConfig, rng: np.random.Generator, first_position: int = 0) -> None:
        self.config = config
        self._rng = rng
        self._rings = ColumnRings(config.signature, config.capacity)
        self.selector = make_selector(config)
        self._stops = np.zeros(config.capacity, np.int64)  # per slot: the position after its trajectory's last step
        self._weights_versions = np.zeros(config.capacity, np.uint64)
        self._stored: deque[Stored] = deque()
        self._known: dict[str, bytes] = {}  # id to digest, stored and lately evicted
        self._evicted: deque[str] = deque()
        self._tail = self._head = first_position
        self.inserted_trajectories = 0
        self.sampled_positions = 0

    @property
    def head(self) -> int:
        """The position of the next step."""
        return self._head

    @property
    def num_steps(self) -> int:
        """Steps stored."""
        return self._head - self._tail

    @property
    def num_trajectories(self) -> int:
        """Trajectories stored."""
        return len(self._stored)

    @property
    def first_entry(self) -> str:
        """The log entry of the oldest stored trajectory; empty without one."""
        return self._stored[0].entry if self._stored else ""

    @property
    def last_entry(self) -> str:
        """The log entry of the newest stored trajectory; empty without one."""
        return self._stored[-1].entry if self._stored else ""

    @property
    def row_bytes(self) -> int:
        """Bytes of a step over all columns."""
        return sum(self._rings.row_bytes.values())

    def stored(self) -> list[Stored]:
        """The stored trajectories, oldest first."""
        return list(self._stored)

    def evicted(self) -> list[tuple[str, bytes]]:
        """Id and digest of the evicted trajectories that are still known, oldest first."""
        return [(trajectory_id, self._known[trajectory_id]) for trajectory_id in self._evicted]

    def read(self, start: int, stop: int) -> dict[str, NDArray[np.generic]]:
        """The steps at stored positions start to stop - 1, a copy [stop - start, *shape] of every column."""
        slots = np.arange(start, stop) % self.config.capacity
        return self._rings.read(slots)

    def weights_version_at(self, position: int) -> int:
        """The weights that played the trajectory at a stored position."""
        return int(self._weights_versions[position % self.config.capacity])

    def move_newest(self, entries: Sequence[str]) -> None:
        """Note that the newest trajectories, as many as there are entries, are in other log entries now."""
        stored = self.stored()
        first = len(stored) - len(entries)
        moved = [one._replace(entry=entry) for one, entry in zip(stored[first:], entries, strict=True)]
        self._stored = deque((*stored[:first], *moved))

    def digest_of(self, trajectory_id: str) -> bytes | None:
        """The digest of a known trajectory: a stored one, or one of the last KNOWN_EVICTED evicted ones."""
        return self._known.get(trajectory_id)

    def recall_evicted(self, trajectories: Sequence[tuple[str, bytes]]) -> None:
        """Know trajectories, oldest first and given by id and digest, as evicted before all that were since."""
        for trajectory_id, digest in reversed(trajectories):
            if trajectory_id not in self._known and len(self._evicted) < KNOWN_EVICTED:
                self._known[trajectory_id] = digest
                self._evicted.appendleft(trajectory_id)

    def append(self, block: Block, entries: Sequence[str] | None = None) -> list[Stored]:
        """Store trajectories that are new, evicting the oldest ones to make room; returns what was evicted.

        Args:
            block: at most capacity steps, ids unknown.
            entries: the log entry that holds each trajectory; none in a table without a log.
        """
        evicted = self._make_room(block.num_steps)
        self._rings.write(self._head, block.columns)
        lengths = [record.num_steps for record in block.records]
        stops = self._head + np.cumsum(lengths)
        slots = np.arange(self._head, self._head + block.num_steps) % self.config.capacity
        self._stops[slots] = np.repeat(stops, lengths)
        self._weights_versions[slots] = np.repeat(
            np.array([record.weights_version for record in block.records], np.uint64), lengths
        )
        entries = entries or [""] * len(block.records)
        for record, stop, entry in zip(block.records, stops.tolist(), entries, strict=True):
            self._stored.append(Stored(record.trajectory_id, record.digest, stop, entry))
            self._known[record.trajectory_id] = record.digest
        self.selector.insert(self._head, self._head + block.num_steps)
        self._head += block.num_steps
        self.inserted_trajectories += len(block.records)
        return evicted

    def _make_room(self, num_steps: int) -> list[Stored]:
        evicted: list[Stored] = []
        tail = self._tail
        while self._head + num_steps - tail > self.config.capacity:
            evicted.append(self._stored.popleft())
            tail = evicted[-1].stop
        if evicted:
            self.selector.remove(self._tail, tail)
            self._tail = tail
            self._evicted.extend(stored.trajectory_id for stored in evicted)
            while len(self._evicted) > KNOWN_EVICTED:
                del self._known[self._evicted.popleft()]
        return evicted

    def sample(self, batch_size: int, windows: Mapping[str, int]) -> SequenceBatch:
        """Draw a batch; at least one step is stored and the windows name columns of the table."""
        positions, probabilities = self.selector.draw(self._tail, self._head, self._rng.random(batch_size))
        slots = positions % self.config.capacity
        remaining = self._stops[slots] - positions
        self.sampled_positions += batch_size
        return SequenceBatch(
            columns=self._rings.gather(positions, remaining, windows),
            keys=self._keys(positions),
            probabilities=probabilities,
            lengths=np.minimum(remaining, max(windows.values())).astype(np.int32),
            weights_versions=self._weights_versions[slots],
            terminated=np.zeros(batch_size, np.bool_),
            table_size=self.num_steps,
        )

    def _keys(self, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
        generations, slots = np.divmod(positions, self.config.capacity)
        return (generations << 32 | slots).astype(np.uint64)

    def update_priorities(self, updates: PriorityUpdates) -> tuple[int, int]:
        """Set priorities; returns how many were set and how many keys name nothing stored."""
        keys = updates.keys
        positions = (keys >> np.uint64(32)).astype(np.int64) * self.config.capacity
        slots = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        positions += slots
        stored = (positions >= self._tail) & (positions < self._head) & (slots < self.config.capacity)
        self.selector.update(positions[stored], updates.priorities[stored])
        updated = int(np.count_nonzero(stored))
        return updated, len(keys) - updated

    def check_windows(self, batch_size: int, windows: Mapping[str, int], max_bytes: int) -> None:
        """Refuse a sample that cannot be answered, before anything is allocated.

        Raises:
            Refusal: BAD_MESSAGE, WRONG_SIGNATURE for unknown columns, MESSAGE_TOO_LARGE.
        """
        if batch_size < 1:
            raise Refusal(Reason.BAD_MESSAGE, f"batch_size is {batch_size}, must be at least 1")
        if not windows or min(windows.values()) < 1:
            raise Refusal(Reason.BAD_MESSAGE, "a sample needs at least one column and windows of at least one step")
        row_bytes = self._rings.row_bytes
        unknown = [name for name in windows if name not in row_bytes]
        if unknown:
            raise Refusal(
                Reason.WRONG_SIGNATURE, f"no column {unknown[0][:40]!r}; the table has [{', '.join(row_bytes)}]"
            )
        size = batch_size * sum(row_bytes[name] * length for name, length in windows.items())
        if size > max_bytes:
            raise Refusal(Reason.MESSAGE_TOO_LARGE, f"the batch would take {size} bytes, at most {max_bytes} are sent")
