"""What happens to stored steps after they were inserted survives: removed, replaced, continued, drawn up."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from replay_server import redis_log
from replay_server.answers import InsertResult, ReplayError
from replay_server.block import Block, Record
from replay_server.client import ReplayClient
from replay_server.column_log import ColumnLog
from replay_server.redis_log import RedisLog
from replay_server.server import ReplayServer, ReplayServerSettings
from replay_server.stored import Removed
from replay_server.table import Placement, Table
from tests.replay_server.held import all_steps, trajectories
from tests.replay_server.killable import KillableServer, killable_server
from tests.replay_server.played import played, table_config
from zero.tables import TableConfig
from zero.trajectories import PriorityUpdates, Trajectory, TrajectoryFilter

pytestmark = pytest.mark.slow


def redis_client(data_dir: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(data_dir / "redis" / "redis.sock"))


def chunks(number: int, *lengths: int) -> list[Trajectory]:
    """Trajectory `number` in chunks of these lengths, the last one closed."""
    whole = played(number, sum(lengths))
    parts: list[Trajectory] = []
    start = 0
    for i, length in enumerate(lengths):
        last = i == len(lengths) - 1
        columns = {name: column[start : start + length] for name, column in whole.columns.items()}
        parts.append(replace(whole, columns=columns, first_step=start, open=not last, terminated=last))
        start += length
    return parts


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KillableServer]:
    """In a process of its own."""
    with killable_server(tmp_path) as server:
        yield server


def restart(server: KillableServer) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("remover", ["fifo", "lifo", "random", "min_heap"])
def test_any_order_of_eviction_survives_a_kill(server: KillableServer, tmp_path: Path, remover: str) -> None:
    """Same steps under the same keys, same ids known, same counts; the log does not grow beyond what is stored."""
    config = table_config(capacity=60, remover=remover, selector="prioritized")
    rng = np.random.default_rng(0)
    number = 0
    with ReplayClient(server.address) as client:
        client.create_table(config)
    for _ in range(2):
        with ReplayClient(server.address) as client:
            for _ in range(25):
                call = [played(number + i, int(rng.integers(1, 9))) for i in range(int(rng.integers(1, 5)))]
                number += len(call)
                client.insert("games", call)
            held, info = trajectories(client), client.server_info().tables["games"]
            steps = {key: seen for key, (seen, *_) in all_steps(client).items()}
        restart(server)
        with ReplayClient(server.address) as client:
            assert trajectories(client) == held
            assert {key: seen for key, (seen, *_) in all_steps(client).items()} == steps
            now = client.server_info().tables["games"]
            for name in ("num_steps", "num_items", "inserted_steps", "inserted_trajectories", "removed_trajectories"):
                assert getattr(now, name) == getattr(info, name), name
            assert client.verify_table("games").problems == ()
            known = [replace(played(one), episode_seed=-1 % 2**64) for one in range(number)]
            for one in known:
                with pytest.raises(ReplayError, match="known with other content"):
                    client.insert("games", [one])
            with redis_client(tmp_path) as store:
                logged = sum(fields[b"m"].count(b"actor-0") for _, fields in store.xrange("zero:log:games"))
                assert logged <= len(held) + (3 if remover == "fifo" else 0), "what is gone is gone from the log"


def test_a_deletion_survives_a_kill(server: KillableServer) -> None:
    """As soon as it is acknowledged; what was deleted stays known."""
    with ReplayClient(server.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(number) for number in range(6)])
        client.insert("games", [played(6)])
        assert client.delete_trajectories("games", TrajectoryFilter(trajectory_ids=("t1", "t4", "t6"))) == 3
        held = trajectories(client)
    restart(server)
    with ReplayClient(server.address) as client:
        assert trajectories(client) == held
        assert client.insert("games", [played(number) for number in range(7)]) == InsertResult(0, 7)
        assert client.delete_trajectories("games", TrajectoryFilter(actor_id="actor-0")) == 4
    restart(server)
    with ReplayClient(server.address) as client:
        info = client.server_info().tables["games"]
        assert (info.num_steps, info.inserted_trajectories, info.removed_trajectories) == (0, 7, 7)
        assert client.insert("games", [played(3)]).duplicates == 1
        assert client.insert("games", [played(7)]).stored == 1


def test_an_open_trajectory_goes_on_after_a_kill(server: KillableServer) -> None:
    """Chunks before and after make one trajectory; a chunk again is a duplicate, a gap is refused."""
    first, second, third = chunks(1, 3, 4, 2)
    with ReplayClient(server.address) as client:
        client.create_table(table_config())
        client.insert("games", [first])
        client.insert("games", [played(2)])
    restart(server)
    with ReplayClient(server.address) as client:
        with pytest.raises(ReplayError) as caught:
            client.insert("games", [third])
        assert caught.value.reason == "MISSING_CHUNK"
        assert client.insert("games", [first, second]) == InsertResult(1, 1)
    restart(server)
    with ReplayClient(server.address) as client:
        assert client.insert("games", [second, third]) == InsertResult(1, 1)
        held = trajectories(client)
        assert [(one[0], one[6]) for one in held] == [("t1", False), ("t2", False)]
        steps = {key: seen for key, (seen, *_) in all_steps(client).items()}
    restart(server)
    with ReplayClient(server.address) as client:
        assert trajectories(client) == held
        assert {key: seen for key, (seen, *_) in all_steps(client).items()} == steps
        assert client.verify_table("games").problems == ()


def test_a_trajectory_whose_beginning_was_evicted_goes_on_after_a_kill(server: KillableServer) -> None:
    """Its first chunks stay known, its last ones stored."""
    first, second, third = chunks(1, 6, 6, 6)
    with ReplayClient(server.address) as client:
        client.create_table(table_config(capacity=15))
        client.insert("games", [first])
        client.insert("games", [played(2, 12)])
        assert client.insert("games", [second]).stored == 1
        held = trajectories(client)
    restart(server)
    with ReplayClient(server.address) as client:
        assert trajectories(client) == held
        assert client.insert("games", [first, second]) == InsertResult(0, 2)
        assert client.insert("games", [third]).stored == 1


def test_replaced_values_survive_a_kill(server: KillableServer) -> None:
    """The newest ones, of every step that is still there; those of a step that is gone never reach its successor."""
    with ReplayClient(server.address) as client:
        client.create_table(table_config(capacity=20))
        client.insert("games", [played(number) for number in range(4)])
        keys = np.unique(client.sample("games", 400, {"action": 1}).keys)
        assert len(keys) == 20
        for value in (7, 8):
            rewards = np.arange(20, dtype=np.float32) + 100 * value
            assert client.update_columns("games", keys, {"reward": rewards}).updated == 20
        observations = np.full((10, 2, 3), 9, np.uint8)
        assert client.update_columns("games", keys[::2], {"observation": observations}).updated == 10
        client.insert("games", [played(4, 7)])  # evicts two trajectories
        result = client.update_columns("games", keys, {"action": np.full(20, 5, np.uint16)})
        assert (result.updated, result.evicted) == (10, 10)
        held = all_steps(client)
    for _ in range(2):
        restart(server)
        with ReplayClient(server.address) as client:
            assert all_steps(client) == held
            assert client.verify_table("games").problems == ()
            rewards = {
                key: float(reward[0])
                for batch in (client.sample("games", 400, {"reward": 1}),)
                for key, reward in zip(batch.keys.tolist(), batch.columns["reward"], strict=True)
            }
            assert {rewards[key] for key in keys[10:].tolist()} == {810.0 + i for i in range(10)}
            assert {reward for key, reward in rewards.items() if key not in keys} == {
                np.float32(4 + i / 1000) for i in range(7)
            }


def test_saved_priorities_are_not_those_of_later_steps(settings: ReplayServerSettings) -> None:
    """Killed before the next saving: what took the place of evicted steps has the highest priority, not theirs."""
    config = table_config(capacity=10, selector="prioritized", priority_exponent=1.0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert("games", [played(0), played(1)])
        keys = np.unique(client.sample("games", 200, {"action": 1}).keys)
        client.update_priorities("games", PriorityUpdates(keys, np.full(10, 0.25, np.float32)))
    with killable_server(settings.data_dir) as server, ReplayClient(server.address) as client:
        client.insert("games", [played(2)])
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        batch = client.sample("games", 200, {"reward": 1})
        found = {
            (key in keys, round(probability, 6))
            for key, probability in zip(batch.keys.tolist(), batch.probabilities.tolist(), strict=True)
        }
        assert found == {(True, 0.04), (False, 0.16)}


def test_wide_tables_and_scattered_keys_are_replaced_page_by_page(settings: ReplayServerSettings) -> None:
    """Rows beyond a page, in any order of keys, several columns at once."""
    config = table_config(capacity=40_000)
    rng = np.random.default_rng(0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert("games", [played(number, 10_000) for number in range(4)])
        keys = rng.permutation(np.unique(client.sample("games", 3000, {"action": 1}).keys))
        actions = rng.integers(0, 2**16, len(keys)).astype(np.uint16)
        policies = rng.random((len(keys), 4)).astype(np.float16)
        updated = client.update_columns("games", keys, {"action": actions, "policy": policies})
        assert updated.updated == len(keys)
        held = trajectories(client)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert trajectories(client) == held
        assert client.verify_table("games").problems == ()


def test_many_scattered_values_go_out_in_pieces_beside_the_calls(
    settings: ReplayServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of Redis makes their commands, some thousand at a time: inserts get their turn in between."""
    pieces: list[tuple[str, int]] = []
    commands = ColumnLog.commands

    def make(log: ColumnLog, slots: np.ndarray, *others: object) -> object:
        pieces.append((threading.current_thread().name, len(slots)))
        return commands(log, slots, *others)

    monkeypatch.setattr(ColumnLog, "commands", make)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(capacity=20_000))
        client.insert("games", [played(1, 20_000)])
        first = int(client.sample("games", 1, {"action": 1}).keys[0]) & ~0xFFFFFFFF
        keys = np.arange(0, 20_000, 2, dtype=np.uint64)[::-1] | np.uint64(first)
        values = np.arange(10_000)
        changed = {"action": values.astype(np.uint16), "reward": values.astype(np.float32)}
        assert client.update_columns("games", keys, changed).updated == 10_000
        assert sum(number for _, number in pieces) == 10_000
        assert max(number for _, number in pieces) <= 2048
        assert {name.rpartition("_")[0] for name, _ in pieces} == {"replay-redis"}
        held = trajectories(client)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert trajectories(client) == held
        (whole,) = client.read_trajectories("games")
        np.testing.assert_array_equal(whole.columns["reward"][::2], values[::-1])


