"""What a server shows: metrics, live processes, health, reflection, weights refusals."""

import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from replay_server.client import ProcessRegistration, ReplayClient, ReplayError
from replay_server.server import (
    BoundAddresses,
    ReplayServer,
    ReplayServerError,
    ReplayServerSettings,
    run_replay_server,
)
from tests.replay_server.messages import scrape
from tests.replay_server.played import played, table_config
from zero.tables import TableConfig
from zero.wire import weights_pb2, weights_pb2_grpc
from zero.wire.codec import Reason


def targets(metrics_address: str) -> dict[str, dict[str, str]]:
    """Labels by target."""
    with urllib.request.urlopen(f"http://{metrics_address}/sd", timeout=10) as response:
        assert response.headers["Content-Type"] == "application/json"
        return {entry["targets"][0]: entry["labels"] for entry in json.load(response)}


def test_counters_count_and_begin_at_zero(
    addresses: BoundAddresses, client: ReplayClient, make_table: Callable[..., TableConfig]
) -> None:
    """Every series of a new table is there at 0 and moves with what happens."""
    config = make_table(capacity=10)
    table = f"{{table={config.name}}}"
    before = scrape(addresses.metrics_address)
    for name in (
        "inserted_steps",
        "inserted_trajectories",
        "duplicate_trajectories",
        "sampled_positions",
        "evicted_steps",
    ):
        assert before[f"zero_replay_{name}_total{table}"] == 0
    assert {f"zero_replay_rejected_requests_total{{reason={reason.value}}}" for reason in Reason} <= before.keys()
    for number in (1, 2, 3):
        client.insert(config.name, [played(number)])
    client.insert(config.name, [played(3)])
    client.sample(config.name, 7, {"action": 1})
    with pytest.raises(ReplayError):
        client.sample(config.name, 0, {"action": 1})
    after = scrape(addresses.metrics_address)
    assert after[f"zero_replay_inserted_steps_total{table}"] == 15
    assert after[f"zero_replay_inserted_trajectories_total{table}"] == 3
    assert after[f"zero_replay_duplicate_trajectories_total{table}"] == 1
    assert after[f"zero_replay_evicted_steps_total{table}"] == 5
    assert after[f"zero_replay_sampled_positions_total{table}"] == 7
    assert after[f"zero_replay_steps{table}"] == 10
    assert after[f"zero_replay_trajectories{table}"] == 2
    rejected = "zero_replay_rejected_requests_total{reason=BAD_MESSAGE}"
    assert after[rejected] == before[rejected] + 1
    assert after["zero_replay_redis_info{appendfsync=always}"] == 1
    assert after["zero_replay_store_available{}"] == 1
    assert after["zero_replay_insert_seconds_count{}"] >= before["zero_replay_insert_seconds_count{}"] + 4


def test_processes_are_listed_while_they_live(settings: ReplayServerSettings) -> None:
    """`/sd` lists the server itself and every registered process until it stops to register."""
    settings = replace(settings, process_ttl_seconds=0.3)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert targets(bound.metrics_address) == {
            bound.metrics_address: {"role": "replay_server", "process_id": "replay-server"}
        }
        registration = ProcessRegistration(client, "actor", "actor-3", "10.0.0.7:9100", 4711)
        deadline = time.monotonic() + 10
        while "10.0.0.7:9100" not in targets(bound.metrics_address):
            assert time.monotonic() < deadline
        assert targets(bound.metrics_address)["10.0.0.7:9100"] == {"role": "actor", "process_id": "actor-3"}
        lives_on_until = time.monotonic() + 1.0
        while time.monotonic() < lives_on_until:
            assert "10.0.0.7:9100" in targets(bound.metrics_address), "it registers again in time"
        assert scrape(bound.metrics_address)["zero_replay_live_processes{role=actor}"] == 1
        registration.close()
        while "10.0.0.7:9100" in targets(bound.metrics_address):
            assert time.monotonic() < deadline
        assert scrape(bound.metrics_address)["zero_replay_live_processes{role=actor}"] == 0


def test_other_pages_are_not_found(addresses: BoundAddresses) -> None:
    """Only /metrics and /sd are served."""
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        urllib.request.urlopen(f"http://{addresses.metrics_address}/", timeout=10)
    caught.value.close()


@pytest.fixture
def channel(addresses: BoundAddresses) -> Iterator[grpc.Channel]:
    """A plain channel."""
    with grpc.insecure_channel(addresses.address) as channel:
        yield channel


def test_health_and_reflection_know_both_services(channel: grpc.Channel) -> None:
    """grpc.health.v1 says SERVING for "" and each service; reflection lists them."""
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "zero.v1.ReplayService", "zero.v1.WeightsService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    listed = {service.name for service in answer.list_services_response.service}
    assert {"zero.v1.ReplayService", "zero.v1.WeightsService"} <= listed


