"""What every call passes: the gate, the bytes it may bring, and the one place where refusals become answers."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from replay_server.errors import STATUS_CODES, Refusal
from replay_server.limits import CallBytes, Direction, InFlight
from replay_server.metrics import ServerMetrics
from zero.wire import replay_pb2
from zero.wire.codec import MESSAGE_BYTES_METADATA_KEY, REASON_METADATA_KEY, CodecError, Reason

LONGEST_HOLD_SECONDS = 60.0
"""No rate limiter holds a call longer."""

_DEFAULT_HOLD_SECONDS = 20.0
_LONGEST_LINE = 500
_SMALL_BYTES = 64 << 10  # a request of at most so many bytes is counted, but never refused for being too much
_ARRIVAL_SECONDS = 60.0
_PATIENCE_SECONDS = 1.0  # for room in which a message of unknown size would fit; most are small and gone at once
_FAREWELL_SECONDS = 5.0

Context = grpc.aio.ServicerContext[bytes, bytes]
AnyMessage = TypeVar("AnyMessage", bound=Message)


class Call:
    """A call that was let in.

    Attributes:
        context: gRPC's.
        bytes: of it that are in flight.
    """

    def __init__(self, context: Context, in_flight: InFlight) -> None:
        self.context = context
        self.bytes = CallBytes(in_flight)
        # An answer is in flight until gRPC is rid of it, which is when the call has ended, in whatever way.
        context.add_done_callback(self._end)  # pyright: ignore[reportArgumentType] -- any callable will do

    def _end(self, context: Context) -> None:
        del context  # which is what gRPC gives its callbacks
        self.bytes.end()

    def hold_seconds(self) -> float:
        """How long a call may be held so that the refusal still arrives before its deadline."""
        # None without a deadline, whatever the stubs say
        remaining = cast("float | None", self.context.time_remaining())
        if remaining is None:
            return LONGEST_HOLD_SECONDS
        return min(remaining - min(0.3, 0.2 * remaining), LONGEST_HOLD_SECONDS)

    async def read(self) -> bytes | None:
        """The next message of a stream, whenever it comes; None after the last one."""
        # gRPC marks the end with an object of its own, whatever the stubs say.
        message = cast("bytes | object", await self.context.read())
        return message if isinstance(message, bytes) else None

    async def read_soon(self) -> bytes | None:
        """The next message, where something is held until it comes.

        Raises:
            Refusal: BAD_MESSAGE, it does not come for a minute.
        """
        try:
            async with asyncio.timeout(_ARRIVAL_SECONDS):
                return await self.read()
        except TimeoutError:
            raise Refusal(Reason.BAD_MESSAGE, f"no message has arrived for {_ARRIVAL_SECONDS:g} s") from None

    async def write(self, message: bytes) -> None:
        """Answer on a stream; waits until gRPC takes it."""
        try:
            await self.context.write(message)
        except grpc.aio.InternalError:
            # The caller has gone away. gRPC cancels this call as soon as it has noticed, too: not a matter for the log.
            await asyncio.sleep(_FAREWELL_SECONDS)
            raise


def parse(kind: type[AnyMessage], data: bytes) -> AnyMessage:
    """A message.

    Raises:
        Refusal: BAD_MESSAGE.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise Refusal(Reason.BAD_MESSAGE, f"the bytes are no {kind.DESCRIPTOR.full_name}") from None


def streamed_hold_seconds(seconds: float) -> float:
    """How long a request on a stream may be held that asks for so many seconds; 0 stands for the default.

    Raises:
        Refusal: BAD_MESSAGE.
    """
    if not 0 <= seconds < math.inf:
        raise Refusal(Reason.BAD_MESSAGE, f"hold_seconds is {seconds}, must be finite and not negative")
    return min(seconds or _DEFAULT_HOLD_SECONDS, LONGEST_HOLD_SECONDS)


