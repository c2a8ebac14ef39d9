"""Overload: bytes and waiting calls in flight are bounded, refusals say when to come back, and others go on."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.answers import ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.errors import Refusal, ReplayServerError
from replay_server.limits import CallBytes, Direction, InFlight, Limits
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerSettings
from tests.replay_server.held import until
from tests.replay_server.messages import SERVICE, insert_bytes, reason_of, sample_bytes, scrape
from tests.replay_server.played import played, table_config
from zero.tables import Durability, RateLimiterConfig, SequenceRule, TableConfig
from zero.trajectories import ColumnSpec, SampleSpec, Trajectory, TrajectoryFilter
from zero.wire import codec, frames
from zero.wire.codec import Reason

MIB = 1 << 20
SIGNATURE = (ColumnSpec("data", "uint8", (1000,)),)


@pytest.fixture
def small(settings: ReplayServerSettings) -> Iterator[BoundAddresses]:
    """A server with room for four messages of a MiB; table `held` takes no more inserts, table `free` does."""
    settings = replace(settings, max_message_bytes=MIB, max_in_flight_bytes=4 * MIB, max_waiting_calls=100)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        for name, size in (("free", 0), ("held", 1)):
            client.create_table(
                TableConfig(
                    name,
                    SIGNATURE,
                    20_000,
                    rate_limiter=RateLimiterConfig(queue_size=size),
                    sequences=SequenceRule(period=0),
                    durability=Durability.MEMORY,
                )
            )
            client.insert(name, [filled(0, 1000)])
        yield bound


@pytest.fixture
def channel(small: BoundAddresses) -> Iterator[grpc.Channel]:
    """Sends bytes as they are."""
    with grpc.insecure_channel(small.address, [("grpc.max_receive_message_length", 2 * MIB)]) as channel:
        yield channel


@pytest.fixture
def client(small: BoundAddresses) -> Iterator[ReplayClient]:
    """A client of the small server."""
    with ReplayClient(small.address) as client:
        yield client


def filled(number: int, num_steps: int) -> Trajectory:
    return Trajectory(f"t{number}", "a", 0, 0, True, False, {"data": np.full((num_steps, 1000), number, np.uint8)})


def large(table: str, number: int) -> bytes:
    """An insert of a MiB, nearly."""
    return insert_bytes(table, filled(number, 1040))


LARGE_SAMPLE = codec.encode_sample_request("free", SampleSpec(250, {"data": 4}), None).SerializeToString()
"""Asks for a MiB, nearly."""


def begin(channel: grpc.Channel, method: str, data: bytes, **arguments: object) -> grpc.Future:
    return channel.unary_unary(SERVICE + method).future(data, **({"timeout": 30} | arguments))


def in_flight(client: ReplayClient) -> int:
    return client.server_info().in_flight_bytes


def assert_busy(error: grpc.RpcError) -> None:
    """RESOURCE_EXHAUSTED with the reason, a line, and a google.rpc.RetryInfo."""
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
    assert reason_of(error) == "TOO_BUSY"
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], error.details())
    info = error_details_pb2.RetryInfo()
    (detail,) = status.details
    assert detail.Unpack(info)
    assert info.retry_delay.ToTimedelta().total_seconds() == pytest.approx(0.1)
    assert trailing["grpc-retry-pushback-ms"] == "100"


def test_inserts_that_wait_fill_their_share_and_no_more(
    small: BoundAddresses, channel: grpc.Channel, client: ReplayClient
) -> None:
    """Of four MiB they get three; samples, which may let them pass, get theirs; cancelled ones leave nothing."""
    held = [begin(channel, "Insert", large("held", number)) for number in (1, 2, 3)]
    until(lambda: client.server_info().tables["held"].rate_limiter.waiting_inserts == 3)
    assert 2.9 * MIB < in_flight(client) <= 3 * MIB
    assert_busy(begin(channel, "Insert", large("free", 5)).exception())
    metrics = scrape(small.metrics_address)
    assert metrics["zero_replay_in_flight_bytes{direction=requests}"] == in_flight(client)
    assert metrics["zero_replay_in_flight_bytes{direction=answers}"] == 0
    assert metrics["zero_replay_max_in_flight_bytes{}"] == 4 * MIB
    assert metrics["zero_replay_waiting_calls{kind=insert,table=held}"] == 3
    assert metrics["zero_replay_rejected_requests_total{reason=TOO_BUSY}"] == 1
    assert len(begin(channel, "Sample", LARGE_SAMPLE).result()) > MIB - 60_000
    held[0].cancel()
    held[2].cancel()
    until(lambda: in_flight(client) < 1.1 * MIB)
    assert begin(channel, "Insert", large("free", 5)).result()
    client.delete_trajectories("held", TrajectoryFilter(trajectory_ids=("t0",)))
    assert held[1].result()
    until(lambda: in_flight(client) == 0)
    info = client.server_info()
    assert info.max_in_flight_bytes == 4 * MIB
    assert {one.trajectory_id for one in client.read_trajectories("held")} == {"t2"}


def test_a_message_is_not_read_before_there_is_room_for_it(channel: grpc.Channel, client: ReplayClient) -> None:
    """What a call says about its size counts from the beginning; one that says nothing may be of any size."""
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait()
        yield from ()

    def promise(*metadata: tuple[str, str]) -> grpc.Call:
        return channel.stream_unary(SERVICE + "Insert").future(nothing(), timeout=30, metadata=metadata)

    try:
        announced = [promise(("zero-message-bytes", str(MIB // 2))) for _ in range(2)]
        until(lambda: in_flight(client) == MIB)
        silent = [promise() for _ in range(2)]
        until(lambda: in_flight(client) == 3 * MIB)
        assert_busy(promise().exception())
        assert_busy(promise(("zero-message-bytes", "1")).exception())
        assert client.update_priorities("free", codec.decode_priority_updates(codec.replay_pb2.PriorityUpdates()))
        for call in (*announced, *silent):
            call.cancel()
        until(lambda: in_flight(client) == 0)
        for value, reason in ((str(MIB + 1), "MESSAGE_TOO_LARGE"), ("-1", "BAD_MESSAGE"), ("9" * 30, "BAD_MESSAGE")):
            assert reason_of(promise(("zero-message-bytes", value)).exception()) == reason
    finally:
        stop.set()


def test_new_values_say_how_large_they_are(small: BoundAddresses, channel: grpc.Channel, client: ReplayClient) -> None:
    """With room for half of the largest message, those of a kB need not wait for more."""
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait()
        yield from ()

    insert = channel.stream_unary(SERVICE + "Insert")
    sizes = (MIB, MIB, MIB // 2)
    calls = [insert.future(nothing(), timeout=30, metadata=(("zero-message-bytes", str(size)),)) for size in sizes]
    try:
        until(lambda: in_flight(client) == sum(sizes))
        with ReplayClient(small.address, repeat=False) as hasty:
            values = {"data": np.ones((1, 1000), np.uint8)}
            assert hasty.update_columns("free", np.array([1 << 63], np.uint64), values, timeout=5).evicted == 1
    finally:
        stop.set()
        for call in calls:
            call.cancel()


def test_an_insert_waits_a_moment_for_room(channel: grpc.Channel, client: ReplayClient) -> None:
    """Each may be as large as a message until it has come: with no room for that it is not turned away at once."""
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait()
        yield from ()

    try:
        silent = [channel.stream_unary(SERVICE + "Insert").future(nothing(), timeout=30) for _ in range(3)]
        until(lambda: in_flight(client) == 3 * MIB)
        waiting = begin(channel, "Insert", insert_bytes("free", filled(1, 1)))
        silent[0].cancel()
        assert waiting.result()
        calls = [begin(channel, "Insert", insert_bytes("free", filled(number, 1))) for number in range(2, 50)]
        assert [call.exception() for call in calls] == [None] * 48
        for call in silent:
            call.cancel()
        until(lambda: in_flight(client) == 0)
    finally:
        stop.set()


def test_small_calls_do_not_queue_behind_large_ones(channel: grpc.Channel, client: ReplayClient) -> None:
    """While inserts wait for room, samples and questions are answered at once."""
    held = [begin(channel, "Insert", large("held", number)) for number in (1, 2, 3)]
    until(lambda: client.server_info().tables["held"].rate_limiter.waiting_inserts == 3)
    waiting = begin(channel, "Insert", large("free", 4))
    while not waiting.done():
        assert begin(channel, "Sample", LARGE_SAMPLE).result()
    assert_busy(waiting.exception())
    for call in held:
        call.cancel()


def test_a_message_larger_than_announced_is_counted_as_it_is(channel: grpc.Channel, client: ReplayClient) -> None:
    """Understatement gains nothing."""
    held = [
        begin(channel, "Insert", large("held", number), metadata=[("zero-message-bytes", "10")]) for number in (1, 2)
    ]
    until(lambda: client.server_info().tables["held"].rate_limiter.waiting_inserts == 2)
    assert in_flight(client) > 2 * MIB - 60_000
    for call in held:
        call.cancel()
    until(lambda: in_flight(client) == 0)


def test_answers_that_nobody_reads_shut_out_no_insert(settings: ReplayServerSettings) -> None:
    """They count until they are gone, up to their own share; further samples are told to come back."""
    settings = replace(settings, max_message_bytes=8 * MIB, max_in_flight_bytes=32 * MIB)
    sample = codec.encode_sample_request("free", SampleSpec(1950, {"data": 4}), None).SerializeToString()
    stop = threading.Event()

    def one() -> Iterator[bytes]:
        yield sample
        stop.wait()

    # Without the probe the window stays small: what nobody reads then stays with the server.
    options = [("grpc.max_receive_message_length", 16 * MIB), ("grpc.http2.bdp_probe", 0)]
    with (
        ReplayServer(settings) as bound,
        ReplayClient(bound.address) as client,
        grpc.insecure_channel(bound.address, options) as channel,
    ):
        client.create_table(TableConfig("free", SIGNATURE, 20_000, durability=Durability.MEMORY))
        client.insert("free", [filled(0, 100)])
        try:
            # A stream for the client, which takes no more of an answer than gRPC buffers until it is asked to.
            unread = [channel.stream_stream(SERVICE + "Sample")(one(), timeout=30) for _ in range(3)]
            until(lambda: in_flight(client) > 22 * MIB)
            assert_busy(begin(channel, "Sample", sample).exception())
            assert begin(channel, "Insert", insert_bytes("free", filled(1, 6000))).result()
            frames.decode_sample_response(next(unread[0]))
            # The server learns a moment later that one was read.
            until(lambda: begin(channel, "Sample", sample).exception() is None)
            for call in unread:
                call.cancel()
            until(lambda: in_flight(client) == 0)
        finally:
            stop.set()


def test_so_many_calls_wait_and_no_more(settings: ReplayServerSettings) -> None:
    """The sixth of five is told to come back; when one goes, there is room for another."""
    with (
        ReplayServer(replace(settings, max_waiting_calls=5)) as bound,
        ReplayClient(bound.address) as client,
        grpc.insecure_channel(bound.address) as channel,
    ):
        limits = RateLimiterConfig(min_size_to_sample=10)
        client.create_table(table_config("empty", rate_limiter=limits))
        waiting = [begin(channel, "Sample", sample_bytes("empty")) for _ in range(5)]
        until(lambda: client.server_info().tables["empty"].rate_limiter.waiting_samples == 5)
        assert_busy(begin(channel, "Sample", sample_bytes("empty")).exception())
        waiting[0].cancel()
        until(lambda: client.server_info().tables["empty"].rate_limiter.waiting_samples == 4)
        waiting[0] = begin(channel, "Sample", sample_bytes("empty"))
        until(lambda: client.server_info().tables["empty"].rate_limiter.waiting_samples == 5)
        client.insert("empty", [played(1, 10)])
        for call in waiting:
            assert call.result()


def test_hundreds_of_calls_may_wait(settings: ReplayServerSettings) -> None:
    """200 inserts and 200 samples: others are answered as if they were not there, and all of them in the end."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config("full", rate_limiter=RateLimiterConfig(queue_size=5)))
        client.create_table(table_config("empty", rate_limiter=RateLimiterConfig(min_size_to_sample=10)))
        client.create_table(table_config("free"))
        client.insert("full", [played(0, 5)])
        with grpc.insecure_channel(bound.address) as channel:
            inserts = [begin(channel, "Insert", insert_bytes("full", played(n, 1)), timeout=60) for n in range(1, 201)]
            samples = [begin(channel, "Sample", sample_bytes("empty"), timeout=60) for _ in range(200)]

            def waiting() -> tuple[int, int]:
                tables = client.server_info().tables
                full, empty = tables["full"].rate_limiter, tables["empty"].rate_limiter
                return full.waiting_inserts, empty.waiting_samples

            until(lambda: waiting() == (200, 200))
            seconds: list[float] = []
            for number in range(50):
                started = time.monotonic()
                client.insert("free", [played(number)])
                client.sample("free", 4, {"action": 1})
                seconds.append(time.monotonic() - started)
            assert sorted(seconds)[25] < 0.5
            assert waiting() == (200, 200)
            client.set_rate_limiter("full", RateLimiterConfig())
            client.insert("empty", [played(1, 10)])
            assert all(call.result() for call in (*inserts, *samples))
            info = client.server_info()
            assert info.tables["full"].num_trajectories == 201
            assert info.tables["empty"].sampled_positions == 800
            until(lambda: in_flight(client) == 0)


