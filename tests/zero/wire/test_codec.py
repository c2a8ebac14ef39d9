"""The codec: what goes in comes out, the bytes never change, and nothing bad gets through."""

import contextlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import DTYPES, ColumnSpec, PriorityUpdates, Trajectory
from zero.wire import codec, replay_pb2, trajectory_pb2
from zero.wire.codec import CodecError, Reason

SIGNATURE = (
    ColumnSpec("observation", "uint8", (3,)),
    ColumnSpec("reward", "float32"),
    ColumnSpec("legal", "bool", (2,)),
)


def small_trajectory() -> Trajectory:
    return Trajectory(
        trajectory_id="t-1",
        actor_id="actor-0",
        weights_version=3,
        episode_seed=2**63 + 1,
        terminated=True,
        truncated=False,
        columns={
            "observation": np.arange(6, dtype=np.uint8).reshape(2, 3),
            "reward": np.array([0.5, -1.0], np.float32),
            "legal": np.array([[True, False], [False, True]]),
        },
        stats={"score": 1.5},
    )


def assert_same(one: Trajectory, other: Trajectory) -> None:
    bare = [replace(item, columns={}, stats=dict(item.stats), priorities=None) for item in (one, other)]
    assert bare[0] == bare[1]
    np.testing.assert_array_equal(one.priorities, other.priorities)
    assert list(one.columns) == list(other.columns)
    for name, array in one.columns.items():
        assert array.dtype == other.columns[name].dtype
        np.testing.assert_array_equal(array, other.columns[name])


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[Trajectory, tuple[ColumnSpec, ...]]:
    num_steps = draw(st.integers(1, 5))
    specs = tuple(
        ColumnSpec(
            f"column{i}", draw(st.sampled_from(DTYPES)), draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
        )
        for i in range(draw(st.integers(1, 4)))
    )
    columns = {}
    for spec in specs:
        dtype = np.dtype(spec.dtype)
        finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
        columns[spec.name] = draw(hnp.arrays(dtype, (num_steps, *spec.shape), elements=finite))
    finite_priorities = hnp.arrays(np.float32, num_steps, elements=st.floats(0, 2.0**100, width=32))
    is_open = draw(st.booleans())
    return replace(
        small_trajectory(),
        columns=columns,
        first_step=draw(st.integers(0, 2**64 - 1)),
        open=is_open,
        terminated=not is_open,
        priorities=draw(st.none() | finite_priorities),
    ), specs


@settings(deadline=None)
@given(trajectories(), st.booleans(), st.randoms())
def test_a_trajectory_survives_the_wire(
    made: tuple[Trajectory, tuple[ColumnSpec, ...]], compress: bool, random
) -> None:
    """Whatever the dtypes, shapes and packing, and in whatever order the columns come, the same arrays come out."""
    trajectory, signature = made
    message = codec.encode_trajectory(trajectory, compress=compress)
    shuffled = list(message.columns)
    random.shuffle(shuffled)
    message = trajectory_pb2.Trajectory.FromString(message.SerializeToString())
    del message.columns[:]
    message.columns.extend(shuffled)
    assert_same(codec.decode_trajectory(message, signature), trajectory)


def test_the_bytes_of_a_trajectory_never_change() -> None:
    """Stored logs and clients in other languages depend on these very bytes."""
    assert codec.encode_trajectory(small_trajectory()).SerializeToString().hex() == (
        "0a03742d3112076163746f722d30180320818080808080808080012801"
        "3a220a0b6f62736572766174696f6e120575696e74381a02020322060001020304052801"
        "3a200a067265776172641207666c6f617433321a010222080000003f000080bf2801"
        "3a190a056c6567616c1204626f6f6c1a02020222040100000128014210"
        "0a0573636f726511000000000000f83f"
    )


def test_the_bytes_of_a_table_config_never_change() -> None:
    """Redis keeps configs as these bytes."""
    config = TableConfig(
        "games",
        SIGNATURE,
        1000,
        "prioritized",
        0.5,
        RateLimiterConfig(10, 4.0, 100.0),
        Durability.REDIS,
    )
    assert codec.encode_table_config(config).SerializeToString().hex() == (
        "0a0567616d6573"
        "12170a0b6f62736572766174696f6e120575696e74381a0103"
        "12110a067265776172641207666c6f61743332"
        "12100a056c6567616c1204626f6f6c1a0102"
        "18e807220b7072696f726974697a656429000000000000e03f"
        "3214080a110000000000001040190000000000005940"
        "380242046669666f5206080110011801"
    )


