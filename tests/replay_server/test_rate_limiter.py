"""The rate limiter: the band holds, somebody may always go on, waiting calls go in order."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.errors import Refusal
from replay_server.rate_limiter import LimiterCounts, RateLimiter, WaitingLine
from zero.tables import RateLimiterConfig
from zero.wire.codec import Reason

CONFIGS = st.builds(
    lambda minimum, ratio, slack: RateLimiterConfig(minimum, ratio, max(1.0, ratio) * slack),
    st.integers(1, 50),
    st.sampled_from([0.1, 0.5, 1.0, 3.0, 8.0]),
    st.floats(1, 20),
)


@settings(deadline=None)
@given(CONFIGS, st.lists(st.tuples(st.sampled_from(["insert", "sample", "store", "fail"]), st.integers(1, 30))))
def test_the_band_holds_and_nobody_waits_for_ever(config: RateLimiterConfig, calls: list[tuple[str, int]]) -> None:
    """From the minimum on the two stay within the buffer of each other; with nothing under way one side is free."""
    limiter = RateLimiter(config)
    under_way: list[int] = []
    stored = sampled = 0
    origin = None
    largest_insert = max(int(config.error_buffer / config.samples_per_insert), 1)
    largest_sample = int(config.error_buffer)
    for kind, amount in calls:
        if kind == "insert" and limiter.can_insert(min(amount, largest_insert), 0):
            under_way.append(min(amount, largest_insert))
            limiter.admit(under_way[-1])
        elif kind == "sample" and limiter.can_sample(min(amount, largest_sample)):
            assert origin is not None, "no sample before the minimum is stored"
            sampled += min(amount, largest_sample)
            limiter.sample(min(amount, largest_sample))
        elif kind == "store" and under_way:
            stored += under_way[0]
            limiter.store(under_way.pop(0))
            if origin is None and stored >= config.min_size_to_sample:
                origin = stored
        elif kind == "fail" and under_way:
            limiter.withdraw(under_way.pop(0))
        if origin is not None:
            ahead = (stored + sum(under_way) - origin) * config.samples_per_insert - sampled
            assert ahead <= config.error_buffer + largest_insert * config.samples_per_insert
            assert (stored - origin) * config.samples_per_insert - sampled >= -config.error_buffer - 1e-9
        if not under_way:
            assert limiter.can_insert(largest_insert, 0) or limiter.can_sample(largest_sample)
        assert bool(limiter.why_inserts_wait(0)) == (not limiter.can_insert(1, 0))
        assert bool(limiter.why_samples_wait()) == (not limiter.can_sample(1))


def test_the_band_is_exact() -> None:
    """With ratio 2 and buffer 10: 5 inserts ahead or 10 samples ahead, and not one more."""
    limiter = RateLimiter(RateLimiterConfig(3, 2.0, 10.0))
    limiter.admit(2)
    limiter.store(2)
    assert not limiter.can_sample(1)
    limiter.admit(1)
    limiter.store(1)
    assert limiter.can_sample(10)
    assert not limiter.can_sample(11)
    assert limiter.can_insert(5, 0)
    assert not limiter.can_insert(6, 0)
    limiter.sample(10)
    assert not limiter.can_sample(1)
    assert limiter.can_insert(10, 0)
    assert not limiter.can_insert(11, 0)


def test_without_a_ratio_only_the_minimum_counts() -> None:
    """samples_per_insert 0: inserts never wait, samples wait for the minimum once."""
    limiter = RateLimiter(RateLimiterConfig(min_size_to_sample=3))
    assert limiter.can_insert(10**9, 0)
    assert not limiter.can_sample(1)
    limiter.admit(3)
    assert not limiter.can_sample(1), "admitted is not yet stored"
    limiter.store(3)
    assert limiter.can_sample(10**9)


def test_calls_that_could_never_pass_are_refused() -> None:
    """Larger than the buffer: BAD_LENGTH, with what is allowed."""
    limiter = RateLimiter(RateLimiterConfig(1, 2.0, 10.0))
    limiter.check_insert(5)
    limiter.check_sample(10)
    with pytest.raises(Refusal, match="at most 5") as insert:
        limiter.check_insert(6)
    with pytest.raises(Refusal, match="at most 10") as sample:
        limiter.check_sample(11)
    assert insert.value.reason is sample.value.reason is Reason.BAD_LENGTH


def test_a_queue_holds_no_more_than_its_size() -> None:
    """What is under way counts; what the table gives away makes room."""
    limiter = RateLimiter(RateLimiterConfig(queue_size=5))
    assert limiter.can_insert(5, 0)
    assert not limiter.can_insert(6, 0)
    limiter.admit(3)
    assert limiter.can_insert(2, 0)
    assert not limiter.can_insert(3, 0)
    limiter.store(3)
    assert limiter.can_insert(2, 3)
    assert not limiter.can_insert(3, 3)
    assert not limiter.can_insert(1, 5)
    assert "the queue is full: 5 items" in limiter.why_inserts_wait(5)
    assert limiter.why_inserts_wait(4) == ""
    with pytest.raises(Refusal, match="queue_size is 5") as caught:
        limiter.check_insert(6)
    assert caught.value.reason is Reason.BAD_LENGTH


def test_other_limits_count_from_their_beginning() -> None:
    """Data that were loaded without a ratio put nobody ahead when one is set; a minimum not reached holds samples."""
    limiter = RateLimiter(RateLimiterConfig())
    limiter.admit(1000)
    limiter.store(1000)
    limiter.sample(7)
    limiter.set_config(RateLimiterConfig(10, 2.0, 10.0))
    assert limiter.can_sample(10)
    assert not limiter.can_sample(11)
    assert limiter.can_insert(5, 1000)
    assert not limiter.can_insert(6, 1000)
    limiter.set_config(RateLimiterConfig(2000))
    assert not limiter.can_sample(1)
    assert "1000 of 2000" in limiter.why_samples_wait()


def test_a_restart_forgets_nothing() -> None:
    """A limiter that goes on from the counts of another allows what that one allowed."""
    config = RateLimiterConfig(3, 2.0, 10.0)
    limiter = RateLimiter(config)
    limiter.admit(7)
    limiter.store(7)
    limiter.sample(9)
    again = RateLimiter(config, limiter.counts())
    assert again.counts() == limiter.counts() == LimiterCounts(inserted=7, sampled=9, origin=7)
    for amount in range(1, 20):
        assert again.can_sample(amount) == limiter.can_sample(amount)
        assert again.can_insert(amount, 0) == limiter.can_insert(amount, 0)


def test_a_line_is_first_come_first_served_and_survives_those_who_leave() -> None:
    """A small call does not overtake a large one; who gives up or is cancelled makes room for those behind."""

    async def story() -> None:
        room = 0
        passed: list[int] = []

        def take(amount: int) -> None:
            nonlocal room
            room -= amount
            passed.append(amount)

        line = WaitingLine(lambda amount: amount <= room, take)
        large = asyncio.create_task(line.wait(5, 10.0, lambda _: None))
        await asyncio.sleep(0)
        assert not line.try_pass(1)
        room = 2
        assert not line.try_pass(1), "nobody overtakes"
        small = asyncio.create_task(line.wait(2, 10.0, lambda _: None))
        await asyncio.sleep(0)
        large.cancel()
        assert await small
        assert passed == [2]
        assert not await line.wait(7, 0.001, lambda _: None)
        room = 1
        assert line.try_pass(1)

    asyncio.run(story())


def test_a_turn_that_comes_at_the_moment_of_cancellation_is_given_back() -> None:
    """Otherwise what it took would be lost for ever."""

    async def story() -> None:
        open_now = False
        given_back: list[int] = []
        line = WaitingLine(lambda _: open_now, lambda _: None)
        call = asyncio.create_task(line.wait(3, 10.0, given_back.append))
        await asyncio.sleep(0)
        open_now = True
        line.advance()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert given_back == [3]

    asyncio.run(story())


def test_calls_that_wait_are_looked_at_again() -> None:
    """Under other limits some may pass, some never will, the others wait on; a closed line refuses all."""

    async def story() -> None:
        room = 0
        never = 100
        ended = Refusal(Reason.UNKNOWN_TABLE, "deleted")

        def take(amount: int) -> None:
            nonlocal room
            room -= amount

        def check(amount: int) -> None:
            if amount >= never:
                raise Refusal(Reason.BAD_LENGTH, f"never {amount}")

        line = WaitingLine(lambda amount: amount <= room, take)
        calls = [asyncio.create_task(line.wait(amount, 10.0, lambda _: None)) for amount in (9, 2, 9, 3)]
        await asyncio.sleep(0)
        assert len(line) == 4
        never, room = 9, 2
        line.review(check)
        for refused in (calls[0], calls[2]):
            with pytest.raises(Refusal, match="never 9"):
                await refused
        assert await calls[1]
        assert len(line) == 1
        line.close(ended)
        with pytest.raises(Refusal, match="deleted"):
            await calls[3]
        assert len(line) == 0

    asyncio.run(story())
