"""Large messages of replay.proto as bytes: the payload of a column is moved once when written, not at all when read."""

import math
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from zero.trajectories import DTYPES, Lease, SequenceBatch, Trajectory
from zero.wire import trajectory_pb2
from zero.wire.codec import CodecError, Reason, as_array, priorities_bytes
from zero.wire.wire_format import (
    BYTES,
    VARINT,
    Field,
    Pieces,
    delimited,
    head,
    malformed,
    number,
    packed,
    read_fields,
    read_numbers,
    read_text,
    signed,
)

_WIRE_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
_NATIVE_NAMES = {dtype: name for name, dtype in _WIRE_DTYPES.items() if dtype.isnative}
_RAW = (trajectory_pb2.ENCODING_RAW, trajectory_pb2.ENCODING_UNSPECIFIED)
_MOST_AXES = 32  # NumPy takes no more than 64


# --- writing ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _column_start(name: str, dtype: str, shape: tuple[int, ...], size: int) -> bytes:
    """A Column up to its data, for data of `size` bytes."""
    start = delimited(1, name.encode()) + delimited(2, dtype.encode()) + packed(3, shape)
    return start + head(4, size) if size else start


_END_OF_RAW = number(5, trajectory_pb2.ENCODING_RAW)
_END_OF_ZSTD = number(5, trajectory_pb2.ENCODING_ZSTD)


def _array_bytes(name: str, array: NDArray[np.generic]) -> tuple[str, memoryview]:
    """The array's dtype by name, and its memory as little-endian bytes in C order; a copy only if it is not so."""
    native = _NATIVE_NAMES.get(array.dtype)  # a dtype's own `name` is put together at every look
    if native is not None and array.size and array.flags.c_contiguous:
        return native, array.data.cast("B")
    dtype = _WIRE_DTYPES.get(array.dtype.name)
    if dtype is None:
        raise CodecError(Reason.WRONG_SIGNATURE, f"column {name!r}: dtype {array.dtype.name} cannot be sent")
    contiguous = np.ascontiguousarray(array, dtype).reshape(-1)
    return dtype.name, contiguous.view(np.uint8).data


def _column(name: str, values: NDArray[np.generic], compressor: zstandard.ZstdCompressor | None) -> Pieces:
    array = as_array(name, values)
    dtype, data = _array_bytes(name, array)
    column = Pieces()
    if compressor is None:
        column.add(_column_start(name, dtype, array.shape, len(data)), data, _END_OF_RAW)
    else:
        frame = compressor.compress(data)
        column.add(_column_start(name, dtype, array.shape, len(frame)), frame, _END_OF_ZSTD)
    return column


_MOST = (1 << 64) - 1


def _unwritable(trajectory: Trajectory) -> CodecError:
    """What is wrong with the plain fields of a trajectory that could not be written."""
    for field in ("trajectory_id", "actor_id"):
        if not isinstance(given := getattr(trajectory, field), str):
            return CodecError(Reason.BAD_MESSAGE, f"{field} is {given!s:.40}, must be text")
    for field in ("weights_version", "episode_seed", "first_step"):
        given = getattr(trajectory, field)
        if not isinstance(given, int | np.integer) or not 0 <= given <= _MOST:
            return CodecError(Reason.BAD_MESSAGE, f"{field} is {given!s:.40}, must be within 0 to 2^64 - 1")
    stats = cast(Mapping[str, object], trajectory.stats)
    for name, value in stats.items():
        if not isinstance(value, int | float | np.number):
            return CodecError(Reason.BAD_MESSAGE, f"stat {name!r} is {value!r}, must be a number")
    return CodecError(Reason.BAD_MESSAGE, "the fields of a trajectory are not what Trajectory says they are")


def _trajectory(trajectory: Trajectory, compressor: zstandard.ZstdCompressor | None) -> Pieces:
    try:
        return _written(trajectory, compressor)
    except CodecError:
        raise
    except (AttributeError, TypeError, ValueError, struct.error):
        raise _unwritable(trajectory) from None