def test_gRPC_turns_away_more_calls_than_allowed(settings: ReplayServerSettings) -> None:  # noqa: N802
    """A server of at most three calls: the others are told so at once, and it lives on."""
    with ReplayServer(replace(settings, max_concurrent_calls=3)) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config("empty", rate_limiter=RateLimiterConfig(min_size_to_sample=10)))
        with grpc.insecure_channel(bound.address) as channel:
            calls = [begin(channel, "Sample", sample_bytes("empty"), timeout=2) for _ in range(10)]
            codes = sorted(call.code().name for call in calls)
            assert codes == ["DEADLINE_EXCEEDED"] * 3 + ["RESOURCE_EXHAUSTED"] * 7
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            held = [begin(channel, "Sample", sample_bytes("empty"), timeout=2) for _ in range(3)]
            waiting = "zero_replay_waiting_calls{kind=sample,table=empty}"
            until(lambda: scrape(bound.metrics_address)[waiting] == 3)
            with pytest.raises(ReplayTimeout) as caught:  # repeated until then: the reason is one that passes
                client.server_info(timeout=0.5)
            assert caught.value.reason == "TOO_BUSY"
            assert client.server_info(timeout=20).tables
            assert [call.code().name for call in held] == ["DEADLINE_EXCEEDED"] * 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"max_in_flight_bytes": 4 * MIB - 1, "max_message_bytes": MIB}, "four times"), ({"max_waiting_calls": 0}, "1")],
)
def test_limits_that_shut_out_single_messages_are_refused(
    settings: ReplayServerSettings, changes: dict[str, int], text: str
) -> None:
    """When the server is made, with the remedy."""
    with pytest.raises(ReplayServerError, match=text):
        ReplayServer(replace(settings, **changes)).start()


