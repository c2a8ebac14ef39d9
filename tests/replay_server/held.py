"""What a table holds, seen from outside, to be compared before and after whatever happens to the server."""

import hashlib
import time
from collections.abc import Callable

from replay_server.client import ReplayClient

Steps = dict[int, tuple[bytes, float, int]]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def all_steps(client: ReplayClient, table: str = "games") -> Steps:
    """Key to the contents of the sequence from there on, probability and weights version; of a small table."""
    batch = client.sample(table, 2000, {"observation": 5, "reward": 5, "policy": 1})
    rows = zip(
        *(batch.columns["observation"], batch.columns["reward"], batch.columns["policy"]),
        *(batch.probabilities.tolist(), batch.weights_versions.tolist()),
        strict=True,
    )
    return {
        key: (a.tobytes() + b.tobytes() + c.tobytes(), probability, version)
        for key, (a, b, c, probability, version) in zip(batch.keys.tolist(), rows, strict=True)
    }


def trajectories(client: ReplayClient, table: str = "games") -> list[tuple[object, ...]]:
    """Everything about the stored trajectories, in their order."""
    return [
        (
            *(one.trajectory_id, one.actor_id, one.weights_version, one.episode_seed, one.terminated, one.truncated),
            *(one.open, one.first_step, sorted(one.stats.items())),
            {name: hashlib.sha256(column.tobytes()).hexdigest() for name, column in one.columns.items()},
        )
        for one in client.read_trajectories(table)
    ]
