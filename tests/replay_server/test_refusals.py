"""Bad calls of every kind: refused with a code, one line that says what was wrong, and a stable reason; alone."""

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from replay_server.client import ReplayClient, ReplayError
from replay_server.server import BoundAddresses
from tests.replay_server.messages import (
    call,
    columns_bytes,
    converse,
    filter_bytes,
    insert_bytes,
    mix_bytes,
    read,
    reason_of,
    register_bytes,
    sample_bytes,
    streamed_insert,
    streamed_sample,
    updates_bytes,
    window_bytes,
    with_columns,
)
from tests.replay_server.played import played, table_config
from zero.tables import TableConfig
from zero.trajectories import ColumnSpec, Trajectory, TrajectoryFilter
from zero.wire import codec, replay_pb2

MakeTable = Callable[..., TableConfig]
MakeBytes = Callable[[str], bytes]

CODES = {
    "UNKNOWN_TABLE": grpc.StatusCode.NOT_FOUND,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "MISSING_CHUNK": grpc.StatusCode.FAILED_PRECONDITION,
    "CONTENT_CONFLICT": grpc.StatusCode.ALREADY_EXISTS,
}


@pytest.fixture
def channel(addresses: BoundAddresses) -> Iterator[grpc.Channel]:
    """Sends bytes as they are."""
    with grpc.insecure_channel(addresses.address, [("grpc.max_send_message_length", 1 << 30)]) as channel:
        yield channel


def changed(trajectory: Trajectory, **fields: object) -> Trajectory:
    return Trajectory(**{**vars(trajectory), **fields})


def edited(edit: Callable[[replay_pb2.InsertRequest], object]) -> MakeBytes:
    def make(table: str) -> bytes:
        request = replay_pb2.InsertRequest.FromString(insert_bytes(table, played(900)))
        edit(request)
        return request.SerializeToString()

    return make


def column(request: replay_pb2.InsertRequest, index: int) -> object:
    return request.trajectories[0].columns[index]