def test_a_server_that_drains_says_so_and_finishes_what_runs(settings: ReplayServerSettings) -> None:
    """A watcher sees NOT_SERVING; an insert under way is answered; what came through is there after the restart."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
    server = ReplayServer(settings)
    address = server.start().address
    seen: list[int] = []

    def watch() -> None:
        with grpc.insecure_channel(address) as channel:
            answers = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            with suppress(grpc.RpcError):
                seen.extend(answer.status for answer in answers)

    watcher = threading.Thread(target=watch)
    watcher.start()
    while not seen:
        pass
    with ReplayClient(address) as client:
        client.insert("games", [played(1)])
        server.stop(grace=0.5)
    watcher.join(20)
    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.server_info().tables["games"].num_trajectories == 1


def test_run_replay_server_runs_until_told(settings: ReplayServerSettings) -> None:
    """on_ready gets the addresses; a set event ends it in good order."""
    stop = threading.Event()
    ready: list[BoundAddresses] = []

    def on_ready(addresses: BoundAddresses) -> None:
        with ReplayClient(addresses.address) as client:
            client.server_info()
        ready.append(addresses)
        stop.set()

    run_replay_server(settings, stop, on_ready)
    assert len(ready) == 1


def test_a_server_whose_heart_stops_ends_with_the_cause(
    settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error in the commit task is not survived in silence: whoever runs the server hears of it."""

    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("replay_server.group_commit.GroupCommit._take_batch", broken)

    def insert(addresses: BoundAddresses) -> None:
        with ReplayClient(addresses.address) as client:
            client.create_table(table_config())
            with pytest.raises(ReplayError):
                client.insert("games", [played(1)], timeout=0.5)

    with pytest.raises(ReplayServerError, match="broken on purpose"):
        run_replay_server(settings, threading.Event(), insert)


def parts(total: int, chunks: list[bytes], sha256: bytes | None = None) -> list[weights_pb2.PublishWeightsRequest]:
    digest = hashlib.sha256(b"".join(chunks)).digest() if sha256 is None else sha256
    header = weights_pb2.WeightsHeader(training_step=1, total_bytes=total, sha256=digest)
    return [
        weights_pb2.PublishWeightsRequest(header=header),
        *(weights_pb2.PublishWeightsRequest(chunk=chunk) for chunk in chunks),
    ]


BAD_PUBLICATIONS = {
    "nothing": ([], "BAD_WEIGHTS"),
    "no header": (parts(3, [b"abc"])[1:], "BAD_WEIGHTS"),
    "empty part": ([weights_pb2.PublishWeightsRequest()], "BAD_WEIGHTS"),
    "no payload": (parts(0, []), "BAD_WEIGHTS"),
    "too few bytes": (parts(4, [b"abc"]), "BAD_WEIGHTS"),
    "too many bytes": (parts(2, [b"abc"]), "BAD_WEIGHTS"),
    "other hash": (parts(3, [b"abc"], bytes(32)), "BAD_WEIGHTS"),
    "no hash": (parts(3, [b"abc"], b""), "BAD_WEIGHTS"),
    "header twice": (parts(3, [b"abc"])[:1] * 2, "BAD_WEIGHTS"),
    "empty chunk": (parts(3, [b"", b"abc"]), "BAD_WEIGHTS"),
    "chunk too large": (parts((1 << 20) + 1, [bytes((1 << 20) + 1)]), "BAD_WEIGHTS"),
    "more than the server takes": (parts(1 << 62, [b"abc"]), "MESSAGE_TOO_LARGE"),
}


@pytest.mark.parametrize(("messages", "reason"), BAD_PUBLICATIONS.values(), ids=BAD_PUBLICATIONS.keys())
def test_bad_weights_are_refused_and_change_nothing(
    channel: grpc.Channel, client: ReplayClient, messages: list[weights_pb2.PublishWeightsRequest], reason: str
) -> None:
    """Sizes and hash must add up; the newest version stays."""
    before = client.server_info().weights_version
    with pytest.raises(grpc.RpcError) as caught:
        weights_pb2_grpc.WeightsServiceStub(channel).PublishWeights(iter(messages), timeout=10)
    assert dict(caught.value.trailing_metadata())["zero-reason"] == reason
    assert client.server_info().weights_version == before


def test_garbage_for_the_weights_service_is_refused(channel: grpc.Channel) -> None:
    """BAD_MESSAGE on both methods."""
    publish = channel.stream_unary("/zero.v1.WeightsService/PublishWeights")
    get = channel.unary_stream("/zero.v1.WeightsService/GetWeights")
    for call in (lambda: publish(iter([b"\xff\xfe"]), timeout=10), lambda: list(get(b"\xff\xfe", timeout=10))):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert dict(caught.value.trailing_metadata())["zero-reason"] == "BAD_MESSAGE"
