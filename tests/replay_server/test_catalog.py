"""Tables that are created, changed, reset and deleted, for good; and what a start says of its progress."""

import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from replay_server import recovery, served_table, table
from replay_server.answers import InsertResult, RecoveryProgress, ReplayError, ReplayTimeout
from replay_server.catalog import Catalog
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerError, ReplayServerSettings, run_replay_server
from replay_server.table import Table, memory_of
from tests.procfs import suspend
from tests.replay_server.held import all_steps, trajectories, until
from tests.replay_server.held_writes import held_writes
from tests.replay_server.played import played, table_config
from zero.tables import Durability, RateLimiterConfig
from zero.trajectories import ColumnSpec, PriorityUpdates, TrajectoryFilter

_numbers = itertools.count(100)


def redis_client(settings: ReplayServerSettings) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(settings.data_dir / "redis" / "redis.sock"))


def held_keys(settings: ReplayServerSettings, table: str) -> list[bytes]:
    with redis_client(settings) as client:
        return [key for key in client.keys("zero:*") if f":{table}" in key.decode()]


@pytest.mark.parametrize("durability", [Durability.REDIS, Durability.MEMORY])
def test_a_reset_empties_a_table_and_forgets_all_it_knew(
    settings: ReplayServerSettings, durability: Durability
) -> None:
    """Ids are new again, keys of the earlier life name nothing, counts begin again; also after a restart."""
    config = table_config(durability=durability, selector="prioritized")
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert("games", [played(number) for number in range(3)])
        client.reset_table("games")
        client.insert("games", [played(number) for number in range(3)])
        keys = client.sample("games", 64, {"action": 1}).keys
        client.update_columns("games", np.unique(keys), {"action": np.zeros(len(np.unique(keys)), np.uint16)})
        assert client.reset_table("games") == 3
        info = client.server_info().tables["games"]
        assert (info.num_steps, info.inserted_steps, info.inserted_trajectories, info.rate_limiter.inserted) == (
            *(0, 0, 0, 0),
        )
        assert client.insert("games", [replace(played(1), episode_seed=9)]) == InsertResult(1, 0)
        assert client.update_priorities("games", PriorityUpdates(keys, np.ones(64, np.float32))).updated == 0
        steps = all_steps(client)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        if durability is Durability.REDIS:
            assert all_steps(client) == steps
            assert client.verify_table("games").problems == ()
        assert client.update_priorities("games", PriorityUpdates(keys, np.ones(64, np.float32))).updated == 0


@pytest.mark.parametrize("redis_dies", [False, True])
@pytest.mark.parametrize("call", ["reset", "delete trajectories"])
def test_an_end_whose_write_is_in_doubt_is_written_later(
    settings: ReplayServerSettings, call: str, redis_dies: bool
) -> None:
    """The caller is told that Redis was away; what was deleted stays so, what comes then is kept, executed or not."""

    def end(client: ReplayClient) -> None:
        if call == "reset":
            client.reset_table("games", timeout=0.6)
        else:
            client.delete_trajectories("games", TrajectoryFilter(trajectory_ids=("t1", "t2")), timeout=0.6)

    settings = replace(settings, redis_timeout_seconds=0.5)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(0), played(1)])
        client.insert("games", [played(2)])
        pid = int((settings.data_dir / "redis" / "redis.pid").read_text())
        suspend(pid)
        try:
            with pytest.raises(ReplayTimeout):
                end(client)
        finally:
            os.kill(pid, signal.SIGKILL if redis_dies else signal.SIGCONT)
        result = client.insert("games", [played(number) for number in range(4)], timeout=30)
        assert result == (InsertResult(4, 0) if call == "reset" else InsertResult(1, 3))
        held = trajectories(client)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert trajectories(client) == held
        assert client.verify_table("games").problems == ()


