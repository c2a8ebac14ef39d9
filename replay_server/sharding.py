"""How several servers share one table: which has a trajectory, how a batch is split, how its parts are joined."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from replay_server.answers import ReplayError
from zero.trajectories import PriorityUpdates, SequenceBatch, Trajectory
from zero.wire.codec import Reason

_MAX_PLACED = 100_000

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class ShardedUpdates(PriorityUpdates):
    """New priorities for positions drawn from several shards.

    Attributes:
        shards: int32 [N], as ShardedBatch.shards gave them.
    """

    shards: NDArray[np.int32]


@dataclass(frozen=True)
class ShardedBatch(SequenceBatch):
    """Sequences drawn from several shards, whose rows stand together.

    `probabilities` are those over all shards of a table that gave rows, `table_size` is their sum; the importance
    weights follow from both.

    Attributes:
        shards: int32 [B], where each row comes from, by the place of its address: a key is unique within its shard.
    """

    shards: NDArray[np.int32] = field(kw_only=True)

    def updates(self, priorities: NDArray[np.float32]) -> ShardedUpdates:
        """New priorities [B] for the rows of this batch."""
        return ShardedUpdates(self.keys, priorities, self.shards)


class Share(NamedTuple):
    """What a shard holds of a table.

    Attributes:
        mass: its share of a batch is in proportion to it.
        num_items: stored.
    """

    mass: float
    num_items: int


class Part(NamedTuple):
    """What one shard gave to a batch.

    Attributes:
        shard: the place of its address.
        batch: its rows.
    """

    shard: int
    batch: SequenceBatch


def homes(trajectory_id: str, addresses: Sequence[str]) -> list[int]:
    """The shards in the order in which they are to have a trajectory: rendezvous hashing (Thaler, Ravishankar 1998).

    The same in every process, whatever the order of the addresses; with another shard, only what it takes over moves.
    """
    scores = [xxh3_64_intdigest(f"{address}\0{trajectory_id}") for address in addresses]
    return sorted(range(len(addresses)), key=scores.__getitem__, reverse=True)


def split_batch(batch_size: int, masses: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows [S] for each shard: they add up to batch_size and are batch_size x mass / total on average.

    Systematic resampling: no shard is more than one row away from its share.

    Args:
        batch_size: rows of all.
        masses: [S], not negative, one above 0.
        rng: one number is drawn.
    """
    bounds = np.cumsum(masses) / np.sum(masses) * batch_size
    bounds[-1] = batch_size  # also where rounding errors add up
    return np.diff(np.floor(bounds + rng.random()), prepend=0).astype(np.int64)


def join_batches(parts: Sequence[Part], shares: Mapping[int, Share], exponent: float) -> ShardedBatch:
    """One batch out of what the shards gave.

    A row of shard s was drawn with the probability that s was chosen, which is its share of the masses, times that
    within s. This holds however old the masses are.

    Args:
        parts: at least one.
        shares: of all shards among which the batch was split, by shard.
        exponent: of the importance weights; none if 0.
    """
    total = sum(share.mass for share in shares.values())
    sizes = {shard: share.num_items for shard, share in shares.items()}
    sizes |= {part.shard: part.batch.table_size for part in parts}  # newer
    table_size = sum(sizes.values())
    probabilities = _join([part.batch.probabilities * (shares[part.shard].mass / total) for part in parts])
    joined = _join_rows(
        [part.batch for part in parts],
        probabilities,
        np.repeat(np.array([part.shard for part in parts], np.int32), [len(part.batch.keys) for part in parts]),
    )
    weights = _importance_weights(table_size * probabilities, exponent)
    return replace(joined, table_size=table_size, importance_weights=weights)


def join_tables(batches: Sequence[ShardedBatch | None], exponent: float) -> ShardedBatch:
    """One batch out of those of several tables, one after the other.

    Args:
        batches: of every table, None where it gave no row; at least one is there.
        exponent: of the importance weights; none if 0.

    Raises:
        ReplayError: WRONG_SIGNATURE, the tables have different columns.
    """
    given = [batch for batch in batches if batch is not None]
    _check_alike(given)
    joined = _join_rows(
        given, _join([batch.probabilities for batch in given]), _join([batch.shards for batch in given])
    )
    expected = _join([batch.table_size * batch.probabilities for batch in given])
    return replace(
        joined,
        table_size=sum(batch.table_size for batch in given),
        importance_weights=_importance_weights(expected, exponent),
        rows_per_table=tuple(0 if batch is None else len(batch.keys) for batch in batches),
    )


def _check_alike(batches: Sequence[SequenceBatch]) -> None:
    for name, column in batches[0].columns.items():
        for other in (batch.columns[name] for batch in batches):
            if (other.dtype, other.shape[1:]) != (column.dtype, column.shape[1:]):
                raise ReplayError(
                    Reason.WRONG_SIGNATURE,
                    f"column {name!r} is {column.dtype} {list(column.shape[2:])} in one table, {other.dtype} "
                    f"{list(other.shape[2:])} in another; mix tables that have it alike",
                )


def _join_rows(
    batches: Sequence[SequenceBatch], probabilities: NDArray[np.float64], shards: NDArray[np.int32]
) -> ShardedBatch:
    """The rows of several batches with these probabilities [B], drawn from these shards [B]."""
    return ShardedBatch(
        columns={name: _join([batch.columns[name] for batch in batches]) for name in batches[0].columns},
        keys=_join([batch.keys for batch in batches]),
        probabilities=probabilities,
        lengths=_join([batch.lengths for batch in batches]),
        weights_versions=_join([batch.weights_versions for batch in batches]),
        terminated=_join([batch.terminated for batch in batches]),
        table_size=0,
        shards=shards,
    )


def _importance_weights(expected: NDArray[np.float64], exponent: float) -> NDArray[np.float32] | None:
    """The -exponent-th power of N x probability [B] over the largest: Schaul et al. 2016, section 3.4."""
    if not exponent:
        return None
    logarithms = -exponent * np.log(expected)
    return np.exp(logarithms - logarithms.max()).astype(np.float32)


def _join(arrays: Sequence[NDArray[_Scalar]]) -> NDArray[_Scalar]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


class Placement:
    """Which shard each trajectory goes to."""

    def __init__(self, addresses: Sequence[str], *, divert: bool) -> None:
        """Without `divert` every trajectory goes to the shard that `homes` names first."""
        self._addresses = addresses
        self._divert = divert
        self._placed: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def groups(
        self, trajectories: Sequence[Trajectory], is_alive: Callable[[int], bool]
    ) -> dict[int, list[Trajectory]]:
        """Trajectories by shard, in their order."""
        groups: dict[int, list[Trajectory]] = {}
        for trajectory in trajectories:
            groups.setdefault(self._place(trajectory, is_alive), []).append(trajectory)
        return groups

    def _place(self, trajectory: Trajectory, is_alive: Callable[[int], bool]) -> int:
        """The shard for a trajectory or chunk; if diverting, the first living one, and from then on always the same."""
        order = homes(trajectory.trajectory_id, self._addresses)
        if not self._divert:
            return order[0]
        with self._lock:
            shard = self._placed.pop(trajectory.trajectory_id, None)
            if shard is None:
                # Later chunks of a trajectory that began elsewhere can only be stored where it began: at home.
                shard = order[0] if trajectory.first_step else next(filter(is_alive, order), order[0])
            self._placed[trajectory.trajectory_id] = shard
            if len(self._placed) > _MAX_PLACED:
                self._placed.popitem(last=False)
            return shard
