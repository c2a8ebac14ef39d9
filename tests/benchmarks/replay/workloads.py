"""What is measured, alike on every side: the games, their trajectories, windows, batches and the learner's arithmetic.

Needs NumPy alone, so that a peer's environment can import it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED = 7
STEPS = 40
WINDOW = 6
BATCH = 256
PRIORITY_EXPONENT = 0.6
CAPACITY = 2_000
"""Trajectories that a table holds; it is full, and every insert evicts, while anything is measured."""
DISTINCT = 16
"""Trajectories of different content; sent again and again."""

Columns = dict[str, NDArray[Any]]


class Column(NamedTuple):
    """Name, dtype and per-step shape."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def step_bytes(self) -> int:
        """Bytes of one step."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape))


WORKLOADS: dict[str, tuple[Column, ...]] = {
    "C": (
        Column("observation", "uint8", (20,)),
        Column("action", "uint16"),
        Column("reward", "float32"),
        Column("policy", "float16", (360,)),
        Column("value", "float32"),
    ),
    "W": (
        Column("observation", "float32", (3, 8, 15)),
        Column("action", "int32"),
        Column("reward", "float32"),
        Column("policy", "float32", (360,)),
        Column("value", "float32"),
    ),
}
"""The triangle puzzle: C as it is stored, compact; W with its network's input planes."""


def step_bytes(workload: str) -> int:
    """Bytes of one step, all columns."""
    return sum(column.step_bytes for column in WORKLOADS[workload])


def random_trajectories(workload: str) -> list[Columns]:
    """DISTINCT trajectories, column name to array [STEPS, *shape], incompressible where real ones are nearly so."""
    rng = np.random.default_rng(SEED)

    def values(column: Column) -> NDArray[Any]:
        shape = (STEPS, *column.shape)
        return rng.random(shape) if column.dtype.startswith("f") else rng.integers(0, 200, shape)

    return [
        {column.name: values(column).astype(column.dtype) for column in WORKLOADS[workload]} for _ in range(DISTINCT)
    ]


def learn(rewards: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cheapest learner there is: one temporal difference per sequence [B] from rewards and values [B, WINDOW]."""
    return np.abs(rewards[:, 0] + values[:, 1] - values[:, 0]) + np.float32(1e-3)
