"""A producer's way into a table: samples wait in a bounded ring, a thread sends them, a lease says who may."""

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike, NDArray

from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.data_queue import Overflow, QueueClosedError, QueueCounts, QueueFullError
from replay_server.sample_ring import SampleRing
from zero.trajectories import Lease, Signature, Trajectory
from zero.wire.codec import Reason

logger = logging.getLogger(__name__)

_LINGER_SECONDS = 0.005
_INSERT_SECONDS = 2.0
_LEASE_NAME = "collector"


@dataclass(frozen=True)
class InletOptions:
    """Bounds of an inlet.

    Attributes:
        max_queue_size: the most samples that wait to be sent; None for any number.
        overflow: what happens to a sample when so many wait.
        block_seconds: how long "block" waits.
        chunk_steps: the most samples of one trajectory.
        insert_steps: the most samples of one insert.
        lease_seconds: after so long without a sign of life another producer may take over.

    Raises:
        ValueError: bounds that let nothing pass.
    """

    max_queue_size: int | None
    overflow: Overflow | str = Overflow.DROP_OLDEST
    block_seconds: float = 60.0
    chunk_steps: int = 256
    insert_steps: int = 4096
    lease_seconds: float = 15.0

    def __post_init__(self) -> None:
        if self.chunk_steps < 1 or self.insert_steps < 1:
            raise ValueError(f"chunk_steps {self.chunk_steps}, insert_steps {self.insert_steps}: must be at least 1")
        if self.max_queue_size == 0 and Overflow(self.overflow) is Overflow.BLOCK:
            raise ValueError("a queue of size 0 that blocks would never take a sample")


