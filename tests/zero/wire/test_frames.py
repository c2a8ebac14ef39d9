"""Messages written by hand: the bytes that protobuf writes, the values that protobuf reads, and nothing else taken."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zero.trajectories import DTYPES, SequenceBatch, Trajectory
from zero.wire import codec, frames, replay_pb2
from zero.wire.codec import CodecError, Reason

FIELDS = ("keys", "probabilities", "lengths", "weights_versions", "terminated")


def small_trajectory(**changes: object) -> Trajectory:
    trajectory = Trajectory(
        trajectory_id="t-1",
        actor_id="actor-0",
        weights_version=3,
        episode_seed=2**63 + 1,
        terminated=True,
        truncated=False,
        columns={"observation": np.arange(6, dtype=np.uint8).reshape(2, 3), "reward": np.array([0.5, -1.0], "f4")},
        stats={"score": 1.5},
    )
    return replace(trajectory, **changes)


def small_batch(**changes: object) -> SequenceBatch:
    batch = SequenceBatch(
        columns={"reward": np.ones((2, 1), np.float16), "position": np.array([[[1], [2]], [[3], [4]]], np.int64)},
        keys=np.array([1, 2**40], np.uint64),
        probabilities=np.array([0.25, 0.5]),
        lengths=np.array([3, 1], np.int32),
        weights_versions=np.array([7, 2**60], np.uint64),
        terminated=np.array([True, False]),
        table_size=300,
    )
    return replace(batch, **changes)


def assert_same(one: SequenceBatch, other: SequenceBatch) -> None:
    assert (one.table_size, one.rows_per_table) == (other.table_size, other.rows_per_table)
    assert list(one.columns) == list(other.columns)
    pairs = [(getattr(one, field), getattr(other, field)) for field in FIELDS]
    pairs += [(array, other.columns[name]) for name, array in one.columns.items()]
    assert (one.importance_weights is None) == (other.importance_weights is None)
    if one.importance_weights is not None:
        pairs.append((one.importance_weights, other.importance_weights))
    for array, twin in pairs:
        assert array.dtype == twin.dtype
        np.testing.assert_array_equal(array, twin)


def test_the_bytes_of_an_insert_never_change() -> None:
    """Tables, trajectories, chunk and priorities stand where replay.proto and trajectory.proto say."""
    chunk = small_trajectory(
        terminated=False, first_step=300, open=True, priorities=np.array([1.0, 2.0], np.float32), stats={}
    )
    assert frames.encode_insert_stream_request(["a", "b"], [small_trajectory(), chunk], hold_seconds=2.5).hex() == (
        "0aef010a0161"
        "12750a03742d3112076163746f722d30180320818080808080808080012801"
        "3a220a0b6f62736572766174696f6e120575696e74381a02020322060001020304052801"
        "3a200a067265776172641207666c6f617433321a010222080000003f000080bf2801"
        "42100a0573636f726511000000000000f83f"
        "12700a03742d3112076163746f722d3018032081808080808080808001"
        "3a220a0b6f62736572766174696f6e120575696e74381a02020322060001020304052801"
        "3a200a067265776172641207666c6f617433321a010222080000003f000080bf2801"
        "48ac0250015a080000803f000000401a0162110000000000000440"
    )


@st.composite
def arrays(draw: st.DrawFn, rows: int) -> np.ndarray:
    shape = (rows, *draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)))
    return draw(hnp.arrays(np.dtype(draw(st.sampled_from(DTYPES))), shape))


NAMES = st.text(max_size=20).filter(lambda text: text.isprintable())


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    steps = draw(st.integers(1, 4))
    priorities = draw(st.none() | hnp.arrays(np.float32, steps))
    return Trajectory(
        trajectory_id=draw(NAMES),
        actor_id=draw(NAMES),
        weights_version=draw(st.integers(0, 2**64 - 1)),
        episode_seed=draw(st.integers(0, 2**64 - 1)),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        columns=draw(st.dictionaries(NAMES, arrays(steps), min_size=1, max_size=3)),
        stats=draw(st.dictionaries(NAMES, st.floats(allow_nan=False), max_size=3)),
        first_step=draw(st.integers(0, 2**64 - 1)),
        open=draw(st.booleans()),
        priorities=priorities,
    )


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(trajectories(), max_size=3), st.booleans(), st.floats(0, 60))
def test_an_insert_written_by_hand_is_what_protobuf_reads(
    tables: list[str], items: list[Trajectory], compress: bool, hold_seconds: float
) -> None:
    """Whatever the values, FromString finds the message that the protobuf classes would have made."""
    expected = replay_pb2.InsertRequest(
        table=tables[0],
        more_tables=tables[1:],
        trajectories=[codec.encode_trajectory(item, compress=compress) for item in items],
    )
    written = frames.encode_insert_request(tables, items, compress=compress)
    assert replay_pb2.InsertRequest.FromString(written) == expected
    streamed = frames.encode_insert_stream_request(tables, items, compress=compress, hold_seconds=hold_seconds)
    assert replay_pb2.InsertStreamRequest.FromString(streamed) == replay_pb2.InsertStreamRequest(
        insert=expected, hold_seconds=hold_seconds
    )


def test_the_order_of_the_fields_is_that_of_protobuf() -> None:
    """Byte for byte, so that nobody can tell who wrote it."""
    for item in (small_trajectory(), small_trajectory(columns={"x": np.zeros((200, 50))}, stats={"": 0.0})):
        expected = replay_pb2.InsertRequest(table="games", trajectories=[codec.encode_trajectory(item)])
        assert frames.encode_insert_request(["games"], [item]) == expected.SerializeToString()


def test_numbers_that_do_not_fit_are_refused() -> None:
    """A negative version would otherwise never end as a varint."""
    for version in (-1, 2**64):
        with pytest.raises(ValueError, match="2\\^64"):
            frames.encode_insert_request(["games"], [small_trajectory(weights_version=version)])


def test_a_dtype_without_a_place_on_the_wire_is_refused() -> None:
    """With the column's name."""
    with pytest.raises(CodecError, match=r"'when'.*datetime64") as caught:
        frames.encode_insert_request(["games"], [small_trajectory(columns={"when": np.zeros(2, "M8[s]")})])
    assert caught.value.reason is Reason.WRONG_SIGNATURE


