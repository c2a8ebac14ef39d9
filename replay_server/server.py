"""The server as a whole: starts, recovers, serves, drains and stops, from any thread."""

import asyncio
import concurrent.futures
import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import grpc
import numpy as np
import redis
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from replay_server.border import Border
from replay_server.catalog import Catalog
from replay_server.compiled import load_compiled
from replay_server.credentials import SecuritySettings, is_loopback
from replay_server.embedded_redis import EmbeddedRedis
from replay_server.errors import Refusal, ReplayServerError
from replay_server.group_commit import GroupCommit
from replay_server.inserting import Inserter
from replay_server.interceptors import CallMetrics, MetricsInterceptor
from replay_server.lease_book import LeaseBook
from replay_server.limits import InFlight, Limits
from replay_server.machine import Disk, allow_open_files, disk_of, memory_limit_bytes
from replay_server.malloc import tune_malloc
from replay_server.metrics import Levels, ServerMetrics
from replay_server.metrics_endpoint import MetricsEndpoint
from replay_server.processes import ProcessRegistry
from replay_server.redis_log import LogError, RedisLog
from replay_server.redis_store import RedisStore
from replay_server.sampling import Sampler
from replay_server.security import Security
from replay_server.service import INSERT_HEALTH, REPLAY_SERVICE, ReplayService
from replay_server.weights import WeightsKeeper
from replay_server.weights_service import WEIGHTS_SERVICE, WeightsService

logger = logging.getLogger(__name__)

_PENDING_CALLS = 1000
"""gRPC's own number of calls that may wait to be begun; ours comes on top, for as many may be sent at once."""
_MAX_HEALTH_BYTES = 4096
_CHECK_SECONDS = 0.5
_START_CHECK_SECONDS = 0.02
_START_SECONDS = 10.0


