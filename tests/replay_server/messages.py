"""Messages as bytes, good and bad, calls that send them as they are, and what the server counts of them."""

import urllib.request
from collections.abc import Iterable

import grpc
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.replay_server.played import SIGNATURE, played, table_config
from zero.tables import RateLimiterConfig
from zero.trajectories import SampleSpec, Trajectory, TrajectoryFilter
from zero.wire import codec, frames, replay_pb2

SERVICE = "/zero.v1.ReplayService/"


def call(channel: grpc.Channel, method: str, data: bytes, timeout: float = 10.0) -> bytes:
    """One message there, one back."""
    return channel.unary_unary(SERVICE + method)(data, timeout=timeout)


def converse(
    channel: grpc.Channel, method: str, messages: Iterable[bytes], timeout: float = 10.0
) -> list[replay_pb2.InsertStreamResponse | replay_pb2.SampleStreamResponse]:
    """All messages over one stream; all answers."""
    kind = replay_pb2.InsertStreamResponse if method == "InsertStream" else replay_pb2.SampleStreamResponse
    return [
        kind.FromString(answer) for answer in channel.stream_stream(SERVICE + method)(iter(messages), timeout=timeout)
    ]


def read(channel: grpc.Channel, method: str, data: bytes, timeout: float = 10.0) -> list[bytes]:
    """One message there, all that come back."""
    return list(channel.unary_stream(SERVICE + method)(data, timeout=timeout))


def scrape(metrics_address: str) -> dict[str, float]:
    """Every metric by `name{labels}`."""
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def reason_of(error: grpc.RpcError) -> str | None:
    """The stable reason of a refusal."""
    return dict(error.trailing_metadata()).get("zero-reason")


def insert_bytes(table: str, *trajectories: Trajectory, more_tables: Iterable[str] = ()) -> bytes:
    return frames.encode_insert_request([table, *more_tables], trajectories)


def streamed_insert(table: str, *trajectories: Trajectory, hold_seconds: float = 0.0) -> bytes:
    return frames.encode_insert_stream_request([table], trajectories, hold_seconds=hold_seconds)


def sample_request(table: str, **changes: object) -> replay_pb2.SampleRequest:
    request = codec.encode_sample_request(table, SampleSpec(4, {"action": 2}), None)
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def sample_bytes(table: str, **changes: object) -> bytes:
    return sample_request(table, **changes).SerializeToString()


def streamed_sample(table: str, hold_seconds: float = 0.0, **changes: object) -> bytes:
    request = replay_pb2.SampleStreamRequest(sample=sample_request(table, **changes), hold_seconds=hold_seconds)
    return request.SerializeToString()


def with_columns(trajectory: Trajectory, **columns: np.ndarray) -> Trajectory:
    return Trajectory(**{**vars(trajectory), "columns": {**trajectory.columns, **columns}})


def window_bytes(table: str, *windows: tuple[str, int]) -> bytes:
    return replay_pb2.SampleRequest(
        table=table, batch_size=4, windows=[replay_pb2.ColumnWindow(name=name, length=n) for name, n in windows]
    ).SerializeToString()


def mix_bytes(*tables: str, table: str = "", **fields: object) -> bytes:
    request = sample_request(table, **fields)
    for name in tables:
        request.mix.add(table=name, fraction=1 / len(tables))
    return request.SerializeToString()


def updates_bytes(table: str, keys: bytes, priorities: bytes) -> bytes:
    updates = replay_pb2.PriorityUpdates(keys=keys, priorities=priorities)
    return replay_pb2.UpdatePrioritiesRequest(table=table, updates=updates).SerializeToString()


def columns_bytes(table: str, keys: Iterable[int] = (1, 2), **columns: np.ndarray) -> bytes:
    return codec.encode_update_columns_request(table, np.array(list(keys), np.uint64), columns).SerializeToString()


def filter_bytes(kind: type, table: str, chosen: TrajectoryFilter, **fields: object) -> bytes:
    return kind(table=table, filter=codec.encode_trajectory_filter(chosen), **fields).SerializeToString()


def register_bytes(**changes: object) -> bytes:
    fields = {"role": "actor", "process_id": "actor-0", "metrics_address": "127.0.0.1:1", "pid": 1} | changes
    return replay_pb2.RegisterProcessRequest(**fields).SerializeToString()


def valid_messages(table: str, scratch: str) -> dict[str, list[bytes]]:
    """Good messages for every method, by its name; `scratch` is the table that may go away."""
    chunk = Trajectory(**{**vars(played(1)), "trajectory_id": "open", "terminated": False, "open": True})
    some = TrajectoryFilter(trajectory_ids=("t1", "t2"))
    limiter = replay_pb2.SetRateLimiterRequest(
        table=scratch, rate_limiter=codec.encode_rate_limiter(RateLimiterConfig())
    )
    return {
        "CreateTable": [
            replay_pb2.CreateTableRequest(
                table=codec.encode_table_config(table_config(scratch, capacity=100))
            ).SerializeToString()
        ],
        "SetRateLimiter": [limiter.SerializeToString()],
        "ResetTable": [replay_pb2.ResetTableRequest(table=scratch).SerializeToString()],
        "DeleteTable": [replay_pb2.DeleteTableRequest(table=scratch).SerializeToString()],
        "Insert": [
            insert_bytes(table, played(1)),
            insert_bytes(table, played(2, 3), played(3, 2), more_tables=[scratch]),
            insert_bytes(table, chunk),
        ],
        "InsertStream": [streamed_insert(table, played(4)), streamed_insert(scratch, chunk, hold_seconds=0.5)],
        "Sample": [
            sample_bytes(table),
            mix_bytes(table, scratch),
            codec.encode_sample_request(
                table, SampleSpec(8, {"observation": 3, "policy": 1}, importance_sampling_exponent=0.5), None
            ).SerializeToString(),
        ],
        "SampleStream": [streamed_sample(table, hold_seconds=0.5), streamed_sample(scratch, hold_seconds=0.1)],
        "UpdatePriorities": [updates_bytes(table, bytes(16), bytes(8))],
        "UpdateColumns": [columns_bytes(table, reward=np.array([1.0, 2.0], np.float32))],
        "DeleteTrajectories": [filter_bytes(replay_pb2.DeleteTrajectoriesRequest, scratch, some)],
        "ReadTrajectories": [
            replay_pb2.ReadTrajectoriesRequest(table=table, limit=3).SerializeToString(),
            filter_bytes(replay_pb2.ReadTrajectoriesRequest, scratch, some),
        ],
        "VerifyTable": [replay_pb2.VerifyTableRequest(table=scratch).SerializeToString()],
        "GetServerInfo": [b""],
        "RegisterProcess": [register_bytes()],
    }


assert {column.name for column in SIGNATURE} == {"observation", "action", "reward", "policy"}