def test_the_bytes_of_a_batch_never_change() -> None:
    """Clients in other languages depend on these very bytes."""
    batch = small_batch(importance_weights=np.array([1.0, 0.5], np.float32), rows_per_table=(1, 0, 1))
    assert frames.encode_sample_response(batch).hex() == (
        "0a1d0a067265776172641207666c6f617431361a0202012204003c003c2801"
        "0a3a0a08706f736974696f6e1205696e7436341a03020201"
        "222001000000000000000200000000000000030000000000000004000000000000002801"
        "1210010000000000000000000000000100001a10000000000000d03f000000000000e03f"
        "220803000000010000002a100700000000000000000000000000001030ac02"
        "3a080000803f0000003f420201004a03010001"
    )


@st.composite
def batches(draw: st.DrawFn) -> SequenceBatch:
    rows = draw(st.integers(1, 4))
    return SequenceBatch(
        columns=draw(st.dictionaries(NAMES, arrays(rows), max_size=4)),
        keys=draw(hnp.arrays(np.uint64, rows)),
        probabilities=draw(hnp.arrays(np.float64, rows)),
        lengths=draw(hnp.arrays(np.int32, rows)),
        weights_versions=draw(hnp.arrays(np.uint64, rows)),
        terminated=draw(hnp.arrays(np.bool_, rows)),
        table_size=draw(st.integers(0, 2**62)),
        importance_weights=draw(st.none() | hnp.arrays(np.float32, rows)),
        rows_per_table=tuple(draw(st.lists(st.integers(0, 2**31 - 1), max_size=3))),
    )


