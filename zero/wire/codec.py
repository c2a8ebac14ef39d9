"""Arrays to messages and back: trajectories, table configs, batches and priority updates, checked on the way in."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Protocol, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from zero.tables import Durability, EpisodeEnd, RateLimiterConfig, SequenceRule, TableConfig
from zero.trajectories import (
    DTYPES,
    ColumnSpec,
    ColumnUpdates,
    NStep,
    PriorityUpdates,
    SampleSpec,
    Signature,
    StatRange,
    StepFilter,
    TableShare,
    Trajectory,
    TrajectoryFilter,
    Window,
)
from zero.wire import replay_pb2, trajectory_pb2

MAX_ID_CHARACTERS = 64
"""The longest trajectory id."""

MAX_NAME_CHARACTERS = 128
"""The longest actor id, and the longest name of a stat."""

MAX_STATS = 64
"""The most stats of a trajectory."""

_UINT64 = np.dtype("<u8")
_FLOAT32 = np.dtype("<f4")
_WIRE_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
_RAW = trajectory_pb2.ENCODING_RAW

_DURABILITIES = {
    Durability.MEMORY: replay_pb2.DURABILITY_MEMORY,
    Durability.REDIS: replay_pb2.DURABILITY_REDIS,
    Durability.FSYNC: replay_pb2.DURABILITY_FSYNC,
}
_EPISODE_ENDS = {
    EpisodeEnd.PAD: replay_pb2.EPISODE_END_PAD,
    EpisodeEnd.TRUNCATE: replay_pb2.EPISODE_END_TRUNCATE,
    EpisodeEnd.CONTINUE: replay_pb2.EPISODE_END_CONTINUE,
}
_EPISODE_ENDS_BY_NUMBER = {number: end for end, number in _EPISODE_ENDS.items()} | {
    replay_pb2.EPISODE_END_UNSPECIFIED: EpisodeEnd.PAD
}
_DURABILITIES_BY_NUMBER = {number: durability for durability, number in _DURABILITIES.items()} | {
    replay_pb2.DURABILITY_UNSPECIFIED: Durability.REDIS
}


class Reason(StrEnum):
    """Why a call was refused: the values of the trailing metadata key `zero-reason`, explained in replay.proto."""

    BAD_MESSAGE = "BAD_MESSAGE"
    UNKNOWN_TABLE = "UNKNOWN_TABLE"
    TABLE_CONFLICT = "TABLE_CONFLICT"
    BAD_CONFIG = "BAD_CONFIG"
    WRONG_SIGNATURE = "WRONG_SIGNATURE"
    BAD_LENGTH = "BAD_LENGTH"
    BAD_DATA = "BAD_DATA"
    NOT_FINITE = "NOT_FINITE"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    BAD_PRIORITY = "BAD_PRIORITY"
    CONTENT_CONFLICT = "CONTENT_CONFLICT"
    MISSING_CHUNK = "MISSING_CHUNK"
    UNKNOWN_CURSOR = "UNKNOWN_CURSOR"
    NOT_DURABLE = "NOT_DURABLE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    TOO_BUSY = "TOO_BUSY"
    RATE_LIMITED = "RATE_LIMITED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    RECOVERING = "RECOVERING"
    BAD_WEIGHTS = "BAD_WEIGHTS"
    LEASE_HELD = "LEASE_HELD"
    LEASE_LOST = "LEASE_LOST"
    UNAUTHENTICATED = "UNAUTHENTICATED"


REASON_METADATA_KEY = "zero-reason"
"""The trailing metadata key that carries a Reason."""

MESSAGE_BYTES_METADATA_KEY = "zero-message-bytes"
"""The metadata key by which a call of Insert or UpdateColumns says how many bytes its message has."""


class CodecError(ValueError):
    """Bytes that are not what they should be.

    Attributes:
        reason: the stable reason.
        message: one line that names the field, what was given and what is allowed.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class _Tensor(Protocol):
    """What PyTorch makes, as far as it matters here."""

    def numpy(self, *, force: bool) -> NDArray[np.generic]: ...


