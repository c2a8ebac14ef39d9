"""Measures a replay server over loopback gRPC: durable inserts, samples, both together, a restart.

Run it on a quiet machine: `.venv/bin/python tests/benchmarks/replay.py [--workload C] [--seconds 2] [--repeats 5]`.
Every figure is the median of the repeats. Workload C is the compact game, W the same with float32 planes.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import numpy as np

from replay_server.client import ReplayClient
from replay_server.server import ReplayServerSettings, run_replay_server
from zero.tables import Durability, Selector, TableConfig
from zero.trajectories import ColumnSpec, PriorityUpdates, Signature, Trajectory

SEED = 7
STEPS = 40
WINDOW = 6
BATCH = 256
PER_CALL = 16

WORKLOADS: dict[str, Signature] = {
    "C": (
        ColumnSpec("observation", "uint8", (20,)),
        ColumnSpec("action", "uint16"),
        ColumnSpec("reward", "float32"),
        ColumnSpec("policy", "float16", (360,)),
        ColumnSpec("value", "float32"),
    ),
    "W": (
        ColumnSpec("observation", "float32", (3, 8, 15)),
        ColumnSpec("action", "int32"),
        ColumnSpec("reward", "float32"),
        ColumnSpec("policy", "float32", (360,)),
        ColumnSpec("value", "float32"),
    ),
}


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
        address: of the server.
        table: its name.
        trajectories: to be sent under ever new ids.
        signature: of the table.
        seconds: per measurement.
        numbers: give ever new ids.
    """

    address: str
    table: str
    trajectories: list[Trajectory]
    signature: Signature
    seconds: float
    numbers: Iterator[int]


def serve(data_dir: str, port: int, pipe: Connection, stop: threading.Event) -> None:
    settings = ReplayServerSettings(Path(data_dir), port=port)
    run_replay_server(settings, stop, lambda addresses: pipe.send(addresses.address))


@contextmanager
def server(data_dir: str) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(data_dir, 0, sender, stop))
    process.start()
    try:
        yield receiver.recv()
    finally:
        stop.set()
        process.join()


def random_trajectories(signature: Signature) -> list[Trajectory]:
    rng = np.random.default_rng(SEED)

    def column(spec: ColumnSpec) -> np.ndarray:
        values = (
            rng.random((STEPS, *spec.shape))
            if spec.dtype.startswith("f")
            else rng.integers(0, 200, (STEPS, *spec.shape))
        )
        return values.astype(spec.dtype)

    return [
        Trajectory("", "bench", 1, 0, True, False, {spec.name: column(spec) for spec in signature})
        for _ in range(PER_CALL)
    ]


def rate(
    work: Callable[[ReplayClient], int], address: str, in_flight: int, seconds: float
) -> tuple[float, list[float]]:
    """Units of work per second with calls in flight, and the seconds of every call."""
    until = time.perf_counter() + seconds
    latencies: list[float] = []

    def run() -> int:
        done = 0
        while (started := time.perf_counter()) < until:
            done += work(client)
            latencies.append(time.perf_counter() - started)
        return done

    with ReplayClient(address) as client, ThreadPoolExecutor(in_flight) as threads:
        started = time.perf_counter()
        total = sum(future.result() for future in [threads.submit(run) for _ in range(in_flight)])
        return total / (time.perf_counter() - started), latencies


def insert(bench: Bench) -> Callable[[ReplayClient], int]:
    def work(client: ReplayClient) -> int:
        batch = [replace(item, trajectory_id=f"t{next(bench.numbers)}") for item in bench.trajectories]
        return client.insert(bench.table, batch).stored

    return work


def sample(bench: Bench, *, update: bool) -> Callable[[ReplayClient], int]:
    windows = {spec.name: WINDOW for spec in bench.signature}
    last = threading.local()

    def work(client: ReplayClient) -> int:
        updates = getattr(last, "updates", None) if update else None
        batch = client.sample(bench.table, BATCH, windows, updates)
        last.updates = PriorityUpdates(batch.keys, np.full(BATCH, 0.5, np.float32))
        return len(batch.keys)

    return work


def report(name: str, unit: str, measure: Callable[[], tuple[float, list[float]]], repeats: int) -> None:
    rates, latencies = [], []
    for _ in range(repeats):
        figure, seconds = measure()
        rates.append(figure)
        latencies += seconds
    p50, p99 = np.quantile(latencies, (0.5, 0.99)) * 1e3
    print(f"  {name:<44} {statistics.median(rates):>10,.0f} {unit:<16} call p50 {p50:6.2f} ms  p99 {p99:6.2f} ms")


def both(bench: Bench) -> tuple[float, list[float]]:
    with ThreadPoolExecutor(1) as thread:
        inserts = thread.submit(rate, insert(bench), bench.address, 2, bench.seconds)
        sequences, latencies = rate(sample(bench, update=True), bench.address, 2, bench.seconds)
        print(f"    ... beside {inserts.result()[0]:,.0f} trajectories/s")
        return sequences, latencies


def run(workload: str, seconds: float, repeats: int) -> None:
    signature = WORKLOADS[workload]
    raw = sum(np.dtype(spec.dtype).itemsize * int(np.prod(spec.shape)) for spec in signature)
    print(
        f"workload {workload}: {STEPS} steps of {raw} bytes, {PER_CALL} trajectories per insert, "
        f"windows of {WINDOW}, batches of {BATCH}"
    )
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="zero-bench-") as folder:
        with server(folder) as address, ReplayClient(address) as client:
            for durability in (Durability.REDIS, Durability.MEMORY):
                config = TableConfig(durability.value, signature, 200_000, Selector.PRIORITIZED, durability=durability)
                client.create_table(config)
                bench = Bench(address, config.name, random_trajectories(signature), signature, seconds, numbers)
                name = (
                    f"{durability.value} ({client.server_info().appendfsync})"
                    if durability is Durability.REDIS
                    else "memory"
                )
                insert(bench)(client)
                for flight in (1, 4):
                    report(
                        f"insert, {name}, {flight} in flight",
                        "trajectories/s",
                        lambda b=bench, f=flight: rate(insert(b), b.address, f, b.seconds),
                        repeats,
                    )
            for flight in (1, 2, 4):
                report(
                    f"sample, {flight} in flight",
                    "sequences/s",
                    lambda b=bench, f=flight: rate(sample(b, update=False), b.address, f, b.seconds),
                    repeats,
                )
            report(
                "sample and update, 2 in flight",
                "sequences/s",
                lambda b=bench: rate(sample(b, update=True), b.address, 2, b.seconds),
                repeats,
            )
            durable = replace(bench, table="redis")
            report("insert (redis) and sample", "sequences/s", lambda: both(durable), repeats)
            steps = client.server_info().tables["redis"].num_steps
        started = time.perf_counter()
        with server(folder):
            print(f"  restart with {steps:,} steps: serving after {time.perf_counter() - started:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    print(
        f"seed {SEED}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"grpcio {grpc.__version__}, numpy {np.__version__}"
    )
    for workload in WORKLOADS if options.workload == "all" else (options.workload,):
        run(workload, options.seconds, options.repeats)


if __name__ == "__main__":
    main()