def _written(trajectory: Trajectory, compressor: zstandard.ZstdCompressor | None) -> Pieces:
    message = Pieces()
    message.add(
        delimited(1, trajectory.trajectory_id.encode()),
        delimited(2, trajectory.actor_id.encode()),
        number(3, trajectory.weights_version),
        number(4, trajectory.episode_seed),
        number(5, trajectory.terminated),
        number(6, trajectory.truncated),
    )
    for name, array in trajectory.columns.items():
        message.add_message(7, _column(name, array, compressor))
    for name, value in trajectory.stats.items():
        # A map entry has both fields, also where they are empty or 0.
        key = name.encode()
        message.add(delimited(8, head(1, len(key)) + key + b"\x11" + struct.pack("<d", value)))
    message.add(number(9, trajectory.first_step), number(10, trajectory.open))
    if trajectory.priorities is not None:
        message.add(delimited(11, priorities_bytes(trajectory.priorities)))
    return message


def _insert(
    tables: Sequence[str], trajectories: Sequence[Trajectory], compress: bool, lease: Lease | None = None
) -> Pieces:
    if not tables:
        raise CodecError(Reason.BAD_MESSAGE, "tables is empty, must name at least one")
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=True) if compress else None
    message = Pieces()
    message.add(delimited(1, tables[0].encode()))
    for trajectory in trajectories:
        message.add_message(2, _trajectory(trajectory, compressor))
    for table in tables[1:]:
        name = table.encode()
        message.add(head(3, len(name)) + name)
    if lease is not None:
        message.add(delimited(4, delimited(1, lease.name.encode()) + number(2, lease.token)))
    return message


def encode_insert_request(
    tables: Sequence[str],
    trajectories: Sequence[Trajectory],
    *,
    compress: bool = False,
    lease: Lease | None = None,
) -> bytes:
    """A serialized InsertRequest; every column is copied once.

    Args:
        tables: at least one.
        trajectories: to insert into all of them.
        compress: send columns as zstd frames of level 1.
        lease: under which the first table is inserted into.

    Raises:
        CodecError: WRONG_SIGNATURE, a column has a dtype without a place on the wire; BAD_MESSAGE, a field is not what
            it must be; BAD_DATA, values that are no array.
    """
    return _insert(tables, trajectories, compress, lease).join()


def encode_insert_stream_request(
    tables: Sequence[str], trajectories: Sequence[Trajectory], *, compress: bool = False, hold_seconds: float = 0.0
) -> bytes:
    """A serialized InsertStreamRequest; as encode_insert_request.

    Args:
        tables: at least one.
        trajectories: to insert into all of them.
        compress: send columns as zstd frames of level 1.
        hold_seconds: how long the rate limiter may hold it; 0 for the server's default.
    """
    message = Pieces()
    message.add_message(1, _insert(tables, trajectories, compress))
    if hold_seconds:
        message.add(b"\x11" + struct.pack("<d", hold_seconds))
    return message.join()


def encode_read_response(trajectories: Sequence[Trajectory], cursor: int = 0) -> bytes:
    """A serialized ReadTrajectoriesResponse; every column is copied once."""
    message = Pieces()
    for trajectory in trajectories:
        message.add_message(1, _trajectory(trajectory, None))
    message.add(number(2, cursor))
    return message.join()


