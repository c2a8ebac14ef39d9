"""The data between roles: trajectories as columns going in, batches of sequences coming out."""

import math
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


MAX_AXES = 16
"""Of a step of a column."""


@dataclass(frozen=True)
class ColumnSpec:
    """What a column is.

    Attributes:
        name: unique within its signature.
        dtype: one of DTYPES.
        shape: of one step.
        minimum: the smallest value allowed; None for no bound.
        maximum: the largest value allowed; None for no bound.

    Raises:
        ValueError: the dtype is none of DTYPES, the name is empty, there are more than MAX_AXES axes or one is not
            positive, or no value is within the bounds.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a column needs a name")
        if self.dtype not in DTYPES:
            raise ValueError(f"column {self.name!r}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if len(self.shape) > MAX_AXES:
            raise ValueError(f"column {self.name!r}: a step of {len(self.shape)} axes, at most {MAX_AXES} are taken")
        if any(length < 1 for length in self.shape):
            raise ValueError(f"column {self.name!r}: every axis of shape {self.shape} must be at least 1")
        for bound in (self.minimum, self.maximum):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"column {self.name!r}: bound {bound} must be finite, or None for no bound")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"column {self.name!r}: minimum {self.minimum} is above maximum {self.maximum}")


Signature = tuple[ColumnSpec, ...]
"""The columns of every trajectory in a table, in order, names unique."""


@dataclass(frozen=True)
class Trajectory:
    """One game, or a chunk of a long one that is still being played.

    Attributes:
        trajectory_id: idempotency key, unique per trajectory; of a chunk, together with first_step.
        actor_id: who played it.
        weights_version: the weights that played its first step; 0 for none.
        episode_seed: the seed from which the game can be dealt again.
        terminated: the last step ended the game by its rules.
        truncated: the trajectory stops although the game did not.
        columns: name to array [T, *shape], one T for all.
        stats: free scalars, for example "score".
        first_step: of a later chunk, the number of steps sent before it.
        open: more chunks follow; neither terminated nor truncated then.
        priorities: float32 [T], initial ones; None for the highest that the table has seen.
    """

    trajectory_id: str
    actor_id: str
    weights_version: int
    episode_seed: int
    terminated: bool
    truncated: bool
    columns: Mapping[str, NDArray[np.generic]]
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    first_step: int = 0
    open: bool = False
    priorities: NDArray[np.float32] | None = None

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return next(iter(self.columns.values())).shape[0]


@dataclass(frozen=True)
class Lease:
    """What a producer holds of a table.

    Attributes:
        name: that it has claimed.
        token: greater than that of anybody who has lost the name.
    """

    name: str
    token: int


@dataclass(frozen=True)
class Window:
    """What of a column a sequence shows: `length` steps from `offset` steps after the drawn position on.

    Attributes:
        column: its name.
        length: steps, at least 1.
        offset: steps, at least 0.
    """

    column: str
    length: int
    offset: int = 0


@dataclass(frozen=True)
class StepFilter:
    """Only steps of trajectories that match may be drawn.

    Attributes:
        max_age_seconds: since they were stored; 0 for any age.
        min_weights_version: of the weights that played them.
    """

    max_age_seconds: float = 0.0
    min_weights_version: int = 0


@dataclass(frozen=True)
class NStep:
    """n-step returns, computed by the server: R = sum over k < n of discount^k x reward[t + k].

    Attributes:
        reward_column: a scalar float column.
        discount: per step, 0 to 1.
        steps: the most steps summed; fewer where the trajectory ends.
    """

    reward_column: str
    discount: float
    steps: int


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences drawn from a table, or from several.

    Attributes:
        columns: name to array [B, window of the column, *shape], zero beyond the end of a trajectory. With an NStep
            also "n_step_return" and "n_step_discount", float32 [B]: the return, and what a value after it is multiplied
            with (discount ^ number of summed steps, 0 if the trajectory terminated among them).
        keys: uint64 [B], generation << 32 | slot: names the drawn position for updates.
        probabilities: float64 [B], with which each position was drawn, within its table.
        lengths: int32 [B], steps from the drawn position to the trajectory's end, at most as many as the windows reach.
        weights_versions: uint64 [B], the weights that played the trajectory.
        terminated: bool [B], the trajectory ended by its rules within `lengths`.
        table_size: items stored when the batch was drawn.
        importance_weights: float32 [B], (N x probability) ^ -exponent over the largest of the batch; None if not asked
            for.
        rows_per_table: of a mix, how many rows each table gave, in the order of the request; else empty.
    """

    columns: Mapping[str, NDArray[np.generic]]
    keys: NDArray[np.uint64]
    probabilities: NDArray[np.float64]
    lengths: NDArray[np.int32]
    weights_versions: NDArray[np.uint64]
    terminated: NDArray[np.bool_]
    table_size: int
    importance_weights: NDArray[np.float32] | None = None
    rows_per_table: tuple[int, ...] = ()


