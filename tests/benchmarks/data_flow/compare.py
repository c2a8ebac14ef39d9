"""Collection through a replay server against PAMIQ-Core 0.6, in one run.

Usage: python tests/benchmarks/data_flow/compare.py [--pamiq-python PYTHON] [--seconds 5] [--rounds 3]

PAMIQ-Core needs Python 3.12: make it a virtual environment of its own and name its Python,

    python3.12 -m venv /tmp/pamiq && /tmp/pamiq/bin/pip install pamiq-core==0.6.0 numpy

without it only our side is measured. What is asked: how much of its collection rate an agent keeps while a trainer
computes in Python without a pause, and how many small samples a second go from one process into a server.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from loops import collected_per_second, small_sample, train

from actors.data_collector import DataCollector
from learner.data_user import DataUser
from replay_server.client import ReplayClient
from replay_server.sequential_buffer import SequentialBuffer
from replay_server.server import ReplayServer, ReplayServerSettings
from replay_server.table_buffer import on_server
from zero.tables import Durability
from zero.trajectories import ColumnSpec

SIGNATURE = (ColumnSpec("observation", "float32", (4,)), ColumnSpec("action", "int64"), ColumnSpec("reward", "float32"))
NAMES = [spec.name for spec in SIGNATURE]
PAUSES = {"an agent at 1,000 steps/s": 0.001, "flat out": 0.0}
SIZE = 100_000


def serve(folder: str, pipe: Connection) -> None:
    """A server in a process of its own, until the pipe says so."""
    with ReplayServer(ReplayServerSettings(Path(folder))) as bound:
        pipe.send(bound.address)
        pipe.recv()


def train_beside(address: str, table: str, seconds: float, ready: Connection) -> None:
    """A busy trainer in a process of its own."""
    with ReplayClient(address) as client:
        user = DataUser(on_server(SequentialBuffer(NAMES, SIZE), client, table, SIGNATURE))
        ready.send("ready")
        train(user.update, seconds)


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run a function in another process; gives its first message, ends it with a message and waits for it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    started = context.Process(target=target, args=(*arguments, theirs))
    started.start()
    try:
        yield ours.recv()
    finally:
        ours.send("end")
        started.join()


def our_rates(address: str, number: int, seconds: float, pause: float) -> tuple[float, float]:
    """Collected per second alone, and beside a trainer in another process."""
    table = f"paced-{number}-{pause}"
    with ReplayClient(address) as client:
        buffer = on_server(
            SequentialBuffer(NAMES, SIZE), client, table, SIGNATURE, overflow="block", max_queue_size=SIZE
        )
        with DataCollector[Any](buffer.open_inlet()) as collector:
            alone = collected_per_second(collector.collect, seconds, pause)
            with process(train_beside, address, table, seconds + 1):
                beside = collected_per_second(collector.collect, seconds, pause)
        client.delete_table(table)
    return alone, beside


def stored_per_second(address: str, number: int, durability: Durability) -> float:
    """Small samples, from the first `collect` until the server has acknowledged the last."""
    table = f"flat-{number}-{durability.value}"
    samples = [small_sample(i) for i in range(2000)]
    with ReplayClient(address) as client:
        options: dict[str, Any] = {"overflow": "block", "max_queue_size": 65_536, "durability": durability}
        buffer = on_server(SequentialBuffer(NAMES, SIZE), client, table, SIGNATURE, **options)
        started = time.perf_counter()
        with DataCollector[Any](buffer.open_inlet()) as collector:
            for _ in range(100):
                for sample in samples:
                    collector.collect(sample)
        rate = 100 * len(samples) / (time.perf_counter() - started)
        stored = client.server_info().tables[table].inserted_steps
        assert stored == 100 * len(samples), f"{stored} samples are stored"
        client.delete_table(table)
    return rate


def their_rates(python: str, seconds: float, pause: float) -> tuple[float, float]:
    """The same of PAMIQ-Core."""
    script = Path(__file__).with_name("pamiq_side.py")
    answer = subprocess.run([python, str(script), str(seconds), str(pause)], capture_output=True, text=True, check=True)
    alone, beside = map(float, answer.stdout.split())
    return alone, beside


def shown(name: str, rates: list[tuple[float, float]]) -> None:
    """Print medians, and how many times slower the agent is beside the trainer."""
    alone, beside = (statistics.median(values) for values in zip(*rates, strict=True))
    kept = statistics.median(after / before for before, after in rates)
    print(
        f"  {name:12} alone {alone:10,.0f}/s   beside a trainer {beside:10,.0f}/s   keeps {kept:.1%}, 1/{1 / kept:.1f}"
    )


def main() -> None:
    """Measure A B A B and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pamiq-python", default="", help="a Python 3.12 that has pamiq-core 0.6 and numpy")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, process(serve, folder) as address:
        for what, pause in PAUSES.items():
            ours: list[tuple[float, float]] = []
            theirs: list[tuple[float, float]] = []
            for number in range(arguments.rounds):
                ours.append(our_rates(address, number, arguments.seconds, pause))
                if arguments.pamiq_python:
                    theirs.append(their_rates(arguments.pamiq_python, arguments.seconds, pause))
            print(what)
            shown("here", ours)
            if theirs:
                shown("PAMIQ-Core", theirs)
        for durability in (Durability.REDIS, Durability.MEMORY):
            rates = [stored_per_second(address, number, durability) for number in range(arguments.rounds)]
            print(f"into a server, {durability.value}: {statistics.median(rates):,.0f} small samples/s")


if __name__ == "__main__":
    main()
