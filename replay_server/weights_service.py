"""Weights over gRPC: published in chunks that must add up, fetched in chunks if newer."""

import asyncio
from collections.abc import Iterator

import grpc

from replay_server.border import Border, Call, parse
from replay_server.errors import Refusal
from replay_server.limits import Limits
from replay_server.metrics import ServerMetrics
from replay_server.weights import StoredWeights, WeightsKeeper
from zero.wire import weights_pb2
from zero.wire.codec import Reason

WEIGHTS_SERVICE = "zero.v1.WeightsService"

_CHUNK_BYTES = 1 << 20
_SENT_CHUNK_BYTES = 1 << 18
"""Of an answer, of which every reader makes gRPC hold one; a thousand actors fetch new weights at the same time."""


class WeightsService:
    """zero.v1.WeightsService."""

    def __init__(self, weights: WeightsKeeper, metrics: ServerMetrics, limits: Limits) -> None:
        """All collaborators are the server's own."""
        self._weights = weights
        self._metrics = metrics
        self._limits = limits
        self._receiving = asyncio.Lock()  # however many publish, memory holds one payload that is not checked yet

    def handlers(self, border: Border) -> grpc.GenericRpcHandler:
        """The methods, taking and giving bytes."""

        async def get(call: Call) -> None:
            request = parse(weights_pb2.GetWeightsRequest, await border.receive(call))
            for part in _answer(self._weights.newest, request.newer_than):
                await call.write(part.SerializeToString())

        async def publish(call: Call) -> None:
            async with self._receiving:
                answer = await self._publish(call)
            await call.write(answer)

        return grpc.method_handlers_generic_handler(
            WEIGHTS_SERVICE, {"PublishWeights": border.streaming(publish), "GetWeights": border.streaming(get)}
        )

    async def _publish(self, call: Call) -> bytes:
        header: weights_pb2.WeightsHeader | None = None
        payload = bytearray()
        while (data := await call.read_soon()) is not None:
            part = parse(weights_pb2.PublishWeightsRequest, data)
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


def _answer(newest: StoredWeights, newer_than: int) -> Iterator[weights_pb2.GetWeightsResponse]:
    """The parts of an answer, one at a time: a slow reader holds one chunk, not another copy of the payload."""
    if newest.version <= newer_than:
        yield weights_pb2.GetWeightsResponse(header=weights_pb2.WeightsHeader(weights_version=newer_than))
        return
    yield weights_pb2.GetWeightsResponse(
        header=weights_pb2.WeightsHeader(
            weights_version=newest.version,
            training_step=newest.training_step,
            total_bytes=len(newest.payload),
            sha256=newest.sha256,
        )
    )
    for start in range(0, len(newest.payload), _SENT_CHUNK_BYTES):
        yield weights_pb2.GetWeightsResponse(chunk=newest.payload[start : start + _SENT_CHUNK_BYTES])
