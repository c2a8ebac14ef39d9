"""A Redis that forgets, and two servers on one: nothing acknowledged by a living server is lost, nobody fights."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.connection import Connection

from replay_server import write_chain
from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.embedded_redis import find_redis_server
from replay_server.errors import TakenOverError
from replay_server.server import ReplayServer, ReplayServerError, ReplayServerSettings, run_replay_server
from replay_server.write_chain import Command, NotLastWrite, WriteChain, WriteInDoubtError
from tests.replay_server.held import all_steps, trajectories, until
from tests.replay_server.played import played, table_config
from zero.tables import RateLimiterConfig
from zero.trajectories import PriorityUpdates, TrajectoryFilter

pytestmark = pytest.mark.slow


class ForgetfulRedis:
    """A redis-server without an append-only file: killed, it comes back with its last snapshot or with nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = folder / "forgetful.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *(find_redis_server(), "--port", "0", "--unixsocket", str(self.socket)),
                *("--dir", str(self._folder), "--save", "", "--appendonly", "no"),
            ],
            stdout=subprocess.DEVNULL,
        )
        until(self._answers)

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return client.ping()
            except (redis.ConnectionError, redis.BusyLoadingError):
                return False

    def client(self) -> redis.Redis:
        """A client."""
        return redis.Redis(unix_socket_path=str(self.socket))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[ForgetfulRedis]:
    """Running."""
    server = ForgetfulRedis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def settings(settings: ReplayServerSettings, forgetful: ForgetfulRedis) -> ReplayServerSettings:
    """Of servers on the forgetful Redis, which look after it and save priorities often."""
    return replace(
        settings, redis_url=f"unix://{forgetful.socket}", redis_timeout_seconds=2.0, priority_save_seconds=0.05
    )


