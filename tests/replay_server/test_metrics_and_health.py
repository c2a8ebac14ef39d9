"""What a server shows: metrics, live processes, health, reflection, weights refusals."""

import hashlib
import json
import math
import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.client import ProcessRegistration, ReplayClient
from replay_server.machine import memory_limit_bytes
from replay_server.server import (
    BoundAddresses,
    ReplayServer,
    ReplayServerError,
    ReplayServerSettings,
    run_replay_server,
)
from tests.procfs import suspend
from tests.replay_server.held import until
from tests.replay_server.messages import scrape
from tests.replay_server.played import played, table_config
from zero.tables import RateLimiterConfig, TableConfig
from zero.trajectories import PriorityUpdates, TrajectoryFilter, Window
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
    assert not any("_created{" in name for name in before)
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


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What has changed, without sums of seconds, buckets and times."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0) and name.startswith("zero_replay") and "seconds" not in name
    }


def test_every_way_out_of_a_table_is_counted_by_its_cause(
    addresses: BoundAddresses, client: ReplayClient, make_table: Callable[..., TableConfig]
) -> None:
    """Evicted, deleted, drawn often enough; a trajectory counts once."""
    config = make_table(capacity=10, selector="fifo", max_times_sampled=1)

    def removed() -> list[float]:
        metrics = scrape(addresses.metrics_address)
        name = "zero_replay_removed_trajectories_total"
        return [metrics[f"{name}{{cause={cause},table={config.name}}}"] for cause in ("evicted", "deleted", "used_up")]

    assert removed() == [0, 0, 0]
    client.insert(config.name, [played(1)])
    client.insert(config.name, [played(2)])
    client.insert(config.name, [played(3)])
    assert removed() == [1, 0, 0]
    client.sample(config.name, 5, {"action": 1})
    assert removed() == [1, 0, 1]
    client.delete_trajectories(config.name, TrajectoryFilter(trajectory_ids=("t3", "t1")))
    assert removed() == [1, 1, 1]
    metrics = scrape(addresses.metrics_address)
    assert metrics[f"zero_replay_evicted_steps_total{{table={config.name}}}"] == 5
    assert metrics[f"zero_replay_items{{table={config.name}}}"] == 0
    assert metrics[f"zero_replay_table_memory_bytes{{table={config.name}}}"] > 10 * 18


def test_games_dealt_from_one_seed_are_counted_while_they_are_stored(
    addresses: BoundAddresses, client: ReplayClient, make_table: Callable[..., TableConfig]
) -> None:
    """Whoever played them; those without a seed are no repetition of each other."""
    config = make_table(capacity=8)
    games = [replace(played(n, 2), episode_seed=seed) for n, seed in enumerate((7, 0, 0, 7))]

    def duplicates() -> float:
        return scrape(addresses.metrics_address)[f"zero_replay_duplicate_episode_seeds{{table={config.name}}}"]

    client.insert(config.name, games[:3])
    assert duplicates() == 0
    client.insert(config.name, [replace(games[3], actor_id="another")])
    assert duplicates() == 1
    client.insert(config.name, [replace(played(4, 2), episode_seed=9)])
    assert duplicates() == 0  # the first game made room


def test_bytes_priorities_and_the_rate_limiter_are_shown(
    addresses: BoundAddresses, client: ReplayClient, make_table: Callable[..., TableConfig]
) -> None:
    """Bytes as steps and sequences take them without a wire; masses and differences follow every call."""
    limits = RateLimiterConfig(5, 2.0, 40.0)
    config = make_table(selector="prioritized", priority_exponent=0.5, rate_limiter=limits)

    def shown(*names: str) -> list[float]:
        metrics = scrape(addresses.metrics_address)
        return [metrics[f"zero_replay_{name}{{table={config.name}}}"] for name in names]

    limiter = ("limiter_samples_per_insert", "limiter_error_buffer", "limiter_difference")
    assert shown("inserted_bytes_total", "sampled_bytes_total", "priority_mass", *limiter) == [0, 0, 0, 2, 40, 0]
    client.insert(config.name, [played(1)])
    client.insert(config.name, [played(2)])
    assert shown("inserted_bytes_total", "priority_mass", "max_priority") == [10 * (6 + 2 + 4 + 8), 10, 1]
    assert shown(*limiter) == [2, 40, 10]
    keys = client.sample(config.name, 4, {"action": 2, "next": Window("policy", 1, 3)}).keys
    assert shown("sampled_bytes_total", "limiter_difference") == [4 * (2 * 2 + 8), 6]
    client.update_priorities(config.name, PriorityUpdates(keys[:1], np.array([9], np.float32)))
    assert shown("priority_mass", "max_priority") == [12, 9]
    client.delete_table(config.name)
    assert not any(f"table={config.name}" in name for name in scrape(addresses.metrics_address))


