"""Streams: answered in order, several under way at once, refused one by one, and nothing lost when they break off."""

import logging
import os
import queue
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import numpy as np
import pytest

from replay_server.answers import ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerSettings
from tests.procfs import suspend
from tests.replay_server.held import until
from tests.replay_server.messages import (
    SERVICE,
    converse,
    insert_bytes,
    read,
    sample_bytes,
    scrape,
    streamed_insert,
    streamed_sample,
)
from tests.replay_server.played import played, table_config
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import ColumnSpec, PriorityUpdates, SequenceBatch, Trajectory, TrajectoryFilter
from zero.wire import codec, frames, replay_pb2

MakeTable = Callable[..., TableConfig]


@pytest.fixture
def channel(addresses: BoundAddresses) -> Iterator[grpc.Channel]:
    """Sends bytes as they are."""
    with grpc.insecure_channel(addresses.address) as channel:
        yield channel


class Conversation:
    """A stream whose requests are sent and whose answers are read one by one.

    Attributes:
        call: gRPC's.
    """

    def __init__(self, channel: grpc.Channel, method: str, timeout: float = 30.0) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._kind = replay_pb2.InsertStreamResponse if method == "InsertStream" else replay_pb2.SampleStreamResponse
        self.call = channel.stream_stream(SERVICE + method)(iter(self._requests.get, None), timeout=timeout)

    def send(self, request: bytes) -> None:
        """Send one more."""
        self._requests.put(request)

    def answer(self) -> replay_pb2.InsertStreamResponse | replay_pb2.SampleStreamResponse:
        """The next answer."""
        return self._kind.FromString(next(self.call))

    def end(self) -> None:
        """Send no more."""
        self._requests.put(None)


@pytest.mark.parametrize("durability", Durability)
def test_inserts_over_a_stream_are_stored_once_and_answered_in_order(
    channel: grpc.Channel, client: ReplayClient, make_table: MakeTable, durability: Durability
) -> None:
    """More requests than are ever under way, with repetitions and refusals in between; each gets its own answer."""
    config = make_table(durability=durability, capacity=2000)
    requests: list[bytes] = []
    expected: list[tuple[int, int, str]] = []
    for number in range(60):
        requests.append(streamed_insert(config.name, *(played(number * 10 + i) for i in range(1 + number % 3))))
        expected.append((1 + number % 3, 0, ""))
        if number % 7 == 0:
            requests.append(streamed_insert(config.name, played(number * 10)))
            expected.append((0, 1, ""))
            requests.append(streamed_insert(config.name, played(number * 10, 3)))
            expected.append((0, 0, "CONTENT_CONFLICT"))
    answers = converse(channel, "InsertStream", requests)
    found = [(answer.inserted.stored, answer.inserted.duplicates, answer.refused.reason) for answer in answers]
    assert found == expected
    assert client.server_info().tables[config.name].inserted_trajectories == 120
    stored = [trajectory.episode_seed for trajectory in client.read_trajectories(config.name)]
    assert stored == [number * 10 + i for number in range(60) for i in range(1 + number % 3)]


def chunks(number: int, num_steps: int, length: int) -> list[Trajectory]:
    whole = played(number, num_steps)
    return [
        Trajectory(
            **{
                **vars(whole),
                "columns": {name: column[start : start + length] for name, column in whole.columns.items()},
                "first_step": start,
                "open": start + length < num_steps,
                "terminated": start + length >= num_steps,
            }
        )
        for start in range(0, num_steps, length)
    ]


def test_chunks_sent_ahead_make_one_trajectory(
    channel: grpc.Channel, client: ReplayClient, make_table: MakeTable
) -> None:
    """A chunk does not wait for the acknowledgement of the one before; one that is missing is said to be."""
    config = make_table()
    parts = chunks(1, 40, 4)
    answers = converse(channel, "InsertStream", [streamed_insert(config.name, part) for part in parts])
    assert [answer.inserted.stored for answer in answers] == [1] * 10
    (trajectory,) = client.read_trajectories(config.name)
    assert trajectory.terminated
    np.testing.assert_array_equal(trajectory.columns["reward"], played(1, 40).columns["reward"])
    others = chunks(2, 12, 4)
    gap = [streamed_insert(config.name, part) for part in (others[0], others[2], others[1], others[2])]
    answers = converse(channel, "InsertStream", gap)
    assert [answer.refused.reason for answer in answers] == ["", "MISSING_CHUNK", "", ""]


