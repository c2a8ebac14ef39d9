"""The connection to Redis, embedded or external, used by one thread."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from replay_server.embedded_redis import EmbeddedRedis, connect_to_socket
from replay_server.errors import ReplayServerError
from replay_server.redis_state import RedisState, read_redis_state

logger = logging.getLogger(__name__)

_FIRST_WITH_WAITAOF = (7, 2)

P = ParamSpec("P")
R = TypeVar("R")


class RedisStore:
    """A Redis for a thread of its own: everything that has an order goes through `run`, what is long goes beside it.

    Attributes:
        appendfsync: the policy that Redis follows, "no" without an append-only file, "unknown" where it does not tell.
        gives_fsync: whether Redis can promise to have flushed a write before it is acknowledged.
        flushes_itself: whether it does so with every write, without being asked.
        state: how Redis was doing when it was last looked after.
    """

    def __init__(self, redis_url: str | None, embedded: EmbeddedRedis | None, timeout_seconds: float) -> None:
        """Exactly one of url and embedded; nothing is contacted yet. No command may take longer than the timeout."""
        self._url = redis_url
        self._timeout_seconds = timeout_seconds
        self._embedded = embedded
        self._client: redis.Redis | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="replay-redis")
        self._aside: redis.Redis | None = None
        self._aside_executor = ThreadPoolExecutor(1, thread_name_prefix="replay-aside")
        self.appendfsync = "unknown"
        self.state = RedisState()
        self.gives_fsync = self.flushes_itself = self._has_file = False

    @property
    def must_be_asked(self) -> bool:
        """Whether Redis flushes a write before it is acknowledged, but only when it is asked to."""
        return self.gives_fsync and not self.flushes_itself

    async def run(
        self, function: Callable[Concatenate[redis.Redis, P], R], *arguments: P.args, **keywords: P.kwargs
    ) -> R:
        """Call a function with the Redis client on the thread.

        Raises:
            redis.RedisError: as the function does.
        """
        return await self.submit(function, *arguments, **keywords)

    def submit(
        self, function: Callable[Concatenate[redis.Redis, P], R], *arguments: P.args, **keywords: P.kwargs
    ) -> "asyncio.Future[R]":
        """Have a function called as by `run`, after all that were submitted before."""

        def call() -> R:
            if self._client is None:
                raise redis.ConnectionError("Redis is not connected")
            return function(self._client, *arguments, **keywords)

        return asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def run_aside(
        self, function: Callable[Concatenate[redis.Redis, P], R], *arguments: P.args, **keywords: P.kwargs
    ) -> R:
        """Call a function with another client on another thread: writes do not wait for what it moves.

        Raises:
            redis.RedisError: as the function does, or Redis is away.
        """

        def call() -> R:
            if self._client is None:
                raise redis.ConnectionError("Redis is not connected")
            if self._aside is None:
                self._aside = self._open()
            try:
                return function(self._aside, *arguments, **keywords)
            except redis.ConnectionError:
                self._aside.close()
                self._aside = None  # an embedded Redis may come back at another address
                raise

        return await asyncio.get_running_loop().run_in_executor(self._aside_executor, call)

    async def connect(self) -> None:
        """Connect, or connect again; an embedded Redis that has ended is started again.

        Raises:
            redis.RedisError: Redis does not answer.
            ReplayServerError: there is no redis-server program, or it does not start.
        """
        await asyncio.get_running_loop().run_in_executor(self._executor, self._connect)

    def _connect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._embedded is not None:
            self._embedded.ensure_running()
        client = self._open()
        client.ping()
        self._read_policy(client)
        self._warn(client)
        self.state = read_redis_state(client)
        self._client = client

    def _open(self) -> redis.Redis:
        if self._embedded is not None:
            return connect_to_socket(self._embedded.socket_path, self._timeout_seconds)
        return _connect_to_url(self._url or "", self._timeout_seconds)

    def _read_policy(self, client: redis.Redis) -> None:
        state = cast("dict[str, int]", client.info("persistence"))
        # A file that was just enabled holds nothing until its first rewrite is done.
        begins = not self._has_file and (state.get("aof_rewrite_in_progress") or state.get("aof_rewrite_scheduled"))
        has_file = self._has_file = bool(state.get("aof_enabled")) and not begins
        version = str(cast("dict[str, object]", client.info("server")).get("redis_version", "0"))
        self.appendfsync = _setting(client, "appendfsync") if has_file else "no"
        self.flushes_itself = self.appendfsync == "always" and _setting(client, "no-appendfsync-on-rewrite") == "no"
        can_be_asked = tuple(int(part) for part in version.split(".")[:2]) >= _FIRST_WITH_WAITAOF
        self.gives_fsync = has_file and (self.flushes_itself or can_be_asked)

    def _warn(self, client: redis.Redis) -> None:
        if self.appendfsync == "no":
            logger.warning("Redis has no append-only file, or never flushes it: it may lose what it acknowledges")
        policy = _setting(client, "maxmemory-policy")
        if policy not in {"noeviction", "unknown"}:
            logger.warning("Redis has maxmemory-policy %s: it may delete what was acknowledged; use noeviction", policy)

    def give_up_loading(self) -> None:
        """Let `connect` end soon although an embedded Redis has not loaded its data yet."""
        if self._embedded is not None:
            self._embedded.give_up_loading()

    async def tend(self) -> None:
        """Notice another policy, keep the file of an embedded Redis small; call it every few seconds.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        await self.run(self._read_policy)
        self.state = await self.run(read_redis_state)
        if self._embedded is not None:
            await self.run(self._embedded.tend)

    def note_written(self, num_bytes: int) -> None:
        """So much was written; to be called on the thread."""
        if self._embedded is not None:
            self._embedded.note_written(num_bytes)

    async def close(self) -> None:
        """Disconnect, stop an embedded Redis, end the threads."""
        self._aside_executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        self._executor.shutdown()
        await asyncio.to_thread(self._aside_executor.shutdown)
        if self._aside is not None:
            self._aside.close()

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._embedded is not None:
            self._embedded.stop()


def _connect_to_url(url: str, timeout_seconds: float) -> redis.Redis:
    try:
        return redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
        )
    except ValueError:  # whose text may show parts of a password
        raise ReplayServerError(
            "the Redis address cannot be used: write redis://host:port/0 or unix:///path, and %-codes for what is "
            "neither letter nor digit in a password"
        ) from None


def _setting(client: redis.Redis, name: str) -> str:
    try:
        values = cast("dict[str, str]", client.config_get(name))
    except redis.ResponseError:  # managed services forbid CONFIG
        return "unknown"
    return values.get(name, "unknown")
