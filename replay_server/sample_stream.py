"""Batches over a stream, drawn ahead, with priorities going back on the next request."""

import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from replay_server.answers import ReplayError
from replay_server.connection import Connection, own, refusal
from replay_server.offered_memory import AnswerSlots, Slot
from replay_server.ordered_stream import OrderedStream, hold_seconds, wait_seconds
from zero.trajectories import PriorityUpdates, SampleSpec, SequenceBatch
from zero.wire import codec, frames, replay_pb2
from zero.wire.codec import CodecError, Reason

_SAMPLE = "/zero.v1.ReplayService/SampleStream"
_UPDATE = "/zero.v1.ReplayService/UpdatePriorities"
_MAX_HELD_KEYS = 1 << 16
"""More updates than that do not wait for the next request."""
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Asked:
    """A request of a stream.

    Attributes:
        number: counts the requests of the stream, from 0 on.
        updates: priorities that rode on it; None for none.
    """

    number: int
    updates: PriorityUpdates | None = None


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands between two batches: a stream that goes on from there gives the same batches.

    That is: as long as the table holds the same steps, and has the priorities again that it had then. These are those
    that `ReplayClient.read_priorities` gave just before, changed by `applied`, which may have come in between.

    Attributes:
        seed: of all draws; 0 or above.
        next_number: of the next request.
        drawn: batches that were drawn and not taken yet, in their order.
        applied: priorities that rode on the requests of these.
        asked: requests after them that were not answered yet.
        updates: priorities that wait for the next request.
    """

    seed: int
    next_number: int = 0
    drawn: tuple[SequenceBatch, ...] = ()
    applied: PriorityUpdates | None = None
    asked: tuple[Asked, ...] = ()
    updates: PriorityUpdates | None = None


class _Answer(NamedTuple):
    """What a request was answered with.

    Attributes:
        batch: None if it is in shared memory.
        num_bytes: of the answer, wherever it is.
    """

    batch: SequenceBatch | None
    num_bytes: int


class SampleStream:
    """An endless iterator of batches, for one thread; as a context it ends with all priorities sent.

    A few batches are drawn ahead, one for every batch taken. A restart of the server goes unnoticed: what was asked and
    not answered is asked again. Of a table that hands out items a limited number of times, batches that were drawn and
    not taken are lost with a broken connection, or when the stream ends.

    Batches from a server on this machine are views of memory that is shared with it and returns to it when their last
    array is gone; until then nobody writes there but the caller, and processes that the caller forks.
    """

    def __init__(
        self,
        connection: Connection,
        table: str,
        spec: SampleSpec,
        *,
        in_flight: int,
        timeout: float,
        shared_memory: bool,
        state: StreamState | None = None,
    ) -> None:
        """Use ReplayClient.sample_stream."""
        self._connection = connection
        self._table = table
        self._spec = spec
        self._timeout = timeout
        self._seed = None if state is None else state.seed
        state = state or StreamState(0)
        self._next_number = state.next_number
        self._restored = deque(state.drawn)
        self._updates = [] if state.updates is None else [state.updates]
        self._asked: dict[Future[_Answer], Asked] = {}  # what was not taken yet, in order
        self._decoded: dict[Future[_Answer], SequenceBatch] = {}
        self._drawn: queue.SimpleQueue[Future[_Answer]] = queue.SimpleQueue()
        self._slots = AnswerSlots(in_flight, enabled=shared_memory)
        self._offered: dict[Future[_Answer], Slot] = {}
        self._stream = OrderedStream(
            connection,
            _SAMPLE,
            _parse,
            max_requests=in_flight + 1,
            max_bytes=_MAX_BYTES,
            keep_order=self._seed is not None,
        )
        for asked in state.asked:
            self._send(asked)
        for _ in range(in_flight - len(state.drawn) - len(state.asked)):
            self._ask()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SequenceBatch:
        """The next batch, the arrays of which are the caller's own.

        Raises:
            ReplayTimeout: none came within the timeout; asking again goes on waiting for it.
            ReplayError: the server refused the request, or the stream is closed.
        """
        if self._restored:
            self._ask()
            return self._restored.popleft()
        try:
            drawn = self._drawn.get(timeout=wait_seconds(self._timeout))
        except queue.Empty:
            raise self._stream.timeout(f"no batch within {self._timeout:g} s") from None
        try:
            return self._decoded.pop(drawn, None) or self._batch(drawn)
        finally:
            del self._asked[drawn]
            self._ask()

    def state(self) -> StreamState:
        """Where the stream stands now; of a stream that was given a state with a seed.

        Raises:
            ValueError: the stream draws at random.
        """
        if self._seed is None:
            raise ValueError("a stream that draws at random has no state: give it one with a seed")
        unanswered: list[Asked] = []
        for drawn, asked in self._asked.items():
            if drawn not in self._decoded:
                if unanswered or not drawn.done() or drawn.exception() is not None:
                    unanswered.append(asked)
                    continue
                self._decoded[drawn] = self._batch(drawn)
        answered = [(asked, self._decoded[drawn]) for drawn, asked in self._asked.items() if drawn in self._decoded]
        return StreamState(
            self._seed,
            self._next_number,
            (*self._restored, *(batch for _, batch in answered)),
            _joined([asked.updates for asked, _ in answered if asked.updates is not None]),
            tuple(unanswered),
            _joined(self._updates),
        )

    def update_priorities(self, keys: NDArray[np.uint64], priorities: NDArray[np.float32]) -> None:
        """Send priorities of earlier batches with the next request.

        Args:
            keys: uint64 [N], as SequenceBatch.keys gave them.
            priorities: [N], finite and not negative, before the exponent.

        Raises:
            ValueError: their lengths differ.
        """
        if keys.shape != priorities.shape or keys.ndim != 1:
            raise ValueError(f"{keys.shape} keys and {priorities.shape} priorities; both must be [N]")
        self._updates.append(PriorityUpdates(keys, priorities))
        if sum(len(updates.keys) for updates in self._updates) > _MAX_HELD_KEYS:
            self.flush()

    def flush(self) -> None:
        """Send priorities now.

        Raises:
            ReplayError: the server refused them, or the timeout passed.
        """
        updates = self._take_updates()
        if updates is None:
            return
        request = replay_pb2.UpdatePrioritiesRequest(
            table=self._table, updates=codec.encode_priority_updates(updates)
        ).SerializeToString()
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._connection.channel.unary_unary(_UPDATE)
        self._connection.call(lambda seconds: send(request, timeout=seconds), self._timeout)

    def close(self) -> None:
        """End the stream, and send the priorities that may not have arrived.

        Raises:
            ReplayError: as `flush`.
        """
        self._end()
        self.flush()

    def _end(self) -> None:
        unsure = [
            asked.updates for drawn, asked in self._asked.items() if asked.updates is not None and not drawn.done()
        ]
        self._stream.close()
        self._slots.close()
        self._asked.clear()
        self._updates = unsure + self._updates

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end()

    def _ask(self) -> None:
        self._send(Asked(self._next_number, self._take_updates()))
        self._next_number += 1

    def _send(self, asked: Asked) -> None:
        request = replay_pb2.SampleStreamRequest(
            sample=codec.encode_sample_request(self._table, self._spec, asked.updates, self._seed_of(asked.number)),
            hold_seconds=hold_seconds(self._timeout),
        )
        slot = self._slots.take()
        if slot is not None:
            request.shared_memory.CopyFrom(slot.offer)
            request.slot = slot.number
        drawn = self._stream.send(request.SerializeToString(), self._timeout, float("inf"))
        self._asked[drawn] = asked
        if slot is not None:
            self._offered[drawn] = slot
        drawn.add_done_callback(self._drawn.put)

    def _seed_of(self, number: int) -> int | None:
        if self._seed is None:
            return None
        return int(np.random.SeedSequence((self._seed, number)).generate_state(1, np.uint64)[0])

    def _batch(self, drawn: Future[_Answer]) -> SequenceBatch:
        """The batch of an answer, as views of where it is.

        Raises:
            ReplayError: the request was refused, or the answer is none.
        """
        slot = self._offered.pop(drawn, None)
        try:
            answer = drawn.result()
        except ReplayError:
            self._slots.was_not_used(slot, 0)
            raise
        if answer.batch is not None:
            self._slots.was_not_used(slot, answer.num_bytes)
            return answer.batch
        self._slots.was_used()
        return _read_slot(slot, answer.num_bytes)

    def _take_updates(self) -> PriorityUpdates | None:
        updates, self._updates = _joined(self._updates), []
        return updates


def _joined(parts: Sequence[PriorityUpdates]) -> PriorityUpdates | None:
    if len(parts) <= 1:
        return parts[0] if parts else None
    return PriorityUpdates(
        np.concatenate([updates.keys for updates in parts]), np.concatenate([updates.priorities for updates in parts])
    )


def _parse(answer: bytes) -> _Answer:
    drawn = frames.decode_sample_stream_response(own(answer))
    if isinstance(drawn, frames.RefusedRequest):
        raise refusal(drawn.reason, drawn.message, drawn.retry_after_seconds)
    if isinstance(drawn, frames.SharedAnswer):
        return _Answer(None, drawn.num_bytes)
    return _Answer(drawn, len(answer))


def _read_slot(slot: Slot | None, num_bytes: int) -> SequenceBatch:
    if slot is None or not 0 < num_bytes <= len(slot.memory):
        raise ReplayError(
            Reason.BAD_DATA, f"the server says that {num_bytes} bytes are where there is no room for them"
        )
    try:
        return frames.decode_sample_response(cast(bytes, slot.memory[:num_bytes].data))
    except CodecError as error:
        raise ReplayError(error.reason, error.message) from None