class TableInlet:
    """One producer, for any number of threads.

    Samples are stored in the order in which they were put, each exactly once, in trajectories of up to `chunk_steps`.
    While the server is away they wait in the ring. A sample that the ring does not take is refused in `put`; one insert
    is under way at a time.
    """

    def __init__(
        self,
        client: ReplayClient,
        table: str,
        signature: Signature,
        options: InletOptions,
        *,
        exclusive: bool = True,
        producer: str = "",
    ) -> None:
        """Claims the table for itself; starts a thread.

        Args:
            client: of the replay server.
            table: its name.
            signature: of the samples: that of the table without the time of collection.
            options: bounds.
            exclusive: False if others may collect, too, who say so.
            producer: names it among all producers that ever are; empty to have a name made up.

        Raises:
            KeyError: another producer has it.
            ReplayError: the server refused for another reason.
        """
        self._overflow = Overflow(options.overflow)
        self._client = client
        self._table = table
        self._max_size = options.max_queue_size
        self._block_seconds = options.block_seconds
        self._chunk_steps = options.chunk_steps
        self._insert_steps = options.insert_steps
        self._lease_seconds = options.lease_seconds
        self._shared = not exclusive
        self._producer = producer or uuid.uuid4().hex
        self._sent = 0  # trajectories
        self._renewed = 0.0
        self._lease = self._acquire()
        self._condition = threading.Condition(threading.Lock())
        # All of the following is guarded by the condition.
        self._ring = SampleRing(signature, options.max_queue_size)
        self._in_flight = 0
        self._collected = self._dropped = 0
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"data-collector-{table}", daemon=True)
        self._thread.start()

    def put(self, data: Mapping[str, ArrayLike], time: float) -> None:
        """See Inlet.

        Raises:
            ValueError: a value of another shape, that does not fit into the dtype or is not finite.
        """
        with self._condition:
            self._check_open()
            if self._overflow is not Overflow.DROP_OLDEST and not self._has_room():
                self._ring.check(data)
                self._wait_for_room()
            self._ring.put(data, time)
            self._collected += 1
            if self._max_size is not None and len(self._ring) > self._max_size:
                self._ring.drop_oldest()
                self._dropped += 1
            if len(self._ring) in (1, self._chunk_steps):
                self._condition.notify_all()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise QueueClosedError(f"the collector of table {self._table!r} has ended: {self._failure}")
        if self._closed:
            raise QueueClosedError("the collector was released: acquire it again")

    def _wait_for_room(self) -> None:
        if self._overflow is Overflow.BLOCK and self._condition.wait_for(self._has_room_or_ends, self._block_seconds):
            self._check_open()
        else:
            self._dropped += 1
            raise QueueFullError(f"{len(self._ring)} samples wait already to be sent to {self._client.address}")

    def _has_room(self) -> bool:
        return self._max_size is None or len(self._ring) < self._max_size

    def _has_room_or_ends(self) -> bool:
        return self._closed or self._failure is not None or self._has_room()

    def counts(self) -> QueueCounts:
        """See Inlet."""
        with self._condition:
            return QueueCounts(self._collected, self._dropped, len(self._ring) + self._in_flight)

    @property
    def has_ended(self) -> bool:
        """See Inlet."""
        return self._failure is not None

    def flush(self, timeout: float = 60.0) -> None:
        """Wait until everything is stored.

        Raises:
            ReplayTimeout: it is not.
            QueueClosedError: the producer has lost its lease, or the server has refused it.
        """
        with self._condition:
            done = self._condition.wait_for(
                lambda: self._failure is not None or not (len(self._ring) or self._in_flight), timeout
            )
            if self._failure is not None:
                self._check_open()
            if not done:
                raise ReplayTimeout("UNAVAILABLE", f"{len(self._ring) + self._in_flight} samples are not stored yet")

    def close(self, timeout: float = 60.0) -> None:
        """See Inlet; waits until everything is stored, and gives the lease back.

        Raises:
            ReplayTimeout: something is not stored, and is given up.
            QueueClosedError: the producer has lost its lease, or the server has refused it.
        """
        with self._condition:
            if self._closed:
                return
            self._closed = True
            self._condition.notify_all()
        try:
            self.flush(timeout)
        finally:
            with self._condition:
                self._failure = self._failure or QueueClosedError("it was released, acquire it again")
                self._condition.notify_all()
            self._thread.join()
        self._client.release_lease(self._table, _LEASE_NAME, self._producer)

    # --- the thread that sends ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                if taken:
                    self._send(self._trajectories(taken))
                    with self._condition:
                        self._in_flight = 0
                        self._condition.notify_all()
                self._keep_lease()
        except (ReplayError, KeyError) as error:
            logger.warning("no more is collected into table %s: %s", self._table, error)
            self._end(error)
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        with self._condition:
            self._failure = self._failure or error
            self._condition.notify_all()

    def _take(self) -> dict[str, NDArray[Any]] | None:
        """What is to be sent now; nothing if the lease is to be renewed first, None at the end."""
        with self._condition:
            self._condition.wait_for(
                lambda: len(self._ring) or self._failure is not None, max(self._lease_seconds / 4, 0.01)
            )
            if self._failure is not None:
                return None
            if not self._closed and 0 < len(self._ring) < self._chunk_steps:
                self._condition.wait_for(lambda: len(self._ring) >= self._chunk_steps or self._closed, _LINGER_SECONDS)
            if not len(self._ring):
                return {}
            taken = self._ring.take(self._insert_steps)
            self._in_flight = len(next(iter(taken.values())))
            self._condition.notify_all()
            return taken

    def _trajectories(self, taken: Mapping[str, NDArray[Any]]) -> list[Trajectory]:
        steps = len(next(iter(taken.values())))
        trajectories: list[Trajectory] = []
        for start in range(0, steps, self._chunk_steps):
            columns = {name: column[start : start + self._chunk_steps] for name, column in taken.items()}
            name = f"{self._producer}-{self._sent}"
            self._sent += 1
            trajectories.append(
                Trajectory(name, self._producer, 0, 0, terminated=False, truncated=True, columns=columns)
            )
        return trajectories

    def _send(self, trajectories: list[Trajectory]) -> None:
        """Insert until it is acknowledged; repeating it is safe, since trajectories carry their idempotency key."""
        while self._failure is None:
            try:
                self._client.insert(self._table, trajectories, timeout=_INSERT_SECONDS, lease=self._lease)
            except ReplayTimeout as error:
                logger.info("samples wait for %s: %s", self._client.address, error)
                self._keep_lease()
            else:
                return

    def _keep_lease(self) -> None:
        if time.monotonic() - self._renewed > self._lease_seconds / 4:
            try:
                self._acquire(timeout=_INSERT_SECONDS)
            except ReplayTimeout:  # the insert that comes next tells whether it was lost meanwhile
                logger.info("the lease of table %s could not be renewed", self._table)

    def _acquire(self, timeout: float = 60.0) -> Lease:
        now = time.monotonic()
        try:
            lease = self._client.acquire_lease(
                self._table, _LEASE_NAME, self._producer, self._lease_seconds, shared=self._shared, timeout=timeout
            )
        except ReplayError as error:
            if error.reason == Reason.LEASE_HELD:
                raise KeyError(error.message) from None
            raise
        self._renewed = now
        return lease
