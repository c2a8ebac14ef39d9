"""Writes trajectories step by step; long ones are sent in chunks while they are being played."""

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from replay_server.answers import InsertResult
from zero.trajectories import ColumnSpec, Signature, Trajectory
from zero.wire.codec import as_array

_FIRST_ROWS = 64


class TrajectorySink(Protocol):
    """What takes trajectories: an InsertStream or a ShardedInsertStream."""

    def insert(self, trajectories: Sequence[Trajectory]) -> Future[InsertResult]:
        """See InsertStream.insert."""
        ...


class TrajectoryWriter:
    """Collects the steps of one trajectory after the other, for one thread.

    Steps are copied, so a caller may reuse its arrays. What the server refused is raised by a later call that sends, as
    InsertStream.insert does; that call has done nothing then and may be repeated.
    """

    def __init__(
        self, stream: TrajectorySink, signature: Signature, *, actor_id: str = "", chunk_length: int = 0
    ) -> None:
        """Sends nothing before a chunk or a trajectory is complete.

        Args:
            stream: takes the trajectories.
            signature: of the table.
            actor_id: who plays.
            chunk_length: send a trajectory in chunks of so many steps, each as soon as another step follows; what was
                sent can be drawn while the trajectory goes on. 0 to send it whole.

        Raises:
            ValueError: no columns, or a negative length.
        """
        if not signature or chunk_length < 0:
            raise ValueError(f"{len(signature)} columns in chunks of {chunk_length}; give columns, and 0 or more steps")
        rows = chunk_length or _FIRST_ROWS
        self._stream = stream
        self._signature = signature
        self._names = {spec.name for spec in signature}
        self._actor_id = actor_id
        self._chunk_length = chunk_length
        self._columns = [np.empty((rows, *spec.shape), spec.dtype) for spec in signature]
        self._priorities = np.empty(rows, np.float32)
        self._reset("", 0, 0)

    def begin(self, trajectory_id: str = "", *, episode_seed: int = 0, weights_version: int = 0) -> None:
        """Begin a trajectory and say what it is; not needed where the defaults do.

        Args:
            trajectory_id: 1 to 64 characters, of no other trajectory; empty to have one made up.
            episode_seed: the seed from which the episode can be dealt again.
            weights_version: the weights that play.

        Raises:
            ValueError: the one before has steps and no end.
        """
        if self._num_steps:
            raise ValueError(f"trajectory {self._trajectory_id!r} has {self._num_steps} steps: call end() or drop()")
        self._reset(trajectory_id, episode_seed, weights_version)

    def append(self, step: Mapping[str, ArrayLike], priority: float | None = None) -> None:
        """Add a step; sends the chunk before it if that is complete.

        Args:
            step: a value for every column: an array, a PyTorch tensor or a number.
            priority: of the step; for all steps of a trajectory, or for none: they get the highest that the table has
                seen.

        Raises:
            ValueError: a column is missing or unknown, a value has another shape or does not fit into the dtype, or
                only some steps have priorities.
            ReplayError: as InsertStream.insert.
        """
        if set(step) != self._names:
            raise ValueError(f"a step with {sorted(step)}; the table has {sorted(self._names)}")
        if self._num_steps and self._prioritized != (priority is not None):
            raise ValueError("priorities are for all steps of a trajectory or for none")
        values = [value_of(step[spec.name], spec) for spec in self._signature]
        if self._held and self._held == self._chunk_length:
            self._send(terminated=False, truncated=False, stats={})
        self._make_room()
        for column, value in zip(self._columns, values, strict=True):
            column[self._held] = value
        self._prioritized = priority is not None
        self._priorities[self._held] = priority or 0.0
        self._held += 1
        self._num_steps += 1

    def end(self, *, terminated: bool, stats: Mapping[str, float] | None = None) -> Future[InsertResult]:
        """End the trajectory and send what is left of it.

        Args:
            terminated: the last step ended the game by its rules; False if the trajectory only stops there, truncated.
            stats: free scalars, for example the score.

        Returns:
            The outcome of the last chunk.

        Raises:
            ValueError: it has no steps.
            ReplayError: as InsertStream.insert.
        """
        if not self._num_steps:
            raise ValueError("a trajectory needs at least one step: append() before end()")
        outcome = self._send(terminated=terminated, truncated=not terminated, stats=stats or {})
        self._reset("", 0, 0)
        return outcome

    def drop(self) -> None:
        """Forget the trajectory: chunks that were sent stay without an end, the rest is not sent."""
        self._reset("", 0, 0)

    def _reset(self, trajectory_id: str, episode_seed: int, weights_version: int) -> None:
        self._trajectory_id = trajectory_id or uuid.uuid4().hex
        self._episode_seed = episode_seed
        self._weights_version = weights_version
        self._num_steps = 0  # of the trajectory
        self._held = 0  # of them not sent
        self._prioritized = False

    def _make_room(self) -> None:
        if self._held == len(self._priorities):
            self._columns = [np.concatenate((column, np.empty_like(column))) for column in self._columns]
            self._priorities = np.concatenate((self._priorities, np.empty_like(self._priorities)))

    def _send(self, *, terminated: bool, truncated: bool, stats: Mapping[str, float]) -> Future[InsertResult]:
        held = self._held
        columns = zip(self._signature, self._columns, strict=True)
        chunk = Trajectory(
            trajectory_id=self._trajectory_id,
            actor_id=self._actor_id,
            weights_version=self._weights_version,
            episode_seed=self._episode_seed,
            terminated=terminated,
            truncated=truncated,
            columns={spec.name: column[:held] for spec, column in columns},
            stats=stats,
            first_step=self._num_steps - held,
            open=not (terminated or truncated),
            priorities=self._priorities[:held] if self._prioritized else None,
        )
        outcome = self._stream.insert([chunk])
        self._held = 0
        return outcome


def value_of(value: ArrayLike, spec: ColumnSpec) -> NDArray[np.generic]:
    """A value of a step as an array of the column's shape that fits into its dtype.

    Raises:
        ValueError: it is none.
    """
    array = as_array(f"column {spec.name!r}", value)
    if array.shape != spec.shape:
        raise ValueError(f"column {spec.name!r} is {array.shape}, must be {spec.shape}")
    # Floats may lose digits on the way; everything else must come out as the same value.
    narrows = array.dtype.kind == "f" and spec.dtype.startswith("float")
    if not narrows and not np.can_cast(array.dtype, spec.dtype):
        with np.errstate(invalid="ignore"):
            fits = array.dtype.kind in "biuf" and bool(np.all(array.astype(spec.dtype) == array))
        if not fits:
            raise ValueError(f"column {spec.name!r} is {array.dtype}, and its values do not fit into {spec.dtype}")
    return array
