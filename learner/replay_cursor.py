"""Where a learner stands in a table: what it has drawn and not learned from yet, and the priorities of that moment."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from replay_server.client import ReplayClient
from replay_server.sample_stream import Asked, StreamState
from zero.trajectories import PriorityUpdates, SequenceBatch

Arrays = dict[str, NDArray[np.generic]]

_KEYS_PER_CALL = 1 << 20
_NUMPY = ("keys", "probabilities", "lengths", "weights_versions", "terminated")
_COLUMN = "column."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DrawnRecord(_Part):
    """What of a drawn batch is no array."""

    table_size: int
    rows_per_table: tuple[int, ...]


class AskedRecord(_Part):
    """What of a request is no array."""

    number: int
    has_updates: bool


class ReplayReference(_Part):
    """What the table held when a checkpoint was made: the log up to there is the replay snapshot of the checkpoint.

    Attributes:
        table: its name.
        inserted_trajectories: ever, chunks of one counted once.
        inserted_steps: ever.
        sampled_positions: ever drawn.
        num_steps: held.
        weights_version: the newest on the server.
    """

    table: str
    inserted_trajectories: int
    inserted_steps: int
    sampled_positions: int
    num_steps: int
    weights_version: int


class CursorRecord(_Part):
    """What of a cursor is no array.

    Attributes:
        reference: what the table held.
        seed: of all draws.
        next_number: of the next request.
        drawn: batches that were drawn and not learned from.
        asked: requests that were not answered.
        has_updates: whether priorities waited for the next request.
    """

    reference: ReplayReference
    seed: int
    next_number: int
    drawn: tuple[DrawnRecord, ...]
    asked: tuple[AskedRecord, ...]
    has_updates: bool


@dataclass(frozen=True)
class ReplayCursor:
    """A place in a table to go on from.

    Attributes:
        reference: what the table held.
        stream: what was drawn and asked.
        priorities: of all stored steps; none where they make no difference.
    """

    reference: ReplayReference
    stream: StreamState
    priorities: PriorityUpdates

    def record(self) -> CursorRecord:
        """All that is no array."""
        stream = self.stream
        return CursorRecord(
            reference=self.reference,
            seed=stream.seed,
            next_number=stream.next_number,
            drawn=tuple(
                DrawnRecord(table_size=batch.table_size, rows_per_table=batch.rows_per_table) for batch in stream.drawn
            ),
            asked=tuple(
                AskedRecord(number=asked.number, has_updates=asked.updates is not None) for asked in stream.asked
            ),
            has_updates=stream.updates is not None,
        )

    def arrays(self) -> Arrays:
        """All arrays by name, copies."""
        stream = self.stream
        arrays = _of_updates("priorities", self.priorities)
        for i, batch in enumerate(stream.drawn):
            arrays |= {f"drawn.{i}.{name}": np.array(getattr(batch, name)) for name in _NUMPY}
            arrays |= {f"drawn.{i}.{_COLUMN}{name}": np.array(column) for name, column in batch.columns.items()}
            if batch.importance_weights is not None:
                arrays[f"drawn.{i}.importance_weights"] = np.array(batch.importance_weights)
        for i, asked in enumerate(stream.asked):
            if asked.updates is not None:
                arrays |= _of_updates(f"asked.{i}", asked.updates)
        if stream.updates is not None:
            arrays |= _of_updates("updates", stream.updates)
        return arrays

    def fits(self, batch_size: int, windows: Mapping[str, int]) -> bool:
        """Whether what was drawn is what is wanted now: the config may have been changed on purpose."""
        return all(
            len(batch.keys) == batch_size
            and {name: column.shape[1] for name, column in batch.columns.items()} == dict(windows)
            for batch in self.stream.drawn
        )

    @classmethod
    def read(cls, record: CursorRecord, arrays: Arrays) -> "ReplayCursor":
        """The cursor of which these are `record` and `arrays`."""
        stream = StreamState(
            seed=record.seed,
            next_number=record.next_number,
            drawn=tuple(_batch(f"drawn.{i}.", drawn, arrays) for i, drawn in enumerate(record.drawn)),
            asked=tuple(
                Asked(asked.number, _to_updates(f"asked.{i}", arrays) if asked.has_updates else None)
                for i, asked in enumerate(record.asked)
            ),
            updates=_to_updates("updates", arrays) if record.has_updates else None,
        )
        return cls(record.reference, stream, _to_updates("priorities", arrays))


def read_reference(client: ReplayClient, table: str, timeout: float) -> ReplayReference:
    """What the table holds now.

    Raises:
        ReplayError: the server refused; ReplayTimeout: it did not answer.
    """
    info = client.server_info(timeout)
    held = info.tables[table]
    return ReplayReference(
        table=table,
        inserted_trajectories=held.inserted_trajectories,
        inserted_steps=held.inserted_steps,
        sampled_positions=held.sampled_positions,
        num_steps=held.num_steps,
        weights_version=info.weights_version,
    )


def joined(priorities: PriorityUpdates, later: PriorityUpdates | None) -> PriorityUpdates:
    """Priorities with later ones put over them, by key: of several for one step the last counts."""
    if later is None:
        return priorities
    keys = np.concatenate([priorities.keys, later.keys])[::-1]
    values = np.concatenate([priorities.priorities, later.priorities])[::-1]
    unique, last = np.unique(keys, return_index=True)
    return PriorityUpdates(unique, values[last])


def restore_priorities(client: ReplayClient, cursor: ReplayCursor) -> None:
    """Give the table the priorities again that it had; steps that came later keep theirs, lost ones are passed over.

    Raises:
        ReplayError: the server refused; ReplayTimeout: it did not answer.
    """
    keys, priorities = cursor.priorities.keys, cursor.priorities.priorities
    for start in range(0, len(keys), _KEYS_PER_CALL):
        part = slice(start, start + _KEYS_PER_CALL)
        client.update_priorities(cursor.reference.table, PriorityUpdates(keys[part], priorities[part]))


def _of_updates(name: str, updates: PriorityUpdates) -> Arrays:
    return {f"{name}.keys": np.array(updates.keys), f"{name}.priorities": np.array(updates.priorities)}


def _to_updates(name: str, arrays: Arrays) -> PriorityUpdates:
    return PriorityUpdates(
        arrays[f"{name}.keys"].astype(np.uint64, copy=False),
        arrays[f"{name}.priorities"].astype(np.float32, copy=False),
    )


def _batch(prefix: str, record: DrawnRecord, arrays: Arrays) -> SequenceBatch:
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    weights = own.get("importance_weights")
    return SequenceBatch(
        columns={name.removeprefix(_COLUMN): array for name, array in own.items() if name.startswith(_COLUMN)},
        keys=own["keys"].astype(np.uint64, copy=False),
        probabilities=own["probabilities"].astype(np.float64, copy=False),
        lengths=own["lengths"].astype(np.int32, copy=False),
        weights_versions=own["weights_versions"].astype(np.uint64, copy=False),
        terminated=own["terminated"].astype(np.bool_, copy=False),
        table_size=record.table_size,
        importance_weights=None if weights is None else weights.astype(np.float32, copy=False),
        rows_per_table=record.rows_per_table,
    )
