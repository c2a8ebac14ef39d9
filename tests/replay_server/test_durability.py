"""Faults: Redis stops, Redis dies, the server is killed. What was acknowledged is there, what was not is settled."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.connection import Connection

from replay_server import priority_log, weights, write_chain
from replay_server.answers import InsertResult, ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.redis_store import RedisStore
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerError, ReplayServerSettings
from replay_server.write_chain import Command, NotLastWrite, WriteChain, WriteInDoubtError
from tests.ledger import Ledger, check_that_nothing_is_lost
from tests.procfs import suspend
from tests.replay_server.held import trajectories, until
from tests.replay_server.held_writes import held_writes
from tests.replay_server.played import played, table_config
from zero.tables import Durability
from zero.trajectories import PriorityUpdates, SequenceBatch, TrajectoryFilter


@pytest.fixture
def settings(settings: ReplayServerSettings) -> ReplayServerSettings:
    """As for all, but Redis counts as away soon."""
    return replace(settings, redis_timeout_seconds=0.5)


def redis_pid(settings: ReplayServerSettings) -> int:
    return int((settings.data_dir / "redis" / "redis.pid").read_text())


def redis_client(settings: ReplayServerSettings) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(settings.data_dir / "redis" / "redis.sock"))


@pytest.fixture
def serving(settings: ReplayServerSettings) -> Iterator[ReplayClient]:
    """A client of a server of its own, with a table `games` that holds trajectory 0."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(0)])
        yield client


def test_a_killed_redis_costs_nothing_acknowledged(settings: ReplayServerSettings, serving: ReplayClient) -> None:
    """Killed with -9 in the middle, the embedded Redis comes back by itself; a patient insert goes through."""
    os.kill(redis_pid(settings), signal.SIGKILL)
    with suppress(ReplayTimeout):
        serving.insert("games", [played(1)], timeout=0.2)
    assert len(serving.sample("games", 4, {"action": 1}).keys) == 4, "samples go on"
    assert serving.insert("games", [played(2)], timeout=30).stored == 1
    assert serving.insert("games", [played(0), played(2)]).duplicates == 2


def test_while_redis_hangs_nothing_is_acknowledged_and_samples_go_on(
    settings: ReplayServerSettings, serving: ReplayClient
) -> None:
    """What was under way when Redis stopped is settled afterwards: stored exactly once, whoever sends it again."""
    pid = redis_pid(settings)
    suspend(pid)
    try:
        for number in (1, 2):
            with pytest.raises(ReplayTimeout):
                serving.insert("games", [played(number)], timeout=0.3)
        info = serving.server_info().tables["games"]
        assert info.num_trajectories == 1
        assert len(serving.sample("games", 4, {"action": 1}).keys) == 4
        until(lambda: "Redis is away" in serving.server_info().tables["games"].insert_blocked_because)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: serving.server_info().tables["games"].insert_blocked_because == "")
    result = serving.insert("games", [played(1), played(2), played(3)], timeout=30)
    assert result.stored + result.duplicates == 3
    assert result.stored >= 1
    info = serving.server_info().tables["games"]
    assert (info.num_trajectories, info.inserted_trajectories) == (4, 4)
    with redis_client(settings) as client:
        stored = sum(fields[b"m"].count(b"actor-0") for _, fields in client.xrange("zero:log:games"))
    assert stored == 4, "the log holds each once, too"


