"""Where points go: every sink has a thread of its own, so that one that is slow or dead keeps nobody waiting."""

import json
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.run_records import RunState
from deploy.statistics.windows import Point

logger = logging.getLogger(__name__)

MAX_POINTS_WAITING = 100_000
"""For one sink; hours of the default statistics. The oldest make room, and are counted."""
RETRY_SECONDS = 5.0
CLOSING_SECONDS = 10.0
"""So long the end of a run waits for a sink."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        state: how it ended.
        error: one line; empty for none.
    """

    state: RunState
    error: str = ""


class Sink(ABC):
    """Takes points; all calls come from one thread, and may take their time or fail."""

    name: str

    @abstractmethod
    def write(self, points: Sequence[Point]) -> None:
        """Keep points; when this returns they are kept."""

    def close(self, outcome: Outcome) -> None:  # noqa: B027 -- not every sink has something to end
        """Say how the run ended; called once, last."""


class JsonLinesSink(Sink):
    """Appends points to a file, one JSON object a line."""

    name = "json"

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, points: Sequence[Point]) -> None:
        """Append the points."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(point._asdict()) + "\n" for point in points))


class ConsoleSink(Sink):
    """Prints the newest value of every statistic, one line for each group of them, every so often.

    Args:
        print_line: where to.
        interval_seconds: between two printings.
        clock: monotonic seconds.
    """

    name = "console"

    def __init__(
        self,
        print_line: Callable[[str], None],
        interval_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._print_line = print_line
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._newest: dict[str, Point] = {}
        self._printed_at = -math.inf

    def write(self, points: Sequence[Point]) -> None:
        """Remember the points, and print if it is time."""
        self._newest |= {point.name: point for point in points}
        if self._clock() - self._printed_at >= self._interval_seconds:
            self._printed_at = self._clock()
            self._print()

    def close(self, outcome: Outcome) -> None:  # noqa: ARG002 -- the end is told elsewhere
        """Print what came since the last printing."""
        self._print()

    def _print(self) -> None:
        groups: dict[str, list[str]] = {}
        for name, point in sorted(self._newest.items()):
            group, _, rest = name.rpartition("/")
            groups.setdefault(group, []).append(f"{rest} {point.value:.4g}")
        for group, values in groups.items():
            self._print_line(f"{group}: {', '.join(values)}")
        self._newest = {}


class HandOver:
    """Gives points to a sink in a thread of its own, holding a bounded number that it has not taken yet.

    A sink that fails is tried again with the same points; one that hangs is left behind when the run ends.

    Args:
        sink: who takes the points.
        on_lost: told how many points were lost.
        on_failure: called whenever the sink has failed.
        retry_seconds: between attempts.
    """

    def __init__(
        self,
        sink: Sink,
        on_lost: Callable[[int], None],
        on_failure: Callable[[], None],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._sink = sink
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._retry_seconds = retry_seconds
        self._waiting: deque[Point] = deque()
        self._changed = threading.Condition()
        self._outcome: Outcome | None = None
        self._failing = False
        # A daemon: what a library does in there may never end, and the process must.
        self._thread = threading.Thread(target=self._run, name=f"sink-{sink.name}", daemon=True)
        self._thread.start()

    def offer(self, points: Sequence[Point]) -> None:
        """Let the sink have points; returns at once."""
        with self._changed:
            self._waiting.extend(points)
            lost = len(self._waiting) - MAX_POINTS_WAITING
            for _ in range(lost):
                self._waiting.popleft()
            self._changed.notify()
        if lost > 0:
            self._on_lost(lost)

    def finish(self, outcome: Outcome) -> None:
        """Let the sink end once it has taken all; returns at once."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the sink to end, at most so many seconds."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                lost, self._waiting = len(self._waiting), deque()
            logger.warning("%s did not end within %.0f s: %d points are not in it", self._sink.name, timeout, lost)
            self._on_lost(lost)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._outcome is not None)
                taken, self._waiting = list(self._waiting), deque()
                outcome = self._outcome
            if taken and not self._attempt(lambda taken=taken: self._sink.write(taken)):
                self._put_back(taken)
                self._pause(outcome)
            elif not taken and outcome is not None:
                self._attempt(lambda outcome=outcome: self._sink.close(outcome))
                return

    def _attempt(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # noqa: BLE001 -- a sink's library may raise anything, and must not end the run
            if not self._failing:
                logger.warning("%s takes no points: %s", self._sink.name, " ".join(str(error).split()) or repr(error))
            self._failing = True
            self._on_failure()
            return False
        if self._failing:
            logger.warning("%s takes points again", self._sink.name)
        self._failing = False
        return True

    def _put_back(self, points: list[Point]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(points))
        self.offer(())

    def _pause(self, outcome: Outcome | None) -> None:
        """Wait before the next attempt, less once the run has ended."""
        with self._changed:
            if outcome is None:
                self._changed.wait_for(lambda: self._outcome is not None, self._retry_seconds)
            else:
                self._changed.wait_for(lambda: False, min(1.0, self._retry_seconds))