def as_array(name: str, values: object) -> NDArray[np.generic]:
    """Values as an array: one as it is, a PyTorch tensor wherever it lies, a sequence of numbers.

    Raises:
        CodecError: BAD_DATA; the text has the name.
    """
    if isinstance(values, np.ndarray):
        return cast("NDArray[np.generic]", values)  # as text: to build the type takes longer than the rest
    try:
        return cast(_Tensor, values).numpy(force=True) if hasattr(values, "numpy") else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise CodecError(Reason.BAD_DATA, f"{name} cannot be made an array: {error}") from None


def row_bytes(spec: ColumnSpec) -> int:
    """Bytes of one step of a column."""
    return _row_bytes(spec.dtype, spec.shape)


@lru_cache(maxsize=1024)
def _row_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return _WIRE_DTYPES[dtype].itemsize * math.prod(shape)


# --- columns ---------------------------------------------------------------------------------------------------------


def encode_column(name: str, values: NDArray[np.generic], *, compress: bool = False) -> trajectory_pb2.Column:
    """Pack what `as_array` takes; with `compress` as a zstd frame of level 1 that declares its content size.

    Raises:
        CodecError: WRONG_SIGNATURE, the dtype has no place on the wire; and as as_array.
    """
    array = as_array(name, values)
    dtype = _WIRE_DTYPES.get(array.dtype.name)
    if dtype is None:
        raise CodecError(Reason.WRONG_SIGNATURE, f"column {name!r}: dtype {array.dtype.name} cannot be sent")
    data = array.astype(dtype, copy=False).tobytes()
    if not compress:
        return trajectory_pb2.Column(name=name, dtype=dtype.name, shape=array.shape, data=data, encoding=_RAW)
    frame = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(data)
    return trajectory_pb2.Column(
        name=name, dtype=dtype.name, shape=array.shape, data=frame, encoding=trajectory_pb2.ENCODING_ZSTD
    )


def unpack_column(column: trajectory_pb2.Column, spec: ColumnSpec, num_rows: int) -> bytes:
    """The raw little-endian bytes of a column [num_rows, *spec.shape], sizes checked before anything is allocated.

    Values are not looked at; see check_values.

    Raises:
        CodecError: WRONG_SIGNATURE for another dtype or shape, BAD_LENGTH for another number of rows, BAD_DATA for
            bytes that do not match them or cannot be unpacked.
    """
    shape = tuple(column.shape)
    if column.dtype != spec.dtype or shape[1:] != spec.shape or not shape:
        raise CodecError(
            Reason.WRONG_SIGNATURE,
            f"column {spec.name!r} is {column.dtype[:20]} {list(shape[:9])}, the table has {spec.dtype} "
            f"[T{''.join(f', {axis}' for axis in spec.shape)}]",
        )
    if shape[0] != num_rows:
        raise CodecError(Reason.BAD_LENGTH, f"column {spec.name!r} has {shape[0]} steps, another has {num_rows}")
    expected = num_rows * row_bytes(spec)
    if column.encoding == trajectory_pb2.ENCODING_ZSTD:
        return _decompress(column.data, expected, spec.name)
    if column.encoding not in (_RAW, trajectory_pb2.ENCODING_UNSPECIFIED):
        raise CodecError(Reason.BAD_DATA, f"column {spec.name!r}: unknown encoding {column.encoding}")
    data = column.data
    if len(data) != expected:
        raise CodecError(Reason.BAD_DATA, f"column {spec.name!r} has {len(data)} bytes, its shape takes {expected}")
    return data


def _decompress(frame: bytes, expected: int, name: str) -> bytes:
    try:
        declared = zstandard.frame_content_size(frame)
        if declared != expected:
            raise CodecError(
                Reason.BAD_DATA,
                f"column {name!r}: the zstd frame declares {declared} bytes, its shape takes {expected}",
            )
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(Reason.BAD_DATA, f"column {name!r} is no zstd frame: {error}") from None
    if len(data) != expected:
        raise CodecError(Reason.BAD_DATA, f"column {name!r} unpacks to {len(data)} bytes, its shape takes {expected}")
    return data


