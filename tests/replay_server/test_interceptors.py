"""Calls of all four kinds are counted by what they are, how they end and how many messages they have."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from prometheus_client import CollectorRegistry

from replay_server.interceptors import CallMetrics, MetricsInterceptor

Context = grpc.aio.ServicerContext[bytes, bytes]


async def unary(request: bytes, context: Context) -> bytes:
    if request == b"abort":
        await context.abort(grpc.StatusCode.NOT_FOUND, "no")
    if request == b"set":
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
    if request == b"break":
        raise RuntimeError("broken on purpose")
    if request == b"hang":
        await asyncio.sleep(60)
    return request


async def collect(requests: AsyncIterator[bytes], context: Context) -> bytes:
    return b"".join([request async for request in requests])


async def generate(request: bytes, context: Context) -> AsyncIterator[bytes]:
    for number in range(3):
        yield bytes([number])


async def write(request: bytes, context: Context) -> None:
    await context.write(request)
    await context.abort(grpc.StatusCode.NOT_FOUND, "no more")


async def echo(requests: AsyncIterator[bytes], context: Context) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Generate": grpc.unary_stream_rpc_method_handler(generate),
    "Write": grpc.unary_stream_rpc_method_handler(write),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
}


@pytest.fixture
def counted() -> Callable[..., dict[str, float]]:
    """Runs calls on a server of its own; gives what was counted since the last time, without zeros."""
    registry = CollectorRegistry()
    interceptor = MetricsInterceptor(CallMetrics(registry))
    seen: dict[str, float] = {}

    def run(calls: Callable) -> dict[str, float]:
        async def main() -> None:
            server = grpc.aio.server(interceptors=[interceptor])
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("some.Service", HANDLERS),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await calls(channel)
            await server.stop(0)

        asyncio.run(main())
        now = {
            f"{sample.name[12:]} {' '.join(sample.labels.values())}": sample.value
            for family in registry.collect()
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_sum", "_created"))
        }
        changed = {name: value - seen.get(name, 0) for name, value in now.items() if value != seen.get(name, 0)}
        seen.update(now)
        return changed

    return run


def expected(kind: str, method: str, code: str, received: int, sent: int) -> dict[str, float]:
    label = f"{kind} some.Service {method}"
    counts = {
        f"started_total {label}": 1,
        f"handled_total {label} {code}": 1,
        f"handling_seconds_count {label}": 1,
        f"msg_received_total {label}": received,
        f"msg_sent_total {label}": sent,
    }
    return {name: value for name, value in counts.items() if value}


def test_every_kind_is_counted(counted: Callable[..., dict[str, float]]) -> None:
    """Also methods that generate and methods that write to their context."""

    async def one(channel: grpc.aio.Channel) -> None:
        assert await channel.unary_unary("/some.Service/Unary")(b"x") == b"x"

    assert counted(one) == expected("unary", "Unary", "OK", 1, 1)

    async def many_to_one(channel: grpc.aio.Channel) -> None:
        assert await channel.stream_unary("/some.Service/Collect")(iter([b"a", b"b"])) == b"ab"

    assert counted(many_to_one) == expected("client_stream", "Collect", "OK", 2, 1)

    async def one_to_many(channel: grpc.aio.Channel) -> None:
        assert [answer async for answer in channel.unary_stream("/some.Service/Generate")(b"")] == [b"\0", b"\1", b"\2"]

    assert counted(one_to_many) == expected("server_stream", "Generate", "OK", 1, 3)

    async def broken_off(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="no more"):
            _ = [answer async for answer in channel.unary_stream("/some.Service/Write")(b"x")]

    assert counted(broken_off) == expected("server_stream", "Write", "NOT_FOUND", 1, 1)

    async def both(channel: grpc.aio.Channel) -> None:
        answers = channel.stream_stream("/some.Service/Echo")(iter([b"a", b"b", b"c"]))
        assert [answer async for answer in answers] == [b"a", b"b", b"c"]

    assert counted(both) == expected("bidi_stream", "Echo", "OK", 3, 3)


@pytest.mark.parametrize(
    ("request_", "code", "sent"), [(b"abort", "NOT_FOUND", 0), (b"set", "OUT_OF_RANGE", 1), (b"break", "UNKNOWN", 0)]
)
def test_calls_are_counted_by_their_code(
    counted: Callable[..., dict[str, float]], request_: bytes, code: str, sent: int
) -> None:
    """Refused, failed, or broken by an error of ours."""

    async def call(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/some.Service/Unary")(request_)

    assert counted(call) == expected("unary", "Unary", code, 1, sent)


def test_a_call_that_goes_away_is_cancelled(counted: Callable[..., dict[str, float]]) -> None:
    """As gRPC says it."""

    async def call(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/some.Service/Unary")(b"hang", timeout=0.2)

    assert counted(call) == expected("unary", "Unary", "CANCELLED", 1, 0)


def test_unknown_methods_make_no_series(counted: Callable[..., dict[str, float]]) -> None:
    """Whoever invents names cannot fill the memory with them."""

    async def call(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/some.Service/Invented")(b"")

    assert counted(call) == {}


def test_our_methods_begin_at_zero_with_the_kind_of_the_proto() -> None:
    """However the server handles them, a dashboard sees what the .proto says."""
    registry = CollectorRegistry()
    CallMetrics(registry)
    kinds = {"Insert": "unary", "InsertStream": "bidi_stream", "ReadTrajectories": "server_stream"}
    for method, kind in kinds.items():
        labels = {"grpc_type": kind, "grpc_service": "zero.v1.ReplayService", "grpc_method": method}
        assert registry.get_sample_value("grpc_server_started_total", labels) == 0
        assert registry.get_sample_value("grpc_server_handled_total", labels | {"grpc_code": "OK"}) == 0
    labels = {"grpc_type": "client_stream", "grpc_service": "zero.v1.WeightsService", "grpc_method": "PublishWeights"}
    assert registry.get_sample_value("grpc_server_msg_received_total", labels) == 0
