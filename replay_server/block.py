"""The trajectories of one insert call as one run of steps: unpacked, checked, fingerprinted, joined per column."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from zero.trajectories import Signature
from zero.wire import codec, trajectory_pb2
from zero.wire.codec import CodecError, Reason
from zero.wire.insert_parts import TrajectoryPart, no_request

DIGEST_BYTES = 16
_RAW = (trajectory_pb2.ENCODING_RAW, trajectory_pb2.ENCODING_UNSPECIFIED)
_MOST_HEADERS = 4096
_LONGEST_HEADER = 1024  # bytes; nobody who sends nonsense fills the memory with it
_HEADER = struct.Struct("<QQ???QQ")


class Record(NamedTuple):
    """A chunk besides its steps: a whole trajectory, or a part of one that is still being played.

    Attributes:
        trajectory_id: its idempotency key.
        digest: DIGEST_BYTES that stand for its content.
        num_steps: T.
        first_step: of the chunk within its trajectory.
        open: more chunks follow.
        actor_id: who played it.
        weights_version: with which weights.
        episode_seed: from which it can be dealt again.
        terminated: it ends the game by its rules.
        truncated: it ends although the game did not.
        stats: free scalars, by name.
        priorities: float32 [T], initial ones; None for the highest seen.
    """

    trajectory_id: str
    digest: bytes
    num_steps: int
    first_step: int
    open: bool
    actor_id: str
    weights_version: int
    episode_seed: int
    terminated: bool
    truncated: bool
    stats: tuple[tuple[str, float], ...]
    priorities: NDArray[np.float32] | None


@dataclass(frozen=True)
class Block:
    """Trajectories that are stored together.

    Attributes:
        records: one per trajectory, in order.
        columns: in the order of the signature, [sum of the steps, *shape] each.
        message: the InsertRequest that holds exactly these trajectories; empty if they come from the log.
        places: of each record in the message, from its tag on.
    """

    records: Sequence[Record]
    columns: Sequence[NDArray[np.generic]]
    message: bytes = b""
    places: Sequence[slice] = ()

    @property
    def num_steps(self) -> int:
        """Steps of all trajectories together."""
        return len(self.columns[0])


class _Fit(NamedTuple):
    """Which data a header of a column stands for.

    Attributes:
        place: of the column in the signature.
        num_steps: T.
        num_bytes: of the data.
    """

    place: int
    num_steps: int
    num_bytes: int


_UNFIT = _Fit(-1, -1, -1)


class BlockReader:
    """Makes blocks of what is inserted into tables of one signature.

    The usual trajectory has its columns raw and in the order of the signature. It is told by their headers, which are
    the same again and again; any other trajectory goes the way that names what is wrong with it.
    """

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._step_bytes = sum(map(codec.row_bytes, signature))
        self._fits: dict[bytes, _Fit] = {}  # by header

    def read(self, message: bytes, parts: Sequence[TrajectoryPart], max_steps: int, max_bytes: int) -> Block:
        """Unpack and check the trajectories of an insert call.

        Args:
            message: the InsertRequest.
            parts: its trajectories.
            max_steps: all of them together may have.
            max_bytes: they may take when unpacked.

        Raises:
            CodecError: as codec.unpack_trajectory, check_new, unpack_priorities and check_column; the text names the
                trajectory. BAD_MESSAGE without trajectories, BAD_LENGTH for more than max_steps together.
        """
        if not parts:
            raise CodecError(Reason.BAD_MESSAGE, "an insert needs at least one trajectory")
        records: list[Record] = []
        datas: list[Sequence[bytes | memoryview]] = []
        view = memoryview(message)
        total = 0
        for part in parts:
            left = max_bytes - total * self._step_bytes
            try:
                num_steps, data = self._unpack(view, part, max_steps, left)
                codec.check_new(part.trajectory)
                records.append(_record(part.trajectory, num_steps, data))
            except CodecError as error:
                raise CodecError(error.reason, f"trajectory {_shown(part)}: {error.message}") from None
            except DecodeError:
                raise no_request() from None
            total += num_steps
            datas.append(data)
        if total > max_steps:
            raise CodecError(Reason.BAD_LENGTH, f"an insert of {total} steps; the table takes {max_steps} in all")
        columns = [
            codec.array_of(b"".join(data), spec, total)
            for spec, data in zip(self._signature, zip(*datas, strict=True), strict=True)
        ]
        for spec, column in zip(self._signature, columns, strict=True):
            try:
                codec.check_column(column, spec)
            except CodecError as error:
                shown = ", ".join(_shown(part) for part in parts[:3])
                raise CodecError(error.reason, f"{error.message} (among trajectories {shown} ...)") from None
        return Block(records, columns, message, [slice(part.tag, part.stop) for part in parts])

    def _unpack(
        self, view: memoryview, part: TrajectoryPart, max_steps: int, max_bytes: int
    ) -> tuple[int, Sequence[bytes | memoryview]]:
        """The number of steps, and the raw bytes of every column in the order of the signature."""
        num_steps = self._usual_steps(part)
        if 0 < num_steps <= max_steps and num_steps * self._step_bytes <= max_bytes:
            codec.check_fields(part.trajectory)
            return num_steps, [view[start:stop] for _, start, stop in part.columns]
        whole = trajectory_pb2.Trajectory.FromString(bytes(view[part.start : part.stop]))
        return codec.unpack_trajectory(whole, self._signature, max_steps, max_bytes)

    def _usual_steps(self, part: TrajectoryPart) -> int:
        """The number of steps if the columns are as usual, else -1."""
        num_steps = -1
        for i, (header, start, stop) in enumerate(part.columns):
            fit = self._fits.get(header) or self._fit(header)
            if fit.place != i or fit.num_bytes != stop - start or (i and fit.num_steps != num_steps):
                return -1
            num_steps = fit.num_steps
        return num_steps if len(part.columns) == len(self._signature) else -1

    def _fit(self, header: bytes) -> _Fit:
        column = trajectory_pb2.Column.FromString(header)
        fit = _UNFIT
        for i, spec in enumerate(self._signature):
            rows, *shape = column.shape or (0,)
            is_same = (column.name, column.dtype, tuple(shape)) == (spec.name, spec.dtype, spec.shape)
            if is_same and rows > 0 and column.encoding in _RAW:
                fit = _Fit(i, rows, rows * codec.row_bytes(spec))
        if len(self._fits) >= _MOST_HEADERS:
            self._fits.clear()
        if len(header) <= _LONGEST_HEADER:
            self._fits[header] = fit
        return fit


def _shown(part: TrajectoryPart) -> str:
    return repr(part.trajectory.trajectory_id[: codec.MAX_ID_CHARACTERS])


def _record(trajectory: trajectory_pb2.Trajectory, num_steps: int, columns: Sequence[bytes | memoryview]) -> Record:
    if trajectory.first_step + num_steps >= 2**31:
        raise CodecError(Reason.BAD_LENGTH, f"first_step is {trajectory.first_step}; at most 2^31 steps are taken")
    stats = tuple(sorted(trajectory.stats.items()))
    return Record(
        trajectory.trajectory_id,
        _digest(trajectory, num_steps, stats, columns),
        num_steps,
        trajectory.first_step,
        trajectory.open,
        trajectory.actor_id,
        trajectory.weights_version,
        trajectory.episode_seed,
        trajectory.terminated,
        trajectory.truncated,
        stats,
        codec.unpack_priorities(trajectory, num_steps),
    )


def _digest(
    trajectory: trajectory_pb2.Trajectory,
    num_steps: int,
    stats: tuple[tuple[str, float], ...],
    columns: Sequence[bytes | memoryview],
) -> bytes:
    """A fingerprint of the content, the same however it was packed; against accidents, not against forgers."""
    fingerprint = xxhash.xxh3_128(
        _HEADER.pack(
            trajectory.weights_version,
            trajectory.episode_seed,
            trajectory.terminated,
            trajectory.truncated,
            trajectory.open,
            trajectory.first_step,
            num_steps,
        )
    )
    fingerprint.update(repr((trajectory.actor_id, stats, trajectory.priorities)).encode())
    for data in columns:
        fingerprint.update(data)
    return fingerprint.digest()