def test_inserts_of_a_stream_share_commits(settings: ReplayServerSettings) -> None:
    """While Redis hangs on the first, the next ones are let in; they go with one commit when it is back."""
    requests = [streamed_insert("games", played(number)) for number in range(8)]
    size = sum(map(len, requests))
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(100)])
        before = scrape(bound.metrics_address)["zero_replay_redis_commit_seconds_count{}"]
        redis = int((settings.data_dir / "redis" / "redis.pid").read_text())
        with grpc.insecure_channel(bound.address) as channel:
            stream = Conversation(channel, "InsertStream")
            suspend(redis)
            try:
                for request in requests:
                    stream.send(request)
                until(lambda: in_flight(client) == size)
            finally:
                os.kill(redis, signal.SIGCONT)
            assert [stream.answer().inserted.stored for _ in requests] == [1] * 8
            stream.end()
        after = scrape(bound.metrics_address)["zero_replay_redis_commit_seconds_count{}"]
        assert after - before <= 3
        until(lambda: in_flight(client) == 0)


def in_flight(client: ReplayClient) -> int:
    return client.server_info().in_flight_bytes


def test_a_stream_takes_no_more_while_one_request_is_held(
    channel: grpc.Channel, client: ReplayClient, make_table: MakeTable
) -> None:
    """In order means in order: those behind wait with it; when it may pass they follow."""
    limiter = RateLimiterConfig(min_size_to_sample=5, samples_per_insert=1.0, error_buffer=5.0)
    config = make_table(rate_limiter=limiter)
    client.insert(config.name, [played(0, 5)])
    client.insert(config.name, [played(1, 5)])
    stream = Conversation(channel, "InsertStream")
    stream.send(streamed_insert(config.name, played(2, 3), hold_seconds=30.0))
    stream.send(streamed_insert(config.name, played(3, 2), hold_seconds=30.0))
    until(lambda: client.server_info().tables[config.name].rate_limiter.waiting_inserts == 1)
    assert client.server_info().tables[config.name].num_trajectories == 2
    client.sample(config.name, 5, {"action": 1})
    assert [stream.answer().inserted.stored for _ in range(2)] == [1, 1]
    stream.end()
    assert [trajectory.episode_seed for trajectory in client.read_trajectories(config.name)] == [0, 1, 2, 3]


def test_a_held_request_is_refused_alone_when_its_time_is_over(
    channel: grpc.Channel, client: ReplayClient, make_table: MakeTable
) -> None:
    """RATE_LIMITED with the reason in words; on both kinds of stream the next request is taken."""
    config = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=5, samples_per_insert=1.0, error_buffer=5.0))
    samples = Conversation(channel, "SampleStream")
    samples.send(streamed_sample(config.name, hold_seconds=0.05))
    refused = samples.answer().refused
    assert (refused.reason, refused.retry_after_ms) == ("RATE_LIMITED", 1)
    assert "0 of 5 items are inserted" in refused.message
    held = [played(0, 5), played(1, 5), played(2, 1), played(0, 5)]
    answers = converse(channel, "InsertStream", [streamed_insert(config.name, one, hold_seconds=0.05) for one in held])
    assert [answer.refused.reason for answer in answers] == ["", "", "RATE_LIMITED", ""]
    assert "samples lag behind" in answers[2].refused.message
    samples.send(streamed_sample(config.name))
    assert len(samples.answer().sampled.keys) == 4 * 8
    samples.end()


def test_samples_over_a_stream_are_those_of_single_calls(
    channel: grpc.Channel, client: ReplayClient, make_table: MakeTable
) -> None:
    """Updates count from their request on, for the next ones, too; requests sent ahead are answered in order."""
    config = make_table(selector="prioritized")
    client.insert(config.name, [played(1, 8)])
    keys = np.unique(client.sample(config.name, 256, {"action": 1}).keys)
    requests: list[bytes] = []
    for number in range(8):
        priorities = np.zeros(8, np.float32)
        priorities[number] = 1
        updates = codec.encode_priority_updates(PriorityUpdates(keys, priorities))
        request = replay_pb2.SampleStreamRequest.FromString(streamed_sample(config.name, batch_size=3 + number))
        request.sample.updates.CopyFrom(updates)
        requests.append(request.SerializeToString())
    stream = Conversation(channel, "SampleStream")
    for request in requests:
        stream.send(request)
    for number in range(8):
        batch = frames.decode_sample_stream_response(stream.answer().SerializeToString())
        assert isinstance(batch, SequenceBatch)
        assert batch.keys.tolist() == [keys[number]] * (3 + number)
    stream.end()
    assert list(stream.call) == []


