"""Runs a role in a thread for a test, and hands its failure over."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event


@contextmanager
def running(role: Callable[[Event], None]) -> Iterator[None]:
    """Run a role until the block ends; an error of the role is raised at the end of the block."""
    stop = Event()
    with ThreadPoolExecutor(1) as executor:
        ended = executor.submit(role, stop)
        ended.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            stop.set()
            ended.result(timeout=60)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until a condition holds.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