def array_of(data: bytes, spec: ColumnSpec, num_rows: int) -> NDArray[np.generic]:
    """A read-only array [num_rows, *spec.shape] over raw bytes, in the machine's byte order."""
    wire = np.frombuffer(data, _WIRE_DTYPES[spec.dtype])
    return wire.astype(spec.dtype, copy=False).reshape(num_rows, *spec.shape)


def check_values(array: NDArray[np.generic], name: str) -> None:
    """Refuse values that no step may have.

    Raises:
        CodecError: NOT_FINITE for NaN or infinity, BAD_DATA for a bool that is neither 0 nor 1.
    """
    if array.dtype == np.bool_:
        if array.size and array.view(np.uint8).max() > 1:
            raise CodecError(Reason.BAD_DATA, f"column {name!r}: a bool is one byte, 0 or 1")
    elif array.dtype == np.float16:
        # The exponent bits, ten times faster than isfinite, which converts every half to single.
        if array.size and (array.view(np.uint16) & 0x7FFF).max() >= 0x7C00:
            raise CodecError(Reason.NOT_FINITE, f"column {name!r} holds NaN or infinity")
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CodecError(Reason.NOT_FINITE, f"column {name!r} holds NaN or infinity")


def check_column(array: NDArray[np.generic], spec: ColumnSpec) -> None:
    """Refuse values that no step of this column may have.

    Raises:
        CodecError: as check_values, and OUT_OF_RANGE.
    """
    check_values(array, spec.name)
    if not array.size:
        return
    for bound, extreme, word in ((spec.minimum, np.min, "below"), (spec.maximum, np.max, "above")):
        if bound is None:
            continue
        worst = extreme(array).item()  # as a Python number: a bound need not fit into the dtype
        if worst < bound if word == "below" else worst > bound:
            raise CodecError(Reason.OUT_OF_RANGE, f"column {spec.name!r} holds {worst}, {word} its bound {bound}")


# --- trajectories ----------------------------------------------------------------------------------------------------


def encode_trajectory(trajectory: Trajectory, *, compress: bool = False) -> trajectory_pb2.Trajectory:
    """Pack a trajectory.

    Raises:
        CodecError: WRONG_SIGNATURE, a column has a dtype without a place on the wire.
    """
    return trajectory_pb2.Trajectory(
        trajectory_id=trajectory.trajectory_id,
        actor_id=trajectory.actor_id,
        weights_version=trajectory.weights_version,
        episode_seed=trajectory.episode_seed,
        terminated=trajectory.terminated,
        truncated=trajectory.truncated,
        columns=[encode_column(name, array, compress=compress) for name, array in trajectory.columns.items()],
        stats=trajectory.stats,
        first_step=trajectory.first_step,
        open=trajectory.open,
        priorities=b"" if trajectory.priorities is None else priorities_bytes(trajectory.priorities),
    )


def unpack_trajectory(
    message: trajectory_pb2.Trajectory, signature: Signature, max_steps: int, max_bytes: int
) -> tuple[int, list[bytes]]:
    """Check everything about a trajectory except its values, and unpack its columns.

    Args:
        message: the trajectory.
        signature: what its columns must be; their order in the message is free.
        max_steps: the longest one allowed.
        max_bytes: the most bytes its columns may take when unpacked.

    Returns:
        The number of steps T and the raw bytes [T, *shape] of every column in the order of the signature.

    Raises:
        CodecError: as unpack_column, and BAD_MESSAGE, NOT_FINITE for a stat, MESSAGE_TOO_LARGE.
    """
    check_fields(message)
    columns = _in_order(message.columns, signature)
    num_steps = columns[0].shape[0] if columns[0].shape else 0
    if not 1 <= num_steps <= max_steps:
        raise CodecError(Reason.BAD_LENGTH, f"a trajectory of {num_steps} steps; 1 to {max_steps} are allowed")
    if num_steps * sum(row_bytes(spec) for spec in signature) > max_bytes:
        raise CodecError(Reason.MESSAGE_TOO_LARGE, f"{num_steps} steps take more than {max_bytes} bytes when unpacked")
    return num_steps, [unpack_column(column, spec, num_steps) for column, spec in zip(columns, signature, strict=True)]