@settings(deadline=None)
@given(batches())
def test_a_batch_written_by_hand_is_what_everybody_reads(batch: SequenceBatch) -> None:
    """Our own reader, and any protobuf parser, find the values that went in."""
    written = frames.encode_sample_response(batch)
    assert_same(frames.decode_sample_response(written), batch)
    message = replay_pb2.SampleResponse.FromString(written)
    assert message.SerializeToString() == written
    for column, (name, array) in zip(message.columns, batch.columns.items(), strict=True):
        assert (column.name, column.dtype, tuple(column.shape)) == (name, array.dtype.name, array.shape)
        assert column.data == array.tobytes()
    assert message.keys == batch.keys.tobytes()
    assert message.terminated == batch.terminated.tobytes()
    assert list(message.rows_per_table) == list(batch.rows_per_table)
    on_stream = frames.encode_sample_response(batch, on_stream=True)
    assert replay_pb2.SampleStreamResponse.FromString(on_stream).sampled == message
    assert_same(frames.decode_sample_stream_response(on_stream), batch)


def test_a_batch_is_read_without_a_copy() -> None:
    """Every array is a read-only view of the bytes that came."""
    data = frames.encode_sample_response(small_batch())
    batch = frames.decode_sample_response(data)
    whole = np.frombuffer(data, np.uint8)
    for array in (*batch.columns.values(), *(getattr(batch, field) for field in FIELDS)):
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable


def test_what_a_newer_server_may_add_is_skipped() -> None:
    """Unknown fields of every wire type, anywhere; shapes packed or not; columns in any order of their fields."""
    batch = small_batch()
    unknown = bytes.fromhex("f80105f1010102030405060708fa0102abcdfd0101020304")
    message = replay_pb2.SampleResponse.FromString(frames.encode_sample_response(batch))
    rest = replay_pb2.SampleResponse()
    rest.CopyFrom(message)
    rest.ClearField("columns")
    written = unknown + rest.SerializeToString()
    for column in message.columns:
        shape = b"".join(b"\x18" + bytes([axis]) for axis in column.shape)
        column.ClearField("shape")
        body = unknown + shape + column.SerializeToString() + unknown
        written += b"\x0a" + bytes([len(body)]) + body
    assert replay_pb2.SampleResponse.FromString(written).columns[0].name == "reward"
    assert_same(frames.decode_sample_response(written), batch)


def test_a_refusal_on_a_stream_is_read() -> None:
    """With its reason, its line and its pause."""
    refused = replay_pb2.Refused(reason="TOO_BUSY", message="später", retry_after_ms=1500)
    data = replay_pb2.SampleStreamResponse(refused=refused).SerializeToString()
    assert frames.decode_sample_stream_response(data) == frames.RefusedRequest("TOO_BUSY", "später", 1.5)


def edited_batch(**fields: object) -> bytes:
    message = replay_pb2.SampleResponse.FromString(frames.encode_sample_response(small_batch()))
    column = message.columns[0]
    for name, value in fields.items():
        target = message if name in message.DESCRIPTOR.fields_by_name else column
        if name == "shape":
            del column.shape[:]
            column.shape.extend(value)
        else:
            setattr(target, name, value)
    return message.SerializeToString()


BAD_BATCHES = {
    "nothing": b"",
    "no keys": edited_batch(keys=b""),
    "half a key": edited_batch(keys=bytes(15)),
    "one key too many": edited_batch(keys=bytes(24)),
    "no flags": edited_batch(terminated=b""),
    "a flag of two": edited_batch(terminated=b"\x00\x02"),
    "other weights": edited_batch(importance_weights=bytes(4)),
    "unknown dtype": edited_batch(dtype="object"),
    "no dtype": edited_batch(dtype=""),
    "no shape": edited_batch(shape=[]),
    "negative axis": edited_batch(shape=[-2, -1]),
    "empty axis": edited_batch(shape=[2, 0]),
    "huge axis": edited_batch(shape=[2, 2**62]),
    "many axes": edited_batch(shape=[2] + [1] * 40),
    "other rows": edited_batch(shape=[1, 2]),
    "too few bytes": edited_batch(data=bytes(3)),
    "no bytes": edited_batch(data=b""),
    "packed": edited_batch(encoding=2),
    "name is no text": b"\x0a\x03\x0a\x01\xff",
    "cut inside of a varint": b"\x0a",
    "cut inside of a field": b"\x0a\x05ab",
    "endless varint": b"\x30" + b"\xff" * 12,
    "group": b"\x0b\x0c",
    "field 0": b"\x00\x00",
    "keys as a number": b"\x10\x05",
    "table_size as bytes": b"\x32\x00",
    "only columns": frames.encode_sample_response(small_batch())[:60],
}