def lose_the_next_answer(monkeypatch: pytest.MonkeyPatch, *, executed: bool) -> None:
    """The connection breaks once after the next insert was sent, or just before it."""
    send = write_chain._send

    def send_and_break(connection: Connection, commands: Sequence[Command]) -> list[object]:
        if not any(command[0] == "XADD" for command in commands):
            return send(connection, commands)
        monkeypatch.setattr(write_chain, "_send", send)
        if executed:
            send(connection, commands)
        connection.disconnect()
        raise WriteInDoubtError("the answer was lost")

    monkeypatch.setattr(write_chain, "_send", send_and_break)


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("again", ["while it runs", "after a restart"])
def test_a_write_without_an_answer_is_settled(
    settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch, again: str, executed: bool
) -> None:
    """Nobody was told, but if Redis has it, it is stored from then on, once: log and memory never differ."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(0)])
        lose_the_next_answer(monkeypatch, executed=executed)
        with ReplayClient(bound.address, repeat=False) as impatient, pytest.raises(ReplayTimeout):
            impatient.insert("games", [played(1)], timeout=20)
        until(lambda: client.server_info().tables["games"].insert_blocked_because == "")
        assert client.server_info().tables["games"].num_trajectories == 1 + executed
        if again == "while it runs":
            assert client.insert("games", [played(1)], timeout=10) == InsertResult(1 - executed, int(executed))
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.insert("games", [played(0), played(1)]).duplicates == (1 + executed if again[0] == "a" else 2)
        assert client.server_info().tables["games"].inserted_trajectories == 2
        assert client.verify_table("games").problems == ()


def test_what_a_caller_who_has_gone_away_removed_is_written_all_the_same(settings: ReplayServerSettings) -> None:
    """Its deadline passes while its write waits in line: nothing is stored twice in one slot, now or later."""
    settings = replace(settings, redis_timeout_seconds=5)
    with ReplayServer(settings) as bound, ReplayClient(bound.address, repeat=False) as client:
        client.create_table(table_config(capacity=20))
        client.create_table(table_config("others"))
        client.insert("games", [played(number) for number in range(4)])
        with ThreadPoolExecutor(1) as threads, held_writes() as came:
            insert = threads.submit(client.insert, "others", [played(0)])
            assert came.wait(10)
            with pytest.raises(ReplayTimeout):
                client.delete_trajectories("games", TrajectoryFilter(trajectory_ids=("t0", "t2")), timeout=0.2)
            assert client.server_info().tables["games"].num_trajectories == 2
        assert insert.result().stored == 1
        assert client.insert("games", [played(9, 10)]).stored == 1
        assert client.verify_table("games").problems == ()
        held = trajectories(client)
        assert [one[0] for one in held] == ["t1", "t3", "t9"]
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert trajectories(client) == held


def test_a_value_replaced_for_a_caller_who_has_gone_away_is_the_same_everywhere(settings: ReplayServerSettings) -> None:
    """Memory follows Redis although nobody waits for the answer any more."""
    settings = replace(settings, redis_timeout_seconds=5)
    with ReplayServer(settings) as bound, ReplayClient(bound.address, repeat=False) as client:
        client.create_table(table_config())
        client.insert("games", [played(1, 1)])
        keys = client.sample("games", 1, {"action": 1}).keys
        with held_writes() as came:
            with pytest.raises(ReplayTimeout):
                client.update_columns("games", keys, {"action": np.array([77], np.uint16)}, timeout=0.2)
            assert came.is_set()
            assert client.sample("games", 1, {"action": 1}).columns["action"].tolist() == [[1]]
        client.verify_table("games")  # written behind it
        assert client.sample("games", 1, {"action": 1}).columns["action"].tolist() == [[77]]


def test_a_log_with_two_chunks_in_one_slot_is_refused(settings: ReplayServerSettings) -> None:
    """Rather than stored one over the other."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(1)])
        with redis_client(settings) as store:
            (_, fields), *_ = store.xrange("zero:log:games")
            store.xadd("zero:log:games", fields)
    with pytest.raises(ReplayServerError, match="slots that do not exist or that hold others"):
        ReplayServer(settings).start()


@contextmanager
def flushing_when_asked() -> Iterator[threading.Event]:
    """Redis promises to flush what it is asked to; it can as long as the event is set. Any Redis serves."""
    can_flush = threading.Event()
    read_policy, send = RedisStore._read_policy, write_chain._send

    def read_and_promise(store: RedisStore, client: redis.Redis) -> None:
        read_policy(store, client)
        store.gives_fsync, store.flushes_itself = True, False

    def send_and_flush(connection: Connection, commands: Sequence[Command]) -> list[object]:
        flush = ("PING",) if can_flush.is_set() else ("no-such-command",)
        return send(connection, [flush if command[0] == "WAITAOF" else command for command in commands])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedisStore, "_read_policy", read_and_promise)
        patch.setattr(write_chain, "_send", send_and_flush)
        yield can_flush


