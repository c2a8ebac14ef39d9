"""Waiting for the private redis-server: patient while it loads, not while it is silent or gone."""

import time
from collections.abc import Callable

import pytest
import redis

from replay_server.embedded_redis import wait_until_ready
from replay_server.errors import ReplayServerError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock that only sleeping moves on, ten seconds at a time."""
    now = 0.0

    def sleep(_: float) -> None:
        nonlocal now
        now += 10.0

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    return lambda: now


def test_loading_may_take_minutes(clock: Callable[[], float]) -> None:
    """An append-only file of any size can be resumed from."""
    answers = iter([redis.ConnectionError(), *[redis.BusyLoadingError()] * 60, redis.ConnectionError(), None])

    def ping() -> None:
        if answer := next(answers):
            raise answer

    wait_until_ready(ping, lambda: None)
    assert clock() == 620


def test_silence_ends_the_waiting(clock: Callable[[], float]) -> None:
    """A server that never answers, or no longer, is given up after twenty seconds."""
    answers = iter([redis.BusyLoadingError()] * 3)

    def ping() -> None:
        raise next(answers, redis.TimeoutError())

    with pytest.raises(redis.ConnectionError, match="has not answered"):
        wait_until_ready(ping, lambda: None)
    assert clock() <= 60


def test_the_end_of_the_process_ends_the_waiting(clock: Callable[[], float]) -> None:
    """Also in the middle of loading."""

    def ping() -> None:
        raise redis.BusyLoadingError

    def check_alive() -> None:
        if clock() > 100:
            raise ReplayServerError("it ended")

    with pytest.raises(ReplayServerError, match="it ended"):
        wait_until_ready(ping, check_alive)
