"""How one replay server bears a thousand actors: errors, starvation, latency, memory, weights to all, a learner beside.

    python tests/benchmarks/thousand_actors.py                       # at the pace of --games-per-second
    python tests/benchmarks/thousand_actors.py --games-per-second 0  # as fast as the server takes games

The actors are real but for thinking: `tests/crowd.py`.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from replay_server.client import ReplayClient, ReplayTimeout
from tests.crowd import SAMPLED, ActorLog, CrowdSettings, games_of_the_puzzle, run_crowd
from tests.procfs import cpu_seconds, resident_bytes
from tests.replay_server.killable import killable_server
from zero.config import ExperimentConfig
from zero.events import events_table
from zero.games.registry import make_game
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.tables import RateLimiterConfig


class Learner:
    """Draws batches and publishes weights until told to stop, as fast as it may."""

    def __init__(self, address: str, weights_bytes: int, publish_seconds: float) -> None:
        self.sequences = 0
        self.published: dict[int, float] = {}
        self._address = address
        self._weights_bytes = weights_bytes
        self._publish_seconds = publish_seconds
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._draw), threading.Thread(target=self._publish)]

    def __enter__(self) -> "Learner":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _draw(self) -> None:
        with ReplayClient(self._address, client_name="learner") as client:
            stream = client.sample_stream(TABLE_NAME, SAMPLED, timeout=2.0)
            while not self._stop.is_set():
                try:
                    batch = next(stream)
                except ReplayTimeout:
                    continue
                self.sequences += len(batch.keys)
                stream.update_priorities(batch.keys, np.ones(len(batch.keys), np.float32))

    def _publish(self) -> None:
        rng = np.random.default_rng(0)
        with ReplayClient(self._address, client_name="publisher") as client:
            while True:
                published = client.publish_weights(rng.bytes(self._weights_bytes), len(self.published))
                self.published[published] = time.monotonic()
                if self._stop.wait(self._publish_seconds):
                    return


class Watch:
    """Looks at a process every second."""

    def __init__(self, pid: int) -> None:
        self.resident_mib: list[float] = []
        self.descriptors = 0
        self.cpu_seconds = 0.0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._began = cpu_seconds(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.cpu_seconds = cpu_seconds(self._pid) - self._began

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self.resident_mib.append(resident_bytes(self._pid) / (1 << 20))
            self.descriptors = max(self.descriptors, len(list(Path(f"/proc/{self._pid}/fd").iterdir())))


def crowds(options: argparse.Namespace, address: str, starts_at: float) -> list[CrowdSettings]:
    """The actors, split among processes."""
    bounds = np.linspace(0, options.actors, options.processes + 1).astype(int).tolist()
    return [
        CrowdSettings(
            address,
            range(first, last),
            options.steps,
            options.games_per_second,
            starts_at,
            starts_at + options.seconds,
        )
        for first, last in itertools.pairwise(bounds)
    ]


def report_inserts(logs: Sequence[ActorLog], seconds: float) -> None:
    """Print what came of games."""
    stored = np.array([log.acknowledged for log in logs])
    errors = [error for log in logs for error in log.errors]
    latencies = np.concatenate([np.array(log.latencies) for log in logs])
    p50, p99 = 1e3 * np.quantile(latencies, (0.5, 0.99))
    print(f"errors                {len(errors)} {sorted(set(errors))[:3]}")
    print(f"games                 {stored.sum()} stored, {stored.sum() / seconds:.0f}/s")
    again = sum((Counter(log.repeated) for log in logs), Counter[str]())
    print(f"made again            {again.total()} calls; {sum(log.duplicates for log in logs)} inserts had been stored")
    for why, times in again.most_common(5):
        print(f"                      {times} x {why}")
    print(f"of one actor          least {stored.min()}, median {np.median(stored):.0f}, most {stored.max()}")
    print(f"starvation            slowest / median {stored.min() / np.median(stored):.2f}")
    print(f"insert                p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {1e3 * latencies.max():.0f} ms")


def report_weights(logs: Sequence[ActorLog], published: dict[int, float], until: float) -> None:
    """Print how soon weights were everywhere."""
    for number, when in sorted(published.items()):
        # An actor that was still fetching one version goes on with the newest there is then.
        reached = [min((at for v, at in log.arrivals.items() if v >= number), default=np.inf) - when for log in logs]
        if when < until:
            half, most, last = np.quantile(reached, (0.5, 0.99, 1.0), method="lower")
            print(f"weights {number:>4}          half within {half:.1f} s, 99 % {most:.1f} s, all {last:.1f} s")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--connect-seconds", type=float, default=15.0)
    parser.add_argument("--games-per-second", type=float, default=0.5, help="of one actor; 0 for all the server takes")
    parser.add_argument("--steps", type=int, default=40, help="of a game")
    parser.add_argument("--samples-per-insert", type=float, default=0.0, help="0 lets both sides run free")
    parser.add_argument("--weights-kib", type=int, default=412, help="of the default network by default")
    parser.add_argument("--publish-seconds", type=float, default=15.0)
    options = parser.parse_args()
    config = ExperimentConfig(name="crowd")
    table = self_play_table(config, make_game(config.game.name, config.game.options))
    limits = RateLimiterConfig(2_000, options.samples_per_insert, config.replay.error_buffer)
    pace = options.games_per_second or "any number of"
    print(
        f"{options.actors} actors in {options.processes} processes, {pace} games of {options.steps} moves per second "
        f"each, {options.samples_per_insert:g} samples per insert, weights of "
        f"{options.weights_kib} KiB\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"gRPC {version('grpcio')}, load {os.getloadavg()[0]:.1f}"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        killable_server(Path(folder)) as server,
        ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool,
    ):
        with ReplayClient(server.address) as client:
            client.create_table(table)
            client.create_table(events_table())
            client.set_rate_limiter(TABLE_NAME, limits)
        list(pool.map(games_of_the_puzzle, [1] * options.processes))  # importing takes longest on a busy machine
        starts_at = time.monotonic() + options.connect_seconds
        running = [pool.submit(run_crowd, crowd) for crowd in crowds(options, server.address, starts_at)]
        time.sleep(options.connect_seconds)
        with Watch(server.pid) as watch:
            with Learner(server.address, options.weights_kib << 10, options.publish_seconds) as learner:
                time.sleep(options.seconds)
            logs = [log for crowd in running for log in crowd.result()]
            elapsed = time.monotonic() - starts_at
        with ReplayClient(server.address) as client:
            held = client.server_info().tables[TABLE_NAME]
    stored = sum(log.acknowledged for log in logs)
    report_inserts(logs, options.seconds)
    report_weights(logs, learner.published, starts_at + options.seconds - 5)
    print(f"sequences             {learner.sequences / options.seconds:.0f}/s for the learner")
    print(f"server                {watch.cpu_seconds / elapsed:.2f} cores, at most {watch.descriptors} descriptors")
    print(
        "resident MiB          "
        + " ".join(f"{mib:.0f}" for mib in watch.resident_mib[:: max(len(watch.resident_mib) // 12, 1)])
    )
    if held.inserted_trajectories != stored:
        sys.exit(f"the server counts {held.inserted_trajectories} games, its actors {stored}")


if __name__ == "__main__":
    main()