def test_big_endian_and_strided_arrays_are_sent_as_little_endian_rows() -> None:
    """The wire knows one byte order and C order, whatever the array's memory looks like."""
    wide = np.arange(24, dtype=">f4").reshape(4, 6)[:, ::2]
    trajectory = replace(small_trajectory(), columns={"x": wide})
    decoded = codec.decode_trajectory(codec.encode_trajectory(trajectory), (ColumnSpec("x", "float32", (3,)),))
    np.testing.assert_array_equal(decoded.columns["x"], wide)


def column(message: trajectory_pb2.Trajectory, name: str) -> trajectory_pb2.Column:
    return next(column for column in message.columns if column.name == name)


def edited(edit: Callable[[trajectory_pb2.Trajectory], object]) -> trajectory_pb2.Trajectory:
    message = codec.encode_trajectory(small_trajectory())
    edit(message)
    return message


def set_data(name: str, data: bytes, **fields: object) -> Callable[[trajectory_pb2.Trajectory], None]:
    def edit(message: trajectory_pb2.Trajectory) -> None:
        target = column(message, name)
        target.data = data
        for field, value in fields.items():
            setattr(target, field, value)

    return edit


def set_shape(name: str, shape: list[int]) -> Callable[[trajectory_pb2.Trajectory], None]:
    return lambda message: column(message, name).shape.__setitem__(slice(None), shape)


ZSTD = trajectory_pb2.ENCODING_ZSTD
NO_SIZE = zstandard.ZstdCompressor(write_content_size=False)
REWARDS = np.array([0.5, -1.0], np.float32).tobytes()

BAD_TRAJECTORIES: dict[str, tuple[Callable[[trajectory_pb2.Trajectory], object], Reason]] = {
    "no id": (lambda m: m.ClearField("trajectory_id"), Reason.BAD_MESSAGE),
    "long id": (lambda m: setattr(m, "trajectory_id", "x" * 65), Reason.BAD_MESSAGE),
    "no columns": (lambda m: m.ClearField("columns"), Reason.WRONG_SIGNATURE),
    "column missing": (lambda m: m.columns.pop(), Reason.WRONG_SIGNATURE),
    "column twice": (lambda m: m.columns.append(m.columns[0]), Reason.WRONG_SIGNATURE),
    "column too many": (
        lambda m: m.columns.add(name="extra", dtype="uint8", shape=[2], data=b"ab"),
        Reason.WRONG_SIGNATURE,
    ),
    "other name": (lambda m: setattr(column(m, "reward"), "name", "rewards"), Reason.WRONG_SIGNATURE),
    "other dtype of equal size": (lambda m: setattr(column(m, "reward"), "dtype", "int32"), Reason.WRONG_SIGNATURE),
    "unknown dtype": (lambda m: setattr(column(m, "reward"), "dtype", "object"), Reason.WRONG_SIGNATURE),
    "big-endian dtype": (lambda m: setattr(column(m, "reward"), "dtype", ">f4"), Reason.WRONG_SIGNATURE),
    "axis too many": (set_shape("reward", [2, 1]), Reason.WRONG_SIGNATURE),
    "no axis": (set_shape("reward", []), Reason.WRONG_SIGNATURE),
    "other step shape": (set_shape("observation", [3, 2]), Reason.WRONG_SIGNATURE),
    "no step": (set_shape("observation", [0, 3]), Reason.BAD_LENGTH),
    "negative length": (set_shape("observation", [-2, 3]), Reason.BAD_LENGTH),
    "huge length": (set_shape("observation", [2**62, 3]), Reason.BAD_LENGTH),
    "more steps than allowed": (set_shape("observation", [101, 3]), Reason.BAD_LENGTH),
    "columns of different length": (set_shape("reward", [1]), Reason.BAD_LENGTH),
    "too few bytes": (set_data("reward", REWARDS[:-1]), Reason.BAD_DATA),
    "too many bytes": (set_data("reward", REWARDS + b"\0"), Reason.BAD_DATA),
    "no bytes": (set_data("reward", b""), Reason.BAD_DATA),
    "unknown encoding": (set_data("reward", REWARDS, encoding=9), Reason.BAD_DATA),
    "raw bytes called zstd": (set_data("reward", REWARDS, encoding=ZSTD), Reason.BAD_DATA),
    "zstd cut short": (set_data("reward", zstandard.compress(REWARDS)[:-2], encoding=ZSTD), Reason.BAD_DATA),
    "zstd with a tail": (set_data("reward", zstandard.compress(REWARDS) + b"x", encoding=ZSTD), Reason.BAD_DATA),
    "zstd without a size": (set_data("reward", NO_SIZE.compress(REWARDS), encoding=ZSTD), Reason.BAD_DATA),
    "zstd of another size": (set_data("reward", zstandard.compress(REWARDS * 2), encoding=ZSTD), Reason.BAD_DATA),
    "zstd called raw": (set_data("reward", zstandard.compress(REWARDS)), Reason.BAD_DATA),
    "NaN": (set_data("reward", np.array([np.nan, 0], "<f4").tobytes()), Reason.NOT_FINITE),
    "infinity": (set_data("reward", np.array([0, -np.inf], "<f4").tobytes()), Reason.NOT_FINITE),
    "bool of two": (set_data("legal", b"\0\1\2\1"), Reason.BAD_DATA),
    "stat NaN": (lambda m: m.stats.update({"score": float("nan")}), Reason.NOT_FINITE),
    "open and terminated": (lambda m: setattr(m, "open", True), Reason.BAD_MESSAGE),
    "priorities of another length": (lambda m: setattr(m, "priorities", bytes(4)), Reason.BAD_DATA),
    "half a priority": (lambda m: setattr(m, "priorities", bytes(7)), Reason.BAD_DATA),
    "negative priority": (
        lambda m: setattr(m, "priorities", np.array([1, -1], "<f4").tobytes()),
        Reason.BAD_PRIORITY,
    ),
    "priority NaN": (lambda m: setattr(m, "priorities", np.array([1, np.nan], "<f4").tobytes()), Reason.NOT_FINITE),
    "many stats": (lambda m: m.stats.update({f"s{i}": 0.0 for i in range(65)}), Reason.BAD_MESSAGE),
    "a stat's long name": (lambda m: m.stats.update({"s" * 129: 0.0}), Reason.BAD_MESSAGE),
    "a long actor id": (lambda m: setattr(m, "actor_id", "a" * 129), Reason.BAD_MESSAGE),
    "stat infinite": (lambda m: m.stats.update({"score": float("inf")}), Reason.NOT_FINITE),
}


