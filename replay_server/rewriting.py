"""What memory holds and a Redis that came back empty or behind has lost, written to the log again.

Memory has the steps, the id and the digest of a trajectory. Who played it, its seed, how it ended and its stats were in
the log only: what is written again lacks them, and carries digests of its own beside those that tell repetitions.
"""

from collections.abc import Iterator, Sequence

import redis

from replay_server.block import decode_insert
from replay_server.redis_log import Append, RedisLog
from replay_server.table import Stored, Table
from replay_server.write_chain import order_of
from zero.trajectories import Trajectory
from zero.wire import codec, replay_pb2

_ENTRY_BYTES = 1 << 20
_TRAJECTORY_BYTES = 256  # besides its steps, roughly


def rewrite_log(client: redis.Redis, log: RedisLog, table: Table) -> int:
    """Append what the log of a table lacks, oldest first; returns the number of trajectories.

    The log must hold what the table holds up to some entry, and nothing else. The table is told the new entries before
    they are written, so that this also holds when it is broken off; it must not change meanwhile.

    Raises:
        redis.RedisError: some of it may have been written.
    """
    newest = order_of(log.last_entry(client, table.config.name))
    stored = table.stored()
    num_lost = sum(1 for one in stored if order_of(one.entry) > newest)
    first = len(stored) - num_lost
    runs = list(_runs(stored[first:], table.row_bytes))
    entries = log.chain.next_entries(len(runs))
    table.move_newest([entry for run, entry in zip(runs, entries, strict=True) for _ in run])
    start = stored[first - 1].stop if first else table.head - table.num_steps
    ordinal = table.inserted_trajectories - num_lost
    for run in runs:
        log.append(client, [_entry_of(table, run, start, ordinal)], [])
        start = run[-1].stop
        ordinal += len(run)
    log.rewrite_evicted(client, table.config.name, table.first_entry, table.evicted())
    return num_lost


def _runs(stored: Sequence[Stored], row_bytes: int) -> Iterator[list[Stored]]:
    """Consecutive trajectories that share an entry."""
    run: list[Stored] = []
    size = 0
    for i, one in enumerate(stored):
        run.append(one)
        steps = one.stop - stored[i - 1].stop if i else 0  # the first one is counted as small; it begins the run
        size += steps * row_bytes + _TRAJECTORY_BYTES
        if size >= _ENTRY_BYTES:
            yield run
            run, size = [], 0
    if run:
        yield run


def _entry_of(table: Table, run: Sequence[Stored], start: int, ordinal: int) -> Append:
    request = replay_pb2.InsertRequest(table=table.config.name)
    position = start
    for one in run:
        trajectory = Trajectory(
            trajectory_id=one.trajectory_id,
            actor_id="",
            weights_version=table.weights_version_at(position),
            episode_seed=0,
            terminated=False,
            truncated=False,
            columns=table.read(position, one.stop),
        )
        request.trajectories.append(codec.encode_trajectory(trajectory))
        position = one.stop
    message = request.SerializeToString()
    written = [record.digest for record in decode_insert(message, table.config.signature).records]
    return Append(table.config.name, start, ordinal, [one.digest for one in run], message, written)
