"""Leaves on their way to a served network and back: bare little-endian arrays, as long as what they hold."""

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.trajectories import ColumnSpec

CONTENT_TYPE = "application/octet-stream"
_HEADER = struct.Struct("<qq")


class LeavesError(ValueError):
    """Bytes that are not what they should be; one line that says what was given and is taken."""


class Evaluation(NamedTuple):
    """What a network makes of B leaves, all by the weights of one version.

    Attributes:
        weights_version: as the replay server counts.
        training_step: optimizer updates that made the weights.
        logits: float32 [B, A], of the policy.
        values: float32 [B], in real scale, for the player to move.
    """

    weights_version: int
    training_step: int
    logits: NDArray[np.float32]
    values: NDArray[np.float32]


def pack_observations(observations: NDArray[np.generic]) -> bytes:
    """Compact observations [B, ...] as the body of a request."""
    return _little_endian(observations).tobytes()


def unpack_observations(body: bytes, spec: ColumnSpec) -> NDArray[np.generic]:
    """The observations [B, *shape] of a request, of which B follows from its length.

    Raises:
        LeavesError: none, or not a whole number of them.
    """
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    row_bytes = dtype.itemsize * int(np.prod(spec.shape, dtype=np.int64))
    if not body or len(body) % row_bytes:
        raise LeavesError(f"the body has {len(body)} bytes; it must hold one or more observations of {row_bytes}")
    return np.frombuffer(body, dtype).astype(spec.dtype, copy=False).reshape(-1, *spec.shape)


def pack_evaluation(evaluation: Evaluation) -> bytes:
    """An evaluation as the body of an answer: version and training step as int64, values, logits."""
    header = _HEADER.pack(evaluation.weights_version, evaluation.training_step)
    return b"".join((header, _little_endian(evaluation.values).tobytes(), _little_endian(evaluation.logits).tobytes()))


def unpack_evaluation(body: bytes, num_leaves: int, num_actions: int) -> Evaluation:
    """What `pack_evaluation` made; arrays that may be written to.

    Raises:
        LeavesError: it is not of so many leaves and actions.
    """
    expected = _HEADER.size + 4 * num_leaves * (1 + num_actions)
    if len(body) != expected:
        raise LeavesError(
            f"the answer has {len(body)} bytes, {num_leaves} leaves with {num_actions} actions {expected}"
        )
    version, training_step = _HEADER.unpack_from(body)
    numbers = np.frombuffer(bytearray(body), np.dtype("<f4"), offset=_HEADER.size)
    numbers = numbers.astype(np.float32, copy=False)
    return Evaluation(
        version, training_step, numbers[num_leaves:].reshape(num_leaves, num_actions), numbers[:num_leaves]
    )


def _little_endian(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
