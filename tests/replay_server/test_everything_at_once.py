"""Inserts, deletions and replaced values while server and Redis are killed at random: the sum of all promises."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from replay_server.answers import ReplayTimeout
from replay_server.client import ReplayClient
from tests.replay_server.held import trajectories
from tests.replay_server.killable import KillableServer, killable_server
from tests.replay_server.played import played, table_config
from zero.trajectories import Trajectory, TrajectoryFilter

_SECONDS = 12.0
_WRITERS = 3


def numbered(number: int) -> Trajectory:
    return played(number, 1 + number % 7)


class Writer:
    """Sends what has numbers of its own and notes what was acknowledged."""

    def __init__(self, address: str, number: int, stop: threading.Event) -> None:
        self.acknowledged: list[int] = []
        self.deleted: list[int] = []
        self._address = address
        self._first = number * 1_000_000
        self._rng = random.Random(number)
        self._stop = stop

    def run(self) -> None:
        """Until told to stop."""
        number = self._first
        with ReplayClient(self._address) as client:
            while not self._stop.is_set():
                numbers = range(number, number + self._rng.randint(1, 4))
                number = numbers.stop
                with suppress(ReplayTimeout):
                    self._step(client, numbers)

    def _step(self, client: ReplayClient, numbers: range) -> None:
        client.insert("games", [numbered(one) for one in numbers], timeout=60)
        self.acknowledged += numbers
        if self._rng.random() < 0.2:
            chosen = self._rng.choice(numbers)
            client.delete_trajectories("games", TrajectoryFilter(trajectory_ids=(f"t{chosen}",)))
            self.deleted.append(chosen)
        if self._rng.random() < 0.3:
            keys = np.unique(client.sample("games", 16, {"action": 1}, timeout=5).keys)
            values = np.full(len(keys), self._rng.randint(1, 60_000), np.uint16)
            client.update_columns("games", keys, {"action": values})


def kill_now_and_then(server: KillableServer, data_dir: Path, rng: random.Random) -> Iterator[str]:
    """Kills, until it is told to end; says what."""
    while True:
        time.sleep(rng.uniform(0.1, 1.5))
        with suppress(OSError, ValueError):  # Redis may be between two lives
            pid = int((data_dir / "redis" / "redis.pid").read_text())
            what = rng.choice(["redis", "stopped redis", "server"])
            if what == "server":
                server.kill()
                server.start()
            elif what == "redis":
                os.kill(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(rng.uniform(0, 0.3))
                os.kill(pid, rng.choice([signal.SIGCONT, signal.SIGKILL]))
            yield what


@pytest.mark.slow
@pytest.mark.parametrize("remover", ["fifo", "random"])
def test_every_promise_is_kept(tmp_path: Path, remover: str) -> None:
    """What was acknowledged is known once, what was deleted stays away, log and memory agree, before and after."""
    stop = threading.Event()
    with killable_server(tmp_path) as server, ThreadPoolExecutor(_WRITERS) as threads:
        with ReplayClient(server.address) as client:
            client.create_table(table_config(capacity=300, remover=remover, selector="prioritized"))
        writers = [Writer(server.address, number, stop) for number in range(_WRITERS)]
        running = [threads.submit(writer.run) for writer in writers]
        until = time.monotonic() + _SECONDS
        try:
            for _ in kill_now_and_then(server, tmp_path, random.Random(remover)):
                if time.monotonic() > until:
                    break
        finally:
            stop.set()
        for one in running:
            one.result()
        acknowledged = [number for writer in writers for number in writer.acknowledged]
        deleted = {f"t{number}" for writer in writers for number in writer.deleted}
        assert len(acknowledged) > 50
        held = None
        for _ in range(2):
            with ReplayClient(server.address) as client:
                assert client.verify_table("games").problems == ()
                for start in range(0, len(acknowledged), 50):
                    part = [numbered(number) for number in acknowledged[start : start + 50]]
                    assert client.insert("games", part).stored == 0
                found = trajectories(client)
                assert not deleted & {one[0] for one in found}
                assert held in (None, found)
                held = found
            server.kill()
            server.start()
