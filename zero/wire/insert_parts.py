"""An InsertRequest taken apart where it lies: what its columns hold is neither copied nor looked at."""

from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from zero.jit import njit
from zero.wire import replay_pb2, trajectory_pb2
from zero.wire.codec import CodecError, Reason

_TRAJECTORIES = replay_pb2.InsertRequest.TRAJECTORIES_FIELD_NUMBER
_COLUMNS = trajectory_pb2.Trajectory.COLUMNS_FIELD_NUMBER
_DATA = trajectory_pb2.Column.DATA_FIELD_NUMBER
_USUAL_TRAJECTORIES, _USUAL_COLUMNS = 64, 1024
_MALFORMED = -1
_FRAME_BYTES = 5  # of the varint of a tag or a size
_VALUE_BYTES = 10
_LARGEST_TAG = 0xFFFFFFFF

MOST_TRAJECTORIES = 1 << 14
"""The most of one request: each costs some hundred bytes before it is known to be one."""

MOST_COLUMNS = 1 << 18
"""The most of all its trajectories together."""


class ColumnPart(NamedTuple):
    """A column of a trajectory.

    Attributes:
        header: the serialized Column without its data.
        start: where the data begin in the message.
        stop: where they end.
    """

    header: bytes
    start: int
    stop: int


class TrajectoryPart(NamedTuple):
    """A trajectory of the request.

    Attributes:
        trajectory: everything but the columns.
        columns: in the order of the message.
        tag: where the field begins in the message.
        start: where the Trajectory begins.
        stop: where it ends.
    """

    trajectory: trajectory_pb2.Trajectory
    columns: list[ColumnPart]
    tag: int
    start: int
    stop: int


class InsertParts(NamedTuple):
    """A request.

    Attributes:
        request: everything but the trajectories.
        trajectories: in the order of the message.
    """

    request: replay_pb2.InsertRequest
    trajectories: list[TrajectoryPart]


@njit
def _varint(data: NDArray[np.uint8], at: int, stop: int, most_bytes: int) -> tuple[int, int]:
    """A varint and where it ends; beyond `stop` if it is none."""
    value = 0
    for i in range(most_bytes):
        if at + i >= stop:
            break
        byte = int(data[at + i])
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    return 0, stop + 1


@njit
def _field(data: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, int, int]:
    """Number, wire type, start and stop of the content of the field at `at`; number -1 if there is none.

    Tags and sizes are within the bounds that protobuf has for them: what is let in here must be readable for ever.
    """
    tag, start = _varint(data, at, stop, _FRAME_BYTES)
    kind = tag & 7
    size = 0
    if kind == 0:
        _, after = _varint(data, start, stop, _VALUE_BYTES)
        size = after - start
    elif kind == 1:
        size = 8
    elif kind == 2:
        size, start = _varint(data, start, stop, _FRAME_BYTES)
    elif kind == 5:
        size = 4
    else:
        return -1, 0, 0, 0
    if tag < 8 or tag > _LARGEST_TAG or start > stop or size > stop - start:
        return -1, 0, 0, 0
    return tag >> 3, kind, start, start + size


@njit
def _scan_columns(
    data: NDArray[np.uint8], at: int, stop: int, columns: NDArray[np.int64], number: int, wanted: int, inner: int
) -> int:
    """Note the columns of a trajectory from row `number` on: tag, start, stop, the same of its data; the row after."""
    while at < stop:
        field, kind, start, end = _field(data, at, stop)
        if field < 0:
            return -1
        if field == wanted and kind == 2:
            data_tag = data_start = data_stop = end
            within = start
            while within < end:
                inner_field, inner_kind, inner_start, inner_stop = _field(data, within, end)
                if inner_field < 0:
                    return -1
                if inner_field == inner and inner_kind == 2:
                    data_tag, data_start, data_stop = within, inner_start, inner_stop
                within = inner_stop
            if number < len(columns):
                columns[number] = (at, start, end, data_tag, data_start, data_stop)
            number += 1
        at = end
    return number


@njit
def _scan(
    data: NDArray[np.uint8],
    trajectories: NDArray[np.int64],
    columns: NDArray[np.int64],
    wanted: tuple[int, int, int],
) -> tuple[int, int]:
    """Note trajectories (tag, start, stop, first and end of their columns) and columns; how many there are of each."""
    num_trajectories = num_columns = at = 0
    while at < len(data):
        field, kind, start, end = _field(data, at, len(data))
        if field < 0:
            return -1, -1
        if field == wanted[0] and kind == 2:
            first = num_columns
            num_columns = _scan_columns(data, start, end, columns, first, wanted[1], wanted[2])
            if num_columns < 0:
                return -1, -1
            if num_trajectories < len(trajectories):
                trajectories[num_trajectories] = (at, start, end, first, num_columns)
            num_trajectories += 1
        at = end
    return num_trajectories, num_columns


def no_request() -> CodecError:
    """What to raise about bytes that are something else."""
    return CodecError(Reason.BAD_MESSAGE, "the bytes are no zero.v1.InsertRequest")


def take_apart(message: bytes) -> InsertParts:
    """The parts of a serialized InsertRequest.

    Raises:
        CodecError: BAD_MESSAGE.
    """
    try:
        return _apart(message)
    except DecodeError:
        raise no_request() from None


def _apart(message: bytes) -> InsertParts:
    data = np.frombuffer(message, np.uint8)
    trajectories = np.empty((_USUAL_TRAJECTORIES, 5), np.int64)
    columns = np.empty((_USUAL_COLUMNS, 6), np.int64)
    wanted = (_TRAJECTORIES, _COLUMNS, _DATA)
    counts = _scan(data, trajectories, columns, wanted)
    for number, most, what in ((counts[0], MOST_TRAJECTORIES, "trajectories"), (counts[1], MOST_COLUMNS, "columns")):
        if number > most:
            raise CodecError(Reason.BAD_MESSAGE, f"{number} {what} in one insert, at most {most} are taken: send fewer")
    if counts[0] > len(trajectories) or counts[1] > len(columns):
        trajectories, columns = np.empty((counts[0], 5), np.int64), np.empty((counts[1], 6), np.int64)
        _scan(data, trajectories, columns, wanted)
    if counts[0] == _MALFORMED:
        raise no_request()
    parts: list[TrajectoryPart] = []
    rest: list[bytes] = []
    at = 0
    column_rows: list[list[int]] = columns[: counts[1]].tolist()
    for tag, start, end, first, last in trajectories[: counts[0]].tolist():
        rest.append(message[at:tag])
        at = end
        parts.append(_trajectory_part(message, tag, start, end, column_rows[first:last]))
    rest.append(message[at:])
    return InsertParts(replay_pb2.InsertRequest.FromString(b"".join(rest)), parts)


def _trajectory_part(message: bytes, tag: int, start: int, stop: int, rows: list[list[int]]) -> TrajectoryPart:
    columns: list[ColumnPart] = []
    rest: list[bytes] = []
    at = start
    for column_tag, column_start, column_stop, data_tag, data_start, data_stop in rows:
        if column_tag > at:
            rest.append(message[at:column_tag])
        at = column_stop
        header = message[column_start:data_tag] + message[data_stop:column_stop]
        columns.append(ColumnPart(header, data_start, data_stop))
    rest.append(message[at:stop])
    return TrajectoryPart(trajectory_pb2.Trajectory.FromString(b"".join(rest)), columns, tag, start, stop)
