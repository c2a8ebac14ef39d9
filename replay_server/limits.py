"""What a server takes at once: sizes, and the bytes and waiting calls in flight, beyond which calls are refused."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from replay_server.errors import Refusal, ReplayServerError
from replay_server.rate_limiter import WaitingLine
from zero.wire.codec import Reason

_SHARE = 0.75  # of the bytes in flight for either direction, so that none can shut out the other


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        message_bytes: the largest message.
        table_bytes: the most memory that all tables together may take when they are full.
        weights_bytes: the largest weights.
        in_flight_bytes: the most bytes of requests being handled and answers being sent.
        waiting_calls: the most calls held by rate limiters, or until there is room for their bytes.

    Raises:
        ReplayServerError: limits that shut out single messages.
    """

    message_bytes: int
    table_bytes: int
    weights_bytes: int
    in_flight_bytes: int = 256 << 20
    waiting_calls: int = 1024

    def __post_init__(self) -> None:
        if self.in_flight_bytes < 4 * self.message_bytes:
            raise ReplayServerError(
                f"{self.in_flight_bytes} bytes in flight are too few for messages of {self.message_bytes}: allow at "
                "least four times as many, or smaller messages"
            )
        if self.waiting_calls < 1:
            raise ReplayServerError(f"{self.waiting_calls} waiting calls: allow at least 1")


class Direction(Enum):
    """Where bytes in flight go."""

    REQUESTS = "requests"
    ANSWERS = "answers"


class InFlight:
    """Counts bytes and waiting calls; to be used in one event loop.

    Each direction may take three quarters of the bytes: inserts that wait never keep out the samples that would let
    them pass, nor answers that nobody reads the inserts.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = dict.fromkeys(Direction, 0)
        self._lines = {direction: self._line(direction) for direction in Direction}
        self._waiting = 0

    def _line(self, direction: Direction) -> WaitingLine:
        def may_pass(num_bytes: int) -> bool:
            most = self.max_bytes * _SHARE
            return self._bytes[direction] + num_bytes <= most and self.num_bytes + num_bytes <= self.max_bytes

        def pass_through(num_bytes: int) -> None:
            self._bytes[direction] += num_bytes

        return WaitingLine(may_pass, pass_through)

    @property
    def max_bytes(self) -> int:
        """The most allowed."""
        return self._limits.in_flight_bytes

    @property
    def max_message_bytes(self) -> int:
        """The largest message."""
        return self._limits.message_bytes

    @property
    def num_bytes(self) -> int:
        """In flight now."""
        return sum(self._bytes.values())

    def by_direction(self) -> list[tuple[str, int]]:
        """In flight now, by the name of the direction."""
        return [(direction.value, num_bytes) for direction, num_bytes in self._bytes.items()]

    def take(self, direction: Direction, num_bytes: int) -> None:
        """Count bytes.

        Raises:
            Refusal: TOO_BUSY, nothing was counted.
        """
        if not self._lines[direction].try_pass(num_bytes):
            raise self._too_busy(direction)

    async def take_when_they_fit(self, direction: Direction, num_bytes: int, seconds: float) -> None:
        """Count bytes as soon as that is allowed, first come, first served.

        Raises:
            Refusal: TOO_BUSY, it was not within some seconds, or too many calls wait.
        """
        line = self._lines[direction]
        if line.try_pass(num_bytes):
            return
        with self.waiting():
            if not await line.wait(num_bytes, seconds, lambda amount: self.count(direction, -amount)):
                raise self._too_busy(direction)

    def _too_busy(self, direction: Direction) -> Refusal:
        return Refusal(
            Reason.TOO_BUSY,
            f"{self.num_bytes} bytes are in flight, {self._bytes[direction]} of them {direction.value}; at most "
            f"{self.max_bytes} are allowed, three quarters of them {direction.value}; try again",
        )

    def count(self, direction: Direction, num_bytes: int) -> None:
        """Count bytes, whatever the limit; fewer if negative."""
        self._bytes[direction] += num_bytes
        if num_bytes < 0:
            for line in self._lines.values():
                line.advance()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """A call is held: by a rate limiter, or until there is room for its bytes.

        Raises:
            Refusal: TOO_BUSY, so many are that it may not be.
        """
        if self._waiting >= self._limits.waiting_calls:
            raise Refusal(Reason.TOO_BUSY, f"{self._waiting} calls wait already, no more are held; try again")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


class CallBytes:
    """The bytes of one call that are in flight; none are when it has ended."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._bytes = dict.fromkeys(Direction, 0)
        self._ended = False

    def take(self, direction: Direction, num_bytes: int) -> None:
        """As InFlight.take."""
        self._in_flight.take(direction, num_bytes)
        self._note(direction, num_bytes)

    async def take_when_they_fit(self, direction: Direction, num_bytes: int, seconds: float) -> None:
        """As InFlight.take_when_they_fit."""
        await self._in_flight.take_when_they_fit(direction, num_bytes, seconds)
        self._note(direction, num_bytes)

    def _note(self, direction: Direction, num_bytes: int) -> None:
        self._bytes[direction] += num_bytes
        if self._ended:
            self.end()

    def count(self, direction: Direction, num_bytes: int) -> None:
        """As InFlight.count."""
        self._in_flight.count(direction, num_bytes)
        self._note(direction, num_bytes)

    def end(self) -> None:
        """The call has ended: give back what it still has."""
        self._ended = True
        for direction, num_bytes in self._bytes.items():
            self._bytes[direction] = 0
            self._in_flight.count(direction, -num_bytes)