@pytest.mark.parametrize("data", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_what_is_no_batch_is_refused_in_one_line(data: bytes) -> None:
    """Alone and on a stream: CodecError, whatever is wrong."""
    for decode, message in (
        (frames.decode_sample_response, data),
        (frames.decode_sample_stream_response, replay_pb2.SampleStreamResponse().SerializeToString() + b"\x0a" + data),
    ):
        with pytest.raises(CodecError) as caught:
            decode(message)
        assert "\n" not in caught.value.message


def outcome(data: bytes) -> SequenceBatch | None:
    try:
        return frames.decode_sample_response(data)
    except CodecError:
        return None


@settings(deadline=None, max_examples=125)
@given(batches(), st.data())
def test_damage_is_refused_or_reads_as_protobuf_reads_it(batch: SequenceBatch, data: st.DataObject) -> None:
    """No other exception than CodecError; and what is taken, protobuf takes, too."""
    written = frames.encode_sample_response(batch)
    for _ in range(4):  # a batch takes longer to make than to damage
        message = bytearray(written)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(message)))
            message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        read = outcome(bytes(message))
        if read is not None:
            assert_read_by_protobuf(read, bytes(message))


def assert_read_by_protobuf(read: SequenceBatch, message: bytes) -> None:
    try:
        expected = replay_pb2.SampleResponse.FromString(message)
    except DecodeError:
        pytest.fail("taken although it is no message")
    assert expected.keys == read.keys.tobytes()
    assert {column.name: column.data for column in expected.columns} == {
        name: array.tobytes() for name, array in read.columns.items()
    }


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_in_an_orderly_way(data: bytes) -> None:
    """The only outcomes are a batch, a refusal and CodecError."""
    outcome(data)
    with contextlib.suppress(CodecError):
        frames.decode_sample_stream_response(data)


def test_tensors_and_lists_are_written_like_the_same_arrays() -> None:
    """Also by the codec; what is no array is refused by name."""
    plain = small_trajectory(priorities=np.array([1.0, 2.0], np.float32))
    given = replace(
        plain,
        columns={name: torch.from_numpy(array) for name, array in plain.columns.items()},
        priorities=[1, 2],
    )
    assert frames.encode_insert_request(["a"], [given]) == frames.encode_insert_request(["a"], [plain])
    assert codec.encode_trajectory(given) == codec.encode_trajectory(plain)
    with pytest.raises(CodecError, match="reward cannot be made an array"):
        frames.encode_insert_request(["a"], [replace(plain, columns={"reward": [[1], [2, 3]]})])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"weights_version": -1}, "weights_version is -1, must be within"),
        ({"first_step": -1}, "first_step is -1"),
        ({"episode_seed": 2**70}, "episode_seed is 1180591620717411303424"),
        ({"actor_id": 3}, "actor_id is 3, must be text"),
        ({"stats": {"score": "high"}}, "stat 'score' is 'high', must be a number"),
    ],
)
def test_a_field_that_cannot_be_written_is_named(changes: dict[str, object], text: str) -> None:
    """As the server would name it."""
    with pytest.raises(CodecError, match=text) as caught:
        frames.encode_insert_request(["a"], [small_trajectory(**changes)])
    assert caught.value.reason == Reason.BAD_MESSAGE


def test_an_insert_into_no_table_is_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(CodecError, match="tables is empty"):
        frames.encode_insert_request([], [small_trajectory()])
