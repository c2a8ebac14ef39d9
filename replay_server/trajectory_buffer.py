"""A table of whole trajectories as a buffer: collected one by one, given out as batches of sequences."""

import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Condition, Event

import numpy as np

from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.data_buffer import FedBuffer
from replay_server.data_queue import QueueCounts
from replay_server.inlets import OpenedInlets
from replay_server.sample_stream import StreamState
from zero.trajectories import PriorityUpdates, SampleSpec, SequenceBatch, Trajectory
from zero.wire.codec import CodecError

INSERT_SECONDS = 5.0
"""One insert waits this long for the rate limiter or the store; then it is sent again, under the same id."""
MAX_INSERT_SECONDS = 20.0
"""The next one waits twice as long, up to this: what an overloaded server works on must not have been given up."""
CALLS_IN_FLIGHT = 2
"""Inserts of one inlet: while one is on its way the next one fills."""
CALL_BYTES = 4 << 20
"""Trajectories go together up to this; a larger one goes alone."""
DELIVERY_SECONDS = 5.0
"""Once a role is to stop, what it has collected is sent for at least this long before it is given up."""

SAMPLE_SECONDS = 2.0
"""So long a batch is waited for before looking whether to stop."""


class BufferClosedError(RuntimeError):
    """There will be no further batch: the role stops or the buffer was closed."""