@dataclass(frozen=True)
class PriorityUpdates:
    """New priorities for drawn positions.

    Attributes:
        keys: uint64 [N], as SequenceBatch.keys gave them.
        priorities: float32 [N], finite and not negative, before the exponent.
    """

    keys: NDArray[np.uint64]
    priorities: NDArray[np.float32]


@dataclass(frozen=True)
class ColumnUpdates:
    """New values for stored steps.

    Attributes:
        keys: uint64 [N], none twice, as SequenceBatch.keys gave them.
        columns: name to the new values [N, *shape].
        version_column: one of them, of integers: a step whose stored value of it is greater stays as it is; none if
            empty.
    """

    keys: NDArray[np.uint64]
    columns: Mapping[str, NDArray[np.generic]]
    version_column: str = ""

    def chosen(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "ColumnUpdates":
        """Those of some rows, by number or by a mask [N]."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return ColumnUpdates(self.keys[rows], columns, self.version_column)


@dataclass(frozen=True)
class TableShare:
    """A table's part in a batch of several.

    Attributes:
        table: its name.
        fraction: of the batch; the fractions of a batch add up to 1.
        updates: of earlier batches, applied before drawing.
    """

    table: str
    fraction: float
    updates: PriorityUpdates | None = None


@dataclass(frozen=True)
class SampleSpec:
    """What a batch is to hold.

    Attributes:
        batch_size: positions to draw, with replacement where the selector leaves it open.
        windows: name in the answer to what it shows; an int n stands for n steps of the column of that name.
        importance_sampling_exponent: 0 for no importance weights.
        filter: what may be drawn.
        n_step: returns to compute.
        peek: look without using: every item is equally likely, whatever the selector, the rate limiter neither holds
            nor counts it, and no item is used up.
    """

    batch_size: int
    windows: Mapping[str, "int | Window"]
    importance_sampling_exponent: float = 0.0
    filter: StepFilter = StepFilter()
    n_step: NStep | None = None
    peek: bool = False

    def window(self, name: str) -> Window:
        """What the answer shows under a name of `windows`."""
        window = self.windows[name]
        return Window(name, window) if isinstance(window, int) else window

    @property
    def reach(self) -> int:
        """Steps from the drawn position on that the windows and the returns need."""
        windows = (self.window(name) for name in self.windows)
        return max((*(window.offset + window.length for window in windows), self.n_step.steps if self.n_step else 1))


@dataclass(frozen=True)
class StatRange:
    """What a stat must be: within minimum and maximum, where these are set; a trajectory without it does not match.

    Attributes:
        name: of the stat.
        minimum: or None.
        maximum: or None.
    """

    name: str
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class TrajectoryFilter:
    """Matches trajectories for which all that is set holds.

    Attributes:
        trajectory_ids: one of these; empty for any.
        actor_id: who played it; empty for anybody.
        min_weights_version: played by weights of at least this version; None for any.
        max_weights_version: played by weights of at most this version; None for any.
        stats: its stats.
    """

    trajectory_ids: tuple[str, ...] = ()
    actor_id: str = ""
    min_weights_version: int | None = None
    max_weights_version: int | None = None
    stats: tuple[StatRange, ...] = ()