@dataclass(frozen=True)
class ReplayServerSettings:
    """Where and how a replay server runs.

    Attributes:
        data_dir: folder of the embedded Redis; one server at a time.
        host: interface to listen on; any but loopback needs TLS and tokens.
        port: of gRPC; 0 takes a free one.
        metrics_port: of /metrics and /sd; 0 takes a free one.
        health_port: where health alone is served, without TLS and tokens, for probes; 0 takes a free one, None serves
            it on `port` alone, with what that asks for.
        security: TLS and tokens.
        redis_url: an external Redis, redis:// or unix://; without one the server starts its own.
        redis_prefix: of all keys; one server at a time.
        redis_timeout_seconds: after which Redis counts as away.
        max_message_bytes: the largest message.
        max_table_bytes: the most memory all tables together may preallocate; by default four fifths of what the
            machine or the container has.
        max_weights_bytes: the largest weights.
        max_in_flight_bytes: the most bytes of requests being handled and answers being sent.
        max_waiting_calls: the most calls held by rate limiters.
        max_concurrent_calls: the most calls at once, of any kind; further ones are turned away by gRPC.
        process_ttl_seconds: how long a registered process counts as alive.
        priority_save_seconds: how often priorities are saved.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int = 0
    health_port: int | None = None
    security: SecuritySettings = SecuritySettings()  # noqa: RUF009 -- frozen
    redis_url: str | None = field(default=None, repr=False)  # may hold a password
    redis_prefix: str = "zero"
    redis_timeout_seconds: float = 5.0
    max_message_bytes: int = 16 << 20
    max_table_bytes: int | None = None
    max_weights_bytes: int = 512 << 20
    max_in_flight_bytes: int = 256 << 20
    max_waiting_calls: int = 1024
    max_concurrent_calls: int = 8192
    process_ttl_seconds: float = 15.0
    priority_save_seconds: float = 5.0


@dataclass(frozen=True)
class BoundAddresses:
    """Where a server is reached.

    Attributes:
        address: host:port of gRPC.
        metrics_address: host:port of /metrics and /sd.
        health_address: host:port of health alone; None without.
    """

    address: str
    metrics_address: str
    health_address: str | None = None


class ReplayServer:
    """A replay server in a thread of its own.

    Raises:
        ReplayServerError: it cannot start, or has ended by itself.
    """

    def __init__(self, settings: ReplayServerSettings) -> None:
        """Nothing is opened yet."""
        self._settings = settings
        self._ready: concurrent.futures.Future[BoundAddresses] = concurrent.futures.Future()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()  # set when there are loop and event
        self._grace = 0.0
        self._thread = threading.Thread(target=self._run, name="replay-server", daemon=True)

    def start(self, stop: threading.Event | None = None) -> BoundAddresses:
        """Start and recover; returns when the server takes calls.

        Args:
            stop: breaks it off, as `stop` called from another thread does.

        Raises:
            ReplayServerError: one line that names the cause and the remedy.
        """
        self._thread.start()
        while stop is not None and not self._ready.done() and not stop.wait(_START_CHECK_SECONDS):
            pass
        if stop is not None and stop.is_set():
            self._ask_to_stop()
        try:
            return self._ready.result()
        except ReplayServerError:
            self._thread.join()
            raise

    def check(self) -> None:
        """Raise if the server has ended by itself.

        Raises:
            ReplayServerError: why.
        """
        if not self._thread.is_alive():
            raise ReplayServerError(f"the replay server has ended: {self._failure}") from self._failure

    def stop(self, grace: float = 2.0) -> None:
        """Answer NOT_SERVING, let running calls end for `grace` seconds, flush, stop an embedded Redis.

        Raises:
            ReplayServerError: the server had ended by itself.
        """
        if self._thread.ident is None:
            return
        self._grace = grace
        self._ask_to_stop()
        self._thread.join()
        if self._failure is not None:
            raise ReplayServerError(f"the replay server had ended: {self._failure}") from self._failure

    def _ask_to_stop(self) -> None:
        if self._started.wait(_START_SECONDS) and self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended
                self._loop.call_soon_threadsafe(self._stopping.set)

    def __enter__(self) -> BoundAddresses:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # handed over to the thread that owns the server
            if not self._ready.done():
                self._ready.set_exception(_as_start_error(error, self._settings))
                return
            if isinstance(error, ReplayServerError):  # says all in its one line
                logger.critical("the replay server ends: %s", error)
            else:
                logger.exception("the replay server ends")
            self._failure = error

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._started.set()
        tune_malloc()
        allow_open_files()
        parts = _Parts(self._settings)
        async with AsyncExitStack() as stack:
            if self._settings.redis_url is None:
                stack.enter_context(_locked(self._settings.data_dir))
            addresses = await stack.enter_async_context(parts.serving(lambda: self._grace))
            stopping = asyncio.create_task(self._stopping.wait())
            recovering = asyncio.create_task(parts.recover())
            await asyncio.wait((stopping, recovering), return_when=asyncio.FIRST_COMPLETED)
            if not recovering.done():
                await parts.give_up(recovering)
                raise ReplayServerError("the replay server was stopped before it had loaded its data; start it again")
            recovering.result()
            self._ready.set_result(addresses)
            done, _ = await asyncio.wait((stopping, *parts.tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()


class _Parts:
    """Everything a server consists of, put together."""

    def __init__(self, settings: ReplayServerSettings) -> None:
        self._settings = settings
        limits = Limits(
            settings.max_message_bytes,
            _table_bytes(settings),
            settings.max_weights_bytes,
            settings.max_in_flight_bytes,
            settings.max_waiting_calls,
        )
        self._limits = limits
        self._in_flight = InFlight(limits)
        self._processes = ProcessRegistry(settings.process_ttl_seconds)
        embedded = EmbeddedRedis(settings.data_dir) if settings.redis_url is None else None
        self._store = RedisStore(settings.redis_url, embedded, settings.redis_timeout_seconds)
        self._metrics = ServerMetrics(self._levels)
        self._security = Security(settings.security, settings.host, self._metrics)
        log = RedisLog(settings.redis_prefix)
        self._commit = GroupCommit(self._store, log, self._metrics.redis_commit_seconds.observe)
        self._rng = np.random.default_rng()
        self._catalog = Catalog(self._store, log, self._commit, limits, self._rng)
        self._weights = WeightsKeeper(self._store, self._commit, settings.redis_prefix)
        self._leases = LeaseBook(self._store, self._commit, settings.redis_prefix)
        self._border = Border(self._metrics, self._in_flight)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] -- missing in the stubs
        self.tasks: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()

    def _levels(self) -> Levels:
        return Levels(
            [served.state() for served in self._catalog.tables()],
            self._processes.count_by_role(),
            self._border.is_open and not self._commit.down_because,
            self._in_flight.by_direction(),
            self._in_flight.max_bytes,
            self._store.state,
            disk_of(self._settings.data_dir) if self._settings.redis_url is None else Disk(),
        )

    @asynccontextmanager
    async def serving(self, grace: Callable[[], float]) -> AsyncGenerator[BoundAddresses]:
        """Listen at once, so that a taken port is noticed before anything else; calls wait for recover()."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._store.close)
            await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            server, port = self._bind()
            endpoint = MetricsEndpoint(settings.host, settings.metrics_port, self._metrics.registry, self._processes)
            stack.callback(endpoint.close)
            health_address = await self._serve_health(stack)
            await server.start()
            try:
                yield BoundAddresses(
                    _address(settings.host, port), _address(settings.host, endpoint.port), health_address
                )
            finally:
                await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
                await server.stop(grace())
                await self._end_tasks()

    def _bind(self) -> tuple[grpc.aio.Server, int]:
        settings = self._settings
        max_pending = _PENDING_CALLS + settings.max_concurrent_calls
        server = grpc.aio.server(
            interceptors=self._interceptors(),
            options=[
                *_server_options(settings.max_message_bytes),
                # Where more calls wait to be begun gRPC would cancel some at random, which come again at once.
                ("grpc.server.max_pending_requests", max_pending),
                ("grpc.server.max_pending_requests_hard_limit", 2 * max_pending),
            ],
            maximum_concurrent_rpcs=settings.max_concurrent_calls,
        )

        def newest_weights() -> int:
            return self._weights.newest.version

        replay = ReplayService(
            self._catalog,
            Inserter(self._catalog.find, self._commit, self._leases, self._border, self._metrics, newest_weights),
            Sampler(self._catalog.find, newest_weights, self._border, self._metrics, self._rng),
            self._weights,
            self._processes,
            self._leases,
            self._store,
            self._in_flight,
        )
        weights = WeightsService(self._weights, self._metrics, self._limits)
        server.add_generic_rpc_handlers((replay.handlers(self._border), weights.handlers(self._border)))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if is_loopback(settings.host):
            names = (REPLAY_SERVICE, WEIGHTS_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        port = _listen(lambda address: self._security.add_port(server, address), settings.host, settings.port)
        return server, port

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What every call of every kind passes on its way in, outermost first."""
        counting = MetricsInterceptor(CallMetrics(self._metrics.registry))
        return [counting, *self._security.interceptors(self._border.refuse)]

    async def _serve_health(self, stack: AsyncExitStack) -> str | None:
        """Serve health alone where probes reach it that know neither TLS nor tokens; where that is."""
        host, port = self._settings.host, self._settings.health_port
        if port is None:
            return None
        server = grpc.aio.server(options=_server_options(_MAX_HEALTH_BYTES))
        # Not Watch: whoever holds on to calls here could keep the probes out.
        check = grpc.unary_unary_rpc_method_handler(
            self._health.Check,
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check}),))
        address = _address(host, _listen(server.add_insecure_port, host, port))
        stack.push_async_callback(server.stop, None)
        await server.start()
        return address

    async def recover(self) -> None:
        """Connect to Redis, load everything, take calls."""
        started = time.monotonic()
        await self._store.connect()
        await asyncio.to_thread(load_compiled)
        await self._weights.load()
        await self._leases.load()
        self._metrics.set_weights(self._weights.newest.version, self._weights.newest.published_at)
        await self._catalog.recover(self._metrics)
        self._metrics.set_appendfsync(self._store.appendfsync)
        self._metrics.recovery_seconds.set(time.monotonic() - started)
        self.tasks = [
            asyncio.create_task(self._commit.run(), name="group-commit"),
            asyncio.create_task(self._save_priorities(), name="save-priorities"),
            asyncio.create_task(self._security.watch(), name="watch-credentials"),
            asyncio.create_task(self._watch_store(), name="watch-store"),
        ]
        self._border.is_open = True
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        logger.info(
            "recovered in %.2f s; Redis flushes with appendfsync %s",
            time.monotonic() - started,
            self._store.appendfsync,
        )

    async def give_up(self, recovering: "asyncio.Task[None]") -> None:
        """End `recover` soon, wherever it is."""
        self._catalog.give_up_recovery()
        self._store.give_up_loading()
        recovering.cancel()
        await asyncio.wait((recovering,))

    async def _save_priorities(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self._settings.priority_save_seconds)
                return
            if not self._commit.down_because:
                with contextlib.suppress(Refusal):  # the commit has noted why
                    await self._commit.check()
                    await self._catalog.save_priorities()

    async def _watch_store(self) -> None:
        """Say by a health name of its own whether inserts are served: without Redis samples go on."""
        shown = True
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            available = not self._commit.down_because
            if available != shown:
                status = health_pb2.HealthCheckResponse
                await self._health.set(INSERT_HEALTH, status.SERVING if available else status.NOT_SERVING)
                shown = available

    async def _end_tasks(self) -> None:
        if not self.tasks:
            return
        _, _, *others = self.tasks
        for task in others:
            task.cancel()
        self._ending.set()
        self._commit.close()
        await asyncio.wait(self.tasks)
        if self.tasks[0].exception() is None:
            await self._catalog.settled()
        if not self._commit.down_because:
            await self._catalog.save_priorities()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for name in ("", REPLAY_SERVICE, WEIGHTS_SERVICE, INSERT_HEALTH):
            await self._health.set(name, status)


def run_replay_server(
    settings: ReplayServerSettings,
    stop: threading.Event,
    on_ready: Callable[[BoundAddresses], None] | None = None,
) -> None:
    """Run a server until `stop` is set.

    Args:
        settings: where and how.
        stop: ends it.
        on_ready: called with the addresses once it takes calls.

    Raises:
        ReplayServerError: it cannot start, or has ended by itself.
    """
    server = ReplayServer(settings)
    try:
        addresses = server.start(stop)
    except ReplayServerError:
        if stop.is_set():
            return
        raise
    try:
        if on_ready is not None:
            on_ready(addresses)
        while not stop.wait(_CHECK_SECONDS):
            server.check()
    finally:
        server.stop()


@contextmanager
def _locked(data_dir: Path) -> Generator[None]:
    """Hold the folder: two servers in one would end each other's Redis."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / "replay.lock").open("w")
    except OSError as error:
        raise ReplayServerError(f"cannot use the data folder {data_dir}: {error.strerror}; name another one") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReplayServerError(
                f"another replay server uses the data folder {data_dir}; stop it or name another folder"
            ) from None
        yield


def _as_start_error(error: BaseException, settings: ReplayServerSettings) -> ReplayServerError:
    if isinstance(error, ReplayServerError):
        return error
    if isinstance(error, redis.RedisError):
        where = "the embedded Redis" if settings.redis_url is None else "the Redis at the given address"
        return ReplayServerError(f"{where} cannot be used: {error}; check that it runs and may be reached")
    if isinstance(error, LogError):
        return ReplayServerError(f"{error}; restore the Redis data from a copy, or begin with an empty folder")
    failure = ReplayServerError(f"the replay server cannot start: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _table_bytes(settings: ReplayServerSettings) -> int:
    if settings.max_table_bytes is not None:
        return settings.max_table_bytes
    return memory_limit_bytes() * 4 // 5


def _listen(add_port: Callable[[str], int], host: str, port: int) -> int:
    """The port that a server listens on from now."""
    try:
        bound = add_port(_address(host, port))
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise ReplayServerError(
            f"cannot listen on {_address(host, port)}: the port is in use or the host is not ours; choose another port"
        )
    return bound


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        # Up to twice the limit a message is refused with a reason and counted; beyond, gRPC drops it unread.
        ("grpc.max_receive_message_length", 2 * max_message_bytes),
        ("grpc.max_send_message_length", 2 * max_message_bytes),
        ("grpc.so_reuseport", 0),  # or a second server on the same port would silently take half of the calls
        # Clients ping every 10 s, also without calls; gRPC's default takes that for abuse.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
