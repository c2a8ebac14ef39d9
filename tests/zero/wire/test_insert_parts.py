"""What is taken apart is what protobuf reads, in whatever order it stands, and nonsense is refused."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from zero.wire import replay_pb2, trajectory_pb2
from zero.wire.codec import CodecError
from zero.wire.insert_parts import MOST_COLUMNS, MOST_TRAJECTORIES, take_apart
from zero.wire.wire_format import delimited, head, number, packed, varint

_TEXT = st.text(max_size=8)
_UNKNOWN = st.sampled_from(
    [number(77, 5), delimited(78, b"abc"), varint(79 << 3 | 1) + b"8 bytes!", varint(99 << 3 | 5) + b"four"]
)
"""Fields that a later version may have."""


def _field(tag: int, content: bytes) -> bytes:
    return head(tag, len(content)) + content


def _shuffled(*fields: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[bytes]:
    """Fields in any order, unknown ones among them."""
    parts = st.tuples(*fields, st.lists(_UNKNOWN, max_size=2))
    return parts.flatmap(lambda lists: st.permutations([piece for part in lists for piece in part])).map(b"".join)


def _some(strategy: st.SearchStrategy[bytes], most: int) -> st.SearchStrategy[list[bytes]]:
    return st.lists(strategy, max_size=most)


_COLUMN = _shuffled(
    _some(_TEXT.map(lambda text: _field(1, text.encode())), 1),
    _some(_TEXT.map(lambda text: _field(2, text.encode())), 1),
    _some(st.lists(st.integers(0, 1 << 40), max_size=3).map(lambda shape: packed(3, shape)), 2),
    _some(st.binary(max_size=300).map(lambda data: _field(4, data)), 2),
    _some(st.integers(0, 3).map(lambda value: number(5, value)), 1),
)
_STAT = st.tuples(_TEXT, st.floats(allow_nan=False)).map(
    lambda stat: trajectory_pb2.Trajectory(stats={stat[0]: stat[1]}).SerializeToString()
)
_TRAJECTORY = _shuffled(
    _some(_TEXT.map(lambda text: _field(1, text.encode())), 2),
    _some(st.integers(0, 1 << 63).map(lambda value: number(3, value)), 1),
    _some(_COLUMN.map(lambda column: _field(7, column)), 3),
    _some(_STAT, 2),
    _some(st.binary(max_size=12).map(lambda data: _field(11, data)), 1),
)
_REQUEST = _shuffled(
    _some(_TEXT.map(lambda text: _field(1, text.encode())), 2),
    _some(_TRAJECTORY.map(lambda trajectory: _field(2, trajectory)), 3),
    _some(_TEXT.map(lambda text: _field(3, text.encode())), 2),
)


def _assert_same(message: bytes) -> None:
    """What is taken apart, put together again, is what protobuf reads; unknown fields may stand elsewhere."""
    expected = replay_pb2.InsertRequest.FromString(message)
    parts = take_apart(message)
    request = parts.request
    for part in parts.trajectories:
        assert trajectory_pb2.Trajectory.FromString(message[part.start : part.stop]) is not None
        assert replay_pb2.InsertRequest.FromString(message[part.tag : part.stop]).trajectories
        trajectory = request.trajectories.add()
        trajectory.CopyFrom(part.trajectory)
        for header, start, stop in part.columns:
            column = trajectory.columns.add()
            column.MergeFromString(header)
            column.data = message[start:stop]
    for one in (request, expected):
        one.DiscardUnknownFields()
    assert request == expected


@settings(deadline=None)
@given(_REQUEST)
def test_the_parts_are_what_protobuf_reads(message: bytes) -> None:
    """Fields in any order, repeated ones of which the last counts, unknown ones of every wire type."""
    _assert_same(message)


@settings(deadline=None)
@given(_REQUEST, st.data())
def test_damaged_messages_are_read_as_protobuf_does_or_refused(message: bytes, data: st.DataObject) -> None:
    """Whatever is changed, cut off or put in: nothing is read beyond the end, and nothing differently."""
    damaged = bytearray(message or b"\x00")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        match data.draw(st.sampled_from(["change", "cut", "insert"])):
            case "change" if damaged:
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at:]
            case _:
                damaged[at:at] = data.draw(st.binary(max_size=11))
    message = bytes(damaged)
    try:
        parts = take_apart(message)
        for part in parts.trajectories:  # as the server does when it reads the columns
            for header, _, _ in part.columns:
                trajectory_pb2.Column.FromString(header)
    except (CodecError, DecodeError):
        return
    _assert_same(message)  # what is let in must be readable when it comes out of the log


@pytest.mark.parametrize(("trajectories", "columns"), [(1000, 3), (2, 3000), (0, 0)])
def test_any_number_of_parts(trajectories: int, columns: int) -> None:
    """More than there is room for at first."""
    column = trajectory_pb2.Column(name="x", dtype="uint8", shape=[3], data=b"abc")
    trajectory = trajectory_pb2.Trajectory(trajectory_id="t", columns=[column] * columns)
    message = replay_pb2.InsertRequest(table="t", trajectories=[trajectory] * trajectories).SerializeToString()
    parts = take_apart(message)
    assert [len(part.columns) for part in parts.trajectories] == [columns] * trajectories
    assert {message[start:stop] for part in parts.trajectories for _, start, stop in part.columns} <= {b"abc"}


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_sizes_that_wrap_around_are_refused(size: int) -> None:
    """A length that no message can have, at every level."""
    huge = varint(4 << 3 | 2) + varint(size) + b"abc"
    for message in (
        varint(2 << 3 | 2) + varint(size) + b"abc",
        _field(2, varint(7 << 3 | 2) + varint(size) + b"abc"),
        _field(2, _field(7, huge)),
    ):
        with pytest.raises(CodecError, match="InsertRequest"):
            take_apart(message)


def _long(value: int) -> bytes:
    """A varint of six bytes, which protobuf takes for values but neither for tags nor for sizes."""
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, 0x80, 0x80, 0x80, 0x00])


@pytest.mark.parametrize("level", ["trajectory", "column", "data"])
@pytest.mark.parametrize("what", ["tag", "size"])
def test_tags_and_sizes_are_as_short_as_protobuf_wants_them(level: str, what: str) -> None:
    """What protobuf would refuse when it comes out of the log is not let in."""
    message = b"abc"
    for number_, name in ((4, "data"), (7, "column"), (2, "trajectory")):
        tag, size = number_ << 3 | 2, len(message)
        is_long = name == level
        message = (
            (_long(tag) if is_long and what == "tag" else varint(tag))
            + (_long(size) if is_long and what == "size" else varint(size))
            + message
        )
    with pytest.raises(DecodeError):
        replay_pb2.InsertRequest.FromString(message)
    with pytest.raises(CodecError, match="InsertRequest"):
        take_apart(message)


@pytest.mark.parametrize(
    ("message", "text"),
    [(b"\x12\x00" * (MOST_TRAJECTORIES + 1), "trajectories"), (_field(2, b"\x3a\x00" * (MOST_COLUMNS + 1)), "columns")],
)
def test_more_parts_than_make_sense_are_refused_before_any_is_made(message: bytes, text: str) -> None:
    """Two bytes of nonsense must not cost hundreds of ours."""
    with pytest.raises(CodecError, match=f"{text} in one insert, at most"):
        take_apart(message)


def test_nothing_is_copied_of_the_data() -> None:
    """The places are those of the array's bytes in the message."""
    data = np.arange(100, dtype=np.uint8).tobytes()
    column = trajectory_pb2.Column(name="x", dtype="uint8", shape=[100], data=data)
    request = replay_pb2.InsertRequest(table="t", trajectories=[trajectory_pb2.Trajectory(columns=[column])])
    message = request.SerializeToString()
    (part,) = take_apart(message).trajectories
    ((header, start, stop),) = part.columns
    assert message.index(data) == start
    assert stop - start == 100
    assert data not in header
