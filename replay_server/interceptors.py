"""Counts every call of every kind under the names that stock gRPC dashboards know."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self, TypeAlias, cast

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from zero.wire import replay_pb2, weights_pb2

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0, 10.0, 60.0)
_CODES = {key: code for code in grpc.StatusCode for key in (code, code.value[0])}
_LABELS = ("grpc_type", "grpc_service", "grpc_method")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # gRPC's class takes no types when it runs
Context = grpc.aio.ServicerContext[Any, Any]


class Method(NamedTuple):
    """A method with its labels.

    Attributes:
        kind: "unary", "client_stream", "server_stream" or "bidi_stream".
        service: full name.
        name: within the service.
    """

    kind: str
    service: str
    name: str


def _kind(client_streams: bool, server_streams: bool) -> str:
    if client_streams:
        return "bidi_stream" if server_streams else "client_stream"
    return "server_stream" if server_streams else "unary"


def _known_methods() -> dict[str, Method]:
    """Our methods by path: what they are by the .proto, not how the server happens to handle them."""
    services = (*replay_pb2.DESCRIPTOR.services_by_name.values(), *weights_pb2.DESCRIPTOR.services_by_name.values())
    return {
        f"/{service.full_name}/{method.name}": Method(
            _kind(method.client_streaming, method.server_streaming), service.full_name, method.name
        )
        for service in services
        for method in service.methods
    }


class CallMetrics:
    """The counters."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Counters of every method of ours begin at 0; its histogram, which is many series, with its first call."""
        self.started = Counter("grpc_server_started", "Calls started on the server.", _LABELS, registry=registry)
        self.handled = Counter(
            "grpc_server_handled",
            "Calls completed on the server, whatever the outcome.",
            (*_LABELS, "grpc_code"),
            registry=registry,
        )
        self.received = Counter(
            "grpc_server_msg_received", "Messages received by the server.", _LABELS, registry=registry
        )
        self.sent = Counter("grpc_server_msg_sent", "Messages sent by the server.", _LABELS, registry=registry)
        self.seconds = Histogram(
            "grpc_server_handling_seconds", "Duration of calls.", _LABELS, buckets=_BUCKETS, registry=registry
        )
        self.methods = _known_methods()
        for method in self.methods.values():
            for metric in (self.started, self.received, self.sent):
                metric.labels(*method)
            self.handled.labels(*method, grpc.StatusCode.OK.name)


def _code(context: Context, error: BaseException | None) -> str:
    """How a call ended, by name."""
    if isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.CANCELLED.name
    given = cast("Any", context.code())  # the code or its number; None or 0 until it is set, whatever the stubs say
    otherwise = grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN
    return (_CODES.get(given, grpc.StatusCode.UNKNOWN) if given else otherwise).name


class _Counted:
    """One call, as gRPC's context of it to its method, with messages and outcome being counted."""

    def __init__(self, metrics: CallMetrics, method: Method, context: Context) -> None:
        self._metrics = metrics
        self._method = method
        self._context = context
        self._started = time.perf_counter()
        metrics.started.labels(*method).inc()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._metrics.received.labels(*self._method).inc()
        return message

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._metrics.sent.labels(*self._method).inc()

    async def messages(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self._metrics.received.labels(*self._method).inc()
            yield request

    def request(self, request: Any, *, streams: bool) -> Any:
        """What the method is given: one message that has come, or those that will."""
        if streams:
            return self.messages(request)
        self._metrics.received.labels(*self._method).inc()
        return request

    def count_sent(self) -> None:
        self._metrics.sent.labels(*self._method).inc()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._metrics.handled.labels(*self._method, _code(self._context, error)).inc()
        self._metrics.seconds.labels(*self._method).observe(time.perf_counter() - self._started)


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Counts the calls that reach a method, and those that interceptors after this one turn away."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """See ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC itself says that there is no such method; its name could be anything
        path = handler_call_details.method
        service, _, name = path[1:].rpartition("/")
        kind = _kind(handler.request_streaming, handler.response_streaming)
        method = self._metrics.methods.get(path) or Method(kind, service, name)
        return self._counting(handler, method)

    def _counting(self, handler: Handler, method: Method) -> Handler:
        behaviour = _behaviour(handler)
        metrics = self._metrics

        async def answer(request: Any, context: Context) -> Any:
            with _Counted(metrics, method, context) as counted:
                answered = await behaviour(counted.request(request, streams=handler.request_streaming), counted)
                if not handler.response_streaming:
                    counted.count_sent()
                return answered

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            with _Counted(metrics, method, context) as counted:
                async for answered in behaviour(counted.request(request, streams=handler.request_streaming), counted):
                    yield answered
                    counted.count_sent()

        make = _MAKERS[handler.request_streaming, handler.response_streaming]
        generates = inspect.isasyncgenfunction(behaviour)
        return make(answers if generates else answer, handler.request_deserializer, handler.response_serializer)


_MAKERS: Mapping[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _behaviour(handler: Handler) -> Callable[[Any, Any], Any]:
    """The function behind a handler of any kind."""
    behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return next(behaviour for behaviour in behaviours if behaviour is not None)
