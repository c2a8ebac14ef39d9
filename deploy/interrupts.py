"""Turns SIGINT and SIGTERM into a count that a loop looks at."""

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import FrameType, TracebackType
from typing import Any, Self

POLL_SECONDS = 0.1
INTERRUPTED = 130
"""Exit code of a command that was interrupted and saved what it had, or that a signal has ended."""


class Interrupts:
    """Counts SIGINT and SIGTERM between entering and leaving; for the main thread.

    A handler runs between any two instructions of the main thread, so it must not touch a lock that this thread may
    hold: it counts, and nothing else. `Event.set` in a handler can deadlock.

    Attributes:
        count: signals received.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.getsignal(number) for number in self.SIGNALS}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Set the handlers, again if a library set its own meanwhile."""
        for number in self.SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.count += 1


def run_until_interrupted(call: Callable[[Event], None], is_asked: Callable[[], bool] = lambda: False) -> None:
    """Run `call(stop)` in a thread and set `stop` on the first signal, or as soon as `is_asked()`.

    A second signal ends the process at once with exit code INTERRUPTED, whatever the thread is doing: what is not
    saved by then is lost, and what others were told is not.
    """
    stop = Event()
    with Interrupts() as interrupts, ThreadPoolExecutor(1, thread_name_prefix="role") as executor:
        future = executor.submit(call, stop)
        while not future.done():
            try:
                future.exception(timeout=POLL_SECONDS)
            except TimeoutError:
                if is_asked():
                    stop.set()
                _act_on(interrupts, stop)
        future.result()


def _act_on(interrupts: Interrupts, stop: Event) -> None:
    if interrupts.count > 0:
        stop.set()
    if interrupts.count > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by an exception: leaving the executor, and then the interpreter, waits for the thread.
        os._exit(INTERRUPTED)
