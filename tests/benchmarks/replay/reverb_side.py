"""DeepMind Reverb's side: a server, and a client in the ways that its documentation recommends.

Runs in an environment of its own. Everything is in memory only: what was inserted is gone with the process. Reverb
listens on all interfaces and cannot be told otherwise.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from sides import Request, Work, answer_requests
from workloads import (
    BATCH,
    CAPACITY,
    PRIORITY_EXPONENT,
    STEPS,
    WINDOW,
    WORKLOADS,
    Columns,
    learn,
    random_trajectories,
    step_bytes,
)

VARIANTS = ("default", "chunked", "structured", "packed", "packed-structured")
"""One table each. `default` is the TrajectoryWriter as its docstring shows it. `chunked` sets the chunks to the length
of the windows, for which sampling is fastest; `structured` cuts the windows in C++, for which inserting is. `packed`
holds the columns of a step as one array of bytes, which the learner has to take apart."""
WINDOWS = STEPS - WINDOW + 1
EPISODES_IN_FLIGHT = 8


def table_name(request: Request) -> str:
    return f"{request.workload}-{request.variant}"


def signature(workload: str, variant: str) -> dict[str, tf.TensorSpec]:
    if variant.startswith("packed"):
        return {"step": tf.TensorSpec((WINDOW, step_bytes(workload)), tf.uint8)}
    return {
        column.name: tf.TensorSpec((WINDOW, *column.shape), tf.as_dtype(column.dtype)) for column in WORKLOADS[workload]
    }


def serve(workload: str) -> None:
    """Serve all variants until stdin ends."""
    tables = [
        reverb.Table(
            name=f"{workload}-{variant}",
            sampler=reverb.selectors.Prioritized(PRIORITY_EXPONENT),
            remover=reverb.selectors.Fifo(),
            max_size=CAPACITY * WINDOWS,
            rate_limiter=reverb.rate_limiters.MinSize(1),
            signature=signature(workload, variant),
        )
        for variant in VARIANTS
    ]
    server = reverb.Server(tables)
    print(json.dumps({"address": f"localhost:{server.port}"}), flush=True)
    sys.stdin.read()
    server.stop()


def packed(columns: Columns) -> Columns:
    rows = [np.ascontiguousarray(column).view(np.uint8).reshape(STEPS, -1) for column in columns.values()]
    return {"step": np.concatenate(rows, axis=1)}


def unpacked(workload: str, step: np.ndarray) -> Columns:
    """The columns of a batch of packed steps [B, WINDOW, bytes], as views where NumPy can and copies where not."""
    columns, start = {}, 0
    for column in WORKLOADS[workload]:
        part = step[..., start : start + column.step_bytes]
        columns[column.name] = np.ascontiguousarray(part).view(column.dtype).reshape(*step.shape[:2], *column.shape)
        start += column.step_bytes
    return columns


def episodes(request: Request) -> Iterator[list[dict[str, np.ndarray]]]:
    """Trajectories as lists of steps, over and over; they are cut up beforehand, an actor has its steps one by one."""
    trajectories = random_trajectories(request.workload)
    if request.variant.startswith("packed"):
        trajectories = [packed(columns) for columns in trajectories]
    return itertools.cycle(
        [{name: column[i] for name, column in columns.items()} for i in range(STEPS)] for columns in trajectories
    )


@contextmanager
def insert(request: Request) -> Iterator[Work]:
    """One trajectory per step; `default` and `structured` wait until the server has confirmed all its windows."""
    client, table, games = reverb.Client(request.address), table_name(request), episodes(request)
    if request.variant.endswith("structured"):
        yield structured(client, table, games)
    elif request.variant == "default":
        yield step_by_step(client, table, games)
    else:
        yield chunked(client, table, games)


def step_by_step(client: reverb.Client, table: str, games: Iterator[list[dict[str, Any]]]) -> Work:
    writer = client.trajectory_writer(num_keep_alive_refs=WINDOW)

    def step() -> int:
        for data in next(games):
            writer.append(data)
            if writer.episode_steps >= WINDOW:
                writer.create_item(table, 1.0, {name: column[-WINDOW:] for name, column in writer.history.items()})
        writer.end_episode()
        return 1

    return Work(step)


def chunked(client: reverb.Client, table: str, games: Iterator[list[dict[str, Any]]]) -> Work:
    writer = client.trajectory_writer(num_keep_alive_refs=STEPS)
    for name in next(games)[0]:
        writer.configure((name,), num_keep_alive_refs=STEPS, max_chunk_length=WINDOW)

    def step() -> int:
        for index, data in enumerate(next(games)):
            writer.append(data)
            if index >= WINDOW - 1:
                writer.create_item(table, 1.0, {name: column[-WINDOW:] for name, column in writer.history.items()})
        writer.flush(block_until_num_items=EPISODES_IN_FLIGHT * WINDOWS)
        return 1

    return Work(step, writer.flush)


def structured(client: reverb.Client, table: str, games: Iterator[list[dict[str, Any]]]) -> Work:
    pattern = reverb.structured_writer.pattern_from_transform(
        next(games)[0], lambda step: {name: column[-WINDOW:] for name, column in step.items()}
    )
    conditions = [reverb.structured_writer.Condition.step_index() >= WINDOW - 1]
    writer = client.structured_writer([reverb.structured_writer.create_config(pattern, table, conditions)])

    def step() -> int:
        for data in next(games):
            writer.append(data)
        writer.end_episode(timeout_ms=60_000)
        return 1

    return Work(step)


def batches(request: Request) -> Iterator[Any]:
    """TrajectoryDataset, batched by tf.data, with the recommended two batches in flight per worker."""
    dataset = reverb.TrajectoryDataset.from_table_signature(
        request.address,
        table_name(request),
        max_in_flight_samples_per_worker=2 * BATCH,
        num_workers_per_iterator=-1 if request.variant == "default" else 2,
    )
    batched = dataset.batch(BATCH, drop_remainder=True)
    return iter(batched if request.variant == "default" else batched.prefetch(2))


def columns_of(request: Request, batch: Any) -> Columns:
    columns = {name: column.numpy() for name, column in batch.data.items()}
    return unpacked(request.workload, columns["step"]) if request.variant.startswith("packed") else columns


@contextmanager
def sample(request: Request) -> Iterator[Work]:
    source = batches(request)

    def step() -> int:
        return len(columns_of(request, next(source))["value"])

    yield Work(step)


@contextmanager
def loop(request: Request) -> Iterator[Work]:
    """Sample, learn, update: one blocking update of 256 keys after every batch."""
    client, source = reverb.Client(request.address), batches(request)
    client.server_info()

    def step() -> int:
        batch = next(source)
        columns = columns_of(request, batch)
        priorities = learn(columns["reward"], columns["value"])
        keys = batch.info.key.numpy()
        client.mutate_priorities(table_name(request), dict(zip(keys.tolist(), priorities.tolist(), strict=True)))
        return BATCH

    yield Work(step)


@contextmanager
def update(request: Request) -> Iterator[Work]:
    client = reverb.Client(request.address)
    keys = np.concatenate([next(source).info.key.numpy() for source in [batches(request)] for _ in range(8)])
    rounds = itertools.cycle([dict.fromkeys(part.tolist(), 0.5) for part in np.split(keys, 8)])

    def step() -> int:
        client.mutate_priorities(table_name(request), next(rounds))
        return BATCH

    yield Work(step)


def main() -> None:
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        names = ("dm-reverb", "tensorflow", "numpy")
        openers = {"insert": insert, "sample": sample, "loop": loop, "update": update}
        answer_requests(openers, {name: version(name) for name in names})


if __name__ == "__main__":
    main()