class ColumnPlace(NamedTuple):
    """A column of a batch that is still to be filled.

    Attributes:
        name: in the answer.
        dtype: one of DTYPES.
        shape: [B, ...].
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return _WIRE_DTYPES[self.dtype].itemsize * math.prod(self.shape)


class SampleFrame:
    """Serialized SampleResponses, or ones inside of SampleStreamResponses, of given columns; for any number of batches.

    Everything around the columns' elements is written here; the elements go straight into their places.
    """

    def __init__(self, places: Sequence[ColumnPlace]) -> None:
        pieces: list[tuple[bytes, int]] = []  # what comes before a column's elements, and their bytes
        end = b""
        for place in places:
            start = _column_start(place.name, place.dtype, place.shape, place.num_bytes)
            column = head(1, len(start) + place.num_bytes + len(_END_OF_RAW))
            pieces.append((end + column + start, place.num_bytes))
            end = _END_OF_RAW
        self._pieces = pieces
        self._end = end
        self._size = sum(len(piece) + num_bytes for piece, num_bytes in pieces) + len(end)

    def begin(self, batch: SequenceBatch, *, on_stream: bool) -> "BegunFrame":
        """The frame of a batch, whose own columns are not looked at."""
        rest = self._end + _rest_of_batch(batch)
        size = self._size - len(self._end) + len(rest)
        start = head(1, size) if on_stream else b""
        return BegunFrame(self._pieces, start, rest, len(start) + size)


class BegunFrame(NamedTuple):
    """A frame of one batch.

    Attributes:
        pieces: what comes before every column's elements, and their bytes.
        start: what comes before everything.
        rest: what comes after the columns.
        size: of the message in bytes.
    """

    pieces: Sequence[tuple[bytes, int]]
    start: bytes
    rest: bytes
    size: int

    def lay_out(self, message: memoryview) -> list[memoryview]:
        """Write everything but the columns' elements into `message`, `size` writable bytes.

        Returns:
            For every column the part of `message` into which its elements go: little-endian, in C order.
        """
        views: list[memoryview] = []
        at = len(self.start)
        message[:at] = self.start
        for piece, num_bytes in self.pieces:
            message[at : at + len(piece)] = piece
            at += len(piece)
            views.append(message[at : at + num_bytes])
            at += num_bytes
        message[at:] = self.rest
        return views


def _rest_of_batch(batch: SequenceBatch) -> bytes:
    """Everything in a SampleResponse after its columns."""
    weights = batch.importance_weights
    return b"".join(
        (
            delimited(2, batch.keys.astype("<u8", copy=False).tobytes()),
            delimited(3, batch.probabilities.astype("<f8", copy=False).tobytes()),
            delimited(4, batch.lengths.astype("<i4", copy=False).tobytes()),
            delimited(5, batch.weights_versions.astype("<u8", copy=False).tobytes()),
            number(6, batch.table_size),
            b"" if weights is None else delimited(7, weights.astype("<f4", copy=False).tobytes()),
            delimited(8, batch.terminated.tobytes()),
            packed(9, batch.rows_per_table),
        )
    )


def encode_sample_response(batch: SequenceBatch, *, on_stream: bool = False) -> bytes:
    """A serialized SampleResponse, or SampleStreamResponse, of a batch that has its columns."""
    pairs = [(name, array, *_array_bytes(name, array)) for name, array in batch.columns.items()]
    places = [ColumnPlace(name, dtype, array.shape) for name, array, dtype, _ in pairs]
    frame = SampleFrame(places).begin(batch, on_stream=on_stream)
    message = bytearray(frame.size)
    for view, (_, _, _, data) in zip(frame.lay_out(memoryview(message)), pairs, strict=True):
        view[:] = data
    return bytes(message)


# --- reading ---------------------------------------------------------------------------------------------------------


class RefusedRequest(NamedTuple):
    """A request on a stream that was refused.

    Attributes:
        reason: a Reason of replay.proto.
        message: one line for a person.
        retry_after_seconds: try again after so long; 0 if trying again does not help.
    """

    reason: str
    message: str
    retry_after_seconds: float


class SharedAnswer(NamedTuple):
    """A batch that is in shared memory.

    Attributes:
        num_bytes: of its SampleResponse.
    """

    num_bytes: int


def _vector(data: bytes, field: Field, dtype: str) -> NDArray[np.generic]:
    """A read-only view of a bytes field."""
    field.of_kind(BYTES)
    wire = _WIRE_DTYPES[dtype]
    size = field.stop - field.start
    if size % wire.itemsize:
        raise CodecError(Reason.BAD_DATA, f"field {field.number} has {size} bytes, not a multiple of {wire.itemsize}")
    return np.frombuffer(data, wire, size // wire.itemsize, field.start).astype(dtype, copy=False)


def _read_column(data: bytes, column: Field) -> tuple[str, NDArray[np.generic]]:
    name = dtype = ""
    shape: list[int] = []
    payload: Field | None = None
    encoding = 0
    for field in read_fields(data, column.start, column.stop):
        match field.number:
            case 1:
                name = read_text(data, field)
            case 2:
                dtype = read_text(data, field)
            case 3:
                shape += read_numbers(data, field)
            case 4:
                payload = field
            case 5:
                encoding = field.of_kind(VARINT).value
            case _:
                pass
    return name, _array(data, payload, _place(name, dtype, shape), encoding)


def _place(name: str, dtype: str, shape: Sequence[int]) -> ColumnPlace:
    if dtype not in _WIRE_DTYPES or not 1 <= len(shape) <= _MOST_AXES or min(shape) < 1:
        raise CodecError(Reason.WRONG_SIGNATURE, f"column {name[:40]!r} is {dtype[:20]!r} {shape[:9]}")
    return ColumnPlace(name, dtype, tuple(shape))


def _array(data: bytes, payload: Field | None, place: ColumnPlace, encoding: int) -> NDArray[np.generic]:
    size = 0 if payload is None else payload.stop - payload.start
    if payload is None or size != place.num_bytes or encoding not in _RAW:
        raise CodecError(
            Reason.BAD_DATA, f"column {place.name[:40]!r} has {size} bytes, its shape takes {place.num_bytes} raw ones"
        )
    return _vector(data, payload, place.dtype).reshape(place.shape)


_VECTORS = {2: "uint64", 3: "float64", 4: "int32", 5: "uint64", 7: "float32", 8: "bool"}


def _read_batch(data: bytes, at: int, stop: int) -> SequenceBatch:
    columns: dict[str, NDArray[np.generic]] = {}
    vectors: dict[int, NDArray[np.generic]] = {}
    table_size = 0
    rows_per_table: list[int] = []
    for field in read_fields(data, at, stop):
        if field.number == 1:
            name, array = _read_column(data, field.of_kind(BYTES))
            columns[name] = array
        elif field.number in _VECTORS:
            vectors[field.number] = _vector(data, field, _VECTORS[field.number])
        elif field.number == 6:
            table_size = signed(field.of_kind(VARINT).value)
        elif field.number == 9:
            rows_per_table += read_numbers(data, field)
    return _checked(columns, vectors, table_size, rows_per_table)


def _checked(
    columns: Mapping[str, NDArray[np.generic]],
    vectors: Mapping[int, NDArray[np.generic]],
    table_size: int,
    rows_per_table: Sequence[int],
) -> SequenceBatch:
    rows = len(vectors.get(2, ()))
    missing = {2, 3, 4, 5, 8} - vectors.keys()
    lengths = {len(array) for array in (*vectors.values(), *columns.values())}
    if missing or not rows or lengths != {rows}:
        raise CodecError(
            Reason.BAD_DATA, f"a batch whose parts have {sorted(lengths)} rows, {len(missing)} are missing"
        )
    terminated = vectors[8]
    if terminated.view(np.uint8).max() > 1:
        raise CodecError(Reason.BAD_DATA, "terminated: a bool is one byte, 0 or 1")
    return SequenceBatch(
        columns=columns,
        keys=vectors[2].view(np.uint64),
        probabilities=vectors[3].view(np.float64),
        lengths=vectors[4].view(np.int32),
        weights_versions=vectors[5].view(np.uint64),
        terminated=terminated.view(np.bool_),
        table_size=table_size,
        importance_weights=vectors[7].view(np.float32) if 7 in vectors else None,
        rows_per_table=tuple(rows_per_table),
    )


def decode_sample_response(data: bytes) -> SequenceBatch:
    """The batch in a serialized SampleResponse: read-only views of `data` where the machine is little-endian.

    Raises:
        CodecError: the bytes are no batch.
    """
    return _read_batch(data, 0, len(data))


def decode_sample_stream_response(data: bytes) -> SequenceBatch | RefusedRequest | SharedAnswer:
    """What a serialized SampleStreamResponse holds; as decode_sample_response.

    Raises:
        CodecError: the bytes are neither a batch nor a refusal, nor say where a batch is.
    """
    sampled: Field | None = None
    for field in read_fields(data, 0, len(data)):
        if field.number == 2:
            return _read_refusal(data, field.of_kind(BYTES))
        if field.number == 3:
            return SharedAnswer(signed(field.of_kind(VARINT).value))
        if field.number == 1:
            sampled = field.of_kind(BYTES)
    if sampled is None:
        raise malformed("neither a batch nor a refusal")
    return _read_batch(data, sampled.start, sampled.stop)


def _read_refusal(data: bytes, refusal: Field) -> RefusedRequest:
    reason = message = ""
    retry_after_ms = 0
    for field in read_fields(data, refusal.start, refusal.stop):
        if field.number == 1:
            reason = read_text(data, field)
        elif field.number == 2:
            message = read_text(data, field)
        elif field.number == 3:
            retry_after_ms = signed(field.of_kind(VARINT).value)
    return RefusedRequest(reason, message, retry_after_ms / 1000)
