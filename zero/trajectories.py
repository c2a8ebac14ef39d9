"""The data between roles: trajectories as columns going in, batches of sequences coming out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DTYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)
"""Element types that a column may have, by their NumPy names."""


@dataclass(frozen=True)
class ColumnSpec:
    """Name, dtype and per-step shape of a column.

    Raises:
        ValueError: the dtype is none of DTYPES, the name is empty, or an axis is not positive.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a column needs a name")
        if self.dtype not in DTYPES:
            raise ValueError(f"column {self.name!r}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if any(length < 1 for length in self.shape):
            raise ValueError(f"column {self.name!r}: every axis of shape {self.shape} must be at least 1")


Signature = tuple[ColumnSpec, ...]
"""The columns of every trajectory in a table, in order, names unique."""


@dataclass(frozen=True)
class Trajectory:
    """One game, or a chunk of a long one.

    Attributes:
        trajectory_id: idempotency key, unique per trajectory.
        actor_id: who played it.
        weights_version: the weights that played its first step; 0 for none.
        episode_seed: the seed from which the game can be dealt again.
        terminated: the last step ended the game by its rules.
        truncated: the trajectory stops although the game did not.
        columns: name to array [T, *shape], one T for all.
        stats: free scalars, for example "score".
    """

    trajectory_id: str
    actor_id: str
    weights_version: int
    episode_seed: int
    terminated: bool
    truncated: bool
    columns: Mapping[str, NDArray[np.generic]]
    stats: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return next(iter(self.columns.values())).shape[0]


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences drawn from a table.

    Attributes:
        columns: name to array [B, window of the column, *shape], zero beyond the end of a trajectory.
        keys: uint64 [B], generation << 32 | slot: names the drawn position for priority updates.
        probabilities: float64 [B], with which each position was drawn.
        lengths: int32 [B], steps from the drawn position to the trajectory's end, at most the longest window.
        weights_versions: uint64 [B], the weights that played the trajectory.
        table_size: steps stored when the batch was drawn.
    """

    columns: Mapping[str, NDArray[np.generic]]
    keys: NDArray[np.uint64]
    probabilities: NDArray[np.float64]
    lengths: NDArray[np.int32]
    weights_versions: NDArray[np.uint64]
    table_size: int


@dataclass(frozen=True)
class PriorityUpdates:
    """New priorities for drawn positions.

    Attributes:
        keys: uint64 [N], as SequenceBatch.keys gave them.
        priorities: float32 [N], finite and not negative, before the exponent.
    """

    keys: NDArray[np.uint64]
    priorities: NDArray[np.float32]