def check_fields(message: trajectory_pb2.Trajectory) -> None:
    """Check a trajectory besides its columns and priorities.

    Raises:
        CodecError: BAD_MESSAGE, NOT_FINITE for a stat.
    """
    if not 1 <= len(message.trajectory_id) <= MAX_ID_CHARACTERS:
        raise CodecError(Reason.BAD_MESSAGE, f"trajectory_id must have 1 to {MAX_ID_CHARACTERS} characters")
    _check_kept(message)
    if message.open and (message.terminated or message.truncated):
        raise CodecError(Reason.BAD_MESSAGE, "an open chunk can be neither terminated nor truncated: more steps follow")


def _check_kept(message: trajectory_pb2.Trajectory) -> None:
    """Bound what stays in memory for as long as the trajectory is stored."""
    if len(message.actor_id) > MAX_NAME_CHARACTERS:
        raise CodecError(Reason.BAD_MESSAGE, f"actor_id must have at most {MAX_NAME_CHARACTERS} characters")
    if len(message.stats) > MAX_STATS:
        raise CodecError(Reason.BAD_MESSAGE, f"{len(message.stats)} stats, at most {MAX_STATS} are taken")
    for name, value in message.stats.items():
        if len(name) > MAX_NAME_CHARACTERS:
            raise CodecError(
                Reason.BAD_MESSAGE, f"stat {name[:40]!r}... has a name of more than {MAX_NAME_CHARACTERS} characters"
            )
        if not math.isfinite(value):
            raise CodecError(Reason.NOT_FINITE, f"stat {name[:40]!r} is {value}")


def check_new(message: trajectory_pb2.Trajectory) -> None:
    """Refuse what no new trajectory may be; whatever is stored already can be read none the less.

    Raises:
        CodecError: BAD_MESSAGE, it is both terminated and truncated, or a name would spoil a line of text.
    """
    if message.terminated and message.truncated:
        raise _bad("both terminated and truncated; truncated means that the game did not end by its rules")
    named = {"trajectory_id": message.trajectory_id, "actor_id": message.actor_id}
    for field, name in (*named.items(), *(("the name of a stat", name) for name in message.stats)):
        if not name.isprintable():
            raise _bad(f"{field} is {name[:40]!r}, must have printable characters only")


def unpack_priorities(message: trajectory_pb2.Trajectory, num_steps: int) -> NDArray[np.float32] | None:
    """The initial priorities [T] of a trajectory of T steps; None if it leaves them open.

    Raises:
        CodecError: BAD_DATA for another number of them, NOT_FINITE, BAD_PRIORITY for a negative one.
    """
    if not message.priorities:
        return None
    priorities = _priorities(message.priorities)
    if len(priorities) != num_steps:
        raise CodecError(Reason.BAD_DATA, f"{len(priorities)} priorities for {num_steps} steps")
    return priorities


def _in_order(columns: Sequence[trajectory_pb2.Column], signature: Signature) -> list[trajectory_pb2.Column]:
    names = [column.name for column in columns]
    expected = [spec.name for spec in signature]
    if names == expected:
        return list(columns)
    if sorted(names) != sorted(expected):
        given = ", ".join(name[:40] for name in names[:20])
        raise CodecError(Reason.WRONG_SIGNATURE, f"columns [{given}], the table has [{', '.join(expected)}]")
    by_name = dict(zip(names, columns, strict=True))
    return [by_name[name] for name in expected]