@pytest.mark.parametrize(("edit", "reason"), BAD_TRAJECTORIES.values(), ids=BAD_TRAJECTORIES.keys())
def test_a_bad_trajectory_is_refused_with_its_reason(edit: Callable, reason: Reason) -> None:
    """Every way to be wrong has one stable reason and one readable line."""
    with pytest.raises(CodecError) as caught:
        codec.decode_trajectory(edited(edit), SIGNATURE, max_steps=100)
    assert caught.value.reason is reason
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_float_column_takes_what_is_not_finite(dtype: str, value: float) -> None:
    """NaN and infinity are found in every float dtype, the largest finite value passes."""
    array = np.full((4, 3), np.finfo(dtype).max, dtype)
    codec.check_values(array, "x")
    codec.check_values(-array, "x")
    array[3, 2] = value
    with pytest.raises(CodecError, match="NaN or infinity"):
        codec.check_values(array, "x")


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    """A small frame that declares a gigabyte costs no memory, whether its shape admits to it or not."""
    frame = zstandard.compress(bytes(1 << 28))
    lying = edited(set_data("reward", frame, encoding=ZSTD))
    honest = edited(set_data("reward", frame, encoding=ZSTD))
    for name, steps in (("reward", 1 << 26), ("observation", 1 << 26), ("legal", 1 << 26)):
        column(honest, name).shape[0] = steps
    tracemalloc.start()
    try:
        for message, reason in ((lying, Reason.BAD_DATA), (honest, Reason.MESSAGE_TOO_LARGE)):
            with pytest.raises(CodecError) as caught:
                codec.decode_trajectory(message, SIGNATURE, max_bytes=1 << 20)
            assert caught.value.reason is reason
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_in_an_orderly_way(data: bytes) -> None:
    """Whatever the bytes, the only outcomes are a checked value, DecodeError and CodecError."""
    for kind, decode in (
        (trajectory_pb2.Trajectory, lambda m: codec.decode_trajectory(m, SIGNATURE, max_steps=100)),
        (replay_pb2.TableConfig, codec.decode_table_config),
        (replay_pb2.PriorityUpdates, codec.decode_priority_updates),
    ):
        with contextlib.suppress(CodecError, DecodeError):
            decode(kind.FromString(data))


