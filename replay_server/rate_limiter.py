"""The ratio of samples to inserts, held inside its band by letting calls wait in order."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from replay_server.errors import Refusal
from zero.tables import RateLimiterConfig
from zero.wire.codec import Reason


class RateLimiter:
    """Counts of inserted and sampled, and what they allow.

    From the moment when min_size_to_sample is first reached, `samples_per_insert x inserts - samples` stays within
    error_buffer of 0 either way. Inserts count when they are let in, so that those under way cannot overshoot the band
    together, but samples may only count on what is stored. Evictions change nothing.
    """

    def __init__(self, config: RateLimiterConfig, stored: int = 0) -> None:
        """Starts with steps stored already; the counts begin after them if they reach the minimum."""
        self._config = config
        self._stored = stored
        self._admitted = stored
        self._sampled = 0
        self._origin: int | None = None
        self._set_origin()

    def _set_origin(self) -> None:
        if self._origin is None and self._stored >= self._config.min_size_to_sample:
            self._origin = self._stored

    def check_insert(self, num_steps: int) -> None:
        """Refuse an insert that could never pass.

        Raises:
            Refusal: BAD_LENGTH.
        """
        config = self._config
        if config.samples_per_insert and num_steps * config.samples_per_insert > config.error_buffer:
            most = int(config.error_buffer / config.samples_per_insert)
            raise Refusal(
                Reason.BAD_LENGTH,
                f"an insert of {num_steps} steps can never pass the rate limiter; send at most {most} per call, "
                "or raise error_buffer",
            )

    def check_sample(self, batch_size: int) -> None:
        """Refuse a sample that could never pass.

        Raises:
            Refusal: BAD_LENGTH.
        """
        config = self._config
        if config.samples_per_insert and batch_size > config.error_buffer:
            raise Refusal(
                Reason.BAD_LENGTH,
                f"a batch of {batch_size} can never pass the rate limiter; draw at most {int(config.error_buffer)} "
                "per call, or raise error_buffer",
            )

    def can_insert(self, num_steps: int) -> bool:
        """Whether an insert may pass now."""
        config = self._config
        if not config.samples_per_insert or self._origin is None:
            return self._admitted < config.min_size_to_sample or not config.samples_per_insert
        ahead = (self._admitted + num_steps - self._origin) * config.samples_per_insert - self._sampled
        return ahead <= config.error_buffer

    def can_sample(self, batch_size: int) -> bool:
        """Whether a sample may pass now."""
        config = self._config
        if self._origin is None:
            return False
        if not config.samples_per_insert:
            return True
        ahead = (self._stored - self._origin) * config.samples_per_insert - self._sampled - batch_size
        return ahead >= -config.error_buffer

    def admit(self, num_steps: int) -> None:
        """An insert has been let in."""
        self._admitted += num_steps

    def withdraw(self, num_steps: int) -> None:
        """An admitted insert came to nothing."""
        self._admitted -= num_steps

    def store(self, num_steps: int) -> None:
        """Admitted steps have been stored."""
        self._stored += num_steps
        self._set_origin()

    def sample(self, batch_size: int) -> None:
        """A batch has been drawn."""
        self._sampled += batch_size

    def why_inserts_wait(self) -> str:
        """In words; empty if they do not."""
        if self.can_insert(1):
            return ""
        if self._origin is None:
            return f"{self._admitted} steps are being stored; waiting until they are"
        inserted = self._admitted - self._origin
        return (
            f"samples lag behind: {self._sampled} drawn, {inserted} steps inserted x "
            f"{self._config.samples_per_insert} samples per insert, error buffer {self._config.error_buffer}"
        )

    def why_samples_wait(self) -> str:
        """In words; empty if they do not."""
        if self.can_sample(1):
            return ""
        if self._origin is None:
            return f"{self._stored} of {self._config.min_size_to_sample} steps are inserted"
        inserted = self._stored - self._origin
        return (
            f"inserts lag behind: {self._sampled} drawn, {inserted} steps inserted x "
            f"{self._config.samples_per_insert} samples per insert, error buffer {self._config.error_buffer}"
        )


class _Waiter(NamedTuple):
    amount: int
    turn: "asyncio.Future[None]"


class WaitingLine:
    """Calls that wait for their turn, first come, first served, so that a large call is not starved by small ones."""

    def __init__(self, may_pass: Callable[[int], bool], pass_through: Callable[[int], None]) -> None:
        self._may_pass = may_pass
        self._pass_through = pass_through
        self._waiters: deque[_Waiter] = deque()

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
        """
        waiter = _Waiter(amount, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await asyncio.wait((waiter.turn,), timeout=seconds)
        except asyncio.CancelledError:
            if waiter.turn.done():
                give_back(amount)
            raise
        finally:
            if not waiter.turn.done():
                self._waiters.remove(waiter)
                self.advance()  # those behind may be small enough
        return waiter.turn.done()

    def advance(self) -> None:
        """Let pass who may; to be called whenever the counts have changed."""
        while self._waiters and self._may_pass(self._waiters[0].amount):
            waiter = self._waiters.popleft()
            self._pass_through(waiter.amount)
            waiter.turn.set_result(None)