def decode_trajectory(
    message: trajectory_pb2.Trajectory, signature: Signature, max_steps: int = 2**31 - 1, max_bytes: int = 1 << 30
) -> Trajectory:
    """Unpack a trajectory and check it, values included.

    Raises:
        CodecError: as unpack_trajectory, unpack_priorities and check_column.
    """
    num_steps, parts = unpack_trajectory(message, signature, max_steps, max_bytes)
    columns = {spec.name: array_of(data, spec, num_steps) for spec, data in zip(signature, parts, strict=True)}
    for spec in signature:
        check_column(columns[spec.name], spec)
    return Trajectory(
        trajectory_id=message.trajectory_id,
        actor_id=message.actor_id,
        weights_version=message.weights_version,
        episode_seed=message.episode_seed,
        terminated=message.terminated,
        truncated=message.truncated,
        columns=columns,
        stats=dict(message.stats),
        first_step=message.first_step,
        open=message.open,
        priorities=unpack_priorities(message, num_steps),
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def encode_rate_limiter(limiter: RateLimiterConfig) -> replay_pb2.RateLimiterConfig:
    """Pack limits."""
    return replay_pb2.RateLimiterConfig(
        min_size_to_sample=limiter.min_size_to_sample,
        samples_per_insert=limiter.samples_per_insert,
        error_buffer=limiter.error_buffer,
        queue_size=limiter.queue_size,
    )


def decode_rate_limiter(message: replay_pb2.RateLimiterConfig) -> RateLimiterConfig:
    """Unpack limits and check them.

    Raises:
        CodecError: BAD_CONFIG; the message names the field.
    """
    try:
        return RateLimiterConfig(
            min_size_to_sample=message.min_size_to_sample,
            samples_per_insert=message.samples_per_insert,
            error_buffer=message.error_buffer,
            queue_size=message.queue_size,
        )
    except ValueError as error:
        raise CodecError(Reason.BAD_CONFIG, str(error)) from None


def encode_table_config(config: TableConfig) -> replay_pb2.TableConfig:
    """Pack a table config."""
    rule = config.sequences
    return replay_pb2.TableConfig(
        name=config.name,
        signature=[
            replay_pb2.ColumnSpec(
                name=spec.name, dtype=spec.dtype, shape=spec.shape, minimum=spec.minimum, maximum=spec.maximum
            )
            for spec in config.signature
        ],
        capacity=config.capacity,
        selector=config.selector,
        priority_exponent=config.priority_exponent,
        rate_limiter=encode_rate_limiter(config.rate_limiter),
        durability=_DURABILITIES[config.durability],
        remover=config.remover,
        max_times_sampled=config.max_times_sampled,
        sequences=replay_pb2.SequenceRule(
            length=rule.length, period=rule.period, episode_end=_EPISODE_ENDS[rule.episode_end]
        ),
        keep_steps=config.keep_steps,
        replace_probability=None if config.replace_probability == 1 else config.replace_probability,
    )


def decode_table_config(message: replay_pb2.TableConfig) -> TableConfig:
    """Unpack a table config and check it; whether the server has the selector and the remover is its own matter.

    Raises:
        CodecError: BAD_CONFIG; the message names the field.
    """
    durability = _DURABILITIES_BY_NUMBER.get(message.durability)
    if durability is None:
        raise CodecError(Reason.BAD_CONFIG, f"durability {message.durability} is not known")
    try:
        return TableConfig(
            name=message.name,
            signature=tuple(_column_spec(spec) for spec in message.signature),
            capacity=message.capacity,
            selector=message.selector,
            priority_exponent=message.priority_exponent,
            rate_limiter=decode_rate_limiter(message.rate_limiter),
            durability=durability,
            remover=message.remover or "fifo",
            max_times_sampled=message.max_times_sampled,
            sequences=_sequence_rule(message.sequences) if message.HasField("sequences") else SequenceRule(),
            keep_steps=message.keep_steps,
            replace_probability=message.replace_probability if message.HasField("replace_probability") else 1.0,
        )
    except CodecError:
        raise
    except ValueError as error:
        raise CodecError(Reason.BAD_CONFIG, str(error)) from None


def _column_spec(message: replay_pb2.ColumnSpec) -> ColumnSpec:
    return ColumnSpec(
        message.name,
        message.dtype,
        tuple(message.shape),
        message.minimum if message.HasField("minimum") else None,
        message.maximum if message.HasField("maximum") else None,
    )


def _sequence_rule(message: replay_pb2.SequenceRule) -> SequenceRule:
    episode_end = _EPISODE_ENDS_BY_NUMBER.get(message.episode_end)
    if episode_end is None:
        raise CodecError(Reason.BAD_CONFIG, f"episode_end {message.episode_end} is not known")
    return SequenceRule(message.length, message.period, episode_end)


# --- priorities ------------------------------------------------------------------------------------------------------


def priorities_bytes(priorities: object) -> bytes:
    """Priorities as they are sent, of anything that `as_array` takes.

    Raises:
        CodecError: BAD_DATA, they are no numbers.
    """
    array = as_array("priorities", priorities)
    if array.dtype.kind not in "fiu":
        raise CodecError(Reason.BAD_DATA, f"priorities are {array.dtype}, must be numbers")
    return array.astype(_FLOAT32, copy=False).tobytes()


def encode_priority_updates(updates: PriorityUpdates) -> replay_pb2.PriorityUpdates:
    """Pack priority updates.

    Raises:
        CodecError: BAD_DATA, the keys are no 64-bit integers; and as priorities_bytes.
    """
    return replay_pb2.PriorityUpdates(
        keys=_keys_bytes(updates.keys),
        priorities=priorities_bytes(updates.priorities),
    )


def _keys_bytes(keys: object) -> bytes:
    array = as_array("keys", keys)
    if array.size and (array.dtype.kind not in "iu" or array.dtype.itemsize != _UINT64.itemsize):
        # A key has more digits than a float64 keeps, and more bits than a smaller integer.
        raise CodecError(Reason.BAD_DATA, f"keys are {array.dtype}, must be 64-bit integers, as a batch gave them")
    return array.astype(_UINT64, copy=False).tobytes()


def decode_priority_updates(message: replay_pb2.PriorityUpdates) -> PriorityUpdates:
    """Unpack priority updates and check them.

    Raises:
        CodecError: BAD_DATA for sizes that do not match, NOT_FINITE, BAD_PRIORITY for a negative one.
    """
    keys = _vector(message.keys, _UINT64, "keys").astype(np.uint64, copy=False)
    priorities = _priorities(message.priorities)
    if len(keys) != len(priorities):
        raise CodecError(Reason.BAD_DATA, f"{len(keys)} keys and {len(priorities)} priorities")
    return PriorityUpdates(keys, priorities)


def _priorities(data: bytes) -> NDArray[np.float32]:
    priorities = _vector(data, _FLOAT32, "priorities").astype(np.float32, copy=False)
    if not np.isfinite(priorities).all():
        raise CodecError(Reason.NOT_FINITE, "a priority is NaN or infinite")
    if len(priorities) and priorities.min() < 0:
        raise CodecError(Reason.BAD_PRIORITY, f"priority {priorities.min()} is negative")
    return priorities


def _vector(data: bytes, dtype: np.dtype[np.generic], name: str) -> NDArray[np.generic]:
    if len(data) % dtype.itemsize:
        raise CodecError(Reason.BAD_DATA, f"{name} has {len(data)} bytes, not a multiple of {dtype.itemsize}")
    return np.frombuffer(data, dtype)


# --- requests --------------------------------------------------------------------------------------------------------


def encode_sample_request(
    table: str, spec: SampleSpec, updates: PriorityUpdates | None, seed: int | None = None
) -> replay_pb2.SampleRequest:
    """Pack a request for a batch of one table, with priority updates to be applied before, drawn by a 64-bit seed."""
    request = _encode_spec(spec)
    request.table = table
    if updates is not None:
        request.updates.CopyFrom(encode_priority_updates(updates))
    if seed is not None:
        request.seed = seed
    return request


def encode_mix_request(shares: Sequence[TableShare], spec: SampleSpec) -> replay_pb2.SampleRequest:
    """Pack a request for a batch of several tables."""
    request = _encode_spec(spec)
    for share in shares:
        request.mix.add(
            table=share.table,
            fraction=share.fraction,
            updates=None if share.updates is None else encode_priority_updates(share.updates),
        )
    return request


def _encode_spec(spec: SampleSpec) -> replay_pb2.SampleRequest:
    try:
        return _written_spec(spec)
    except (AttributeError, TypeError, ValueError) as error:
        if not hasattr(spec.windows, "items"):
            raise _bad(f"windows is {spec.windows!s:.60}, must map names to a number of steps or a Window") from None
        raise _bad(f"the spec is {spec!s:.200}, must have numbers of at most 31 bits: {error}") from None


def _written_spec(spec: SampleSpec) -> replay_pb2.SampleRequest:
    request = replay_pb2.SampleRequest(
        batch_size=spec.batch_size, importance_sampling_exponent=spec.importance_sampling_exponent
    )
    for name, shown in spec.windows.items():
        window = shown if isinstance(shown, Window) else Window(name, shown)
        alias = "" if window.column == name else name
        request.windows.add(name=window.column, length=window.length, offset=window.offset, alias=alias)
    if spec.filter != StepFilter():
        request.filter.max_age_seconds = spec.filter.max_age_seconds
        request.filter.min_weights_version = spec.filter.min_weights_version
    if spec.n_step is not None:
        request.n_step.reward_column = spec.n_step.reward_column
        request.n_step.discount = spec.n_step.discount
        request.n_step.steps = spec.n_step.steps
    request.peek = spec.peek
    return request


def decode_sample_spec(message: replay_pb2.SampleRequest) -> SampleSpec:
    """Unpack what a batch is to hold; whether a table has it is the table's matter.

    Raises:
        CodecError: BAD_MESSAGE; the text names the field.
    """
    if message.batch_size < 1:
        raise _bad(f"batch_size is {message.batch_size}, must be at least 1")
    exponent = message.importance_sampling_exponent
    if not 0 <= exponent < math.inf:
        raise _bad(f"importance_sampling_exponent is {exponent}, must be finite and not negative")
    return SampleSpec(
        message.batch_size,
        _decode_windows(message.windows),
        exponent,
        _decode_step_filter(message.filter),
        _decode_n_step(message.n_step) if message.HasField("n_step") else None,
        message.peek,
    )


def _decode_windows(messages: Sequence[replay_pb2.ColumnWindow]) -> dict[str, int | Window]:
    windows: dict[str, int | Window] = {}
    for window in messages:
        name = window.alias or window.name
        if name in windows:
            raise _bad(f"{name[:40]!r} is asked for twice; give the second an alias of its own")
        if window.length < 1 or window.offset < 0:
            raise _bad(
                f"window {name[:40]!r} has length {window.length} and offset {window.offset}, "
                "must be at least 1 and at least 0"
            )
        windows[name] = Window(window.name, window.length, window.offset)
    if not windows:
        raise _bad("a sample needs at least one window")
    return windows


def _decode_step_filter(message: replay_pb2.StepFilter) -> StepFilter:
    if not 0 <= message.max_age_seconds < math.inf:
        raise _bad(f"filter.max_age_seconds is {message.max_age_seconds}, must be finite and not negative")
    return StepFilter(message.max_age_seconds, message.min_weights_version)


def _decode_n_step(message: replay_pb2.NStep) -> NStep:
    if not 0 <= message.discount <= 1:
        raise _bad(f"n_step.discount is {message.discount}, must be within 0 to 1")
    if message.steps < 1:
        raise _bad(f"n_step.steps is {message.steps}, must be at least 1")
    return NStep(message.reward_column, message.discount, message.steps)


def decode_table_shares(message: replay_pb2.SampleRequest) -> tuple[TableShare, ...]:
    """The tables that a batch is drawn from; one with fraction 1 if it is no mix.

    Raises:
        CodecError: BAD_MESSAGE, and as decode_priority_updates.
    """
    if not message.mix:
        updates = decode_priority_updates(message.updates) if message.HasField("updates") else None
        return (TableShare(message.table, 1.0, updates),)
    if message.table or message.HasField("updates"):
        raise _bad("either table and updates, or mix")
    names = [share.table for share in message.mix]
    if len(set(names)) != len(names):
        raise _bad("a table is in the mix twice")
    total = sum(share.fraction for share in message.mix)
    if not all(0 <= share.fraction <= 1 for share in message.mix) or not abs(total - 1) < 1e-6:
        raise _bad(f"the fractions of a mix must be within 0 to 1 and add up to 1, not to {total}")
    return tuple(
        TableShare(
            share.table,
            share.fraction,
            decode_priority_updates(share.updates) if share.HasField("updates") else None,
        )
        for share in message.mix
    )


def encode_trajectory_filter(chosen: TrajectoryFilter) -> replay_pb2.TrajectoryFilter:
    """Pack a filter."""
    return replay_pb2.TrajectoryFilter(
        trajectory_ids=chosen.trajectory_ids,
        actor_id=chosen.actor_id,
        min_weights_version=chosen.min_weights_version,
        max_weights_version=chosen.max_weights_version,
        stats=[
            replay_pb2.StatRange(name=stat.name, minimum=stat.minimum, maximum=stat.maximum) for stat in chosen.stats
        ],
    )


def decode_trajectory_filter(message: replay_pb2.TrajectoryFilter) -> TrajectoryFilter:
    """Unpack a filter.

    Raises:
        CodecError: BAD_MESSAGE, nothing is set, or a bound is no number.
    """
    chosen = TrajectoryFilter(
        tuple(message.trajectory_ids),
        message.actor_id,
        message.min_weights_version if message.HasField("min_weights_version") else None,
        message.max_weights_version if message.HasField("max_weights_version") else None,
        tuple(_decode_stat_range(stat) for stat in message.stats),
    )
    if chosen == TrajectoryFilter():
        raise _bad("a filter in which nothing is set; name ids, an actor, versions or stats")
    return chosen


def _decode_stat_range(message: replay_pb2.StatRange) -> StatRange:
    minimum = message.minimum if message.HasField("minimum") else None
    maximum = message.maximum if message.HasField("maximum") else None
    if any(bound is not None and math.isnan(bound) for bound in (minimum, maximum)):
        raise _bad(f"a bound of stat {message.name[:40]!r} is NaN")
    return StatRange(message.name, minimum, maximum)


def encode_update_columns_request(
    table: str, keys: NDArray[np.uint64], columns: Mapping[str, NDArray[np.generic]], version_column: str = ""
) -> replay_pb2.UpdateColumnsRequest:
    """Pack new values [N, *shape] of columns for the steps that N keys name, none where a greater version is stored.

    Raises:
        CodecError: WRONG_SIGNATURE, a dtype has no place on the wire; BAD_DATA, the keys are no 64-bit integers.
    """
    return replay_pb2.UpdateColumnsRequest(
        table=table,
        keys=_keys_bytes(keys),
        columns=[encode_column(name, array) for name, array in columns.items()],
        version_column=version_column,
    )


def decode_column_updates(
    message: replay_pb2.UpdateColumnsRequest, signature: Signature, max_bytes: int
) -> ColumnUpdates:
    """New values, checked.

    Raises:
        CodecError: as unpack_column and check_column; BAD_MESSAGE without columns, for a key twice, or for a version
            column that is not among them; WRONG_SIGNATURE for one that is no integer scalar; MESSAGE_TOO_LARGE for more
            than max_bytes when unpacked.
    """
    keys = _vector(message.keys, _UINT64, "keys").astype(np.uint64, copy=False)
    if len(np.unique(keys)) != len(keys):
        raise _bad("a key is given twice")
    specs = {spec.name: spec for spec in signature}
    names = [column.name for column in message.columns]
    if not names or len(set(names)) != len(names):
        raise _bad("an update needs at least one column, and none twice")
    unknown = [name for name in names if name not in specs]
    if unknown:
        raise CodecError(Reason.WRONG_SIGNATURE, f"no column {unknown[0][:40]!r}; the table has [{', '.join(specs)}]")
    if len(keys) * sum(row_bytes(specs[name]) for name in names) > max_bytes:
        raise CodecError(Reason.MESSAGE_TOO_LARGE, f"{len(keys)} rows take more than {max_bytes} bytes when unpacked")
    columns: dict[str, NDArray[np.generic]] = {}
    for column in message.columns:
        spec = specs[column.name]
        columns[spec.name] = array_of(unpack_column(column, spec, len(keys)), spec, len(keys))
        check_column(columns[spec.name], spec)
    _check_version_column(message.version_column, columns)
    return ColumnUpdates(keys, columns, message.version_column)


def _check_version_column(name: str, columns: Mapping[str, NDArray[np.generic]]) -> None:
    if not name:
        return
    if name not in columns:
        raise _bad(f"the version column {name[:40]!r} is not among the new values")
    values = columns[name]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        shape = list(values.shape[1:])
        raise CodecError(Reason.WRONG_SIGNATURE, f"version column {name!r} is {values.dtype} {shape}, not an integer")


def _bad(message: str) -> CodecError:
    return CodecError(Reason.BAD_MESSAGE, message)
