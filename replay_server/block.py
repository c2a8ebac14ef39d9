"""The trajectories of one insert call as one run of steps: unpacked, checked, fingerprinted, joined per column."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from zero.trajectories import Signature
from zero.wire import codec, replay_pb2, trajectory_pb2
from zero.wire.codec import CodecError, Reason

DIGEST_BYTES = 16
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
        message: the InsertRequest that holds exactly these trajectories.
    """

    records: Sequence[Record]
    columns: Sequence[NDArray[np.generic]]
    message: bytes

    @property
    def num_steps(self) -> int:
        """Steps of all trajectories together."""
        return len(self.columns[0])


def decode_block(
    trajectories: Sequence[trajectory_pb2.Trajectory],
    signature: Signature,
    message: bytes,
    max_steps: int,
    max_bytes: int,
) -> Block:
    """Unpack and check the trajectories of an insert call.

    Raises:
        CodecError: as codec.unpack_trajectory, check_new, unpack_priorities and check_column; the text names the
            trajectory. BAD_MESSAGE without trajectories, BAD_LENGTH for more than max_steps together.
    """
    if not trajectories:
        raise CodecError(Reason.BAD_MESSAGE, "an insert needs at least one trajectory")
    records: list[Record] = []
    parts: list[list[bytes]] = []
    total = 0
    bytes_per_step = sum(codec.row_bytes(spec) for spec in signature)
    for trajectory in trajectories:
        try:
            num_steps, data = codec.unpack_trajectory(
                trajectory, signature, max_steps, max_bytes - total * bytes_per_step
            )
            codec.check_new(trajectory)
            records.append(_record(trajectory, num_steps, data))
        except CodecError as error:
            raise CodecError(error.reason, f"trajectory {_shown(trajectory)}: {error.message}") from None
        total += num_steps
        parts.append(data)
    if total > max_steps:
        raise CodecError(Reason.BAD_LENGTH, f"an insert of {total} steps; the table takes {max_steps} in all")
    columns = [
        codec.array_of(b"".join(column), spec, total)
        for spec, column in zip(signature, zip(*parts, strict=True), strict=True)
    ]
    for spec, column in zip(signature, columns, strict=True):
        try:
            codec.check_column(column, spec)
        except CodecError as error:
            shown = ", ".join(_shown(trajectory) for trajectory in trajectories[:3])
            raise CodecError(error.reason, f"{error.message} (among trajectories {shown} ...)") from None
    return Block(records, columns, message)


def decode_insert(message: bytes, signature: Signature, max_steps: int = 2**31 - 1, max_bytes: int = 1 << 32) -> Block:
    """Unpack a serialized InsertRequest; as decode_block."""
    request = replay_pb2.InsertRequest.FromString(message)
    return decode_block(request.trajectories, signature, message, max_steps, max_bytes)


def _shown(trajectory: trajectory_pb2.Trajectory) -> str:
    return repr(trajectory.trajectory_id[: codec.MAX_ID_CHARACTERS])


def _record(trajectory: trajectory_pb2.Trajectory, num_steps: int, columns: Sequence[bytes]) -> Record:
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
    columns: Sequence[bytes],
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