def test_what_was_let_in_is_stored_although_the_stream_breaks_off(settings: ReplayServerSettings) -> None:
    """Sent again, it is known. What was not let in is not stored, and nothing stays in flight."""
    limiter = RateLimiterConfig(min_size_to_sample=20, samples_per_insert=1.0, error_buffer=5.0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(rate_limiter=limiter))
        redis = int((settings.data_dir / "redis" / "redis.pid").read_text())
        requests = [streamed_insert("games", played(number)) for number in range(6)]
        with grpc.insecure_channel(bound.address) as channel:
            stream = Conversation(channel, "InsertStream")
            suspend(redis)
            try:
                for request in requests:
                    stream.send(request)
                # four of five steps reach the minimum of 20 and wait for Redis, the fifth for samples
                until(lambda: client.server_info().tables["games"].rate_limiter.waiting_inserts == 1)
                stream.call.cancel()
                until(lambda: client.server_info().tables["games"].rate_limiter.waiting_inserts == 0)
            finally:
                os.kill(redis, signal.SIGCONT)
        until(lambda: client.server_info().tables["games"].num_trajectories == 4)
        assert client.insert("games", [played(3)]).duplicates == 1
        until(lambda: in_flight(client) == 0)


def test_callers_that_go_away_leave_no_trace(
    addresses: BoundAddresses, client: ReplayClient, make_table: MakeTable, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams and calls cancelled at any moment, and connections closed: nothing in flight, nobody waits, no error."""
    config = make_table(capacity=5000)
    held = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=1000))
    client.insert(config.name, [played(0, 30)])
    for number in range(60):
        with grpc.insecure_channel(addresses.address) as channel:
            streams = [Conversation(channel, method) for method in ("SampleStream", "InsertStream", "SampleStream")]
            reading = channel.unary_stream(SERVICE + "ReadTrajectories")(
                replay_pb2.ReadTrajectoriesRequest(table=config.name).SerializeToString()
            )
            calls = [
                channel.unary_unary(SERVICE + "Sample").future(sample_bytes(config.name, batch_size=400)),
                channel.unary_unary(SERVICE + "Insert").future(insert_bytes(config.name, played(10 * number + 9))),
                channel.unary_unary(SERVICE + "Sample").future(sample_bytes(held.name)),
            ]
            for i in range(4):
                streams[0].send(streamed_sample(config.name, batch_size=400))
                streams[1].send(streamed_insert(config.name, played(10 * number + i + 1)))
                streams[2].send(streamed_sample(held.name))
            if number % 2:
                streams[number % 4 // 2].answer()
            if number % 3:
                for call in (*(stream.call for stream in streams), reading, *calls):
                    call.cancel()
    until(lambda: in_flight(client) == 0)
    until(lambda: client.server_info().tables[held.name].rate_limiter.waiting_samples == 0)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_table_that_ends_answers_who_waits(
    client: ReplayClient, channel: grpc.Channel, make_table: MakeTable
) -> None:
    """Deleted: UNKNOWN_TABLE, on streams and off; reset: to be tried again."""
    config = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=5, samples_per_insert=1.0, error_buffer=5.0))
    for end, reason in ((client.reset_table, "STORE_UNAVAILABLE"), (client.delete_table, "UNKNOWN_TABLE")):
        client.insert(config.name, [played(1, 5)])
        samples, inserts = Conversation(channel, "SampleStream"), Conversation(channel, "InsertStream")
        inserts.send(streamed_insert(config.name, played(2, 5)))
        assert inserts.answer().inserted.stored == 1
        inserts.send(streamed_insert(config.name, played(3, 1)))
        samples.send(streamed_sample(config.name, batch_size=5))
        samples.answer()
        samples.send(streamed_sample(config.name, batch_size=5))
        samples.answer()
        inserts.answer()
        inserts.send(streamed_insert(config.name, played(4, 5)))
        inserts.answer()
        inserts.send(streamed_insert(config.name, played(5, 5)))
        until(lambda: client.server_info().tables[config.name].rate_limiter.waiting_inserts == 1)
        end(config.name)
        assert inserts.answer().refused.reason == reason
        for stream in (samples, inserts):
            stream.end()


def test_trajectories_are_read_in_messages_of_bounded_size(settings: ReplayServerSettings) -> None:
    """Many small ones together; one that is larger than a message in chunks, which can be inserted again."""
    settings = replace(settings, max_message_bytes=1 << 20)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        signature = (ColumnSpec("observation", "float32", (256,)),)  # a KiB per step
        for name in ("games", "copies"):
            client.create_table(TableConfig(name, signature, 10_000))
        rng = np.random.default_rng(0)
        large = rng.random((2000, 256), np.float32)
        for start in range(0, 2000, 500):
            client.insert(
                "games",
                [
                    Trajectory(
                        "large",
                        "actor",
                        7,
                        8,
                        start == 1500,
                        False,
                        {"observation": large[start : start + 500]},
                        {"score": 3.0} if start == 1500 else {},
                        first_step=start,
                        open=start < 1500,
                    )
                ],
            )
        small = [
            Trajectory(f"small-{i}", "actor", 1, i, False, True, {"observation": rng.random((3, 256), np.float32)})
            for i in range(300)
        ]
        client.insert("games", small)
        with grpc.insecure_channel(bound.address) as channel:
            request = replay_pb2.ReadTrajectoriesRequest(table="games").SerializeToString()
            messages = read(channel, "ReadTrajectories", request)
            assert max(map(len, messages)) < 1 << 20
            assert len(messages) < 10
        for trajectory in client.read_trajectories("games"):
            client.insert("copies", [trajectory])
        for name in ("games", "copies"):
            parts = [one for one in client.read_trajectories(name) if one.trajectory_id == "large"]
            np.testing.assert_array_equal(np.concatenate([part.columns["observation"] for part in parts]), large)
            assert [part.first_step for part in parts] == [0, 512, 1024, 1536]
            assert [part.terminated for part in parts] == [False, False, False, True]
            assert parts[-1].stats == {"score": 3.0}
        info = client.server_info().tables
        assert info["copies"].num_trajectories == info["games"].num_trajectories == 301


def test_an_insert_into_several_tables_is_all_or_nothing(
    channel: grpc.Channel, client: ReplayClient, make_table: MakeTable
) -> None:
    """Refused by one table, stored in none; known in one, stored in the others; memory tables go along."""
    tables = [make_table(), make_table(durability=Durability.MEMORY), make_table(capacity=50)]
    names = [config.name for config in tables]

    def numbers() -> list[int]:
        info = client.server_info().tables
        return [info[name].num_trajectories for name in names]

    assert client.insert(names, [played(1), played(2)]).stored == 6
    assert client.insert(names[1], [played(3)]).stored == 1
    result = client.insert(names, [played(3), played(4)])
    assert (result.stored, result.duplicates) == (5, 1)
    assert numbers() == [4, 4, 4]
    client.insert(names[2], [played(5)])
    conflict = streamed_insert(names[0], played(6))
    both = insert_bytes(names[0], played(6), played(5, 3), more_tables=names[1:])
    bad = replay_pb2.InsertStreamRequest(insert=replay_pb2.InsertRequest.FromString(both)).SerializeToString()
    assert converse(channel, "InsertStream", [bad])[0].refused.reason == "CONTENT_CONFLICT"
    too_long = insert_bytes(names[0], played(7, 51), more_tables=names[1:])
    bad = replay_pb2.InsertStreamRequest(insert=replay_pb2.InsertRequest.FromString(too_long)).SerializeToString()
    assert converse(channel, "InsertStream", [bad])[0].refused.reason == "BAD_LENGTH"
    assert numbers() == [4, 4, 5]
    assert converse(channel, "InsertStream", [conflict])[0].inserted.stored == 1


@pytest.mark.parametrize("durability", [Durability.MEMORY, Durability.REDIS])
def test_what_another_call_brought_during_the_wait_is_not_stored_again(
    channel: grpc.Channel, client: ReplayClient, make_table: MakeTable, durability: Durability
) -> None:
    """Of two held inserts of one trajectory one stores it; the other finds it known and gives back its place."""
    config = make_table(durability=durability, rate_limiter=RateLimiterConfig(queue_size=10))
    client.insert(config.name, [played(0, 10)])
    streams = [Conversation(channel, "InsertStream") for _ in range(2)]
    for stream in streams:
        stream.send(streamed_insert(config.name, played(1, 5)))
    until(lambda: client.server_info().tables[config.name].rate_limiter.waiting_inserts == 2)
    client.delete_trajectories(config.name, TrajectoryFilter(trajectory_ids=("t0",)))
    answers = [stream.answer().inserted for stream in streams]
    assert sorted((answer.stored, answer.duplicates) for answer in answers) == [(0, 1), (1, 0)]
    assert client.insert(config.name, [played(2, 5)], timeout=10).stored == 1
    info = client.server_info().tables[config.name]
    assert info.num_items == info.rate_limiter.inserted == 10, "of 20 the first 10 reached the minimum"
    assert "the queue is full: 10 items and 0 under way" in info.insert_blocked_because
    for stream in streams:
        stream.end()


def test_one_held_table_holds_an_insert_into_several(client: ReplayClient, make_table: MakeTable) -> None:
    """And what it was let into meanwhile is given back when it goes away."""
    free = make_table(rate_limiter=RateLimiterConfig(queue_size=10))
    held = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=5, samples_per_insert=1.0, error_buffer=5.0))
    client.insert(held.name, [played(1, 5)])
    client.insert(held.name, [played(2, 5)])
    first, second = sorted((free.name, held.name))
    with pytest.raises(ReplayTimeout):
        client.insert([second, first], [played(3, 5)], timeout=0.5)
    assert client.insert(free.name, [played(4, 10)]).stored == 1, "all of the queue is free"
    assert client.server_info().tables[held.name].num_trajectories == 2