AMOUNTS = st.integers(0, 300)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["take", "count", "back", "end"]), st.sampled_from(Direction), AMOUNTS, st.integers(0, 2))
)


@settings(deadline=None)
@given(ACTIONS)
def test_counts_are_those_of_a_naive_ledger(actions: list[tuple[str, Direction, int, int]]) -> None:
    """Refused is what exceeds the whole or three quarters; a call that has ended has nothing in flight."""
    in_flight = InFlight(Limits(100, 0, 0, in_flight_bytes=400))
    calls = [CallBytes(in_flight) for _ in range(3)]
    naive: list[dict[Direction, int]] = [dict.fromkeys(Direction, 0) for _ in calls]
    ended: set[int] = set()
    for action, direction, amount, who in actions:
        total = {one: sum(call[one] for call in naive) for one in Direction}
        if action == "take":
            fits = total[direction] + amount <= 300 and sum(total.values()) + amount <= 400
            if fits:
                calls[who].take(direction, amount)
                naive[who][direction] += amount
            else:
                with pytest.raises(Refusal, match="at most 400") as caught:
                    calls[who].take(direction, amount)
                assert caught.value.reason is Reason.TOO_BUSY
        elif action == "count":
            calls[who].count(direction, amount)
            naive[who][direction] += amount
        elif action == "back":
            back = min(amount, naive[who][direction])
            calls[who].count(direction, -back)
            naive[who][direction] -= back
        else:
            calls[who].end()
            ended.add(who)
        for one in ended:
            naive[one] = dict.fromkeys(Direction, 0)
        for one, number in in_flight.by_direction():
            assert number == sum(call[Direction(one)] for call in naive)
        assert in_flight.num_bytes == sum(number for _, number in in_flight.by_direction())
