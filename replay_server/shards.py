"""The servers of a sharded table: who lives, what each holds, looked at from a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from replay_server.answers import ReplayError, ReplayTimeout, ServerInfo
from replay_server.client import ReplayClient
from replay_server.connection import closed_error
from replay_server.credentials import Credentials
from replay_server.sharding import Share
from zero.wire.codec import Reason

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 1.0
"""A server that takes longer to say how it is counts as away."""
_THREADS = 8
"""Calls of each kind that one server is sent at once; what waits for one server must not keep another waiting."""


class _Threads(ThreadPoolExecutor):
    """Threads that refuse a call as a closed client does once they have ended."""

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            raise closed_error() from None


class Shard:
    """One server.

    Attributes:
        address: host:port.
        patient: a client whose calls wait for a server that is away.
        hasty: one whose calls fail then.
        inserting: threads for calls of the patient client.
        drawing: threads for calls of the hasty one.
        info: the newest state; None while it is away.
    """

    def __init__(self, address: str, credentials: Credentials | None) -> None:
        self.address = address
        self.patient = ReplayClient(address, client_name="sharded", credentials=credentials)
        self.hasty = ReplayClient(address, client_name="sharded", credentials=credentials, repeat=False)
        self.inserting = _Threads(_THREADS, thread_name_prefix=f"insert-{address}")
        self.drawing = _Threads(_THREADS, thread_name_prefix=f"draw-{address}")
        self.info: ServerInfo | None = None

    def close(self) -> None:
        """End both connections; calls fail, and so end the threads."""
        self.patient.close()
        self.hasty.close()
        self.inserting.shutdown(cancel_futures=True)
        self.drawing.shutdown(cancel_futures=True)


class Shards:
    """All servers of a table, for any number of threads.

    A server that does not answer is left out from then on; it is asked every second, and taken back when it answers.
    """

    def __init__(self, addresses: Sequence[str], credentials: Credentials | None) -> None:
        """Looks at all servers at once.

        Raises:
            ValueError: no address, or one twice.
        """
        if not addresses or len(set(addresses)) != len(addresses):
            raise ValueError(f"give every shard an address of its own, got {list(addresses)}")
        self.shards = [Shard(address, credentials) for address in addresses]
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shards", daemon=True)
        self._thread.start()

    def is_alive(self, shard: int) -> bool:
        """Whether it answered when it was last asked."""
        return self.shards[shard].info is not None

    def set_away(self, shard: int, error: ReplayError) -> None:
        """Leave a server out until it answers again."""
        self._note(self.shards[shard], None, str(error))

    def shares(self, table: str, timeout: float) -> dict[int, Share]:
        """What each living server holds of a table; waits until one is there.

        A server whose rate limiter holds samples is left out as long as another does not.

        Raises:
            ReplayTimeout: no server lives.
            ReplayError: a living server has no such table.
        """
        infos = self._wait_for_infos(timeout)
        if any(table not in info.tables for info in infos.values()):
            self.look()  # it may be new
            infos = self._wait_for_infos(timeout)
        for number, info in infos.items():
            if table not in info.tables:
                raise ReplayError(Reason.UNKNOWN_TABLE, f"no table {table!r} on shard {self.shards[number].address}")
        tables = {number: info.tables[table] for number, info in infos.items()}
        ready = {number: info for number, info in tables.items() if not info.sample_blocked_because}
        return _drawable({number: Share(info.mass, info.num_items) for number, info in (ready or tables).items()})

    def look(self) -> None:
        """Ask all servers now."""
        for shard in self.shards:
            self._look(shard)

    def _wait_for_infos(self, timeout: float) -> dict[int, ServerInfo]:
        def known() -> dict[int, ServerInfo]:
            return {number: shard.info for number, shard in enumerate(self.shards) if shard.info is not None}

        with self._changed:
            self._changed.wait_for(lambda: known() or self._closed.is_set(), timeout)
            infos = known()
        if self._closed.is_set():
            raise closed_error()
        if not infos:
            addresses = ", ".join(shard.address for shard in self.shards)
            raise ReplayTimeout("UNAVAILABLE", f"none of {addresses} has answered within {timeout:g} s")
        return infos

    def close(self) -> None:
        """End all connections and join the thread."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        for shard in self.shards:
            shard.close()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            self.look()
            self._closed.wait(max(_LOOK_SECONDS - (time.monotonic() - began), 0.0))

    def _look(self, shard: Shard) -> None:
        try:
            info = shard.hasty.server_info(timeout=_ANSWER_SECONDS)
        except ReplayError as error:
            self._note(shard, None, str(error))
        else:
            recovering = info.recovery is not None
            self._note(shard, None if recovering else info, "it is loading its log")

    def _note(self, shard: Shard, info: ServerInfo | None, trouble: str) -> None:
        with self._changed:
            if shard.info is not None and info is None and not self._closed.is_set():
                logger.warning("shard %s is left out until it answers: %s", shard.address, trouble)
            elif shard.info is None and info is not None:
                logger.info("shard %s answers", shard.address)
            shard.info = info
            self._changed.notify_all()


def _drawable(shares: dict[int, Share]) -> dict[int, Share]:
    """The same, as one table would be drawn from: by the items if no priority is above 0; evenly if there are none."""
    if any(share.mass for share in shares.values()):
        return shares
    even = not any(share.num_items for share in shares.values())
    return {shard: Share(1.0 if even else share.num_items, share.num_items) for shard, share in shares.items()}