NAN = np.full(5, np.nan, np.float32)
ONE_BAD = with_columns(played(901), reward=NAN)
BAD_INSERTS: dict[str, tuple[MakeBytes, str, str]] = {
    "no trajectory": (insert_bytes, "BAD_MESSAGE", "at least one trajectory"),
    "no such table": (lambda _: insert_bytes("nowhere", played(900)), "UNKNOWN_TABLE", "'nowhere'"),
    "no second table": (lambda t: insert_bytes(t, played(900), more_tables=["nowhere"]), "UNKNOWN_TABLE", "'nowhere'"),
    "table twice": (lambda t: insert_bytes(t, played(900), more_tables=[t]), "BAD_MESSAGE", "named twice"),
    "NaN": (lambda t: insert_bytes(t, ONE_BAD), "NOT_FINITE", "'reward' holds NaN"),
    "NaN after a good one": (lambda t: insert_bytes(t, played(902), ONE_BAD), "NOT_FINITE", "'reward'"),
    "other dtype": (
        lambda t: insert_bytes(t, with_columns(played(903), reward=np.zeros(5))),
        "WRONG_SIGNATURE",
        "'reward' is float64 [5], the table has float32 [T]",
    ),
    "other shape": (
        lambda t: insert_bytes(t, with_columns(played(904), policy=np.zeros((5, 3), np.float16))),
        "WRONG_SIGNATURE",
        "'policy' is float16 [5, 3], the table has float16 [T, 4]",
    ),
    "another column": (
        lambda t: insert_bytes(t, with_columns(played(904), value=np.zeros(5))),
        "WRONG_SIGNATURE",
        "value], the table has [observation, action, reward, policy]",
    ),
    "other length": (
        lambda t: insert_bytes(t, with_columns(played(905), reward=np.zeros(4, np.float32))),
        "BAD_LENGTH",
        "'reward' has 4 steps, another has 5",
    ),
    "no step": (
        lambda t: insert_bytes(t, changed(played(1), columns={k: v[:0] for k, v in played(1).columns.items()})),
        "BAD_LENGTH",
        "of 0 steps; 1 to 1000 are allowed",
    ),
    "too long": (lambda t: insert_bytes(t, played(906, 1001)), "BAD_LENGTH", "1001 steps; 1 to 1000"),
    "too long together": (
        lambda t: insert_bytes(t, played(906, 600), played(907, 401)),
        "BAD_LENGTH",
        "1001 steps; the table takes 1000",
    ),
    "ended twice": (
        lambda t: insert_bytes(t, changed(played(908), truncated=True)),
        "BAD_MESSAGE",
        "both terminated and truncated",
    ),
    "an id of two lines": (
        edited(lambda r: setattr(r.trajectories[0], "trajectory_id", "a\nb")),
        "BAD_MESSAGE",
        r"trajectory_id is 'a\nb', must have printable characters only",
    ),
    "an actor that rings": (
        edited(lambda r: setattr(r.trajectories[0], "actor_id", "\a")),
        "BAD_MESSAGE",
        r"actor_id is '\x07'",
    ),
    "a stat that turns the text": (
        edited(lambda r: r.trajectories[0].stats.update({"\u202e": 1.0})),
        "BAD_MESSAGE",
        "the name of a stat is",
    ),
    "bytes missing": (edited(lambda r: setattr(column(r, 2), "data", bytes(19))), "BAD_DATA", "'reward' has 19 bytes"),
    "no zstd": (edited(lambda r: setattr(column(r, 2), "encoding", 2)), "BAD_DATA", "'reward' is no zstd frame"),
    "no encoding": (edited(lambda r: setattr(column(r, 2), "encoding", 9)), "BAD_DATA", "unknown encoding 9"),
    "no id": (lambda t: insert_bytes(t, changed(played(1), trajectory_id="")), "BAD_MESSAGE", "1 to 64 characters"),
    "stat": (lambda t: insert_bytes(t, changed(played(1), stats={"s": np.inf})), "NOT_FINITE", "stat 's' is inf"),
    "priorities too short": (
        lambda t: insert_bytes(t, changed(played(1), priorities=np.ones(4, np.float32))),
        "BAD_DATA",
        "priorities",
    ),
    "negative priority": (
        lambda t: insert_bytes(t, changed(played(1), priorities=np.full(5, -1, np.float32))),
        "BAD_PRIORITY",
        "-1",
    ),
    "open and terminated": (lambda t: insert_bytes(t, changed(played(1), open=True)), "BAD_MESSAGE", "open"),
    "chunk without the first": (
        lambda t: insert_bytes(t, changed(played(950), first_step=5)),
        "MISSING_CHUNK",
        "up to step 0, the chunk begins at 5",
    ),
    "known with other content": (
        lambda t: insert_bytes(t, changed(played(7), trajectory_id="t1")),
        "CONTENT_CONFLICT",
        "'t1' is known with other content",
    ),
    "too large": (lambda _: bytes((16 << 20) + 1), "MESSAGE_TOO_LARGE", "at most 16777216 are taken"),
}
BAD_SAMPLES: dict[str, tuple[MakeBytes, str, str]] = {
    "unknown table": (lambda _: sample_bytes("nowhere"), "UNKNOWN_TABLE", "'nowhere'"),
    "batch of 0": (lambda t: sample_bytes(t, batch_size=0), "BAD_MESSAGE", "batch_size is 0"),
    "negative batch": (lambda t: sample_bytes(t, batch_size=-1), "BAD_MESSAGE", "batch_size is -1"),
    "batch too large": (lambda t: sample_bytes(t, batch_size=2**31 - 1), "MESSAGE_TOO_LARGE", "at most 16777216"),
    "no window": (window_bytes, "BAD_MESSAGE", "at least one window"),
    "window of 0": (lambda t: window_bytes(t, ("action", 0)), "BAD_MESSAGE", "'action' has length 0"),
    "window too large": (lambda t: window_bytes(t, ("action", 2**31 - 1)), "MESSAGE_TOO_LARGE", "at most"),
    "unknown column": (lambda t: window_bytes(t, ("nothing", 1)), "WRONG_SIGNATURE", "no column 'nothing'"),
    "column twice": (lambda t: window_bytes(t, ("action", 1), ("action", 2)), "BAD_MESSAGE", "'action' is asked for"),
    "exponent": (
        lambda t: sample_bytes(t, importance_sampling_exponent=float("nan")),
        "BAD_MESSAGE",
        "importance_sampling_exponent is nan",
    ),
    "mix with an unknown table": (lambda t: mix_bytes(t, "nowhere"), "UNKNOWN_TABLE", "'nowhere'"),
    "mix and table": (lambda t: mix_bytes(t, table=t), "BAD_MESSAGE", "either table and updates, or mix"),
    "bad updates": (
        lambda t: replay_pb2.SampleRequest(
            table=t,
            batch_size=1,
            windows=[replay_pb2.ColumnWindow(name="action", length=1)],
            updates=replay_pb2.PriorityUpdates(keys=bytes(8), priorities=bytes(8)),
        ).SerializeToString(),
        "BAD_DATA",
        "1 keys and 2 priorities",
    ),
    "n-step of no float": (
        lambda t: replay_pb2.SampleRequest(
            table=t,
            batch_size=1,
            windows=[replay_pb2.ColumnWindow(name="action", length=1)],
            n_step=replay_pb2.NStep(reward_column="policy", discount=1, steps=3),
        ).SerializeToString(),
        "WRONG_SIGNATURE",
        "'policy' is float16 [4], not a float scalar",
    ),
    "name of the returns": (
        lambda t: replay_pb2.SampleRequest(
            table=t,
            batch_size=1,
            windows=[replay_pb2.ColumnWindow(name="action", length=1, alias="n_step_return")],
            n_step=replay_pb2.NStep(reward_column="reward", discount=1, steps=3),
        ).SerializeToString(),
        "BAD_MESSAGE",
        "'n_step_return'",
    ),
}