def test_values_may_be_replaced_while_others_are_given_back() -> None:
    """What Redis gets again is settled in the beginning: another column that is replaced meanwhile changes nothing."""
    config = table_config(capacity=10_000)
    table = Table(config, np.random.default_rng(0))
    log, slots = ColumnLog(RedisLog("zero"), config), np.arange(9000)
    table.restore(*stored_block(9000))
    log.note(slots, ["action"])
    writes = log.rewrite_commands(table)
    first = next(writes)
    log.note(slots[:1], ["reward"])
    assert [first, *writes][-1][-1][1] == "zero:column:games:0:action"


def stored_block(num_steps: int) -> tuple[Block, Placement, list[str]]:
    """What `restore` takes: one trajectory in the first slots."""
    one = played(1, num_steps)
    record = Record("t1", bytes(16), num_steps, 0, False, "actor-0", 1, 1, True, False, (), None)
    return (
        Block([record], list(one.columns.values()), b""),
        Placement(0, np.arange(num_steps, dtype=np.int32), 0.0),
        ["1-1"],
    )


def test_no_more_removed_ones_are_written_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of them."""
    monkeypatch.setattr(redis_log, "KNOWN_REMOVED", 3)
    removed = [Removed(f"t{number}", (), open=False) for number in range(10)]
    push, trim = RedisLog("zero").evicted_commands("games", removed)
    assert [value[-2:] for value in push[2:]] == [b"t7", b"t8", b"t9"]
    assert trim == ("LTRIM", "zero:evicted:games", -3, -1)


def test_what_was_drawn_up_stays_gone(settings: ReplayServerSettings) -> None:
    """A queue hands out nothing twice over a restart."""
    config = TableConfig.queue("games", table_config().signature, 10, 100)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert("games", [played(number) for number in range(6)])
        first = client.sample("games", 4, {"reward": 1}).columns["reward"][:, 0].tolist()
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        rest = client.sample("games", 2, {"reward": 1}).columns["reward"][:, 0].tolist()
        assert (first, rest) == ([0.0, 1.0, 2.0, 3.0], [4.0, 5.0])


def test_into_several_tables_or_into_none(server: KillableServer, tmp_path: Path) -> None:
    """One write for all: after any kill they hold the same."""
    names = ("a", "b", "c")
    with ReplayClient(server.address) as client:
        for name in names:
            client.create_table(table_config(name))
        client.insert("a", [played(0)])
        assert client.insert(names, [played(0), played(1)]) == InsertResult(5, 1)
        os.kill(int((tmp_path / "redis" / "redis.pid").read_text()), signal.SIGKILL)
        client.insert(names, [played(2)], timeout=30)
    restart(server)
    with ReplayClient(server.address) as client:
        assert [len(trajectories(client, name)) for name in names] == [3, 3, 3]
        assert client.insert(names, [played(number) for number in range(3)]) == InsertResult(0, 9)


def test_a_check_finds_what_the_log_lacks(settings: ReplayServerSettings) -> None:
    """An entry that is gone, one that memory does not know, values that differ: one line each, and no false alarm."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(capacity=30))
        for number in range(0, 8, 2):
            client.insert("games", [played(number), played(number + 1)])
        found = client.verify_table("games")
        assert (found.entries, found.chunks, found.problems) == (3, 6, ())
        assert found.num_bytes > 6 * 5 * 20
        with redis_client(settings.data_dir) as store:
            entries = store.xrange("zero:log:games")
            store.xdel("zero:log:games", entries[1][0])
            store.xadd("zero:log:games", entries[0][1])
        problems = client.verify_table("games").problems
        assert sorted(line.split(":")[0] for line in problems if "is not in the log" in line) == [
            "trajectory 't4'",
            "trajectory 't5'",
        ]
        assert sum("something else in its place" in line or "does not have it" in line for line in problems) == 2
        assert len(problems) == 4