def test_a_large_deletion_lets_other_calls_in_between(
    settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on part by part, each written before the next, and counts none that another call has deleted."""
    monkeypatch.setattr(served_table, "_DELETED_AT_ONCE", 4)
    with (
        ReplayServer(settings) as bound,
        ReplayClient(bound.address) as client,
        ThreadPoolExecutor(2) as executor,
    ):
        client.create_table(table_config())
        client.insert("games", [played(number) for number in range(10)])
        with held_writes() as came:
            deleting = executor.submit(client.delete_trajectories, "games", TrajectoryFilter(actor_id="actor-0"))
            assert came.wait(20)
            assert client.server_info().tables["games"].num_trajectories == 6
            other = executor.submit(client.delete_trajectories, "games", TrajectoryFilter(trajectory_ids=("t9",)))
            until(lambda: client.server_info().tables["games"].num_trajectories == 5)
        assert (deleting.result(20), other.result(20)) == (9, 1)
        assert client.server_info().tables["games"].num_trajectories == 0
        assert not client.verify_table("games").problems


def test_a_deleted_table_is_gone_for_good(settings: ReplayServerSettings) -> None:
    """From memory, from Redis and from the next start; another one may take its name and begins empty."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        for name in ("games", "others"):
            client.create_table(table_config(name, capacity=20, selector="prioritized"))
            client.insert(name, [played(number) for number in range(3)])
            client.insert(name, [played(number) for number in range(3, 6)])
        keys = np.unique(client.sample("games", 64, {"action": 1}).keys)
        client.update_columns("games", keys, {"action": np.zeros(len(keys), np.uint16)})
        client.set_rate_limiter("games", RateLimiterConfig(min_size_to_sample=2))
        client.delete_table("games")
        for call in (lambda: client.sample("games", 1, {"action": 1}), lambda: client.delete_table("games")):
            with pytest.raises(ReplayError) as caught:
                call()
            assert caught.value.reason == "UNKNOWN_TABLE"
        assert held_keys(settings, "games") == []
        assert len(held_keys(settings, "others")) > 3
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert list(client.server_info().tables) == ["others"]
        assert client.create_table(table_config(capacity=50))
        assert client.insert("games", [played(0)]).stored == 1
        assert client.update_priorities("games", PriorityUpdates(keys, np.ones(len(keys), np.float32))).updated == 0


@pytest.mark.parametrize("end", ["delete_table", "reset_table"])
def test_an_end_that_is_asked_for_again_while_it_waits_comes_about_once(
    settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The first caller has gone away before its turn came: the second one finds the table as the first has left it."""
    under_way: list[str] = []
    change = Catalog._change
    monkeypatch.setattr(Catalog, "_change", lambda *a: (under_way.append(end), change(*a))[1])
    with ReplayServer(settings) as bound, ReplayClient(bound.address, repeat=False) as client:
        client.create_table(table_config())
        client.create_table(table_config("others"))
        client.insert("games", [played(1)])
        under_way.clear()
        with ThreadPoolExecutor(2) as threads:
            with held_writes() as came:
                insert = threads.submit(client.insert, "others", [played(0)])
                assert came.wait(10)
                with pytest.raises(ReplayTimeout):
                    getattr(client, end)("games", timeout=0.2)
                again = threads.submit(getattr(client, end), "games", timeout=20)
                until(lambda: len(under_way) == 2)
                with pytest.raises(ReplayTimeout):
                    client.insert("games", [played(2)], timeout=0.2)
            assert insert.result().stored == 1
        if end == "delete_table":
            assert isinstance(again.exception(), ReplayError)
        else:
            assert again.result() == 0
            assert client.insert("games", [played(3)]).stored == 1
            assert client.verify_table("games").problems == ()
        assert client.insert("others", [played(1)]).stored == 1


def test_what_cannot_be_allocated_leaves_nothing_in_redis(settings: ReplayServerSettings) -> None:
    """The config is refused, and the server starts again."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(table, "ColumnRings", no_memory)
            with pytest.raises(ReplayError, match="cannot be allocated") as caught:
                client.create_table(table_config())
        assert caught.value.reason == "BAD_CONFIG"
        many = tuple(ColumnSpec(f"c{i}", "int8") for i in range(257))
        with pytest.raises(ReplayError, match="at most 256"):
            client.create_table(table_config(signature=many))
        assert held_keys(settings, "games") == []
        with redis_client(settings) as store:
            assert store.hgetall("zero:tables") == {}


def no_memory(*_: object) -> None:
    raise MemoryError("none left")


def test_all_tables_together_fit_into_the_memory(settings: ReplayServerSettings) -> None:
    """Each may be small enough by itself; what a deleted one took is free again."""
    size = memory_of(table_config())
    with (
        ReplayServer(replace(settings, max_table_bytes=2 * size + 1)) as bound,
        ReplayClient(bound.address) as client,
    ):
        for name in ("a", "b"):
            assert client.create_table(table_config(name))
        with pytest.raises(ReplayError, match="all other tables take") as caught:
            client.create_table(table_config("c"))
        assert caught.value.reason == "BAD_CONFIG"
        client.delete_table("a")
        assert client.create_table(table_config("c"))


@pytest.mark.parametrize("end", ["delete", "reset"])
def test_calls_that_wait_for_a_table_that_ends_are_answered(settings: ReplayServerSettings, end: str) -> None:
    """Nothing hangs: a sample that waits for data is told that the table is gone, or waits on for the new data."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        outcomes: list[object] = []

        def wait() -> None:
            try:
                outcomes.append(client.sample("games", 1, {"action": 1}, timeout=20))
            except ReplayError as error:
                outcomes.append(error.reason)

        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: client.server_info().tables["games"].rate_limiter.waiting_samples == 1)
        if end == "delete":
            client.delete_table("games")
            waiting.join(10)
            assert outcomes == ["UNKNOWN_TABLE"]
        else:
            client.reset_table("games")
            client.insert("games", [played(1)])
            waiting.join(10)
            assert len(outcomes) == 1
            assert not isinstance(outcomes[0], str)


def test_other_limits_hold_after_a_restart(settings: ReplayServerSettings) -> None:
    """The config stays the one that the table was created with; what cannot work is refused."""
    config = table_config(rate_limiter=RateLimiterConfig(min_size_to_sample=500))
    limits = RateLimiterConfig(min_size_to_sample=3)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert("games", [played(1)])
        with pytest.raises(ReplayTimeout):
            client.sample("games", 1, {"action": 1}, timeout=0.1)
        with pytest.raises(ReplayError, match="exceeds capacity") as caught:
            client.set_rate_limiter("games", RateLimiterConfig(min_size_to_sample=1001))
        assert caught.value.reason == "BAD_CONFIG"
        client.set_rate_limiter("games", limits)
        assert client.create_table(config) is False
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        info = client.server_info().tables["games"]
        assert (info.rate_limiter.config, info.config) == (limits, config)
        assert len(client.sample("games", 1, {"action": 1}, timeout=5).keys) == 1


def test_the_ratio_of_samples_to_inserts_is_kept_over_a_restart(settings: ReplayServerSettings) -> None:
    """What was drawn too much before is drawn less afterwards."""
    limits = RateLimiterConfig(min_size_to_sample=5, samples_per_insert=2.0, error_buffer=12.0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(rate_limiter=limits))
        client.insert("games", [played(1)])
        client.sample("games", 12, {"action": 1})
        with pytest.raises(ReplayTimeout):
            client.sample("games", 1, {"action": 1}, timeout=0.1)
        before = client.server_info().tables["games"].rate_limiter
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.server_info().tables["games"].rate_limiter == before
        with pytest.raises(ReplayTimeout):
            client.sample("games", 1, {"action": 1}, timeout=0.1)
        client.insert("games", [played(2)])
        assert len(client.sample("games", 10, {"action": 1}, timeout=5).keys) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selector": "best"}, "uniform, prioritized"),
        ({"remover": "worst"}, "fifo, lifo"),
        ({"capacity": 2**30}, "GiB"),
    ],
)
def test_a_table_that_cannot_be_is_refused(client: ReplayClient, changes: dict[str, object], words: str) -> None:
    """BAD_CONFIG, with what there is instead."""
    with pytest.raises(ReplayError, match=words) as caught:
        client.create_table(table_config("impossible", **changes))
    assert caught.value.reason == "BAD_CONFIG"


def test_the_number_of_tables_is_bounded(settings: ReplayServerSettings) -> None:
    """The one too many is refused with BAD_CONFIG until another goes; what exists is confirmed all the same."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        configs = [table_config(f"t{n}", capacity=10, durability=Durability.MEMORY) for n in range(65)]
        for config in configs[:64]:
            assert client.create_table(config)
        with pytest.raises(ReplayError, match="64 tables and at most 64") as caught:
            client.create_table(configs[64])
        assert caught.value.reason == "BAD_CONFIG"
        assert not client.create_table(configs[0])
        client.delete_table("t0")
        assert client.create_table(configs[64])


def test_a_start_says_how_far_it_is(settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the log is loaded, GetServerInfo counts its entries; other calls are refused."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        for number in range(5):
            client.insert("games", [played(number)])
    held_up, go_on = threading.Event(), threading.Event()
    restore = recovery._restore

    def restore_and_wait(table: Table, *arguments: object) -> None:
        restore(table, *arguments)
        if table.num_trajectories == 3:
            held_up.set()
            assert go_on.wait(20)

    monkeypatch.setattr(recovery, "_GROUP_BYTES", 1)
    monkeypatch.setattr(recovery, "_restore", restore_and_wait)
    server = ReplayServer(replace(settings, port=int(bound.address.rpartition(":")[2])))
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        assert held_up.wait(20)
        with ReplayClient(bound.address) as client:
            assert client.server_info().recovery == RecoveryProgress("games", 2, 5)
            with pytest.raises(ReplayTimeout) as caught:
                client.insert("games", [played(9)], timeout=0.1)
            assert caught.value.reason == "RECOVERING"
            go_on.set()
            starting.join()
            assert client.server_info().recovery is None
    finally:
        go_on.set()
        starting.join()
        server.stop()


def test_a_stop_does_not_wait_for_the_loading(settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the log is left alone, everything is there at the next start."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        for number in range(5):
            client.insert("games", [played(number)])
    stop, gives_up, restored = threading.Event(), threading.Event(), []
    restore, give_up = recovery._restore, Catalog.give_up_recovery

    def restore_and_wait(*arguments: object) -> None:
        restore(*arguments)
        restored.append(arguments)
        stop.set()
        assert gives_up.wait(20)

    def note_and_give_up(catalog: Catalog) -> None:
        give_up(catalog)
        gives_up.set()

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "_GROUP_BYTES", 1)
        patch.setattr(recovery, "_restore", restore_and_wait)
        patch.setattr(Catalog, "give_up_recovery", note_and_give_up)
        run_replay_server(settings, stop)
    assert len(restored) == 1
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.server_info().tables["games"].num_trajectories == 5


def test_fsync_is_promised_only_where_redis_gives_it(settings: ReplayServerSettings, tmp_path: Path) -> None:
    """Redis changes its policy at run time: tables of that kind are not created, inserts into them refused."""
    config = table_config(durability=Durability.FSYNC)
    with ReplayServer(settings):
        url = f"unix://{settings.data_dir / 'redis' / 'redis.sock'}"
        other = ReplayServerSettings(tmp_path, redis_url=url, redis_prefix="other", priority_save_seconds=0.05)
        with ReplayServer(other) as bound, ReplayClient(bound.address) as client, redis_client(settings) as store:
            assert client.create_table(config)
            assert client.insert("games", [played(1)]).stored == 1
            for setting, weaker, full in (
                ("appendfsync", "everysec", "always"),
                ("no-appendfsync-on-rewrite", "yes", "no"),
                ("appendonly", "no", "yes"),
            ):
                store.config_set(setting, weaker)
                until(lambda: refusal_of(client) == "NOT_DURABLE")
                with pytest.raises(ReplayError) as caught:
                    client.insert("games", [played(1)])
                assert caught.value.reason == "NOT_DURABLE", "not even what is known already"
                with pytest.raises(ReplayError) as caught:
                    client.create_table(replace(config, name="more"))
                assert caught.value.reason == "NOT_DURABLE"
                store.config_set(setting, full)
                until(lambda: refusal_of(client) == "")


def refusal_of(client: ReplayClient) -> str:
    """Why an insert is refused; empty if it is not."""
    try:
        client.insert("games", [played(next(_numbers))], timeout=5)
    except ReplayError as error:
        return error.reason
    return ""


@pytest.mark.parametrize(
    ("instead", "words"), [(b"uniqorn", "'uniqorn' is not known"), (b"\xff\xff\xff\xff\xff\xff\xff", "another version")]
)
def test_a_table_of_another_version_is_refused_at_the_start(
    settings: ReplayServerSettings, instead: bytes, words: str
) -> None:
    """A strategy that is not known is named; a config that cannot be read is no riddle either."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        with redis_client(settings) as store:
            value = store.hget("zero:tables", "games")
            store.hset("zero:tables", "games", value.replace(b"uniform", instead))
    with pytest.raises(ReplayServerError, match=words) as caught:
        ReplayServer(settings).start()
    assert "table 'games'" in str(caught.value)
    assert "\n" not in str(caught.value)