def f4(value: float) -> bytes:
    return np.array([value], "<f4").tobytes()


ONE = np.ones(2, np.float32)
OTHERS: dict[str, tuple[str, MakeBytes, str, str]] = {
    "keys cut short": ("UpdatePriorities", lambda t: updates_bytes(t, bytes(7), b""), "BAD_DATA", "multiple of 8"),
    "negative priority": ("UpdatePriorities", lambda t: updates_bytes(t, bytes(8), f4(-1)), "BAD_PRIORITY", "-1"),
    "infinite priority": ("UpdatePriorities", lambda t: updates_bytes(t, bytes(8), f4(np.inf)), "NOT_FINITE", "NaN or"),
    "updates, no table": ("UpdatePriorities", lambda _: updates_bytes("x", b"", b""), "UNKNOWN_TABLE", "'x'"),
    "new values of no column": ("UpdateColumns", columns_bytes, "BAD_MESSAGE", "at least one column"),
    "new values of another": (
        "UpdateColumns",
        lambda t: columns_bytes(t, value=ONE),
        "WRONG_SIGNATURE",
        "no column 'value'; the table has [observation, action, reward, policy]",
    ),
    "new values, NaN": ("UpdateColumns", lambda t: columns_bytes(t, reward=ONE * np.nan), "NOT_FINITE", "'reward'"),
    "new values, rows": ("UpdateColumns", lambda t: columns_bytes(t, reward=ONE[:1]), "BAD_LENGTH", "has 1 steps"),
    "new values, key twice": (
        "UpdateColumns",
        lambda t: columns_bytes(t, keys=(5, 5), reward=ONE),
        "BAD_MESSAGE",
        "key is given twice",
    ),
    "delete everything": (
        "DeleteTrajectories",
        lambda t: filter_bytes(replay_pb2.DeleteTrajectoriesRequest, t, TrajectoryFilter()),
        "BAD_MESSAGE",
        "nothing is set",
    ),
    "read a negative number": (
        "ReadTrajectories",
        lambda t: replay_pb2.ReadTrajectoriesRequest(table=t, limit=-1).SerializeToString(),
        "BAD_MESSAGE",
        "limit is -1",
    ),
    "read from nowhere": (
        "ReadTrajectories",
        lambda _: replay_pb2.ReadTrajectoriesRequest(table="x").SerializeToString(),
        "UNKNOWN_TABLE",
        "'x'",
    ),
    "verify nothing": ("VerifyTable", lambda _: b"", "UNKNOWN_TABLE", "no table ''"),
    "reset nothing": ("ResetTable", lambda _: b"", "UNKNOWN_TABLE", "no table ''"),
    "end nothing": ("DeleteTable", lambda _: b"", "UNKNOWN_TABLE", "no table ''"),
    "bad limits": (
        "SetRateLimiter",
        lambda t: replay_pb2.SetRateLimiterRequest(table=t).SerializeToString(),
        "BAD_CONFIG",
        "min_size_to_sample is 0",
    ),
    "limits beyond the capacity": (
        "SetRateLimiter",
        lambda t: replay_pb2.SetRateLimiterRequest(
            table=t, rate_limiter=replay_pb2.RateLimiterConfig(min_size_to_sample=1001)
        ).SerializeToString(),
        "BAD_CONFIG",
        "exceeds capacity 1000",
    ),
    "empty config": ("CreateTable", lambda _: b"", "BAD_CONFIG", "min_size_to_sample is 0"),
    "unknown selector": (
        "CreateTable",
        lambda _: replay_pb2.CreateTableRequest(
            table=codec.encode_table_config(table_config("x", selector="best"))
        ).SerializeToString(),
        "BAD_CONFIG",
        "'best'",
    ),
    "role": ("RegisterProcess", lambda _: register_bytes(role="an actor"), "BAD_MESSAGE", "role must be"),
    "process id": ("RegisterProcess", lambda _: register_bytes(process_id=""), "BAD_MESSAGE", "process_id"),
    "address": ("RegisterProcess", lambda _: register_bytes(metrics_address="http://x/"), "BAD_MESSAGE", "host:port"),
}
BAD_CALLS = {
    **{f"insert: {name}": ("Insert", *rest) for name, rest in BAD_INSERTS.items()},
    **{f"sample: {name}": ("Sample", *rest) for name, rest in BAD_SAMPLES.items()},
    **OTHERS,
    **{
        f"garbage for {method.name}": (method.name, lambda _: b"\xff\xfe garbage", "BAD_MESSAGE", "the bytes are no")
        for method in replay_pb2.DESCRIPTOR.services_by_name["ReplayService"].methods
        if not method.client_streaming
    },
}