@settings(deadline=None)
@given(
    st.builds(
        TableConfig,
        name=st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True),
        signature=st.just(SIGNATURE),
        capacity=st.integers(100, 2**31 - 1),
        selector=st.sampled_from(("uniform", "prioritized")),
        priority_exponent=st.floats(0, 1),
        rate_limiter=st.builds(RateLimiterConfig, st.integers(1, 100), st.floats(0, 8), st.floats(8, 1e6)),
        durability=st.sampled_from(Durability),
    )
)
def test_a_table_config_survives_the_wire(config: TableConfig) -> None:
    """The same config comes out."""
    assert codec.decode_table_config(codec.encode_table_config(config)) == config


BAD_CONFIGS: dict[str, Callable[[replay_pb2.TableConfig], object]] = {
    "name": lambda m: setattr(m, "name", "No such name"),
    "signature": lambda m: m.ClearField("signature"),
    "no column twice": lambda m: m.signature.append(m.signature[0]),
    "dtype": lambda m: setattr(m.signature[0], "dtype", "object"),
    "axis": lambda m: m.signature[0].shape.append(-1),
    "capacity": lambda m: setattr(m, "capacity", 0),
    "selector": lambda m: m.ClearField("selector"),
    "durability": lambda m: setattr(m, "durability", 7),
    "priority_exponent": lambda m: setattr(m, "priority_exponent", float("nan")),
    "sequences.period": lambda m: setattr(m.sequences, "period", -1),
    "sequences.length": lambda m: setattr(m.sequences, "length", 0),
    "episode_end": lambda m: setattr(m.sequences, "episode_end", 99),
    "max_times_sampled": lambda m: setattr(m, "max_times_sampled", -1),
    "queue_size": lambda m: setattr(m.rate_limiter, "queue_size", 1),
    "maximum": lambda m: (setattr(m.signature[0], "minimum", 2.0), setattr(m.signature[0], "maximum", 1.0)),
    "min_size_to_sample": lambda m: setattr(m.rate_limiter, "min_size_to_sample", 0),
    "samples_per_insert": lambda m: setattr(m.rate_limiter, "samples_per_insert", float("inf")),
    "error_buffer": lambda m: setattr(m.rate_limiter, "error_buffer", 1.0),
}


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_a_bad_table_config_is_refused(field: str) -> None:
    """The reason is BAD_CONFIG and the line names the field."""
    config = TableConfig("games", SIGNATURE, 100, rate_limiter=RateLimiterConfig(10, 4.0, 100.0))
    message = codec.encode_table_config(config)
    BAD_CONFIGS[field](message)
    with pytest.raises(CodecError, match=field.replace("no column twice", "twice")) as caught:
        codec.decode_table_config(message)
    assert caught.value.reason is Reason.BAD_CONFIG


def test_a_durability_that_is_not_set_is_redis() -> None:
    """As replay.proto says."""
    message = codec.encode_table_config(TableConfig("games", SIGNATURE, 100, durability=Durability.MEMORY))
    message.ClearField("durability")
    assert codec.decode_table_config(message).durability is Durability.REDIS


def test_priority_updates_survive_the_wire_and_are_checked() -> None:
    """Keys keep all 64 bits; sizes, NaN and negative priorities are refused."""
    keys = np.array([2**64 - 1, 1 << 32 | 5], np.uint64)
    updates = codec.decode_priority_updates(
        codec.encode_priority_updates(PriorityUpdates(keys, np.array([0.0, 2.5], np.float32)))
    )
    np.testing.assert_array_equal(updates.keys, keys)
    np.testing.assert_array_equal(updates.priorities, [0.0, 2.5])
    for key_bytes, priority_bytes, reason in (
        (bytes(8), bytes(8), Reason.BAD_DATA),
        (bytes(9), bytes(4), Reason.BAD_DATA),
        (bytes(8), np.array([-1], "<f4").tobytes(), Reason.BAD_PRIORITY),
        (bytes(8), np.array([np.inf], "<f4").tobytes(), Reason.NOT_FINITE),
        (bytes(8), np.array([np.nan], "<f4").tobytes(), Reason.NOT_FINITE),
    ):
        with pytest.raises(CodecError) as caught:
            codec.decode_priority_updates(replay_pb2.PriorityUpdates(keys=key_bytes, priorities=priority_bytes))
        assert caught.value.reason is reason
