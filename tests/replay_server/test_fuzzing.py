"""Damaged and random messages on every method: answered or refused with a reason; the server lives, its data hold."""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from replay_server.answers import ReplayError
from replay_server.client import ReplayClient
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerSettings
from tests.replay_server.messages import SERVICE, converse, reason_of, valid_messages
from tests.replay_server.played import SIGNATURE, played, table_config
from zero.wire import weights_pb2
from zero.wire.codec import Reason

TABLE, SCRATCH = "fuzzed", "scratch"
STREAMS = ("InsertStream", "SampleStream")
WEIGHTS = "/zero.v1.WeightsService/"
PAYLOAD = b"some weights"
PUBLICATION = [
    weights_pb2.PublishWeightsRequest(
        header=weights_pb2.WeightsHeader(
            training_step=1, total_bytes=len(PAYLOAD), sha256=hashlib.sha256(PAYLOAD).digest()
        )
    ).SerializeToString(),
    *(weights_pb2.PublishWeightsRequest(chunk=part).SerializeToString() for part in (PAYLOAD[:5], PAYLOAD[5:])),
]
SECONDS = 2.0
IN_FLIGHT = 32
REASONS = {reason.value for reason in Reason}


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[BoundAddresses]:
    """A server of its own, with little room for tables of mutated sizes."""
    settings = ReplayServerSettings(tmp_path, max_table_bytes=1 << 20, max_message_bytes=1 << 20)
    with ReplayServer(settings) as bound:
        yield bound


