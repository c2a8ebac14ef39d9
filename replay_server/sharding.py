"""How several servers share one table: which has a trajectory, how a batch is split, how its parts are joined."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from zero.trajectories import PriorityUpdates, SequenceBatch, Trajectory

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

    `probabilities` and `importance_weights` are those over all shards that gave rows, `table_size` is their sum.

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
    weights = None
    if exponent:
        raw = (table_size * probabilities) ** -exponent
        weights = (raw / raw.max()).astype(np.float32)
    batches = [part.batch for part in parts]
    return ShardedBatch(
        columns={name: _join([batch.columns[name] for batch in batches]) for name in batches[0].columns},
        keys=_join([batch.keys for batch in batches]),
        probabilities=probabilities,
        lengths=_join([batch.lengths for batch in batches]),
        weights_versions=_join([batch.weights_versions for batch in batches]),
        terminated=_join([batch.terminated for batch in batches]),
        table_size=table_size,
        importance_weights=weights,
        shards=np.repeat(np.array([part.shard for part in parts], np.int32), [len(part.batch.keys) for part in parts]),
    )


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
