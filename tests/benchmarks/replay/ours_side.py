"""Our side: the server in a process of its own, and its client as actors and a learner use it.

`ours_side.py` answers requests, `ours_side.py serve DATA_DIR` serves until stdin ends, and
`ours_side.py restart WORKLOAD TRAJECTORIES` fills a server, kills it with SIGKILL and starts it again.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sides import Opener, Request, Work, answer_requests
from workloads import (
    BATCH,
    CAPACITY,
    DISTINCT,
    PRIORITY_EXPONENT,
    STEPS,
    WINDOW,
    WORKLOADS,
    learn,
    random_trajectories,
)

from replay_server.client import ReplayClient
from replay_server.server import ReplayServerSettings, run_replay_server
from zero.tables import Durability, TableConfig
from zero.trajectories import ColumnSpec, PriorityUpdates, SampleSpec, Trajectory

LARGE = 100_000
"""Trajectories that the table of the restart can hold."""
VARIANTS = {
    "redis": (Durability.REDIS, CAPACITY),
    "memory": (Durability.MEMORY, CAPACITY),
    "large": (Durability.REDIS, LARGE),
}
"""Tables: durability and capacity in trajectories."""


def serve(data_dir: Path, stop: threading.Event) -> None:
    run_replay_server(
        ReplayServerSettings(data_dir), stop, lambda bound: print(json.dumps({"address": bound.address}), flush=True)
    )


def table_config(request: Request) -> TableConfig:
    durability, capacity = VARIANTS[request.variant]
    return TableConfig(
        f"{request.workload.lower()}-{request.variant}",
        tuple(ColumnSpec(*column) for column in WORKLOADS[request.workload]),
        capacity * STEPS,
        "prioritized",
        PRIORITY_EXPONENT,
        durability=durability,
    )


def windows(request: Request) -> dict[str, int]:
    return {column.name: WINDOW for column in WORKLOADS[request.workload]}


def games(request: Request, size: int = DISTINCT) -> Callable[[], list[Trajectory]]:
    """What gives the next `size` trajectories, under ever new ids."""
    prefix, numbers = uuid.uuid4().hex, itertools.count()
    trajectories = [
        Trajectory("", "bench", 1, 0, True, False, columns) for columns in random_trajectories(request.workload)[:size]
    ]
    return lambda: [replace(trajectory, trajectory_id=f"{prefix}-{next(numbers)}") for trajectory in trajectories]


@contextmanager
def insert(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    """One call of DISTINCT trajectories per step."""
    following = games(request)
    yield Work(lambda: client.insert(table, following()).stored)


@contextmanager
def insert_one(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    """One call of a single trajectory per step, as an actor sends a game when it is over."""
    following = games(request, 1)
    yield Work(lambda: client.insert(table, following()).stored)


@contextmanager
def insert_stream(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    """A message of DISTINCT trajectories per step; what is in flight at the end is waited for."""
    following = games(request)
    with client.insert_stream(table) as stream:

        def step() -> int:
            stream.insert(following())
            return DISTINCT

        yield Work(step, stream.flush)


@contextmanager
def insert_one_stream(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    """The same over a stream that stays open: the next trajectory follows when the last one is acknowledged."""
    following = games(request, 1)
    with client.insert_stream(table) as stream:
        yield Work(lambda: stream.insert(following()).result().stored)


@contextmanager
def sample(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    wanted = windows(request)
    yield Work(lambda: len(client.sample(table, BATCH, wanted).keys))


@contextmanager
def sample_stream(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    with client.sample_stream(table, SampleSpec(BATCH, windows(request))) as batches:
        yield Work(lambda: len(next(batches).keys))


@contextmanager
def loop(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    """Sample, learn, update: the new priorities of a batch ride on the next request."""
    wanted = windows(request)
    updates: PriorityUpdates | None = None

    def step() -> int:
        nonlocal updates
        batch = client.sample(table, BATCH, wanted, updates)
        updates = PriorityUpdates(batch.keys, learn(batch.columns["reward"], batch.columns["value"]))
        return len(batch.keys)

    yield Work(step)


@contextmanager
def loop_stream(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    """The same with two batches drawn ahead."""
    with client.sample_stream(table, SampleSpec(BATCH, windows(request))) as batches:

        def step() -> int:
            batch = next(batches)
            batches.update_priorities(batch.keys, learn(batch.columns["reward"], batch.columns["value"]))
            return len(batch.keys)

        yield Work(step)


@contextmanager
def update(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    rounds = itertools.cycle([client.sample(table, BATCH, {"value": 1}).keys for _ in range(8)])
    priorities = np.full(BATCH, 0.5, np.float32)
    yield Work(lambda: client.update_priorities(table, PriorityUpdates(next(rounds), priorities)).updated)


@contextmanager
def update_stream(client: ReplayClient, table: str, request: Request) -> Iterator[Work]:
    """The same without waiting for each; what was not applied at the end is waited for."""
    rounds = itertools.cycle([client.sample(table, BATCH, {"value": 1}).keys for _ in range(8)])
    priorities = np.full(BATCH, 0.5, np.float32)
    with client.priority_stream(table) as stream:

        def step() -> int:
            stream.update(next(rounds), priorities)
            return BATCH

        yield Work(step, stream.flush)


MEASURES = (
    insert,
    insert_one,
    insert_one_stream,
    insert_stream,
    sample,
    sample_stream,
    loop,
    loop_stream,
    update,
    update_stream,
)


def openers() -> dict[str, Opener]:
    """By measure. The threads of a request share a connection, unless each of them stands for a process."""
    shared: dict[str, ReplayClient] = {}
    lock = threading.Lock()

    def opener(open_work: Callable[[ReplayClient, str, Request], object]) -> Opener:
        @contextmanager
        def opened(request: Request) -> Iterator[Work]:
            with lock:
                client = shared.setdefault(request.address, ReplayClient(request.address))
            if request.apart:
                client = ReplayClient(request.address)
            config = table_config(request)
            client.create_table(config)
            with open_work(client, config.name, request) as work:
                yield work
            if request.apart:
                client.close()

        return opened

    return {work.__name__: opener(work) for work in MEASURES}


@contextmanager
def server(data_dir: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    arguments = [sys.executable, __file__, "serve", data_dir]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"], process
        process.stdin.close()


def restart(workload: str, trajectories: int) -> None:
    """Print how long a killed server took to serve again, and how many acknowledged trajectories it had lost."""
    request = Request("insert", workload, "large")
    config, following = table_config(request), games(request)
    with tempfile.TemporaryDirectory(prefix="zero-bench-") as data_dir:
        with server(data_dir) as (address, process), ReplayClient(address) as client:
            client.create_table(config)
            stored = sum(client.insert(config.name, following()).stored for _ in range(trajectories // DISTINCT))
            process.kill()
        started = time.perf_counter()
        with server(data_dir) as (address, _), ReplayClient(address) as client:
            found = client.server_info().tables[config.name].num_trajectories
            seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "trajectories": found, "lost": stored - found}), flush=True)


def main() -> None:
    match sys.argv[1:]:
        case ["serve", data_dir]:
            stop = threading.Event()
            thread = threading.Thread(target=serve, args=(Path(data_dir), stop))
            thread.start()
            sys.stdin.read()
            stop.set()
            thread.join()
        case ["restart", workload, trajectories]:
            restart(workload, int(trajectories))
        case _:
            names = ("grpcio", "protobuf", "numpy", "numba", "redis")
            answer_requests(openers(), {name: version(name) for name in names})


if __name__ == "__main__":
    main()