class Fuzzer:
    """Damages good messages, always in the same way."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._good = valid_messages(TABLE, SCRATCH) | {
            "PublishWeights": PUBLICATION[1:2],
            "GetWeights": [weights_pb2.GetWeightsRequest(newer_than=1).SerializeToString()],
        }

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """Method and message, for ever; one in eight is random altogether."""
        for method in itertools.cycle(self._good):
            good = self._good[method]
            data = good[self._rng.integers(len(good))]
            yield method, self._random() if self._rng.random() < 0.125 else self._damaged(data)

    def _random(self) -> bytes:
        return self._rng.bytes(int(self._rng.integers(1, 200)))

    def _damaged(self, data: bytes) -> bytes:
        message = bytearray(data)
        for _ in range(int(self._rng.integers(0, 5))):
            # Most of a message is payload: the interesting bytes are at its beginning and scattered thinly.
            reach = len(message) if self._rng.random() < 0.5 else min(len(message), 80)
            at = int(self._rng.integers(reach + 1))
            match int(self._rng.integers(4)):
                case 0:
                    message[at : at + 1] = self._rng.bytes(1)
                case 1:
                    del message[at : at + int(self._rng.integers(1, 9))]
                case 2:
                    message[at:at] = self._rng.bytes(int(self._rng.integers(1, 9)))
                case _:
                    if at < len(message):
                        message[at] ^= 1 << int(self._rng.integers(8))
        return bytes(message)


def outcome_of(error: grpc.RpcError) -> str:
    """The reason of a refusal; anything else is a failure, unless the call was still held when its time was over."""
    reason = reason_of(error)
    assert reason in REASONS or (reason is None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED), error
    return str(reason)


def fuzz(address: str, number: int, seed: int) -> Counter[str]:
    """Send so many messages; how many were answered, and refused by reason."""
    outcomes: Counter[str] = Counter()
    fuzzer = Fuzzer(seed).messages()
    options = [("grpc.max_send_message_length", 1 << 24)]
    with grpc.insecure_channel(address, options) as channel, ReplayClient(address) as client:
        under_way: deque[grpc.Future] = deque()
        streamed: dict[str, list[bytes]] = {method: [] for method in STREAMS}

        def settle(call: grpc.Future) -> None:
            error = call.exception()
            outcomes["answered" if error is None else outcome_of(error)] += 1

        for count, (method, message) in zip(range(number), fuzzer, strict=False):
            if count % 1000 == 0:
                prepare(client)
            if method in STREAMS:
                streamed[method].append(message)
                if len(streamed[method]) == 20:
                    outcomes.update(stream(channel, method, streamed[method]))
                    streamed[method] = []
                continue
            if method in ("ReadTrajectories", "GetWeights"):
                outcomes.update(read(channel, method, message))
                continue
            if method == "PublishWeights":
                outcomes.update(publish(channel, [*PUBLICATION[:1], message, *PUBLICATION[2:]]))
                continue
            under_way.append(channel.unary_unary(SERVICE + method).future(message, timeout=SECONDS))
            if len(under_way) > IN_FLIGHT:
                settle(under_way.popleft())
        for call in under_way:
            settle(call)
    return outcomes


def stream(channel: grpc.Channel, method: str, messages: list[bytes]) -> list[str]:
    """Send messages over a stream: each is answered, refused alone, or held until the time is over."""
    try:
        answers = converse(channel, method, messages, timeout=SECONDS)
    except grpc.RpcError as error:
        return [outcome_of(error)]
    assert len(answers) == len(messages)
    for answer in answers:
        assert not answer.HasField("refused") or answer.refused.reason in REASONS
    return [answer.refused.reason if answer.HasField("refused") else "answered" for answer in answers]


def read(channel: grpc.Channel, method: str, message: bytes) -> list[str]:
    path = WEIGHTS + method if method == "GetWeights" else SERVICE + method
    try:
        list(channel.unary_stream(path)(message, timeout=SECONDS))
    except grpc.RpcError as error:
        return [outcome_of(error)]
    return ["answered"]


def publish(channel: grpc.Channel, messages: list[bytes]) -> list[str]:
    try:
        channel.stream_unary(WEIGHTS + "PublishWeights")(iter(messages), timeout=SECONDS)
    except grpc.RpcError as error:
        return [outcome_of(error)]
    return ["answered"]


def prepare(client: ReplayClient) -> None:
    """The tables are there and hold something, also if damaged messages have deleted or changed them."""
    for name in (TABLE, SCRATCH):
        config = table_config(name, capacity=100)
        trajectories = [played(number + 1000) for number in range(3)]
        try:
            client.create_table(config)
            client.insert(name, trajectories, timeout=1.0)
        except ReplayError:
            client.delete_table(name)
            client.create_table(config)
            client.insert(name, trajectories)


def assert_sound(address: str) -> None:
    """The server answers, and nothing is stored that an insert could not have brought."""
    with grpc.insecure_channel(address) as channel, ReplayClient(address) as client:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        newest = client.get_weights(0)
        assert newest is None or newest.payload == PAYLOAD
        for name, info in client.server_info(timeout=10).tables.items():
            assert client.verify_table(name).problems == ()
            stored = list(client.read_trajectories(name))
            assert sum(trajectory.num_steps for trajectory in stored) == info.num_steps <= info.config.capacity
            for trajectory in stored:
                assert 1 <= len(trajectory.trajectory_id) <= 64
                assert all(np.isfinite(value) for value in trajectory.stats.values())
                for spec in info.config.signature:
                    column = trajectory.columns[spec.name]
                    assert (column.dtype, column.shape[1:]) == (spec.dtype, spec.shape)
                    assert column.dtype.kind != "f" or np.isfinite(column).all()
        prepare(client)
        assert len(client.sample(TABLE, 8, {column.name: 2 for column in SIGNATURE}).keys) == 8


def test_damaged_messages_harm_nobody(addresses: BoundAddresses) -> None:
    """Some thousand messages over all methods; enough of them get through, and are refused for enough reasons."""
    outcomes = fuzz(addresses.address, 3_000, seed=1)
    assert_sound(addresses.address)
    assert outcomes["answered"] > 300, "damage that nobody survives tests only the parser"
    assert len(outcomes) > 8, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])  # a hundred thousand over four seeds take five minutes, and found no more
def test_twenty_thousand_damaged_messages_harm_nobody(addresses: BoundAddresses, seed: int) -> None:
    """The same at length."""
    fuzz(addresses.address, 10_000, seed)
    assert_sound(addresses.address)