def test_updates_inserts_and_the_age_of_samples_are_counted(settings: ReplayServerSettings) -> None:
    """By their outcome, and how many versions of weights the drawn steps are behind."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.publish_weights(b"one", 1)
        client.publish_weights(b"two", 2)
        client.insert("games", [played(1, 4, weights_version=1)])
        before = scrape(bound.metrics_address)
        batch = client.sample("games", 256, {"action": 1})
        keys = np.append(np.unique(batch.keys), np.uint64(999))
        client.update_priorities("games", PriorityUpdates(keys, np.ones(5, np.float32)))
        client.update_columns("games", keys, {"reward": np.zeros(5, np.float32)})
        client.peek("games", 8, {"action": 1})
        client.insert("games", [played(1, 4, weights_version=1)])
        client.insert("games", [played(2)])
        with pytest.raises(ReplayError):
            client.insert("games", [])
        changed = difference(before, scrape(bound.metrics_address))
        counted = {
            "priority_updates_total{result=updated,table=games}": 4,
            "priority_updates_total{result=gone,table=games}": 1,
            "column_updates_total{result=updated,table=games}": 4,
            "column_updates_total{result=gone,table=games}": 1,
            "peeked_positions_total{table=games}": 8,
            "inserts_total{result=stored}": 1,
            "inserts_total{result=duplicate}": 1,
            "inserts_total{result=refused}": 1,
            "rejected_requests_total{reason=BAD_MESSAGE}": 1,
            "duplicate_trajectories_total{table=games}": 1,
            "sampled_positions_total{table=games}": 256,
            "sample_versions_behind_count{}": 1,
            "sample_versions_behind_sum{}": 1,
        }
        assert {name: changed[f"zero_replay_{name}"] for name in counted} == counted
        after = scrape(bound.metrics_address)
        for name in ("sample_age_seconds", "acknowledge_seconds", "insert_seconds", "sample_seconds"):
            assert after[f"zero_replay_{name}_count{{}}"] > before[f"zero_replay_{name}_count{{}}"]
        assert 0 < after["zero_replay_sample_age_seconds_sum{}"] < 60


def test_what_an_operator_must_watch_of_redis_and_the_machine_is_shown(settings: ReplayServerSettings) -> None:
    """Memory, disk and Redis as the machine and Redis say; the file grows with what is inserted."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        before = scrape(bound.metrics_address)
        usage = shutil.disk_usage(settings.data_dir)
        assert before["zero_replay_disk_bytes{}"] == usage.total
        assert before["zero_replay_disk_free_bytes{}"] == pytest.approx(usage.free, rel=0.1)
        assert before["zero_replay_memory_limit_bytes{}"] == memory_limit_bytes()
        assert before["process_resident_memory_bytes{}"] < before["zero_replay_memory_limit_bytes{}"]
        assert before["zero_replay_redis_memory_bytes{}"] > 0
        for name in ("redis_write_failed", "redis_max_memory_bytes", "redis_delayed_fsyncs_total"):
            assert before[f"zero_replay_{name}{{}}"] == 0
        client.insert("games", [played(number) for number in range(100)])
        file = "zero_replay_redis_file_bytes{}"
        until(lambda: scrape(bound.metrics_address)[file] > before[file])


def test_the_memory_of_a_container_counts_if_it_is_less(tmp_path: Path) -> None:
    """A limit above the machine's memory, "max", or no file at all leave the machine's."""
    limit = tmp_path / "memory.max"
    machine = memory_limit_bytes((limit,))
    assert machine > 1 << 28
    for text, expected in (("max", machine), (str(machine * 2), machine), ("268435456", 1 << 28)):
        limit.write_text(text + "\n")
        assert memory_limit_bytes((limit,)) == expected


