"""The bounded queue between those who collect and the one who takes: what a full one does is chosen by name."""

import threading
from collections import deque
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Overflow(Enum):
    """What a full queue does with a new sample.

    DROP_OLDEST: the sample that has waited longest makes room. BLOCK: whoever collects waits. REJECT: the new one is
    refused with QueueFullError.
    """

    DROP_OLDEST = "drop_oldest"
    BLOCK = "block"
    REJECT = "reject"


class QueueFullError(RuntimeError):
    """A sample was not taken, because too many wait and the queue rejects or has waited too long."""


class QueueClosedError(RuntimeError):
    """Nobody takes samples any more."""


class Stamped(NamedTuple, Generic[T]):
    """A sample and when it was collected.

    Attributes:
        time: by the clock of the collector, in seconds.
        data: the sample.
    """

    time: float
    data: T


class QueueCounts(NamedTuple):
    """What became of samples so far; those collected are dropped, taken or waiting.

    Attributes:
        collected: were taken into the queue.
        dropped: made room for others, or were rejected.
        waiting: are in the queue.
    """

    collected: int
    dropped: int
    waiting: int


class DataQueue(Generic[T]):
    """Samples in the order in which they came, for any number of threads on both sides."""

    def __init__(
        self, max_size: int | None, overflow: Overflow | str = Overflow.DROP_OLDEST, *, block_seconds: float = 60.0
    ) -> None:
        """An empty queue.

        Args:
            max_size: the most samples that wait; None for any number.
            overflow: what a full queue does.
            block_seconds: how long BLOCK waits for room.

        Raises:
            ValueError: an unknown policy, or one that waits for room that there never is.
        """
        self._max_size = max_size
        self._overflow = Overflow(overflow)
        if max_size == 0 and self._overflow is Overflow.BLOCK:
            raise ValueError("a queue of size 0 that blocks would never take a sample")
        self._block_seconds = block_seconds
        self._condition = threading.Condition(threading.Lock())
        # All of the following is guarded by the condition.
        self._waiting: deque[Stamped[T]] = deque()
        self._collected = 0
        self._dropped = 0
        self._closed = False

    def put(self, sample: Stamped[T]) -> None:
        """Add a sample.

        Raises:
            QueueFullError: there was no room.
            QueueClosedError: the queue is closed.
        """
        with self._condition:
            if self._closed:
                raise QueueClosedError("the collector was released or its queue closed: acquire it again")
            if self._max_size is not None and len(self._waiting) >= self._max_size and not self._make_room():
                return
            self._collected += 1
            self._waiting.append(sample)

    def _make_room(self) -> bool:
        """Whether the sample may come in."""
        if self._overflow is Overflow.DROP_OLDEST:
            self._dropped += 1
            if not self._waiting:  # a queue of size 0 keeps nothing
                self._collected += 1
                return False
            self._waiting.popleft()
            return True
        if self._overflow is Overflow.BLOCK and self._condition.wait_for(self._has_room, self._block_seconds):
            if self._closed:
                raise QueueClosedError("the queue was closed while a sample waited for room")
            return True
        self._dropped += 1
        raise QueueFullError(
            f"{self._max_size} samples wait already: let the data user update more often, or choose another overflow"
        )

    def _has_room(self) -> bool:
        return self._closed or self._max_size is None or len(self._waiting) < self._max_size

    def take(self) -> deque[Stamped[T]]:
        """Everything that waits, oldest first."""
        with self._condition:
            taken, self._waiting = self._waiting, deque()
            if self._overflow is Overflow.BLOCK:
                self._condition.notify_all()
            return taken

    def give_back(self, taken: deque[Stamped[T]]) -> None:
        """Let what was taken and not used wait again, before all that has come since."""
        if taken:
            with self._condition:
                taken.extend(self._waiting)
                self._waiting = taken

    def counts(self) -> QueueCounts:
        """What became of samples so far."""
        with self._condition:
            return QueueCounts(self._collected, self._dropped, len(self._waiting))

    def close(self) -> None:
        """Take nothing more; what waits can still be taken."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
