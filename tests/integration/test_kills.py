"""Server and Redis killed twenty times while everybody works: nothing acknowledged is lost, nothing is stored twice."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from replay_server.client import ReplayClient, ReplayTimeout
from tests.ledger import Ledger, check_that_nothing_is_lost
from tests.replay_server.killable import killable_server
from tests.replay_server.played import table_config
from zero.trajectories import PriorityUpdates

KILLS = 20
RESUMED_WITHIN_SECONDS = 30  # on a machine that other tests share


@contextmanager
def sampling(address: str) -> Iterator[list[int]]:
    """A learner that samples and updates priorities all the time; yields the numbers of the steps it got."""
    stop = threading.Event()
    got: list[int] = []

    def run() -> None:
        with ReplayClient(address, client_name="learner") as client:
            updates = None
            while not stop.is_set():
                try:
                    batch = client.sample("games", 32, {"reward": 2}, updates, timeout=60)
                except ReplayTimeout:
                    continue
                updates = PriorityUpdates(batch.keys, batch.columns["reward"][:, 0] % 7)
                got.append(len(batch.keys))

    with ThreadPoolExecutor(1, thread_name_prefix="learner") as thread:
        running = thread.submit(run)
        try:
            yield got
        finally:
            stop.set()
            running.result()


def until_all_go_on(ledgers: Sequence[Ledger], got: list[int]) -> float:
    """Wait until every writer and the learner were served again; returns the seconds."""
    started = time.monotonic()
    before = [len(ledger.acknowledged) for ledger in ledgers]
    sampled = len(got)
    while len(got) == sampled or any(len(ledger.acknowledged) == n for ledger, n in zip(ledgers, before, strict=True)):
        assert time.monotonic() - started < RESUMED_WITHIN_SECONDS, "nobody is served any more"
        time.sleep(0.01)
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_twenty_kills_of_server_and_redis_lose_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    """Clients resume by themselves; in the end every acknowledged trajectory is there, once, with its content."""
    rng = random.Random(seed)
    with killable_server(tmp_path) as server:
        with ReplayClient(server.address) as client:
            client.create_table(table_config(capacity=10**6, selector="prioritized"))
        ledgers = [Ledger(server.address, "games", writer) for writer in range(3)]
        with sampling(server.address) as got:
            until_all_go_on(ledgers, got)
            for kill in range(KILLS):
                time.sleep(rng.uniform(0, 0.3))  # the moment is random
                if kill % 2:
                    os.kill(int((tmp_path / "redis" / "redis.pid").read_text()), signal.SIGKILL)
                else:
                    server.kill()
                    server.start()
                until_all_go_on(ledgers, got)
        for ledger in ledgers:
            ledger.close()
        with ReplayClient(server.address) as client:
            check_that_nothing_is_lost(client, "games", ledgers)
            assert client.verify_table("games").problems == ()
    assert min(len(ledger.acknowledged) for ledger in ledgers) > 3 * KILLS