@pytest.mark.parametrize(("method", "make_bytes", "reason", "text"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_a_bad_call_is_refused_with_its_reason_and_fails_alone(
    channel: grpc.Channel,
    client: ReplayClient,
    make_table: MakeTable,
    method: str,
    make_bytes: MakeBytes,
    reason: str,
    text: str,
) -> None:
    """Code, line and reason; nothing of the call is stored; the next calls on the same table succeed."""
    config = make_table()
    client.insert(config.name, [played(1)])
    with pytest.raises(grpc.RpcError) as caught:
        (read if method == "ReadTrajectories" else call)(channel, method, make_bytes(config.name))
    error = caught.value
    assert (error.code(), reason_of(error)) == (CODES.get(reason, grpc.StatusCode.INVALID_ARGUMENT), reason)
    assert text in error.details()
    assert "\n" not in error.details()
    assert client.server_info().tables[config.name].num_trajectories == 1
    assert client.insert(config.name, [played(2)]).stored == 1
    assert len(client.sample(config.name, 3, {"action": 1}).keys) == 3


STREAMED = {
    **{f"insert: {name}": ("InsertStream", *rest) for name, rest in BAD_INSERTS.items() if name != "too large"},
    **{f"sample: {name}": ("SampleStream", *rest) for name, rest in BAD_SAMPLES.items()},
}


def on_stream(method: str, data: bytes) -> bytes:
    """The request as field 1 of a request of the stream."""
    if method == "InsertStream":
        return replay_pb2.InsertStreamRequest(insert=replay_pb2.InsertRequest.FromString(data)).SerializeToString()
    return replay_pb2.SampleStreamRequest(sample=replay_pb2.SampleRequest.FromString(data)).SerializeToString()


@pytest.mark.parametrize(("method", "make_bytes", "reason", "text"), STREAMED.values(), ids=STREAMED.keys())
def test_a_bad_request_on_a_stream_is_refused_alone(
    channel: grpc.Channel,
    client: ReplayClient,
    make_table: MakeTable,
    method: str,
    make_bytes: MakeBytes,
    reason: str,
    text: str,
) -> None:
    """The same reasons in the answer; those before and after it are answered as if it were not there."""
    config = make_table()
    client.insert(config.name, [played(1)])
    if method == "InsertStream":
        good = [streamed_insert(config.name, played(2)), streamed_insert(config.name, played(3))]
    else:
        good = [streamed_sample(config.name)] * 2
    bad = on_stream(method, make_bytes(config.name))
    first, refused, last = converse(channel, method, [good[0], bad, good[1]])
    assert not first.HasField("refused")
    assert not last.HasField("refused")
    assert refused.refused.reason == reason
    assert text in refused.refused.message
    assert client.server_info().tables[config.name].num_trajectories == (3 if method == "InsertStream" else 1)


@pytest.mark.parametrize("data", [b"\xff\xfe garbage", b"\x11" + np.float64(np.nan).tobytes(), b"\x08\x05"])
@pytest.mark.parametrize("method", ["InsertStream", "SampleStream"])
def test_garbage_on_a_stream_is_refused_alone(channel: grpc.Channel, method: str, data: bytes) -> None:
    """No such message, a hold of NaN seconds, a field of another kind."""
    answers = converse(channel, method, [data, data])
    # To protobuf a field of another kind is an unknown one, so the request names no table.
    assert {answer.refused.reason for answer in answers} <= {"BAD_MESSAGE", "UNKNOWN_TABLE"}
    assert len(answers) == 2


def test_values_beyond_the_bounds_of_a_column_are_refused(client: ReplayClient, make_table: MakeTable) -> None:
    """With the column, the value and the bound; the bounds themselves pass."""
    signature = tuple(
        ColumnSpec("reward", "float32", (), minimum=-1.0, maximum=1.0) if spec.name == "reward" else spec
        for spec in table_config().signature
    )
    config = make_table(signature=signature)
    client.insert(config.name, [with_columns(played(1), reward=np.array([-1, 1, 0, 0, 0], np.float32))])
    for value in (1.5, -1.5):
        with pytest.raises(ReplayError, match=f"'reward' holds {value}") as caught:
            client.insert(config.name, [with_columns(played(2), reward=np.full(5, value, np.float32))])
        assert caught.value.reason == "OUT_OF_RANGE"


def test_a_message_far_beyond_the_limit_is_dropped(client: ReplayClient, make_table: MakeTable) -> None:
    """gRPC refuses it itself; the client gives it the same reason."""
    config = make_table()
    policy = np.zeros((1_000_000, 4), np.float16)
    large = Trajectory("big", "a", 0, 0, True, False, {"policy": np.concatenate([policy] * 5)})
    with pytest.raises(ReplayError) as caught:
        client.insert(config.name, [large])
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