def test_what_was_never_flushed_is_not_acknowledged(settings: ReplayServerSettings) -> None:
    """Redis has the write but cannot flush it: neither the insert nor its repetition is, before it can."""
    config = table_config(durability=Durability.FSYNC)
    with flushing_when_asked() as can_flush, ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        with pytest.raises(ReplayTimeout):
            client.insert("games", [played(1)], timeout=2)
        assert client.server_info().tables["games"].num_trajectories == 0
        can_flush.set()
        assert client.insert("games", [played(1)], timeout=30) == InsertResult(0, 1)
        assert client.insert("games", [played(2)]).stored == 1


def test_what_an_earlier_server_has_left_is_flushed_before_it_is_acknowledged(settings: ReplayServerSettings) -> None:
    """It was killed between the write and its flush: the repetition waits for one, and may not be taken without."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(durability=Durability.FSYNC))
        client.insert("games", [played(1)])
    with flushing_when_asked() as can_flush, ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        with pytest.raises(ReplayTimeout):
            client.insert("games", [played(1)], timeout=1)
        can_flush.set()
        assert client.insert("games", [played(1)], timeout=30) == InsertResult(0, 1)


def test_an_old_connection_cannot_write_after_a_new_one_has_begun(settings: ReplayServerSettings) -> None:
    """A command that was delayed on its way is refused by Redis itself."""
    with ReplayServer(settings), redis_client(settings) as client, redis_client(settings) as other:
        old, new = WriteChain("fenced"), WriteChain("fenced")
        old.begin(client)
        new.begin(other)
        with pytest.raises(NotLastWrite):
            old.write([("SET", "fenced:value", "old")])
        new.write([("SET", "fenced:value", "new")])
        with pytest.raises(redis.RedisError):
            old.write([("SET", "fenced:value", "old")])
        assert client.get("fenced:value") == b"new"


def test_redis_out_of_memory_refuses_inserts_and_recovers(
    settings: ReplayServerSettings, serving: ReplayClient
) -> None:
    """No false acknowledgement; goes on when there is room again."""
    with redis_client(settings) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(ReplayTimeout) as caught:
            serving.insert("games", [played(1)], timeout=0.5)
        assert caught.value.reason == "STORE_UNAVAILABLE"
        with pytest.raises(ReplayTimeout):
            serving.publish_weights(b"w", 1, timeout=0.3)
        assert serving.server_info().tables["games"].num_trajectories == 1
        client.config_set("maxmemory", 0)
    assert serving.insert("games", [played(1)], timeout=10).stored == 1
    assert serving.publish_weights(b"w", 1) == 1


def test_the_log_is_trimmed_as_the_table_evicts(settings: ReplayServerSettings) -> None:
    """Redis holds what the table holds, and little more."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(capacity=50))
        for number in range(40):
            client.insert("games", [played(number)])
        with redis_client(settings) as store:
            assert store.xlen("zero:log:games") <= 12
            assert store.llen("zero:evicted:games") >= 28


