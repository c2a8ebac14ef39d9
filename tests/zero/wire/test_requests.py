"""Requests: what goes in comes out, and what no server should act on is refused with the field's name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zero.trajectories import (
    ColumnSpec,
    NStep,
    PriorityUpdates,
    SampleSpec,
    StatRange,
    StepFilter,
    TableShare,
    TrajectoryFilter,
    Window,
)
from zero.wire import codec, replay_pb2
from zero.wire.codec import CodecError, Reason

NAMES = st.text(min_size=1, max_size=10)
POSITIVE = st.integers(1, 2**31 - 1)
FINITE = st.floats(0, 1e300)
SIGNATURE = (ColumnSpec("value", "float32", (2,), minimum=-1.0, maximum=1.0), ColumnSpec("count", "uint64"))


@st.composite
def windows(draw: st.DrawFn) -> dict[str, int | Window]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    return {name: draw(st.builds(Window, st.just(name) | NAMES, POSITIVE, st.integers(0, 2**31 - 1))) for name in names}


SPECS = st.builds(
    SampleSpec,
    batch_size=POSITIVE,
    windows=windows(),
    importance_sampling_exponent=FINITE,
    filter=st.builds(StepFilter, FINITE, st.integers(0, 2**64 - 1)),
    n_step=st.none() | st.builds(NStep, NAMES, st.floats(0, 1), POSITIVE),
)


@settings(deadline=None)
@given(SPECS)
def test_a_sample_spec_survives_the_wire(spec: SampleSpec) -> None:
    """Windows with offset and alias, filter, exponent and n-step, from one table and from several."""
    request = codec.encode_sample_request("games", spec, None)
    assert codec.decode_sample_spec(replay_pb2.SampleRequest.FromString(request.SerializeToString())) == spec
    assert codec.decode_table_shares(request) == (TableShare("games", 1.0, None),)
    shares = (TableShare("new", 0.75), TableShare("old", 0.25))
    request = codec.encode_mix_request(shares, spec)
    assert codec.decode_sample_spec(request) == spec
    assert codec.decode_table_shares(request) == shares


def test_a_plain_length_stands_for_a_window_at_the_position() -> None:
    """An int is the number of steps of the column of that name; an alias is sent only where it differs."""
    spec = SampleSpec(4, {"action": 3, "next": Window("action", 2, 1)})
    request = codec.encode_sample_request("games", spec, None)
    assert [(w.name, w.length, w.offset, w.alias) for w in request.windows] == [
        ("action", 3, 0, ""),
        ("action", 2, 1, "next"),
    ]
    assert codec.decode_sample_spec(request).windows == {"action": Window("action", 3), "next": Window("action", 2, 1)}


def test_updates_ride_on_a_sample_and_on_every_share() -> None:
    """None stays None, none at all stays none at all."""
    updates = PriorityUpdates(np.array([5, 2**63], np.uint64), np.array([0.5, 2], np.float32))
    request = codec.encode_sample_request("games", SampleSpec(1, {"x": 1}), updates)
    (share,) = codec.decode_table_shares(request)
    mixed = codec.decode_table_shares(
        codec.encode_mix_request([TableShare("a", 0.5, updates), TableShare("b", 0.5)], SampleSpec(1, {"x": 1}))
    )
    for found in (share.updates, mixed[0].updates):
        assert found is not None
        np.testing.assert_array_equal(found.keys, updates.keys)
        np.testing.assert_array_equal(found.priorities, updates.priorities)
    assert mixed[1].updates is None


def sample(**changes: object) -> replay_pb2.SampleRequest:
    request = codec.encode_sample_request("games", SampleSpec(4, {"x": 2}, n_step=NStep("x", 0.9, 3)), None)
    for name, value in changes.items():
        target: Message = request
        *path, last = name.split("__")
        for part in path:
            target = getattr(target, part)
            target = target[0] if part == "windows" else target
        setattr(target, last, value)
    return request


BAD_SPECS = {
    "batch_size is 0": sample(batch_size=0),
    "batch_size is -1": sample(batch_size=-1),
    "importance_sampling_exponent is -0.5": sample(importance_sampling_exponent=-0.5),
    "importance_sampling_exponent is nan": sample(importance_sampling_exponent=float("nan")),
    "importance_sampling_exponent is inf": sample(importance_sampling_exponent=float("inf")),
    "max_age_seconds is -1": sample(filter__max_age_seconds=-1.0),
    "max_age_seconds is nan": sample(filter__max_age_seconds=float("nan")),
    "n_step.discount is 1.5": sample(n_step__discount=1.5),
    "n_step.discount is nan": sample(n_step__discount=float("nan")),
    "n_step.steps is 0": sample(n_step__steps=0),
    "window 'x' has length 0": sample(windows__length=0),
    "offset -1": sample(windows__offset=-1),
    "at least one window": replay_pb2.SampleRequest(table="games", batch_size=1),
    "'x' is asked for twice": replay_pb2.SampleRequest(
        batch_size=1,
        windows=[
            replay_pb2.ColumnWindow(name="x", length=1),
            replay_pb2.ColumnWindow(name="y", length=1, alias="x"),
        ],
    ),
}


@pytest.mark.parametrize(("text", "request_"), BAD_SPECS.items(), ids=BAD_SPECS.keys())
def test_a_bad_spec_is_refused_by_field(text: str, request_: replay_pb2.SampleRequest) -> None:
    """BAD_MESSAGE, with what was given."""
    with pytest.raises(CodecError) as caught:
        codec.decode_sample_spec(request_)
    assert caught.value.reason is Reason.BAD_MESSAGE
    assert text in caught.value.message


def mix(*shares: tuple[str, float], **fields: object) -> replay_pb2.SampleRequest:
    return replay_pb2.SampleRequest(
        mix=[replay_pb2.TableShare(table=table, fraction=fraction) for table, fraction in shares], **fields
    )


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("either table", mix(("a", 1.0), table="b")),
        ("either table", mix(("a", 1.0), updates=replay_pb2.PriorityUpdates())),
        ("twice", mix(("a", 0.5), ("a", 0.5))),
        ("add up to 1, not to 0.9", mix(("a", 0.5), ("b", 0.4))),
        ("within 0 to 1", mix(("a", 1.5), ("b", -0.5))),
        ("add up", mix(("a", float("nan")), ("b", 0.5))),
        ("add up", mix(("a", float("inf")))),
    ],
)
def test_a_bad_mix_is_refused(text: str, request_: replay_pb2.SampleRequest) -> None:
    """Shares that contradict each other or the rest of the request."""
    with pytest.raises(CodecError, match=text) as caught:
        codec.decode_table_shares(request_)
    assert caught.value.reason is Reason.BAD_MESSAGE


FILTERS = st.builds(
    TrajectoryFilter,
    trajectory_ids=st.lists(NAMES, max_size=3).map(tuple),
    actor_id=st.text(max_size=5),
    min_weights_version=st.none() | st.integers(0, 2**64 - 1),
    max_weights_version=st.none() | st.integers(0, 2**64 - 1),
    stats=st.lists(
        st.builds(StatRange, NAMES, st.none() | st.floats(allow_nan=False), st.none() | st.floats(allow_nan=False)),
        max_size=2,
    ).map(tuple),
)


@settings(deadline=None)
@given(FILTERS.filter(lambda chosen: chosen != TrajectoryFilter()))
def test_a_trajectory_filter_survives_the_wire(chosen: TrajectoryFilter) -> None:
    """A bound of 0 is not the same as no bound."""
    message = replay_pb2.TrajectoryFilter.FromString(codec.encode_trajectory_filter(chosen).SerializeToString())
    assert codec.decode_trajectory_filter(message) == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing is set", replay_pb2.TrajectoryFilter()),
        ("'score' is NaN", replay_pb2.TrajectoryFilter(stats=[replay_pb2.StatRange(name="score", minimum=np.nan)])),
    ],
)
def test_a_bad_filter_is_refused(text: str, message: replay_pb2.TrajectoryFilter) -> None:
    """An empty filter would delete everything."""
    with pytest.raises(CodecError, match=text) as caught:
        codec.decode_trajectory_filter(message)
    assert caught.value.reason is Reason.BAD_MESSAGE


@settings(deadline=None)
@given(st.integers(0, 4).flatmap(lambda n: hnp.arrays(np.float32, (n, 2), elements=st.floats(-1, 1, width=32))))
def test_new_values_survive_the_wire(values: np.ndarray) -> None:
    """Keys and the columns that are given; zstd frames, too."""
    keys = np.arange(len(values), dtype=np.uint64) + np.uint64(2**40)
    counts = np.full(len(values), 2**64 - 1, np.uint64)
    message = codec.encode_update_columns_request("games", keys, {"value": values, "count": counts})
    message.columns.append(codec.encode_column("value", values, compress=True))
    del message.columns[0]
    updates = codec.decode_column_updates(message, SIGNATURE, 1000)
    np.testing.assert_array_equal(updates.keys, keys)
    assert updates.columns.keys() == {"value", "count"}
    np.testing.assert_array_equal(updates.columns["value"], values)
    np.testing.assert_array_equal(updates.columns["count"], counts)
    assert not updates.version_column
    message.version_column = "count"
    assert codec.decode_column_updates(message, SIGNATURE, 1000).version_column == "count"


def column_updates(**columns: np.ndarray) -> replay_pb2.UpdateColumnsRequest:
    return codec.encode_update_columns_request("games", np.array([1, 2], np.uint64), columns)


def edited(edit: Callable[[replay_pb2.UpdateColumnsRequest], object]) -> replay_pb2.UpdateColumnsRequest:
    message = column_updates(value=np.zeros((2, 2), np.float32))
    edit(message)
    return message


BAD_UPDATES = {
    "no column": (column_updates(), Reason.BAD_MESSAGE),
    "column twice": (edited(lambda m: m.columns.append(m.columns[0])), Reason.BAD_MESSAGE),
    "unknown column": (column_updates(other=np.zeros(2)), Reason.WRONG_SIGNATURE),
    "other dtype": (column_updates(value=np.zeros((2, 2))), Reason.WRONG_SIGNATURE),
    "other shape": (column_updates(value=np.zeros((2, 3), np.float32)), Reason.WRONG_SIGNATURE),
    "other rows": (column_updates(value=np.zeros((3, 2), np.float32)), Reason.BAD_LENGTH),
    "NaN": (column_updates(value=np.full((2, 2), np.nan, np.float32)), Reason.NOT_FINITE),
    "below": (column_updates(value=np.full((2, 2), -1.5, np.float32)), Reason.OUT_OF_RANGE),
    "above": (column_updates(value=np.full((2, 2), 1.5, np.float32)), Reason.OUT_OF_RANGE),
    "version column that is not given": (edited(lambda m: setattr(m, "version_column", "count")), Reason.BAD_MESSAGE),
    "version column that is no integer": (
        edited(lambda m: setattr(m, "version_column", "value")),
        Reason.WRONG_SIGNATURE,
    ),
    "half a key": (edited(lambda m: setattr(m, "keys", bytes(15))), Reason.BAD_DATA),
    "key twice": (edited(lambda m: setattr(m, "keys", bytes(16))), Reason.BAD_MESSAGE),
    "too much": (
        edited(lambda m: setattr(m, "keys", np.arange(1000, dtype="<u8").tobytes())),
        Reason.MESSAGE_TOO_LARGE,
    ),
}


@pytest.mark.parametrize(("message", "reason"), BAD_UPDATES.values(), ids=BAD_UPDATES.keys())
def test_bad_new_values_are_refused(message: replay_pb2.UpdateColumnsRequest, reason: Reason) -> None:
    """As strictly as an insert, in one line."""
    with pytest.raises(CodecError) as caught:
        codec.decode_column_updates(message, SIGNATURE, 100)
    assert caught.value.reason is reason
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (ColumnSpec("x", "uint8", (), None, 3), [0, 3], [4]),
        (ColumnSpec("x", "int16", (), -2.5, None), [-2, 9], [-3]),
        (ColumnSpec("x", "uint64", (), None, 2.0**63), [2**63], [2**63 + 1]),
        (ColumnSpec("x", "float16", (), 0.0, 1.0), [0.0, 1.0], [1.001]),
        (ColumnSpec("x", "bool", (), None, 0), [False], [True]),
    ],
)
def test_bounds_are_exact_and_inclusive(spec: ColumnSpec, good: list[float], bad: list[float]) -> None:
    """Also where the bound is no value of the dtype."""
    codec.check_column(np.array(good, spec.dtype), spec)
    codec.check_column(np.array([], spec.dtype), spec)
    with pytest.raises(CodecError, match="'x' holds") as caught:
        codec.check_column(np.array(good + bad, spec.dtype), spec)
    assert caught.value.reason is Reason.OUT_OF_RANGE


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.float32, np.float64, np.bool_])
def test_keys_that_have_lost_bits_are_not_sent(dtype: type[np.generic]) -> None:
    """A float or a small integer would name another step; signed ones have all 64 bits, and PyTorch has no others."""
    key = np.array([2**63 + 2**40 + 1], np.uint64)
    one = np.ones(1, np.float32)
    broken: Any = np.ones(1, dtype)
    for encode in (
        lambda keys: codec.encode_priority_updates(PriorityUpdates(keys, one)),
        lambda keys: codec.encode_update_columns_request("games", keys, {"value": one}),
    ):
        assert encode(key.view(np.int64)).keys == key.tobytes()
        with pytest.raises(CodecError, match="must be 64-bit integers") as caught:
            encode(broken)
        assert caught.value.reason == Reason.BAD_DATA


@pytest.mark.parametrize(
    ("batch_size", "windows", "text"),
    [(2**40, {"reward": 1}, "1099511627776"), (2, ["reward"], "windows is ..reward.."), (2, {"reward": "6"}, "'6'")],
)
def test_a_spec_that_cannot_be_written_is_refused(batch_size: int, windows: Any, text: str) -> None:
    """With what was given."""
    with pytest.raises(CodecError, match=text) as caught:
        codec.encode_sample_request("games", SampleSpec(batch_size, windows), None)
    assert caught.value.reason == Reason.BAD_MESSAGE