@pytest.mark.parametrize("comes_back", ["empty", "behind"])
def test_what_redis_has_lost_it_gets_again(
    settings: ReplayServerSettings, forgetful: ForgetfulRedis, comes_back: str
) -> None:
    """Restarted without its data between two inserts: table, trajectories, evicted ids and weights survive the server.

    So do what is inserted afterwards, contents, keys, priorities and counts.
    """
    config = table_config(capacity=60, selector="prioritized", priority_exponent=1.0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.publish_weights(b"weights", 7)
        for number in range(0, 8, 2):
            client.insert("games", [played(number), played(number + 1)])
        if comes_back == "behind":
            with forgetful.client() as store:
                store.save()
        for number in range(8, 14):
            client.insert("games", [played(number)])
        keys = np.unique(client.sample("games", 2000, {"action": 1}).keys)
        client.update_priorities("games", PriorityUpdates(keys, np.arange(1, len(keys) + 1, dtype=np.float32)))
        forgetful.restart()
        for number in range(14, 18):
            client.insert("games", [played(number)], timeout=30)
        before, held = all_steps(client), trajectories(client)
        info = client.server_info().tables["games"]
    for _ in range(2):
        with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
            assert client.create_table(config) is False
            assert client.server_info().tables["games"] == info
            assert all_steps(client) == before
            assert trajectories(client) == held, "all of it: who played, seeds, stats"
            assert client.verify_table("games").problems == ()
            info = client.server_info().tables["games"]
            for start in (0, 9):  # evicted ones, and stored ones
                assert client.insert("games", [played(start + i) for i in range(9)]).duplicates == 9
            with pytest.raises(ReplayError):
                client.insert("games", [replace(played(13), episode_seed=99)])
            weights = client.get_weights(0)
            assert (weights.version, weights.training_step, weights.payload) == (1, 7, b"weights")
    with forgetful.client() as store:
        assert store.xlen("zero:log:games") <= 12, "trimmed"


def test_a_redis_that_is_behind_gets_all_changes_again(
    settings: ReplayServerSettings, forgetful: ForgetfulRedis
) -> None:
    """Deleted trajectories do not rise again, replaced values and limits are kept, tables that ended stay away."""
    config = table_config(remover="random")
    limits = RateLimiterConfig(min_size_to_sample=2)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        for name in ("games", "ended", "emptied"):
            client.create_table(replace(config, name=name))
            client.insert(name, [played(number) for number in range(4)])
        client.insert("games", [played(4)])
        with forgetful.client() as store:
            store.save()
        client.delete_trajectories("games", TrajectoryFilter(trajectory_ids=("t1", "t4")))
        keys = np.unique(client.sample("games", 2000, {"action": 1}).keys)
        client.update_columns("games", keys, {"action": np.arange(len(keys), dtype=np.uint16)})
        client.insert("games", [replace(played(5), terminated=False, open=True), played(6)])
        client.set_rate_limiter("games", limits)
        client.delete_table("ended")
        client.reset_table("emptied")
        client.insert("emptied", [played(2)])
        forgetful.restart()
        rest = replace(played(5), first_step=5)
        assert client.insert("games", [rest], timeout=30).stored == 1
        held, emptied = trajectories(client), trajectories(client, "emptied")
        for name in ("games", "emptied"):
            assert client.verify_table(name).problems == ()
        info = client.server_info()
        assert info.tables["games"].updated_steps == len(keys)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert (trajectories(client), trajectories(client, "emptied")) == (held, emptied)
        # Updates are counted since the server began.
        games = replace(info.tables["games"], updated_steps=0)
        assert client.server_info() == replace(info, tables=info.tables | {"games": games})
        assert client.insert("games", [played(number) for number in range(5)]).duplicates == 5
        assert client.create_table(replace(config, name="ended"))
        assert client.insert("ended", [played(0)]).stored == 1
        for name in ("games", "emptied", "ended"):
            assert client.verify_table(name).problems == ()


def test_an_idle_server_notices_that_redis_is_empty(settings: ReplayServerSettings, forgetful: ForgetfulRedis) -> None:
    """Without any insert Redis has everything again soon, saved priorities too."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(selector="prioritized"))
        client.insert("games", [played(0)])
        for restart in (False, True):
            if restart:
                forgetful.restart()
            with forgetful.client() as store:
                until(lambda: store.xlen("zero:log:games") == 1 and store.hlen("zero:tables") == 1)
                until(lambda: bool(store.exists("zero:priorities:games:state")))


def test_a_chunk_given_back_keeps_the_weights_that_played_it(
    settings: ReplayServerSettings, forgetful: ForgetfulRedis
) -> None:
    """A game that goes on with newer weights says so of its later steps, also after Redis has lost it."""
    whole = played(1, 4)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        for i, version in enumerate((5, 7)):
            columns = {name: column[2 * i : 2 * i + 2] for name, column in whole.columns.items()}
            part = replace(whole, columns=columns, first_step=2 * i, open=not i, terminated=bool(i))
            client.insert("games", [replace(part, weights_version=version)])
        held = all_steps(client)
        assert {version for *_, version in held.values()} == {5, 7}
        forgetful.restart()
        client.insert("games", [played(2)], timeout=30)
        held = all_steps(client)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert all_steps(client) == held


@pytest.mark.parametrize("written", [True, False])
def test_writing_again_may_be_broken_off(
    settings: ReplayServerSettings, forgetful: ForgetfulRedis, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """A connection lost in the middle, before or after Redis took a part: each trajectory is in the log once."""
    monkeypatch.setattr("replay_server.rewriting._ENTRY_BYTES", 1)
    send = write_chain._send
    adds = 0

    def break_off_the_third(connection: Connection, commands: Sequence[Command]) -> list[object]:
        nonlocal adds
        adds += any(command[0] == "XADD" for command in commands)
        if adds != 3:
            return send(connection, commands)
        adds += 1
        if written:
            send(connection, commands)
        connection.disconnect()
        raise WriteInDoubtError("lost")

    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(number) for number in range(5)])
        monkeypatch.setattr(write_chain, "_send", break_off_the_third)
        forgetful.restart()
        assert client.insert("games", [played(5)], timeout=30).stored == 1
        assert adds > 5
        before = all_steps(client)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert all_steps(client) == before
        assert client.insert("games", [played(number) for number in range(6)]).duplicates == 6
        assert client.server_info().tables["games"].inserted_trajectories == 6
        assert client.verify_table("games").problems == ()


def test_the_second_server_takes_over_and_the_first_one_ends(settings: ReplayServerSettings) -> None:
    """Under one prefix the later one stays; the earlier one acknowledges nothing more, says why and ends."""
    reasons: list[str] = []

    def run_first() -> None:
        try:
            run_replay_server(replace(settings, priority_save_seconds=60.0), threading.Event(), bound_to.append)
        except ReplayServerError as error:
            reasons.append(str(error))

    bound_to: list[object] = []
    first = threading.Thread(target=run_first)
    first.start()
    until(lambda: bool(bound_to))
    with ReplayClient(bound_to[0].address) as client:
        client.create_table(table_config())
        client.insert("games", [played(0)])
        client.publish_weights(b"first", 1)
        with ReplayServer(settings) as later, ReplayClient(later.address) as later_client:
            assert later_client.insert("games", [played(0), played(1)]).duplicates == 1
            assert later_client.publish_weights(b"second", 2) == 2
            with pytest.raises(ReplayTimeout):
                client.publish_weights(b"third", 3, timeout=0.5)
            with pytest.raises(ReplayTimeout):
                client.insert("games", [played(2)], timeout=0.5)
            first.join(20)
            assert not first.is_alive()
            assert reasons
            assert "another replay server has taken over" in reasons[0]
            assert "\n" not in reasons[0]
            assert later_client.insert("games", [played(0), played(1), played(2)]).duplicates == 2
            assert later_client.get_weights(0).payload == b"second"
            assert later_client.server_info().tables["games"].insert_blocked_because == ""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.insert("games", [played(0), played(1), played(2)]).duplicates == 3
        assert client.get_weights(0).payload == b"second"


SERVE = """
import sys, threading
from pathlib import Path
from replay_server.server import ReplayServerSettings, run_replay_server
settings = ReplayServerSettings(Path(sys.argv[1]), redis_url=sys.argv[2])
run_replay_server(settings, threading.Event(), lambda addresses: print(addresses.address, flush=True))
"""


def test_a_restarted_server_takes_over_from_a_killed_one(settings: ReplayServerSettings) -> None:
    """Nobody else lives under the prefix, whatever the dead one left there."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(settings.data_dir), settings.redis_url], stdout=subprocess.PIPE, text=True
    )
    try:
        with ReplayClient(process.stdout.readline().strip()) as client:
            client.create_table(table_config())
            client.insert("games", [played(0)])
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.insert("games", [played(0), played(1)]).stored == 1


def test_the_chain_tells_a_loss_from_another_server(forgetful: ForgetfulRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older link is a loss, a newer epoch another server, also on an empty Redis and with a clock set back."""
    with forgetful.client() as client:
        ours = WriteChain("zero")
        ours.begin(client)
        ours.write([("SET", "a", 1)])
        snapshot = client.get("zero:last_write")
        ours.write([("SET", "a", 2)])
        for state in (snapshot, None):
            client.set("zero:last_write", state) if state else client.delete("zero:last_write")
            with pytest.raises(NotLastWrite):
                ours.check(client)
            with pytest.raises(NotLastWrite):
                ours.write([("SET", "a", 3)])
            with pytest.raises(redis.RedisError):
                ours.write([("SET", "a", 3)])
            assert client.get("a") == b"2"
            ours.resume(client)
            assert ours.has_lost
            ours.has_lost = False
            ours.check(client)
        client.flushall()
        until(lambda: time.time_ns() // 10**6 > ours._epoch)  # another server begins later
        WriteChain("zero").begin(client)
        with pytest.raises(TakenOverError):
            ours.resume(client)
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        theirs = WriteChain("zero")
        theirs.begin(client)
        theirs.write([])
        with pytest.raises(TakenOverError):
            ours.resume(client)
