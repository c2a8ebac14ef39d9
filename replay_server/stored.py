"""What a table remembers of its trajectories: the stored ones whole, the removed ones by id and fingerprint."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.block import Block, Record
from replay_server.errors import Refusal
from zero.trajectories import StatRange, Trajectory, TrajectoryFilter
from zero.wire.codec import Reason

KNOWN_REMOVED = 100_000
"""How many removed trajectories a table remembers, so that their late repetition is not stored again."""

KNOWN_CHUNKS = 1000
"""Of how many removed chunks of one trajectory the content is remembered."""


class StoredChunk(NamedTuple):
    """A part of a trajectory, as it was inserted; mostly the only one.

    Attributes:
        first_step: within the trajectory.
        num_steps: T.
        digest: stands for its content.
        entry: names the log entry that holds it; empty without one.
        ordinal: counts the chunks of the table.
    """

    first_step: int
    num_steps: int
    digest: bytes
    entry: str
    ordinal: int

    @property
    def stop(self) -> int:
        """The step of the trajectory that comes next."""
        return self.first_step + self.num_steps


class Removed(NamedTuple):
    """A trajectory that is no longer stored.

    Attributes:
        trajectory_id: its idempotency key.
        chunks: what was stored of it; entries are empty where the log need not be told.
        open: it was still being played.
    """

    trajectory_id: str
    chunks: tuple[StoredChunk, ...]
    open: bool


class Stored:
    """A stored trajectory.

    Attributes:
        trajectory_id: its idempotency key.
        actor_id: who played it.
        weights_version: with which weights it began.
        episode_seed: from which it can be dealt again.
        open: it is still being played.
        terminated: it ended by the rules.
        truncated: it ended although the game did not.
        stats: free scalars.
        chunks: its parts, in order.
        slots: int32 [T], where its steps live.
        stored_at: Unix time of its first chunk.
        earlier: chunks that were removed before the first one of these came; their entries are empty.
        linked_from: the trajectory whose sequences go on in this one.
        linked_to: the trajectory in which its sequences go on.
    """

    __slots__ = (
        "actor_id",
        "chunks",
        "earlier",
        "episode_seed",
        "linked_from",
        "linked_to",
        "open",
        "slots",
        "stats",
        "stored_at",
        "terminated",
        "trajectory_id",
        "truncated",
        "weights_version",
    )

    def __init__(self, record: Record, chunk: StoredChunk, slots: NDArray[np.int32], stored_at: float) -> None:
        """Of its first chunk."""
        self.trajectory_id = record.trajectory_id
        self.actor_id = record.actor_id
        self.weights_version = record.weights_version
        self.episode_seed = record.episode_seed
        self.chunks = [chunk]
        self.slots = slots
        self.stored_at = stored_at
        self.earlier: tuple[StoredChunk, ...] = ()
        self.linked_from: Stored | None = None
        self.linked_to: Stored | None = None
        self._end(record)

    @property
    def ordinal(self) -> int:
        """Names it within its table: the ordinal of its first chunk."""
        return self.chunks[0].ordinal

    def extend(self, record: Record, chunk: StoredChunk, slots: NDArray[np.int32]) -> None:
        """Its next chunk is stored."""
        self.chunks.append(chunk)
        self.slots = np.concatenate((self.slots, slots))
        self._end(record)

    def _end(self, record: Record) -> None:
        self.open = record.open
        self.terminated = record.terminated
        self.truncated = record.truncated
        self.stats = record.stats

    def parts(self) -> Iterator[tuple[StoredChunk, NDArray[np.int32]]]:
        """Its chunks, each with the slots [T] of its steps."""
        start = 0
        for chunk in self.chunks:
            yield chunk, self.slots[start : start + chunk.num_steps]
            start += chunk.num_steps

    def as_chunk(self, first_step: int, columns: Mapping[str, NDArray[np.generic]], *, is_last: bool) -> Trajectory:
        """Some of its steps, with the values that they are given; how it ended is said with the last ones."""
        return Trajectory(
            trajectory_id=self.trajectory_id,
            actor_id=self.actor_id,
            weights_version=self.weights_version,
            episode_seed=self.episode_seed,
            terminated=self.terminated and is_last,
            truncated=self.truncated and is_last,
            columns=columns,
            stats=dict(self.stats),
            first_step=first_step,
            open=self.open or not is_last,
        )

    def matches(self, wanted: TrajectoryFilter) -> bool:
        """Whether all that is set in a filter holds, ids aside."""
        version = self.weights_version
        return (
            wanted.actor_id in ("", self.actor_id)
            and (wanted.min_weights_version is None or version >= wanted.min_weights_version)
            and (wanted.max_weights_version is None or version <= wanted.max_weights_version)
            and (not wanted.stats or _all_within(dict(self.stats), wanted.stats))
        )


def _all_within(stats: Mapping[str, float], ranges: Sequence[StatRange]) -> bool:
    for wanted in ranges:
        value = stats.get(wanted.name)
        if value is None:
            return False
        if wanted.minimum is not None and value < wanted.minimum:
            return False
        if wanted.maximum is not None and value > wanted.maximum:
            return False
    return True


_Chunks = Sequence[StoredChunk] | Sequence[Record]


class _Reached:
    """How far a trajectory has come.

    Attributes:
        first_stored: the number of its first step that is stored.
        next_step: the number of the step that comes next.
        open: it is still being played.
    """

    def __init__(self, first_stored: int, next_step: int, *, still_open: bool, chunks: Sequence[_Chunks]) -> None:
        self.first_stored = first_stored
        self.next_step = next_step
        self.open = still_open
        self._added: list[Record] = []
        self._chunks = (*chunks, self._added)  # each in the order of their steps

    def digest_at(self, first_step: int) -> bytes | None:
        """The digest of the chunk that begins at a step."""
        for chunks in self._chunks:
            place = bisect_left(chunks, first_step, key=lambda chunk: chunk.first_step)
            if place < len(chunks) and chunks[place].first_step == first_step:
                return chunks[place].digest
        return None

    def add(self, record: Record) -> None:
        """Its next chunk is going to be stored."""
        self._added.append(record)
        self.next_step = record.first_step + record.num_steps
        self.open = record.open


class KnownTrajectories:
    """Everything known by id: stored trajectories, and the last KNOWN_REMOVED removed ones."""

    def __init__(self) -> None:
        self._stored: dict[str, Stored] = {}
        self._removed: OrderedDict[str, Removed] = OrderedDict()

    def find(self, trajectory_id: str) -> Stored | None:
        """The stored trajectory of that id."""
        return self._stored.get(trajectory_id)

    def add(self, stored: Stored) -> None:
        """A trajectory is stored; what is known of an earlier part that was removed stays known with it."""
        removed = self._removed.pop(stored.trajectory_id, None)
        if removed is not None:
            stored.earlier = tuple(chunk._replace(entry="") for chunk in removed.chunks[-KNOWN_CHUNKS:])
        self._stored[stored.trajectory_id] = stored

    def remove(self, stored: Stored) -> Removed:
        """A trajectory is no longer stored, but still known."""
        del self._stored[stored.trajectory_id]
        chunks = (*stored.earlier, *stored.chunks)
        removed = Removed(stored.trajectory_id, chunks, stored.open)
        self._removed[removed.trajectory_id] = removed
        if len(self._removed) > KNOWN_REMOVED:
            self._removed.popitem(last=False)
        return removed

    def removed(self) -> list[Removed]:
        """The removed ones that are still known, oldest first; before them removed parts of stored ones."""
        parts = [Removed(one.trajectory_id, one.earlier, open=True) for one in self._stored.values() if one.earlier]
        return [*parts, *self._removed.values()]

    def recall(self, removed: Iterable[Removed]) -> None:
        """Know trajectories, oldest first, as removed before all that were since."""
        for one in reversed(list(removed)):
            stored = self._stored.get(one.trajectory_id)
            if stored is not None:
                first = stored.chunks[0].first_step
                stored.earlier = tuple(chunk._replace(entry="") for chunk in one.chunks if chunk.stop <= first)
            elif one.trajectory_id not in self._removed and len(self._removed) < KNOWN_REMOVED:
                self._removed[one.trajectory_id] = one
                self._removed.move_to_end(one.trajectory_id, last=False)

    def check_new(self, block: Block, capacity: int) -> list[int]:
        """Which records of a block are new; the others are known with the same content.

        Args:
            block: chunks of one trajectory in their order.
            capacity: the most steps of a trajectory.

        Raises:
            Refusal: CONTENT_CONFLICT, MISSING_CHUNK, BAD_LENGTH.
        """
        new: list[int] = []
        reached: dict[str, _Reached] = {}
        for i, record in enumerate(block.records):
            known = reached.get(record.trajectory_id) or self._reached(record.trajectory_id)
            reached[record.trajectory_id] = known
            if not _is_new(record, known):
                continue
            new.append(i)
            known.add(record)
            if known.next_step - known.first_stored > capacity:
                raise Refusal(
                    Reason.BAD_LENGTH,
                    f"trajectory {record.trajectory_id!r} would have {known.next_step - known.first_stored} steps, the "
                    f"table takes {capacity} in all; end it as truncated and begin another",
                )
        return new

    def _reached(self, trajectory_id: str) -> _Reached:
        stored = self._stored.get(trajectory_id)
        if stored is not None:
            first, last = stored.chunks[0], stored.chunks[-1]
            chunks = (stored.earlier, stored.chunks)
            return _Reached(first.first_step, last.stop, still_open=stored.open, chunks=chunks)
        removed = self._removed.get(trajectory_id)
        if removed is not None:
            stop = removed.chunks[-1].stop
            return _Reached(stop, stop, still_open=removed.open, chunks=(removed.chunks,))
        return _Reached(0, 0, still_open=True, chunks=())


def _is_new(record: Record, known: _Reached) -> bool:
    digest = known.digest_at(record.first_step)
    if digest is not None:
        if digest != record.digest:
            raise Refusal(Reason.CONTENT_CONFLICT, f"trajectory {record.trajectory_id!r} is known with other content")
        return False
    if record.first_step > known.next_step and known.open:
        raise Refusal(
            Reason.MISSING_CHUNK,
            f"trajectory {record.trajectory_id!r} is known up to step {known.next_step}, the chunk begins at "
            f"{record.first_step}",
        )
    if record.first_step != known.next_step or not known.open:
        raise Refusal(
            Reason.CONTENT_CONFLICT,
            f"trajectory {record.trajectory_id!r} is known up to step {known.next_step}"
            f"{'' if known.open else ', where it ended'}; the chunk begins at {record.first_step}",
        )
    return True
