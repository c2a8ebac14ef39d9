"""Trajectories and tables to test with: every value says which trajectory and which step it belongs to."""

import numpy as np

from zero.tables import TableConfig
from zero.trajectories import ColumnSpec, Trajectory

SIGNATURE = (
    ColumnSpec("observation", "uint8", (2, 3)),
    ColumnSpec("action", "uint16"),
    ColumnSpec("reward", "float32"),
    ColumnSpec("policy", "float16", (4,)),
)


def table_config(name: str = "games", **changes: object) -> TableConfig:
    """A durable, uniform table of 1,000 steps."""
    return TableConfig(**({"name": name, "signature": SIGNATURE, "capacity": 1000} | changes))


def played(number: int, num_steps: int = 5, weights_version: int | None = None) -> Trajectory:
    """Trajectory `number`: the reward of step t is number + t / 1000, which no other step has."""
    rng = np.random.default_rng(number)
    return Trajectory(
        trajectory_id=f"t{number}",
        actor_id="actor-0",
        weights_version=number if weights_version is None else weights_version,
        episode_seed=number,
        terminated=True,
        truncated=False,
        columns={
            "observation": rng.integers(1, 255, (num_steps, 2, 3), dtype=np.uint8),
            "action": np.arange(1, num_steps + 1, dtype=np.uint16),
            "reward": (number + np.arange(num_steps) / 1000).astype(np.float32),
            "policy": rng.random((num_steps, 4)).astype(np.float16),
        },
        stats={"score": float(number), "num_moves": float(num_steps)},
    )