class TrajectoryInlet:
    """Inserts beside the playing thread; when the bound is reached, collecting waits, so memory cannot grow.

    What is collected while others are on their way goes with the next call, so that a server with a thousand actors
    that does not keep up has fewer calls to answer, not more. An insert is repeated until it is acknowledged, which is
    safe because trajectories carry their idempotency key.

    Args:
        client: of the replay server.
        table: the table's name.
        max_in_flight: trajectories that may be unacknowledged.
        stop: once it is set, what is not acknowledged within DELIVERY_SECONDS is given up at its next time-out.
    """

    def __init__(self, client: ReplayClient, table: str, max_in_flight: int, stop: Event) -> None:
        self._client = client
        self._table = table
        self._max_in_flight = max_in_flight
        self._stop = stop
        self._executor = ThreadPoolExecutor(CALLS_IN_FLIGHT, thread_name_prefix="data-collector")
        self._condition = Condition()
        self._unsent: deque[Trajectory] = deque()
        self._num_senders = 0
        self._failures: deque[Exception] = deque()
        self._unacknowledged = 0
        self._collected = 0
        self._give_up_at = math.inf
        self._has_ended = False

    def put(self, data: Trajectory, time: float) -> None:  # noqa: ARG002 -- the server notes when it is stored
        """Send a trajectory; waits while the bound is reached.

        Raises:
            ReplayError: the server refused an earlier trajectory.
            CodecError: an earlier one cannot be sent.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._failures or self._unacknowledged < self._max_in_flight)
            self._raise_failure()
            self._unsent.append(data)
            self._unacknowledged += 1
            self._collected += 1
            if self._num_senders < CALLS_IN_FLIGHT:
                self._num_senders += 1
                self._executor.submit(self._send)

    def counts(self) -> QueueCounts:
        """Those that wait are in flight; none is dropped."""
        with self._condition:
            return QueueCounts(self._collected, 0, self._unacknowledged)

    @property
    def has_ended(self) -> bool:
        """See Inlet."""
        return self._has_ended

    def close(self) -> None:
        """Wait for what is in flight.

        Raises:
            ReplayError: the server refused a trajectory.
            CodecError: one cannot be sent.
        """
        self._executor.shutdown(wait=True)
        self._has_ended = True
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures.popleft()

    def _send(self) -> None:
        """Send until there is nothing left to send; whoever collects something later starts another one."""
        while trajectories := self._take_or_end():
            try:
                self._insert_each(trajectories)
            except Exception as error:  # noqa: BLE001 -- for whoever collects, as everything that goes wrong here
                self._failures.append(error)
            finally:
                with self._condition:
                    self._unacknowledged -= len(trajectories)
                    self._condition.notify_all()

    def _take_or_end(self) -> list[Trajectory]:
        """What goes with one call; if there is nothing, this sender counts no more, before more can be collected."""
        taken: list[Trajectory] = []
        num_bytes = 0
        with self._condition:
            while self._unsent and (not taken or num_bytes + _bytes_of(self._unsent[0]) <= CALL_BYTES):
                num_bytes += _bytes_of(self._unsent[0])
                taken.append(self._unsent.popleft())
            if not taken:
                self._num_senders -= 1
        return taken

    def _insert_each(self, trajectories: Sequence[Trajectory]) -> None:
        """Insert them in one call, and where that is refused one by one, so that each stands for itself."""
        try:
            self._insert(trajectories)
        except (ReplayError, CodecError) as error:
            if len(trajectories) == 1:
                self._failures.append(error)
                return
            for trajectory in trajectories:
                self._insert_each([trajectory])

    def _insert(self, trajectories: Sequence[Trajectory]) -> None:
        seconds = INSERT_SECONDS
        while time.monotonic() < self._give_up_at:
            try:
                self._client.insert(self._table, trajectories, timeout=seconds)
            except ReplayTimeout:
                if self._is_over():
                    return
                seconds = INSERT_SECONDS if self._stop.is_set() else min(2 * seconds, MAX_INSERT_SECONDS)
            else:
                return

    def _is_over(self) -> bool:
        """Whether to give up; the time runs from when this is first asked after the stop."""
        if self._stop.is_set():
            self._give_up_at = min(self._give_up_at, time.monotonic() + DELIVERY_SECONDS)
        return time.monotonic() >= self._give_up_at


def _bytes_of(trajectory: Trajectory) -> int:
    return sum(column.nbytes for column in trajectory.columns.values())


class TrajectoryBuffer(FedBuffer[Trajectory, SequenceBatch]):
    """Gives out batches, a fixed number of which are drawn ahead.

    Few, so that priorities stay fresh: what is in flight was drawn before the newest updates.
    """

    def __init__(
        self,
        client: ReplayClient,
        table: str,
        spec: SampleSpec,
        *,
        prefetch: int,
        stop: Event,
        max_in_flight: int = 8,
        state: StreamState | None = None,
    ) -> None:
        """Of a table that exists.

        Args:
            client: of the replay server.
            table: the table's name.
            spec: what a batch is to hold.
            prefetch: sample requests in flight.
            stop: no further batch once it is set.
            max_in_flight: inserts of one collector that may be unacknowledged.
            state: makes the draws repeatable by its seed, and goes on from where another stood; None draws at random.
        """
        super().__init__(max_in_flight)
        self._client = client
        self._table = table
        self._stop = stop
        self._in_flight = max_in_flight
        self._inlets = OpenedInlets()
        self._closed = False
        self._batches = client.sample_stream(table, spec, in_flight=prefetch, timeout=SAMPLE_SECONDS, state=state)

    def open_inlet(self, *, exclusive: bool = True) -> TrajectoryInlet:  # noqa: ARG002 -- trajectories have ids
        """For one thread of an actor; trajectories of any number of actors go into one table."""
        inlet = TrajectoryInlet(self._client, self._table, self._in_flight, self._stop)
        self._inlets.add(inlet)
        return inlet

    def counts(self) -> QueueCounts:
        """See FedBuffer."""
        return self._inlets.counts()

    def pull(self) -> Sequence[Sequence[float]]:
        """Nothing: the table itself takes in what comes."""
        return ()

    def add(self, data: Trajectory) -> None:
        """Insert a trajectory; returns when it is as durable as the table promises.

        Raises:
            ReplayError: the server refused it.
        """
        self._client.insert(self._table, [data])

    def __len__(self) -> int:
        return self._client.server_info().tables[self._table].num_items

    def get_data(self) -> SequenceBatch:
        """The next batch; waits as long as the rate limiter does.

        Raises:
            BufferClosedError: stopped or closed meanwhile.
            ReplayError: the server refused the request.
        """
        while not (self._stop.is_set() or self._closed):
            with suppress(ReplayTimeout):
                return next(self._batches)
        raise BufferClosedError("no further batches: stopped")

    def sample(self, batch_size: int, sequence_length: int, rng: np.random.Generator) -> SequenceBatch:  # noqa: ARG002
        """Draw sequences of all columns, by the server's own generator, as its selector draws.

        Raises:
            ReplayError: the server refused the request.
        """
        signature = self._client.server_info().tables[self._table].config.signature
        return self._client.sample(self._table, batch_size, {spec.name: sequence_length for spec in signature})

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Send priorities with the next request for a batch."""
        self._batches.update_priorities(updates.keys, updates.priorities)

    def stream_state(self) -> StreamState:
        """Where the batches stand; of a buffer that was given a state with a seed.

        Raises:
            ValueError: it draws at random.
        """
        return self._batches.state()

    def close(self) -> None:
        """Stop drawing."""
        self._closed = True
        with suppress(ReplayError):  # the last priorities are not worth an end with an error
            self._batches.close()
