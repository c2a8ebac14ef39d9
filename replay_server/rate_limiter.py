"""The ratio of samples to inserts, held inside its band by letting calls wait in order."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from replay_server.errors import Refusal
from zero.tables import RateLimiterConfig
from zero.wire.codec import Reason


class LimiterCounts(NamedTuple):
    """What a rate limiter has counted.

    Attributes:
        inserted: items stored since the counts began.
        sampled: positions drawn since the counts began.
        origin: how many items were inserted when min_size_to_sample was reached; None if it was not yet.
    """

    inserted: int = 0
    sampled: int = 0
    origin: int | None = None


class RateLimiter:
    """Counts of inserted and sampled, and what they allow.

    From the moment when min_size_to_sample is first reached, `samples_per_insert x inserts - samples` stays within
    error_buffer of 0 either way. Inserts count when they are let in, so that those under way cannot overshoot the band
    together, but samples may only count on what is stored. What is removed changes nothing of this; only queue_size
    looks at what the table holds.

    Attributes:
        config: what is in force.
    """

    def __init__(self, config: RateLimiterConfig, counts: LimiterCounts | None = None) -> None:
        """Goes on from counts of an earlier life."""
        counts = counts or LimiterCounts()
        self.config = config
        self._stored = self._admitted = counts.inserted
        self._sampled = counts.sampled
        self._origin = counts.origin
        self._set_origin()

    def _set_origin(self) -> None:
        if self._origin is None and self._stored >= self.config.min_size_to_sample:
            self._origin = self._stored

    def set_config(self, config: RateLimiterConfig) -> None:
        """Put other limits in force: samples and inserts are held to the ratio from now on, whatever was before."""
        self.config = config
        self._origin = None
        self._sampled = 0
        self._set_origin()

    def counts(self) -> LimiterCounts:
        """What was counted so far."""
        return LimiterCounts(self._stored, self._sampled, self._origin)

    @property
    def difference(self) -> float:
        """samples_per_insert x inserts - samples since min_size_to_sample was reached; 0 before, or without a ratio."""
        if self._origin is None or not self.config.samples_per_insert:
            return 0.0
        return (self._stored - self._origin) * self.config.samples_per_insert - self._sampled

    def check_insert(self, num_items: int) -> None:
        """Refuse an insert that could never pass.

        Raises:
            Refusal: BAD_LENGTH.
        """
        config = self.config
        most = int(config.error_buffer / config.samples_per_insert) if config.samples_per_insert else num_items
        if num_items > most:
            raise _never(f"an insert of {num_items} items", f"send at most {most} per call, or raise error_buffer")
        if 0 < config.queue_size < num_items:
            raise _never(f"an insert of {num_items} items", f"queue_size is {config.queue_size}; send less per call")

    def check_sample(self, batch_size: int) -> None:
        """Refuse a sample that could never pass.

        Raises:
            Refusal: BAD_LENGTH.
        """
        config = self.config
        if config.samples_per_insert and batch_size > config.error_buffer:
            raise _never(
                f"a batch of {batch_size}", f"draw at most {int(config.error_buffer)} per call, or raise error_buffer"
            )

    def can_insert(self, num_items: int, held: int) -> bool:
        """Whether an insert may pass now.

        Args:
            num_items: that it brings.
            held: items that the table holds.
        """
        return self._fits_queue(num_items, held) and self._fits_band(num_items)

    def _fits_queue(self, num_items: int, held: int) -> bool:
        under_way = self._admitted - self._stored
        return not self.config.queue_size or held + under_way + num_items <= self.config.queue_size

    def _fits_band(self, num_items: int) -> bool:
        config = self.config
        if not config.samples_per_insert:
            return True
        if self._origin is None:
            return self._admitted < config.min_size_to_sample
        ahead = (self._admitted + num_items - self._origin) * config.samples_per_insert - self._sampled
        return ahead <= config.error_buffer

    def can_sample(self, batch_size: int) -> bool:
        """Whether a sample may pass now."""
        if self._origin is None:
            return False
        return not self.config.samples_per_insert or self.difference - batch_size >= -self.config.error_buffer

    def admit(self, num_items: int) -> None:
        """An insert has been let in."""
        self._admitted += num_items

    def withdraw(self, num_items: int) -> None:
        """An admitted insert came to nothing."""
        self._admitted -= num_items

    def store(self, num_items: int) -> None:
        """Admitted items have been stored."""
        self._stored += num_items
        self._set_origin()

    def sample(self, batch_size: int) -> None:
        """A batch has been drawn."""
        self._sampled += batch_size

    def why_inserts_wait(self, held: int) -> str:
        """In words; empty if they do not."""
        if not self._fits_queue(1, held):
            under_way = self._admitted - self._stored
            return f"the queue is full: {held} items and {under_way} under way, {self.config.queue_size} are allowed"
        if self._fits_band(1):
            return ""
        if self._origin is None:
            return f"{self._admitted} items are being stored; waiting until they are"
        return f"samples lag behind: {self._ratio(self._admitted - self._origin)}"

    def why_samples_wait(self) -> str:
        """In words; empty if they do not."""
        if self.can_sample(1):
            return ""
        if self._origin is None:
            return f"{self._stored} of {self.config.min_size_to_sample} items are inserted"
        return f"inserts lag behind: {self._ratio(self._stored - self._origin)}"

    def _ratio(self, inserted: int) -> str:
        return (
            f"{self._sampled} drawn, {inserted} items inserted x {self.config.samples_per_insert} samples per insert, "
            f"error buffer {self.config.error_buffer}"
        )


def _never(what: str, remedy: str) -> Refusal:
    return Refusal(Reason.BAD_LENGTH, f"{what} can never pass the rate limiter; {remedy}")


class _Waiter(NamedTuple):
    amount: int
    turn: "asyncio.Future[None]"


class WaitingLine:
    """Calls that wait for their turn, first come, first served, so that a large call is not starved by small ones."""

    def __init__(self, may_pass: Callable[[int], bool], pass_through: Callable[[int], None]) -> None:
        self._may_pass = may_pass
        self._pass_through = pass_through
        self._waiters: deque[_Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def try_pass(self, amount: int) -> bool:
        """Pass at once if nobody waits and it is allowed."""
        if self._waiters or not self._may_pass(amount):
            return False
        self._pass_through(amount)
        return True

    async def wait(self, amount: int, seconds: float, give_back: Callable[[int], None]) -> bool:
        """Wait for the turn, at most some seconds; whether it came.

        Args:
            amount: as for try_pass.
            seconds: to wait.
            give_back: called if the turn came but the caller was cancelled at the same moment.

        Raises:
            Refusal: what `review` found, or `close` was given.
        """
        waiter = _Waiter(amount, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await asyncio.wait((waiter.turn,), timeout=seconds)
        except asyncio.CancelledError:
            if waiter.turn.done() and waiter.turn.exception() is None:
                give_back(amount)
            raise
        finally:
            if not waiter.turn.done():
                self._waiters.remove(waiter)
                self.advance()  # those behind may be small enough
        if not waiter.turn.done():
            return False
        waiter.turn.result()
        return True

    def advance(self) -> None:
        """Let pass who may; to be called whenever the counts have changed."""
        while self._waiters and self._may_pass(self._waiters[0].amount):
            waiter = self._waiters.popleft()
            self._pass_through(waiter.amount)
            waiter.turn.set_result(None)

    def review(self, check: Callable[[int], None]) -> None:
        """Refuse who can never pass any more, as `check` says by raising Refusal, and let pass who may now."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            try:
                check(waiter.amount)
            except Refusal as refusal:
                waiter.turn.set_exception(refusal)
            else:
                self._waiters.append(waiter)
        self.advance()

    def close(self, refusal: Refusal) -> None:
        """Refuse all who wait."""
        while self._waiters:
            self._waiters.popleft().turn.set_exception(refusal)