def test_latencies_fall_inside_the_buckets(addresses: BoundAddresses, client: ReplayClient) -> None:
    """The slowest hundredth of inserts and samples is below the last finite bucket and above the first."""
    client.create_table(table_config("busy"))
    for number in range(100):
        client.insert("busy", [played(number)])
        client.sample("busy", 64, {"observation": 4})
    metrics = scrape(addresses.metrics_address)
    for name in ("insert_seconds", "sample_seconds", "redis_commit_seconds", "acknowledge_seconds"):
        buckets = {
            float(series.partition("le=")[2][:-1]): value
            for series, value in metrics.items()
            if series.startswith(f"zero_replay_{name}_bucket")
        }
        total = buckets[math.inf]
        p99 = min(le for le, value in buckets.items() if value >= 0.99 * total)
        assert 0.0005 <= p99 <= 30.0


def test_calls_are_counted_under_the_usual_names(settings: ReplayServerSettings) -> None:
    """By method and code, streams and what is not ours included."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        with client.insert_stream("games") as stream:
            for number in range(3):
                stream.insert([played(number)])
        with pytest.raises(ReplayError):
            client.sample("nowhere", 1, {"action": 1})
        with grpc.insecure_channel(bound.address) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)

        def counted() -> dict[str, float]:
            return scrape(bound.metrics_address)

        labels = "grpc_method={},grpc_service=zero.v1.ReplayService,grpc_type={}"
        sample = f"grpc_server_handled_total{{grpc_code=NOT_FOUND,{labels.format('Sample', 'unary')}}}"
        streamed = labels.format("InsertStream", "bidi_stream")
        until(lambda: counted().get(sample) == 1)
        until(lambda: counted().get(f"grpc_server_handled_total{{grpc_code=OK,{streamed}}}") == 1)
        assert counted()[f"grpc_server_msg_received_total{{{streamed}}}"] == 3
        assert counted()[f"grpc_server_msg_sent_total{{{streamed}}}"] == 3
        assert any("grpc.health.v1.Health" in name for name in counted())


def test_a_deleted_table_is_shown_no_more(settings: ReplayServerSettings) -> None:
    """Its series end; a new one of that name begins at 0."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(1)])
        client.delete_table("games")
        assert not any("table=games" in name for name in scrape(bound.metrics_address))
        client.create_table(table_config())
        assert scrape(bound.metrics_address)["zero_replay_inserted_steps_total{table=games}"] == 0


def test_without_redis_inserts_are_not_served_and_everything_else_is(settings: ReplayServerSettings) -> None:
    """By a health name of its own; it is SERVING again when Redis is back."""
    with (
        ReplayServer(replace(settings, redis_timeout_seconds=1.0)) as bound,
        ReplayClient(bound.address) as client,
        grpc.insecure_channel(bound.address) as channel,
    ):
        client.create_table(table_config())
        client.insert("games", [played(1)])

        def health(name: str) -> int:
            request = health_pb2.HealthCheckRequest(service=name)
            return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status

        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert health("zero.v1.ReplayService.Insert") == serving
        redis = int((settings.data_dir / "redis" / "redis.pid").read_text())
        suspend(redis)
        try:
            with pytest.raises(ReplayTimeout):
                client.insert("games", [played(2)], timeout=1.5)
            until(lambda: health("zero.v1.ReplayService.Insert") == not_serving)
            assert health("") == health("zero.v1.ReplayService") == serving
            assert client.server_info().store_away_because == "it did not answer in time"
            assert len(client.sample("games", 4, {"action": 1}).keys) == 4
        finally:
            os.kill(redis, signal.SIGCONT)
        until(lambda: health("zero.v1.ReplayService.Insert") == serving)
        assert not client.server_info().store_away_because
        client.insert("games", [played(2)])
        assert client.server_info().tables["games"].num_trajectories == 2


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
        assert scrape(bound.metrics_address)["zero_replay_live_processes{process=actor}"] == 1
        registration.close()
        while "10.0.0.7:9100" in targets(bound.metrics_address):
            assert time.monotonic() < deadline
        assert scrape(bound.metrics_address)["zero_replay_live_processes{process=actor}"] == 0


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
