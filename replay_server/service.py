"""The gRPC face: bytes in, checked, handed on, refusals with a code, a line and a reason, bytes out."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NoReturn, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from replay_server.catalog import Catalog, Limits
from replay_server.errors import STATUS_CODES, Refusal
from replay_server.metrics import ServerMetrics
from replay_server.processes import Process, ProcessRegistry
from replay_server.redis_store import RedisStore
from replay_server.served_table import ServedTable
from replay_server.weights import WeightsKeeper
from zero.wire import codec, replay_pb2, weights_pb2
from zero.wire.codec import REASON_METADATA_KEY, CodecError, Reason

REPLAY_SERVICE = "zero.v1.ReplayService"
WEIGHTS_SERVICE = "zero.v1.WeightsService"

_CHUNK_BYTES = 1 << 20
_LONGEST_HOLD_SECONDS = 60.0
_LONGEST_LINE = 500

Context = grpc.aio.ServicerContext[bytes, bytes]
AnyMessage = TypeVar("AnyMessage", bound=Message)


class Border:
    """What every call passes: the recovery gate, and the one place where refusals become answers."""

    def __init__(self, metrics: ServerMetrics) -> None:
        """Closed at first."""
        self._metrics = metrics
        self.is_open = False

    def check_open(self) -> None:
        """Let a call in.

        Raises:
            Refusal: RECOVERING.
        """
        if not self.is_open:
            raise Refusal(Reason.RECOVERING, "the server is loading its log; try again")

    async def refuse(self, context: Context, refusal: Refusal | CodecError) -> NoReturn:
        """Answer with the reason, and count it."""
        self._metrics.rejected.labels(refusal.reason.value).inc()
        line = " ".join(refusal.message.split())[:_LONGEST_LINE]
        await context.abort(STATUS_CODES[refusal.reason], line, ((REASON_METADATA_KEY, refusal.reason.value),))


def _parse(kind: type[AnyMessage], data: bytes) -> AnyMessage:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise Refusal(Reason.BAD_MESSAGE, f"the bytes are no {kind.DESCRIPTOR.full_name}") from None


def _hold_seconds(context: Context) -> float:
    """How long a call may be held so that the refusal still arrives before its deadline."""
    remaining = cast("float | None", context.time_remaining())  # None without a deadline, whatever the stubs say
    if remaining is None:
        return _LONGEST_HOLD_SECONDS
    return min(remaining - min(0.2, 0.1 * remaining), _LONGEST_HOLD_SECONDS)


class ReplayService:
    """zero.v1.ReplayService."""

    def __init__(
        self,
        catalog: Catalog,
        weights: WeightsKeeper,
        processes: ProcessRegistry,
        store: RedisStore,
        metrics: ServerMetrics,
        limits: Limits,
    ) -> None:
        """All collaborators are the server's own."""
        self._catalog = catalog
        self._weights = weights
        self._processes = processes
        self._store = store
        self._metrics = metrics
        self._limits = limits

    def handlers(self, border: Border) -> grpc.GenericRpcHandler:
        """The methods, taking and giving bytes."""
        methods: dict[str, Callable[[bytes, Context], Awaitable[bytes]]] = {
            "CreateTable": self._create_table,
            "Insert": self._insert,
            "Sample": self._sample,
            "UpdatePriorities": self._update_priorities,
            "GetServerInfo": self._get_server_info,
            "RegisterProcess": self._register_process,
        }
        return grpc.method_handlers_generic_handler(
            REPLAY_SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(self._behind(border, method))
                for name, method in methods.items()
            },
        )

    def _behind(
        self, border: Border, method: Callable[[bytes, Context], Awaitable[bytes]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: Context) -> bytes:
            try:
                border.check_open()
                self._check_size(data)
                return await method(data, context)
            except (Refusal, CodecError) as refusal:
                await border.refuse(context, refusal)

        return handle

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._limits.message_bytes:
            raise Refusal(
                Reason.MESSAGE_TOO_LARGE, f"{len(data)} bytes, at most {self._limits.message_bytes} are taken"
            )

    async def _create_table(self, data: bytes, _: Context) -> bytes:
        request = _parse(replay_pb2.CreateTableRequest, data)
        created = await self._catalog.create(codec.decode_table_config(request.table))
        return replay_pb2.CreateTableResponse(created=created).SerializeToString()

    async def _insert(self, data: bytes, context: Context) -> bytes:
        started = time.perf_counter()
        request = _parse(replay_pb2.InsertRequest, data)
        inserted = await self._catalog.find(request.table).insert(request, data, _hold_seconds(context))
        self._metrics.insert_seconds.observe(time.perf_counter() - started)
        return replay_pb2.InsertResponse(stored=inserted.stored, duplicates=inserted.duplicates).SerializeToString()

    async def _sample(self, data: bytes, context: Context) -> bytes:
        started = time.perf_counter()
        request = _parse(replay_pb2.SampleRequest, data)
        table = self._catalog.find(request.table)
        windows = _windows(request)
        if request.HasField("updates"):
            table.update_priorities(codec.decode_priority_updates(request.updates))
        batch = await table.sample(request.batch_size, windows, _hold_seconds(context))
        answer = codec.encode_sequence_batch(batch).SerializeToString()
        self._metrics.sample_seconds.observe(time.perf_counter() - started)
        return answer

    async def _update_priorities(self, data: bytes, _: Context) -> bytes:
        request = _parse(replay_pb2.UpdatePrioritiesRequest, data)
        table = self._catalog.find(request.table)
        updated, evicted = table.update_priorities(codec.decode_priority_updates(request.updates))
        return replay_pb2.UpdatePrioritiesResponse(updated=updated, evicted=evicted).SerializeToString()

    async def _get_server_info(self, data: bytes, _: Context) -> bytes:
        _parse(replay_pb2.GetServerInfoRequest, data)
        return replay_pb2.GetServerInfoResponse(
            tables=[_table_info(table) for table in self._catalog.tables()],
            weights_version=self._weights.newest.version,
            appendfsync=self._store.appendfsync,
        ).SerializeToString()

    async def _register_process(self, data: bytes, _: Context) -> bytes:
        request = _parse(replay_pb2.RegisterProcessRequest, data)
        self._processes.register(Process(request.role, request.process_id, request.metrics_address, request.pid))
        return replay_pb2.RegisterProcessResponse(ttl_seconds=self._processes.ttl_seconds).SerializeToString()


def _windows(request: replay_pb2.SampleRequest) -> Mapping[str, int]:
    windows = {window.name: window.length for window in request.windows}
    if len(windows) != len(request.windows):
        raise Refusal(Reason.BAD_MESSAGE, "a column is asked for twice")
    return windows


def _table_info(served: ServedTable) -> replay_pb2.TableInfo:
    table = served.table
    return replay_pb2.TableInfo(
        config=codec.encode_table_config(table.config),
        num_steps=table.num_steps,
        num_trajectories=table.num_trajectories,
        inserted_steps=served.inserted_steps,
        inserted_trajectories=table.inserted_trajectories,
        sampled_positions=table.sampled_positions,
        insert_blocked_because=served.why_inserts_wait(),
        sample_blocked_because=served.why_samples_wait(),
    )


class WeightsService:
    """zero.v1.WeightsService."""

    def __init__(self, weights: WeightsKeeper, metrics: ServerMetrics, limits: Limits) -> None:
        """All collaborators are the server's own."""
        self._weights = weights
        self._metrics = metrics
        self._limits = limits

    def handlers(self, border: Border) -> grpc.GenericRpcHandler:
        """The methods, taking and giving bytes."""

        async def publish(parts: AsyncIterator[bytes], context: Context) -> bytes:
            try:
                border.check_open()
                return await self._publish(parts)
            except Refusal as refusal:
                await border.refuse(context, refusal)

        async def get(data: bytes, context: Context) -> AsyncIterator[bytes]:
            try:
                border.check_open()
                request = _parse(weights_pb2.GetWeightsRequest, data)
            except Refusal as refusal:
                await border.refuse(context, refusal)
            for part in self._answer(request.newer_than):
                yield part.SerializeToString()

        return grpc.method_handlers_generic_handler(
            WEIGHTS_SERVICE,
            {
                "PublishWeights": grpc.stream_unary_rpc_method_handler(publish),
                "GetWeights": grpc.unary_stream_rpc_method_handler(get),
            },
        )

    async def _publish(self, parts: AsyncIterator[bytes]) -> bytes:
        header: weights_pb2.WeightsHeader | None = None
        payload = bytearray()
        async for data in parts:
            part = _parse(weights_pb2.PublishWeightsRequest, data)
            if header is None:
                header = self._check_header(part)
                continue
            if part.WhichOneof("part") != "chunk" or not 1 <= len(part.chunk) <= _CHUNK_BYTES:
                raise Refusal(Reason.BAD_WEIGHTS, f"after the header come chunks of 1 to {_CHUNK_BYTES} bytes")
            payload += part.chunk
            if len(payload) > header.total_bytes:
                raise Refusal(Reason.BAD_WEIGHTS, f"more than the declared {header.total_bytes} bytes")
        if header is None or len(payload) != header.total_bytes:
            raise Refusal(Reason.BAD_WEIGHTS, f"{len(payload)} bytes came, the header declares another number")
        version = await self._weights.publish(header.training_step, header.sha256, bytes(payload))
        self._metrics.set_weights(self._weights.newest.version, self._weights.newest.published_at)
        return weights_pb2.PublishWeightsResponse(weights_version=version).SerializeToString()

    def _check_header(self, part: weights_pb2.PublishWeightsRequest) -> weights_pb2.WeightsHeader:
        if part.WhichOneof("part") != "header":
            raise Refusal(Reason.BAD_WEIGHTS, "the header comes first")
        if part.header.total_bytes > self._limits.weights_bytes:
            raise Refusal(
                Reason.MESSAGE_TOO_LARGE,
                f"{part.header.total_bytes} bytes of weights, at most {self._limits.weights_bytes} are taken",
            )
        return part.header

    def _answer(self, newer_than: int) -> list[weights_pb2.GetWeightsResponse]:
        newest = self._weights.newest
        if newest.version <= newer_than:
            header = weights_pb2.WeightsHeader(weights_version=newer_than)
            return [weights_pb2.GetWeightsResponse(header=header)]
        header = weights_pb2.WeightsHeader(
            weights_version=newest.version,
            training_step=newest.training_step,
            total_bytes=len(newest.payload),
            sha256=newest.sha256,
        )
        chunks = (newest.payload[i : i + _CHUNK_BYTES] for i in range(0, len(newest.payload), _CHUNK_BYTES))
        return [
            weights_pb2.GetWeightsResponse(header=header),
            *(weights_pb2.GetWeightsResponse(chunk=chunk) for chunk in chunks),
        ]
