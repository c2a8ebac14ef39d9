"""Many clients at once: a crowd of actors is served without errors, starvation or growing memory; files suffice."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from actors.weights_client import MAX_POLL_SECONDS, POLL_SECONDS, poll_pause
from replay_server.answers import InsertResult
from replay_server.client import ReplayClient
from replay_server.event_sender import MAX_INTERVAL_SECONDS, SEND_INTERVAL_SECONDS, send_pause
from replay_server.server import BoundAddresses
from replay_server.trajectory_buffer import CALLS_IN_FLIGHT, TrajectoryInlet
from tests.crowd import CrowdSettings, run_crowd
from tests.procfs import resident_bytes
from tests.replay_server.held import until
from tests.replay_server.killable import KillableServer, killable_server
from tests.replay_server.played import played, table_config
from zero.config import ExperimentConfig
from zero.events import events_table
from zero.games.registry import make_game
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.tables import RateLimiterConfig, TableConfig
from zero.trajectories import Trajectory
from zero.wire.codec import CodecError

_ACTORS = 150
_SECONDS = 10.0
_CONNECT_SECONDS = 5.0
_MIB = 1 << 20


@pytest.mark.slow
def test_a_crowd_of_actors_is_served_alike(tmp_path: Path) -> None:
    """Flat out: no error, every game stored once, nobody starved, memory bounded, the newest weights with everybody."""
    config = ExperimentConfig(name="crowd")
    table = self_play_table(config, make_game(config.game.name, config.game.options))
    with killable_server(tmp_path) as server, ReplayClient(server.address) as client, ThreadPoolExecutor(1) as thread:
        client.create_table(table)
        client.set_rate_limiter(TABLE_NAME, RateLimiterConfig())
        client.create_table(events_table())
        starts_at = time.monotonic() + _CONNECT_SECONDS
        settings = CrowdSettings(server.address, range(_ACTORS), 40, 0.0, starts_at, starts_at + _SECONDS)
        running = thread.submit(run_crowd, settings)
        client.publish_weights(np.random.default_rng(0).bytes(3 * _MIB), 1)
        time.sleep(max(starts_at + 0.4 * _SECONDS - time.monotonic(), 0))
        resident = resident_bytes(server.pid)
        newest = client.publish_weights(np.random.default_rng(1).bytes(3 * _MIB), 2)
        logs = running.result()
        # What grows meanwhile is the table, which is not full yet, and one answer to each who fetches the weights.
        assert resident_bytes(server.pid) - resident < table.capacity * 1000 + _ACTORS * _MIB / 2
        assert [error for log in logs for error in log.errors] == []
        acknowledged = [log.acknowledged for log in logs]
        assert min(acknowledged) > 0.3 * np.median(acknowledged) > 0
        assert client.server_info().tables[TABLE_NAME].inserted_trajectories == sum(acknowledged)
        assert {max(log.arrivals) for log in logs} == {newest}


@pytest.fixture
def few_files() -> Iterator[None]:
    """As a shell that allows only a few open files to begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(sys.platform == "darwin", reason="a hard limit may be none there")
def test_a_low_limit_of_open_files_is_raised(tmp_path: Path, few_files: None) -> None:
    """A server that may open 256 files to begin with, and more if it asks, serves 300 connections at once."""
    server = KillableServer(tmp_path)
    try:
        server.start()
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        with ExitStack() as stack:
            clients = [stack.enter_context(ReplayClient(server.address)) for _ in range(300)]
            clients[0].create_table(table_config())
            for number, client in enumerate(clients):
                assert client.insert("games", [played(number, 1)], timeout=20).stored == 1
    finally:
        server.kill()


def test_a_slow_server_is_asked_less_often() -> None:
    """The longer an answer takes the longer the pause until the next question, within bounds."""
    assert poll_pause(0.0) == POLL_SECONDS < poll_pause(0.02) < poll_pause(0.04) < poll_pause(60) == MAX_POLL_SECONDS
    assert send_pause(0.0) == SEND_INTERVAL_SECONDS < send_pause(0.04) < send_pause(9) == MAX_INTERVAL_SECONDS


class HeldClient(ReplayClient):
    """Holds inserts until they are let go, and notes what each brings."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.sizes: list[int] = []
        self.let_go = Event()

    def insert(self, table: str, trajectories: Sequence[Trajectory], timeout: float = 60.0) -> InsertResult:
        """Held, then as in the base class."""
        self.sizes.append(len(trajectories))
        assert self.let_go.wait(60)
        return super().insert(table, trajectories, timeout)


def test_what_waits_goes_together(addresses: BoundAddresses, make_table: Callable[..., TableConfig]) -> None:
    """While calls are on their way further trajectories fill the next one; few may wait, and all are stored."""
    table = make_table()
    with HeldClient(addresses.address) as client, ThreadPoolExecutor(1) as thread:
        inlet = TrajectoryInlet(client, table.name, 8, Event())
        for number in range(8):
            inlet.put(played(number), 0.0)
            while number < CALLS_IN_FLIGHT and len(client.sizes) <= number:
                time.sleep(0.001)
        one_more = thread.submit(inlet.put, played(8), 0.0)
        assert not wait([one_more], 0.2).done
        client.let_go.set()
        one_more.result(20)
        inlet.close()
        assert sum(client.sizes) == 9
        assert client.sizes[: CALLS_IN_FLIGHT + 1] == [1] * CALLS_IN_FLIGHT + [8 - CALLS_IN_FLIGHT]
        assert client.server_info().tables[table.name].inserted_trajectories == 9


class SlowToEnd(TrajectoryInlet):
    """Its senders take long to end once they have found nothing to send."""

    def __init__(self, client: ReplayClient, table: str) -> None:
        super().__init__(client, table, 8, Event())
        self.may_end = Event()
        self.num_ending = 0

    def _take_or_end(self) -> list[Trajectory]:
        taken = super()._take_or_end()
        if not taken:
            self.num_ending += 1
            assert self.may_end.wait(20)
        return taken


def test_what_is_collected_while_senders_end_is_sent(
    addresses: BoundAddresses, make_table: Callable[..., TableConfig]
) -> None:
    """Nothing waits for the next trajectory, which may never come."""
    table = make_table()
    with ReplayClient(addresses.address) as client:
        inlet = SlowToEnd(client, table.name)
        for number in range(CALLS_IN_FLIGHT):
            inlet.put(played(number), 0.0)
            until(lambda ending=number + 1: inlet.num_ending == ending)
        inlet.put(played(CALLS_IN_FLIGHT), 0.0)
        inlet.may_end.set()
        until(lambda: inlet.counts().waiting == 0)
        inlet.close()
        assert client.server_info().tables[table.name].inserted_trajectories == CALLS_IN_FLIGHT + 1


def test_what_cannot_be_sent_is_an_error_and_the_others_are_stored(
    addresses: BoundAddresses, make_table: Callable[..., TableConfig]
) -> None:
    """Also where it went together with them."""
    table = make_table()
    with HeldClient(addresses.address) as client:
        inlet = TrajectoryInlet(client, table.name, 8, Event())
        good = played(0)
        bad = replace(good, trajectory_id="bad", columns={**good.columns, "reward": np.array([None] * good.num_steps)})
        for trajectory in (good, played(1), played(2), bad, played(3)):
            inlet.put(trajectory, 0.0)
        client.let_go.set()
        with pytest.raises(CodecError):
            inlet.close()
        assert client.server_info().tables[table.name].inserted_trajectories == 4
