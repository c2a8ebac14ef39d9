"""Calls on a real server: what it answers, what it refuses and why, and that a refusal harms nobody else."""

import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.client import InsertResult, ReplayClient, ReplayError, ReplayTimeout
from replay_server.server import BoundAddresses
from tests.replay_server.played import SIGNATURE, played, table_config
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import PriorityUpdates, Trajectory
from zero.wire import codec, replay_pb2

MakeTable = Callable[..., TableConfig]
WINDOWS = {"observation": 1, "action": 3, "reward": 4, "policy": 2}


@pytest.fixture
def channel(addresses: BoundAddresses) -> Iterator[grpc.Channel]:
    """Sends bytes as they are."""
    with grpc.insecure_channel(addresses.address, [("grpc.max_send_message_length", 1 << 30)]) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, data: bytes, timeout: float = 10.0) -> bytes:
    return channel.unary_unary(f"/zero.v1.ReplayService/{method}")(data, timeout=timeout)


def refusal(channel: grpc.Channel, method: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """Status code and reason of a call that is refused in one line."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, data)
    error = caught.value
    assert error.details()
    assert "\n" not in error.details()
    return error.code(), dict(error.trailing_metadata()).get("zero-reason")


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_sampled_is_what_was_inserted(
    addresses: BoundAddresses, make_table: MakeTable, durability: Durability, compress: bool
) -> None:
    """Every row of every column is the window of the trajectory that its reward names."""
    config = make_table(durability=durability)
    trajectories = {number: played(number, num_steps=1 + number % 7) for number in range(20)}
    with ReplayClient(addresses.address, compress=compress) as client:
        assert client.insert(config.name, list(trajectories.values())) == InsertResult(stored=20, duplicates=0)
        batch = client.sample(config.name, 64, WINDOWS)
    for row in range(64):
        reward = float(batch.columns["reward"][row, 0])
        trajectory = trajectories[int(reward)]
        step = round((reward - int(reward)) * 1000)
        assert batch.lengths[row] == min(trajectory.num_steps - step, 4)
        assert batch.weights_versions[row] == int(reward)
        for name, window in WINDOWS.items():
            seen = trajectory.columns[name][step : step + window]
            np.testing.assert_array_equal(batch.columns[name][row, : len(seen)], seen)
            assert not batch.columns[name][row, len(seen) :].any()
    assert batch.table_size == sum(trajectory.num_steps for trajectory in trajectories.values())


def test_updates_that_ride_on_a_sample_count_before_the_draw(client: ReplayClient, make_table: MakeTable) -> None:
    """With every priority but one set to 0, the same call draws that one position alone."""
    config = make_table(selector="prioritized")
    client.insert(config.name, [played(1, 8)])
    keys = np.unique(client.sample(config.name, 256, {"action": 1}).keys)
    assert len(keys) == 8
    updates = PriorityUpdates(keys, np.array([0, 0, 0, 5, 0, 0, 0, 0], np.float32))
    batch = client.sample(config.name, 32, {"action": 1}, updates)
    assert set(batch.keys.tolist()) == {keys[3]}
    np.testing.assert_array_equal(batch.probabilities, np.ones(32))
    result = client.update_priorities(config.name, PriorityUpdates(np.append(keys, 999), np.ones(9, np.float32)))
    assert (result.updated, result.evicted) == (8, 1)


def test_creating_a_table_again_confirms_it_and_another_config_is_a_conflict(
    client: ReplayClient, make_table: MakeTable
) -> None:
    """The line names the field that differs."""
    config = make_table()
    assert client.create_table(config) is False
    with pytest.raises(ReplayError, match="capacity 1000, asked for 5") as caught:
        client.create_table(table_config(config.name, capacity=5))
    assert caught.value.reason == "TABLE_CONFLICT"


def test_a_table_that_would_not_fit_into_memory_is_refused(client: ReplayClient) -> None:
    """Before anything is allocated, with the size."""
    with pytest.raises(ReplayError, match="GiB") as caught:
        client.create_table(table_config("huge", capacity=2**31 - 1))
    assert caught.value.reason == "BAD_CONFIG"


def test_server_info_counts_what_happened(client: ReplayClient, make_table: MakeTable) -> None:
    """Sizes, totals and the reason why samples wait."""
    config = make_table(capacity=20, rate_limiter=RateLimiterConfig(min_size_to_sample=15))
    client.insert(config.name, [played(1, 8)])
    info = client.server_info().tables[config.name]
    assert info.config == config
    assert "8 of 15 steps" in info.sample_blocked_because
    client.insert(config.name, [played(2, 8), played(3, 7)])
    client.sample(config.name, 6, {"action": 1})
    info = client.server_info().tables[config.name]
    assert (info.num_steps, info.num_trajectories) == (15, 2)
    assert (info.inserted_steps, info.inserted_trajectories, info.sampled_positions) == (23, 3, 6)
    assert info.insert_blocked_because == info.sample_blocked_because == ""


def test_the_rate_limiter_holds_a_sample_until_there_is_data(client: ReplayClient, make_table: MakeTable) -> None:
    """A waiting sample is answered by the insert that reaches the minimum."""
    config = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=10))
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(len(client.sample(config.name, 4, {"action": 1}).keys)))
    waiting.start()
    client.insert(config.name, [played(1, 9)])
    assert not answers
    client.insert(config.name, [played(2, 1)])
    waiting.join(10)
    assert answers == [4]


def test_a_held_call_ends_at_its_deadline_and_says_why(client: ReplayClient, make_table: MakeTable) -> None:
    """RATE_LIMITED, in time, for both sides; afterwards the table goes on."""
    limiter = RateLimiterConfig(min_size_to_sample=5, samples_per_insert=1.0, error_buffer=5.0)
    config = make_table(rate_limiter=limiter)
    with pytest.raises(ReplayTimeout, match="0 of 5 steps") as sample:
        client.sample(config.name, 1, {"action": 1}, timeout=0.3)
    client.insert(config.name, [played(1, 5)])
    client.insert(config.name, [played(2, 5)])
    with pytest.raises(ReplayTimeout, match="samples lag behind") as insert:
        client.insert(config.name, [played(3, 1)], timeout=0.3)
    assert sample.value.reason == insert.value.reason == "RATE_LIMITED"
    client.sample(config.name, 1, {"action": 1})
    assert client.insert(config.name, [played(3, 1)]).stored == 1


def test_calls_larger_than_the_buffer_or_the_table_are_refused_at_once(
    client: ReplayClient, make_table: MakeTable
) -> None:
    """They would hang for ever otherwise."""
    config = make_table(capacity=8, rate_limiter=RateLimiterConfig(1, 2.0, 10.0))
    for attempt in (
        lambda: client.insert(config.name, [played(1, 6)]),
        lambda: client.sample(config.name, 11, {"action": 1}),
        lambda: client.insert(config.name, [played(2, 9)]),
        lambda: client.insert(config.name, [played(3, 5), played(4, 4)]),
    ):
        with pytest.raises(ReplayError) as caught:
            attempt()
        assert caught.value.reason == "BAD_LENGTH"


def insert_bytes(table: str, *trajectories: Trajectory) -> bytes:
    return replay_pb2.InsertRequest(
        table=table, trajectories=[codec.encode_trajectory(item) for item in trajectories]
    ).SerializeToString()


def sample_bytes(table: str, **changes: object) -> bytes:
    request = codec.encode_sample_request(table, 4, {"action": 2}, None)
    for name, value in changes.items():
        setattr(request, name, value)
    return request.SerializeToString()


def with_columns(trajectory: Trajectory, **columns: np.ndarray) -> Trajectory:
    return Trajectory(**{**vars(trajectory), "columns": {**trajectory.columns, **columns}})


def window_bytes(table: str, *windows: tuple[str, int]) -> bytes:
    return replay_pb2.SampleRequest(
        table=table, batch_size=4, windows=[replay_pb2.ColumnWindow(name=name, length=n) for name, n in windows]
    ).SerializeToString()


def updates_bytes(table: str, keys: bytes, priorities: bytes) -> bytes:
    updates = replay_pb2.PriorityUpdates(keys=keys, priorities=priorities)
    return replay_pb2.UpdatePrioritiesRequest(table=table, updates=updates).SerializeToString()


def register_bytes(**changes: object) -> bytes:
    fields = {"role": "actor", "process_id": "actor-0", "metrics_address": "127.0.0.1:1", "pid": 1} | changes
    return replay_pb2.RegisterProcessRequest(**fields).SerializeToString()


NAN = np.full(5, np.nan, np.float32)
ONE_BAD = with_columns(played(901), reward=NAN)
BAD_CALLS: dict[str, tuple[str, Callable[[str], bytes], str]] = {
    "no trajectory": ("Insert", insert_bytes, "BAD_MESSAGE"),
    "unknown table": ("Insert", lambda _: insert_bytes("nowhere", played(900)), "UNKNOWN_TABLE"),
    "NaN": ("Insert", lambda t: insert_bytes(t, ONE_BAD), "NOT_FINITE"),
    "NaN after a good one": ("Insert", lambda t: insert_bytes(t, played(902), ONE_BAD), "NOT_FINITE"),
    "other dtype": (
        "Insert",
        lambda t: insert_bytes(t, with_columns(played(903), reward=np.zeros(5))),
        "WRONG_SIGNATURE",
    ),
    "other shape": (
        "Insert",
        lambda t: insert_bytes(t, with_columns(played(904), policy=np.zeros((5, 3), np.float16))),
        "WRONG_SIGNATURE",
    ),
    "other length": (
        "Insert",
        lambda t: insert_bytes(t, with_columns(played(905), reward=np.zeros(4, np.float32))),
        "BAD_LENGTH",
    ),
    "too long": ("Insert", lambda t: insert_bytes(t, played(906, 1001)), "BAD_LENGTH"),
    "sample of unknown table": ("Sample", lambda _: sample_bytes("nowhere"), "UNKNOWN_TABLE"),
    "batch of 0": ("Sample", lambda t: sample_bytes(t, batch_size=0), "BAD_MESSAGE"),
    "negative batch": ("Sample", lambda t: sample_bytes(t, batch_size=-1), "BAD_MESSAGE"),
    "batch too large": ("Sample", lambda t: sample_bytes(t, batch_size=2**31 - 1), "MESSAGE_TOO_LARGE"),
    "no window": ("Sample", window_bytes, "BAD_MESSAGE"),
    "window of 0": ("Sample", lambda t: window_bytes(t, ("action", 0)), "BAD_MESSAGE"),
    "window too large": ("Sample", lambda t: window_bytes(t, ("action", 2**31 - 1)), "MESSAGE_TOO_LARGE"),
    "unknown column": ("Sample", lambda t: window_bytes(t, ("nothing", 1)), "WRONG_SIGNATURE"),
    "column twice": ("Sample", lambda t: window_bytes(t, ("action", 1), ("action", 2)), "BAD_MESSAGE"),
    "keys cut short": ("UpdatePriorities", lambda t: updates_bytes(t, bytes(7), b""), "BAD_DATA"),
    "more priorities than keys": ("UpdatePriorities", lambda t: updates_bytes(t, bytes(8), bytes(8)), "BAD_DATA"),
    "negative priority": (
        "UpdatePriorities",
        lambda t: updates_bytes(t, bytes(8), np.array([-1], "<f4").tobytes()),
        "BAD_PRIORITY",
    ),
    "infinite priority": (
        "UpdatePriorities",
        lambda t: updates_bytes(t, bytes(8), np.array([np.inf], "<f4").tobytes()),
        "NOT_FINITE",
    ),
    "updates for an unknown table": ("UpdatePriorities", lambda _: updates_bytes("x", b"", b""), "UNKNOWN_TABLE"),
    "empty config": ("CreateTable", lambda _: b"", "BAD_CONFIG"),
    "role": ("RegisterProcess", lambda _: register_bytes(role="an actor"), "BAD_MESSAGE"),
    "process id": ("RegisterProcess", lambda _: register_bytes(process_id=""), "BAD_MESSAGE"),
    "metrics address": ("RegisterProcess", lambda _: register_bytes(metrics_address="http://x/"), "BAD_MESSAGE"),
    "oversize": ("Insert", lambda _: bytes((16 << 20) + 1), "MESSAGE_TOO_LARGE"),
    **{
        f"garbage for {method}": (method, lambda _: b"\xff\xfe garbage", "BAD_MESSAGE")
        for method in ("CreateTable", "Insert", "Sample", "UpdatePriorities", "GetServerInfo", "RegisterProcess")
    },
}
CODES = {
    "UNKNOWN_TABLE": grpc.StatusCode.NOT_FOUND,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.mark.parametrize(("method", "make_bytes", "reason"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_a_bad_call_is_refused_with_its_reason_and_fails_alone(
    channel: grpc.Channel,
    client: ReplayClient,
    make_table: MakeTable,
    method: str,
    make_bytes: Callable[[str], bytes],
    reason: str,
) -> None:
    """Code, line and reason; nothing of the call is stored; the next calls on the same table succeed."""
    config = make_table()
    client.insert(config.name, [played(1)])
    code = CODES.get(reason, grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal(channel, method, make_bytes(config.name)) == (code, reason)
    assert client.server_info().tables[config.name].num_trajectories == 1
    assert client.insert(config.name, [played(2)]).stored == 1
    assert len(client.sample(config.name, 3, {"action": 1}).keys) == 3


def test_a_message_far_beyond_the_limit_is_dropped(client: ReplayClient, make_table: MakeTable) -> None:
    """gRPC refuses it itself; the client gives it the same reason."""
    config = make_table()
    policy = np.zeros((1_000_000, 4), np.float16)
    large = Trajectory("big", "a", 0, 0, True, False, {"policy": np.concatenate([policy] * 5)})
    with pytest.raises(ReplayError) as caught:
        client.insert(config.name, [large])
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_messages_never_harm_the_server(shared: tuple[grpc.Channel, str], data: st.DataObject) -> None:
    """Random bytes and real messages with random damage are answered or refused with a reason, never with a crash."""
    channel, table = shared
    method = data.draw(st.sampled_from(["Insert", "Sample", "UpdatePriorities", "CreateTable", "RegisterProcess"]))
    real = {
        "Insert": insert_bytes(table, played(1)),
        "Sample": sample_bytes(table),
        "UpdatePriorities": updates_bytes(table, bytes(8), bytes(4)),
        "CreateTable": replay_pb2.CreateTableRequest(
            table=codec.encode_table_config(TableConfig("fuzzed", SIGNATURE, 10))
        ).SerializeToString(),
        "RegisterProcess": register_bytes(),
    }[method]
    message = bytearray(real)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        message = message or bytearray(b"\0")
    try:
        call(channel, method, bytes(message), timeout=1.0)
    except grpc.RpcError as error:
        reason = dict(error.trailing_metadata()).get("zero-reason")
        assert reason is not None, error  # noqa: PT017 -- refused is as good as answered


@pytest.fixture(scope="module")
def shared(addresses: BoundAddresses) -> Iterator[tuple[grpc.Channel, str]]:
    """A channel and a table for many examples."""
    with ReplayClient(addresses.address) as client, grpc.insecure_channel(addresses.address) as channel:
        client.create_table(table_config("fuzzed-table"))
        client.insert("fuzzed-table", [played(1)])
        yield channel, "fuzzed-table"