class Border:
    """Lets calls in.

    Attributes:
        is_open: False while the server loads its log.
        in_flight: what is inside.
    """

    def __init__(self, metrics: ServerMetrics, in_flight: InFlight) -> None:
        """Closed at first."""
        self._metrics = metrics
        self.in_flight = in_flight
        self.is_open = False

    def unary(
        self,
        method: Callable[[bytes, Call], Awaitable[bytes]],
        *,
        is_large: bool = False,
        while_closed: bool = False,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """A method that takes one message and answers with one.

        Args:
            method: answers; raises Refusal or CodecError.
            is_large: its messages may be large, so none is read before its bytes are within what is allowed.
            while_closed: serve it also while the border is closed.
        """

        async def handle(_: AsyncIterator[bytes], context: Context) -> bytes:
            call = Call(context, self.in_flight)
            try:
                if not while_closed:
                    self.check_open()
                return await method(await self.receive(call, is_large=is_large), call)
            except (Refusal, CodecError) as refusal:
                await self.refuse(context, refusal)

        # A stream of one message is the same on the wire; here it means that the message is read when we say so.
        return grpc.stream_unary_rpc_method_handler(handle)

    def streaming(self, method: Callable[[Call], Awaitable[None]]) -> "grpc.RpcMethodHandler[Any, Any]":
        """A method that reads from and writes to the context of its call itself."""

        async def handle(_: AsyncIterator[bytes], context: Context) -> None:
            try:
                self.check_open()
                await method(Call(context, self.in_flight))
            except (Refusal, CodecError) as refusal:
                await self.refuse(context, refusal)

        return grpc.stream_stream_rpc_method_handler(handle)

    def check_open(self) -> None:
        """Let a call in.

        Raises:
            Refusal: RECOVERING.
        """
        if not self.is_open:
            raise Refusal(Reason.RECOVERING, "the server is loading its log; try again")

    async def receive(self, call: Call, *, is_large: bool = False) -> bytes:
        """The one message of a call; a large one is not read before its bytes are within what is allowed.

        Raises:
            Refusal: BAD_MESSAGE if none comes, MESSAGE_TOO_LARGE, TOO_BUSY.
        """
        expected = 0
        if is_large:
            expected = self._expected(call.context)
            await call.bytes.take_when_they_fit(Direction.REQUESTS, expected, _PATIENCE_SECONDS)
        data = await call.read_soon()
        if data is None:
            raise Refusal(Reason.BAD_MESSAGE, "the call has no message")
        self.check_size(len(data))
        more = len(data) - expected
        if more > _SMALL_BYTES:
            call.bytes.take(Direction.REQUESTS, more)
        else:
            call.bytes.count(Direction.REQUESTS, more)
        return data

    def _expected(self, context: Context) -> int:
        """How large the message of a call may be: as large as it says, or as allowed."""
        given = dict(context.invocation_metadata() or ()).get(MESSAGE_BYTES_METADATA_KEY)
        if given is None:
            return self.in_flight.max_message_bytes
        if not (isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20):
            raise Refusal(Reason.BAD_MESSAGE, f"{MESSAGE_BYTES_METADATA_KEY} is no number of bytes")
        self.check_size(int(given))
        return int(given)

    def check_size(self, num_bytes: int) -> None:
        """Refuse what is too large.

        Raises:
            Refusal: MESSAGE_TOO_LARGE.
        """
        limit = self.in_flight.max_message_bytes
        if num_bytes > limit:
            raise Refusal(Reason.MESSAGE_TOO_LARGE, f"{num_bytes} bytes, at most {limit} are taken")

    async def refuse(self, context: Context, refusal: Refusal | CodecError) -> NoReturn:
        """Answer with the reason, and count it."""
        self._metrics.rejected.labels(refusal.reason.value).inc()
        code, line = STATUS_CODES[refusal.reason], _line(refusal)
        trailing: list[tuple[str, str | bytes]] = [(REASON_METADATA_KEY, refusal.reason.value)]
        if isinstance(refusal, Refusal) and refusal.retry_after_seconds:
            trailing += _retry_metadata(code, line, refusal.retry_after_seconds)
        await context.abort(code, line, tuple(trailing))

    def refused(self, refusal: Refusal | CodecError) -> replay_pb2.Refused:
        """The answer to a request on a stream that is refused alone; counts it."""
        self._metrics.rejected.labels(refusal.reason.value).inc()
        after = refusal.retry_after_seconds if isinstance(refusal, Refusal) else 0.0
        return replay_pb2.Refused(
            reason=refusal.reason.value, message=_line(refusal), retry_after_ms=math.ceil(after * 1000)
        )


def _line(refusal: Refusal | CodecError) -> str:
    """What a refusal tells a person."""
    return " ".join(refusal.message.split())[:_LONGEST_LINE]


def _retry_metadata(code: grpc.StatusCode, line: str, seconds: float) -> list[tuple[str, str | bytes]]:
    """When to try again: as google.rpc.RetryInfo in the status details, and for gRPC's own retries."""
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=line, details=[detail])
    return [
        ("grpc-status-details-bin", status.SerializeToString()),
        ("grpc-retry-pushback-ms", str(max(int(seconds * 1000), 1))),
    ]