def test_priorities_survive_a_restart(settings: ReplayServerSettings) -> None:
    """Saved ones come back with their positions, those of evicted steps do not come back as somebody else's."""
    settings = replace(settings, priority_save_seconds=0.05)
    config = table_config(capacity=10, selector="prioritized", priority_exponent=1.0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert("games", [played(0, 7)])
        client.insert("games", [played(1, 7)])
        keys = np.unique(client.sample("games", 200, {"action": 1}).keys)
        updates = PriorityUpdates(keys, np.arange(1, 8, dtype=np.float32))
        client.update_priorities("games", updates)
        before = probabilities(client.sample("games", 500, {"action": 1}))
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert probabilities(client.sample("games", 500, {"action": 1})) == pytest.approx(before)
        client.insert("games", [played(2, 1)])
        after = probabilities(client.sample("games", 500, {"action": 1}))
        newest = max(after)
        assert after[newest] == pytest.approx(7 / 35), "a new step gets the highest priority ever seen"


def test_priorities_are_saved_some_at_a_time_and_count_together(
    settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write is larger than Redis can take in time; at the next start all are there."""
    monkeypatch.setattr(priority_log, "_PAGES_PER_WRITE", 1)
    writes: list[int] = []
    write = WriteChain.write

    def note_and_write(chain: WriteChain, commands: Sequence[Command], **keywords: bool) -> None:
        writes.append(
            sum(
                len(word)
                for command in commands
                for word in command
                if command[0] == "HSET" and isinstance(word, bytes)
            )
        )
        write(chain, commands, **keywords)

    config = table_config(capacity=20_000, selector="prioritized", priority_exponent=1.0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert("games", [played(1, 20_000)])
        first = int(client.sample("games", 1, {"action": 1}).keys[0]) & ~0xFFFFFFFF
        keys = np.arange(20_000, dtype=np.uint64) | np.uint64(first)
        priorities = np.where(np.arange(20_000) % 4096 < 2, 1.0, 0.0).astype(np.float32)
        client.update_priorities("games", PriorityUpdates(keys, priorities))
        monkeypatch.setattr(WriteChain, "write", note_and_write)
    assert sum(size > 4096 for size in writes) == 5
    assert max(writes) < 20_000
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        slots = client.sample("games", 500, {"action": 1}).keys & np.uint64(0xFFFFFFFF)
        assert set(slots.tolist()) == {4096 * page + i for page in range(5) for i in range(2)}


def probabilities(batch: SequenceBatch) -> dict[int, float]:
    return dict(zip(batch.keys.tolist(), batch.probabilities.tolist(), strict=True))


@pytest.mark.parametrize("field", [b"h", b"m"])
def test_a_damaged_log_is_refused_loudly(settings: ReplayServerSettings, field: bytes) -> None:
    """A flipped byte in an entry stops the start with a line that names the entry; a check finds it before."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(0)])
        with redis_client(settings) as store:
            ((entry, fields),) = store.xrange("zero:log:games")
            value = bytearray(fields[field])
            value[-20] ^= 1
            store.delete("zero:log:games")
            store.xadd("zero:log:games", {**fields, field: bytes(value)}, id=entry)
        (problem,) = [line for line in client.verify_table("games").problems if "damaged" in line]
        assert entry.decode() in problem
    with pytest.raises(ReplayServerError, match=f"entry {entry.decode()} of the log of table 'games' is damaged"):
        ReplayServer(settings).start()


def test_a_log_of_an_older_version_is_refused_in_one_line(settings: ReplayServerSettings) -> None:
    """Nothing is guessed about another layout."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        with redis_client(settings) as store:
            store.xadd("zero:log:games", {b"insert": b"as it was once"})
    with pytest.raises(ReplayServerError, match="was written by an older version") as caught:
        ReplayServer(settings).start()
    assert "\n" not in str(caught.value)


SERVE = """
import sys, threading
from pathlib import Path
from replay_server.server import ReplayServerSettings, run_replay_server
settings = ReplayServerSettings(Path(sys.argv[1]), port=int(sys.argv[2]))
run_replay_server(settings, threading.Event(), lambda addresses: print(addresses.address, flush=True))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def server_process(data_dir: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, killed with -9 at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(data_dir), str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until_all_go_on(ledgers: Sequence[Ledger]) -> None:
    before = [len(ledger.acknowledged) for ledger in ledgers]
    until(lambda: all(len(ledger.acknowledged) > n for ledger, n in zip(ledgers, before, strict=True)))


@pytest.mark.slow
def test_kill_minus_nine_under_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Killed again and again while writers insert: they resume by themselves, every acknowledged one is there once."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    rng = np.random.default_rng(0)
    config = table_config(capacity=10**6)
    ledgers: list[Ledger] = []
    for _ in range(6):
        with server_process(tmp_path, port) as process:
            assert process.stdout.readline().strip() == address
            if not ledgers:
                with ReplayClient(address) as client:
                    client.create_table(config)
                ledgers = [Ledger(address, "games", writer) for writer in range(3)]
            until_all_go_on(ledgers)
            time.sleep(float(rng.uniform(0, 0.5)))  # the moment of death is random
    with server_process(tmp_path, port) as process, ReplayClient(address) as client:
        assert process.stdout.readline().strip() == address
        for ledger in ledgers:
            ledger.close()
        check_that_nothing_is_lost(client, "games", ledgers)
    assert min(len(ledger.acknowledged) for ledger in ledgers) > 30


def test_the_ledger_sees_a_loss(tmp_path: Path) -> None:
    """The check above is worth something: a table that is kept in memory alone fails it after a kill, not before."""
    port = free_port()
    config = table_config(capacity=10**6, durability=Durability.MEMORY)
    with server_process(tmp_path, port), ReplayClient(f"127.0.0.1:{port}") as client:
        client.create_table(config)
        with Ledger(client.address, "games") as ledger:
            until_all_go_on([ledger])
        check_that_nothing_is_lost(client, "games", [ledger])
    with server_process(tmp_path, port), ReplayClient(f"127.0.0.1:{port}") as client:
        client.create_table(config)
        with pytest.raises(AssertionError, match="acknowledged trajectories are lost"):
            check_that_nothing_is_lost(client, "games", [ledger])


@pytest.mark.slow
def test_a_redis_left_by_a_killed_server_is_ended_before_the_next_one_starts(tmp_path: Path) -> None:
    """At no time do two of them write the same file; the next server has the data."""
    port = free_port()
    settings = ReplayServerSettings(tmp_path, port=port)
    with server_process(tmp_path, port) as process, ReplayClient(f"127.0.0.1:{port}") as client:
        client.create_table(table_config())
        client.insert("games", [played(1)])
        first = redis_pid(settings)
        suspend(first)  # it cannot react to the death of its owner
        process.kill()
        process.wait()
    try:
        threading.Timer(1.0, lambda: os.kill(first, signal.SIGCONT)).start()
        with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
            assert redis_pid(settings) != first
            assert (
                not Path(f"/proc/{first}").exists()
                or b"redis-server" not in Path(f"/proc/{first}/cmdline").read_bytes()
            )
            assert client.insert("games", [played(1)]).duplicates == 1
    finally:
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)


def test_redis_dies_with_a_killed_server(tmp_path: Path) -> None:
    """No orphan keeps the folder busy."""
    port = free_port()
    with server_process(tmp_path, port) as process:
        process.stdout.readline()
        pid = redis_pid(ReplayServerSettings(tmp_path))
        process.kill()
        process.wait()
        until(lambda: not Path(f"/proc/{pid}").exists(), 10)


def test_weights_and_versions_survive_restarts(settings: ReplayServerSettings) -> None:
    """The newest payload comes back whole, publishing it again gives its version, the next one is higher."""
    payload = np.random.default_rng(0).bytes(3_500_000)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.get_weights(0) is None
        for step in range(5):
            assert client.publish_weights(payload + bytes([step]), step) == step + 1
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        weights = client.get_weights(4)
        assert (weights.version, weights.training_step) == (5, 4)
        assert hashlib.sha256(weights.payload).digest() == hashlib.sha256(payload + bytes([4])).digest()
        assert client.publish_weights(payload + bytes([4]), 4) == 5
        assert client.publish_weights(payload + bytes([3]), 3) == 6
        assert client.get_weights(6) is None
        with redis_client(settings) as store:
            kept = sorted(int(key.rsplit(b":", 1)[1]) for key in store.keys("zero:weights:[0-9]*"))
            assert not store.keys("zero:weights:staged*")
            assert {store.ttl(f"zero:weights:{version}") for version in kept} == {-1}, "for ever"
        assert kept == [4, 5, 6]


def test_large_weights_hold_up_no_insert(settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in parts beside the writes; whole again after a restart, and none of them if Redis was away."""
    monkeypatch.setattr(weights, "_PART_BYTES", 1000)
    payload = np.random.default_rng(0).bytes(5500)
    with (
        ReplayServer(settings) as bound,
        ReplayClient(bound.address) as client,
        ReplayClient(bound.address, repeat=False) as impatient,
        ThreadPoolExecutor(1) as threads,
    ):
        client.create_table(table_config())
        stage = weights._stage
        came, go_on = threading.Event(), threading.Event()

        def stage_and_wait(*arguments: object) -> None:
            stage(*arguments)
            came.set()
            assert go_on.wait(20)

        monkeypatch.setattr(weights, "_stage", stage_and_wait)
        publication = threads.submit(client.publish_weights, payload, 1)
        assert came.wait(10)
        assert client.insert("games", [played(1)], timeout=10).stored == 1
        go_on.set()
        assert publication.result() == 1
        came.clear()
        go_on.clear()
        publication = threads.submit(impatient.publish_weights, payload[1:], 2)
        assert came.wait(10)
        os.kill(redis_pid(settings), signal.SIGKILL)
        client.insert("games", [played(2)], timeout=30)
        go_on.set()
        assert isinstance(publication.exception(), ReplayTimeout)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        newest = client.get_weights(0)
        assert (newest.version, newest.training_step, newest.payload) == (1, 1, payload)


def test_an_external_redis_is_the_same(settings: ReplayServerSettings, tmp_path: Path) -> None:
    """A server on the Redis of another one, under its own prefix, keeps its data; the policy of Redis is shown."""
    with ReplayServer(settings):
        url = f"unix://{settings.data_dir / 'redis' / 'redis.sock'}"
        other = ReplayServerSettings(tmp_path / "unused", redis_url=url, redis_prefix="other")
        for expected in (1, 0):
            with ReplayServer(other) as bound, ReplayClient(bound.address) as client:
                client.create_table(table_config())
                assert client.insert("games", [played(1)]).stored == expected
                assert client.server_info().appendfsync == "always"
        with redis_client(settings) as store:
            store.config_set("appendfsync", "everysec")
        with ReplayServer(other) as bound, ReplayClient(bound.address) as client:
            assert client.server_info().appendfsync == "everysec"
    assert not (tmp_path / "unused").exists()


def test_what_cannot_start_says_why_in_one_line(settings: ReplayServerSettings, addresses: BoundAddresses) -> None:
    """A taken port, a taken metrics port, a taken folder, a Redis that is not there or is no address."""
    taken = int(addresses.address.rsplit(":", 1)[1])
    metrics = int(addresses.metrics_address.rsplit(":", 1)[1])
    with ReplayServer(replace(settings, data_dir=settings.data_dir / "own")):
        for changed, words in (
            ({"port": taken}, "port is in use"),
            ({"metrics_port": metrics}, "metrics port"),
            ({"data_dir": settings.data_dir / "own"}, "another replay server uses"),
            ({"redis_url": f"redis://127.0.0.1:{free_port()}"}, "cannot be used"),
            ({"redis_url": "nonsense"}, "redis://host:port"),
        ):
            server = ReplayServer(replace(settings, **changed))
            with pytest.raises(ReplayServerError, match=words) as caught:
                server.start()
            assert "\n" not in str(caught.value)


def test_a_folder_with_a_long_name_works(settings: ReplayServerSettings) -> None:
    """Unix sockets have short names only; the socket moves then, and leaves nothing behind."""
    deep = settings.data_dir / ("d" * 100) / ("e" * 100)
    with ReplayServer(replace(settings, data_dir=deep)) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        assert client.insert("games", [played(1)]).stored == 1
    assert not list(deep.rglob("*.sock"))


def test_a_client_rides_over_a_restart_at_the_same_address(settings: ReplayServerSettings) -> None:
    """Calls that begin while the server is away succeed when it is back; a closed client gives up."""
    settings = replace(settings, port=free_port())
    client = ReplayClient(f"127.0.0.1:{settings.port}")
    with pytest.raises(ReplayTimeout):
        client.server_info(timeout=0.2)
    answers: list[bool] = []
    early = threading.Thread(target=lambda: answers.append(client.create_table(table_config(), timeout=30)))
    early.start()
    with ReplayServer(settings):
        early.join(20)
        assert answers == [True]
        client.insert("games", [played(1)])
    with ReplayServer(settings):
        assert client.insert("games", [played(1)], timeout=30).duplicates == 1
    client.close()
    with pytest.raises(ReplayError) as caught:
        client.server_info()
    assert caught.value.reason == "CANCELLED"
