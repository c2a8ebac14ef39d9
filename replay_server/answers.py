"""What a client gets from the replay server, as values and errors."""

from collections.abc import Mapping
from dataclasses import dataclass

from zero.tables import RateLimiterConfig, TableConfig
from zero.trajectories import ColumnSpec, Trajectory
from zero.wire import codec, replay_pb2, trajectory_pb2


class ReplayError(Exception):
    """The replay server refused a call.

    What cannot even be written, such as a negative version or a window of text, is a CodecError, which names the field.

    Attributes:
        reason: a Reason of replay.proto, or the gRPC status code's name where the server gave none.
        message: one line that says what was wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class ReplayTimeout(ReplayError):  # noqa: N818 -- a timeout is what it is
    """The caller's timeout passed: the server could not be reached, was too busy, or its rate limiter held the call.

    Attributes:
        pause_seconds: how long the server asks to wait before the call is repeated; 0 if it did not say.
    """

    def __init__(self, reason: str, message: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason, message)
        self.pause_seconds = pause_seconds


@dataclass(frozen=True)
class InsertResult:
    """What became of an insert, in trajectories and chunks, over all tables.

    Attributes:
        stored: new ones.
        duplicates: known already, with the same content.
    """

    stored: int
    duplicates: int


@dataclass(frozen=True)
class UpdateResult:
    """What became of updates by key, in positions.

    Attributes:
        updated: set.
        evicted: no longer stored, skipped.
        outdated: of new values: the step holds a greater version, and is skipped.
    """

    updated: int
    evicted: int
    outdated: int = 0


@dataclass(frozen=True)
class Verification:
    """What a check of a table's log found.

    Attributes:
        entries: read.
        chunks: trajectories and chunks in them that are still stored.
        num_bytes: of the entries.
        problems: what is wrong, one line each, at most 100.
    """

    entries: int
    chunks: int
    num_bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        version: given by the server, 1, 2, 3, ...
        training_step: optimizer updates made so far.
        payload: the bytes as they were published.
    """

    version: int
    training_step: int
    payload: bytes


@dataclass(frozen=True)
class RateLimiterInfo:
    """State of a rate limiter.

    Attributes:
        config: what is in force.
        inserted: items inserted since the counts began.
        sampled: positions drawn since the counts began.
        waiting_inserts: waiting now.
        waiting_samples: waiting now.
    """

    config: RateLimiterConfig
    inserted: int
    sampled: int
    waiting_inserts: int
    waiting_samples: int


@dataclass(frozen=True)
class TableInfo:
    """State of a table; sizes in steps unless they say otherwise.

    Attributes:
        config: what the table was created as.
        num_steps: stored now.
        num_trajectories: trajectories stored now.
        inserted_steps: ever inserted.
        inserted_trajectories: trajectories ever inserted.
        sampled_positions: positions ever drawn and delivered.
        insert_blocked_because: why inserts wait now; empty if they do not.
        sample_blocked_because: why samples wait now; empty if they do not.
        num_items: positions that may be drawn now.
        memory_bytes: of the table's columns and indices when it is full.
        rate_limiter: its state.
        removed_trajectories: trajectories ever removed, for whatever reason.
        mass: what a draw takes its share of: of a prioritized table the sum of priority ^ exponent, else the items.
        updated_steps: steps whose values were replaced since the server began, each as often as it was.
    """

    config: TableConfig
    num_steps: int
    num_trajectories: int
    inserted_steps: int
    inserted_trajectories: int
    sampled_positions: int
    insert_blocked_because: str
    sample_blocked_because: str
    num_items: int
    memory_bytes: int
    rate_limiter: RateLimiterInfo
    removed_trajectories: int
    mass: float
    updated_steps: int


@dataclass(frozen=True)
class RecoveryProgress:
    """How far the loading of the log is.

    Attributes:
        table: that is being loaded.
        entries_loaded: of all tables, so far.
        entries_total: of all tables.
    """

    table: str
    entries_loaded: int
    entries_total: int


@dataclass(frozen=True)
class ServerInfo:
    """State of the server.

    Attributes:
        tables: by name.
        weights_version: of the newest weights; 0 before any.
        appendfsync: how soon Redis flushes what it acknowledges: "always", "everysec", "no", or "unknown".
        recovery: set while the server loads its log; it refuses other calls then.
        in_flight_bytes: of requests and answers, now.
        max_in_flight_bytes: the most allowed.
        store_away_because: why Redis is away, so that nothing can be inserted durably; empty while it is there.
    """

    tables: Mapping[str, TableInfo]
    weights_version: int
    appendfsync: str
    recovery: RecoveryProgress | None
    in_flight_bytes: int
    max_in_flight_bytes: int
    store_away_because: str = ""


def decode_stored_trajectory(message: trajectory_pb2.Trajectory) -> Trajectory:
    """Unpack a trajectory that the server has stored.

    Raises:
        CodecError: it is damaged.
    """
    signature = tuple(ColumnSpec(column.name, column.dtype, tuple(column.shape[1:])) for column in message.columns)
    return codec.decode_trajectory(message, signature)


def decode_server_info(response: replay_pb2.GetServerInfoResponse) -> ServerInfo:
    """Unpack the state of a server."""
    tables = [_table_info(info) for info in response.tables]
    recovery = response.recovery
    return ServerInfo(
        tables={info.config.name: info for info in tables},
        weights_version=response.weights_version,
        appendfsync=response.appendfsync,
        recovery=RecoveryProgress(recovery.table, recovery.entries_loaded, recovery.entries_total)
        if response.HasField("recovery")
        else None,
        in_flight_bytes=response.in_flight_bytes,
        max_in_flight_bytes=response.max_in_flight_bytes,
        store_away_because=response.store_away_because,
    )


def _table_info(info: replay_pb2.TableInfo) -> TableInfo:
    return TableInfo(
        config=codec.decode_table_config(info.config),
        num_steps=info.num_steps,
        num_trajectories=info.num_trajectories,
        inserted_steps=info.inserted_steps,
        inserted_trajectories=info.inserted_trajectories,
        sampled_positions=info.sampled_positions,
        insert_blocked_because=info.insert_blocked_because,
        sample_blocked_because=info.sample_blocked_because,
        num_items=info.num_items,
        memory_bytes=info.memory_bytes,
        rate_limiter=RateLimiterInfo(
            config=codec.decode_rate_limiter(info.rate_limiter.config),
            inserted=info.rate_limiter.inserted,
            sampled=info.rate_limiter.sampled,
            waiting_inserts=info.rate_limiter.waiting_inserts,
            waiting_samples=info.rate_limiter.waiting_samples,
        ),
        removed_trajectories=info.removed_trajectories,
        mass=info.mass,
        updated_steps=info.updated_steps,
    )
