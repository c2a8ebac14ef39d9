"""Shares the time of a stretch of work out among its phases, by timing methods of the objects that do it."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Shares time out among phases; while an inner phase lasts, the outer one rests.

    Attributes:
        seconds: per phase.
    """

    def __init__(self, phases: Sequence[str], clock: Callable[[], float]) -> None:
        """Of these phases, by a clock that says seconds."""
        self.seconds: dict[str, float] = dict.fromkeys(phases, 0.0)
        self._clock = clock
        self._phases: list[str] = []
        self._since = 0.0

    def reset(self) -> None:
        """Forget all time so far."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """What happens inside belongs to this phase."""
        self._charge()
        self._phases.append(name)
        try:
            yield
        finally:
            self._charge()
            self._phases.pop()

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with all its time in a phase."""

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.phase(name):
                return function(*args, **kwargs)

        return run

    def _charge(self) -> None:
        now = self._clock()
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now


def watch(stopwatch: Stopwatch, phase: str, owner: object, methods: tuple[str, ...]) -> None:
    """Have the stopwatch time these methods of one object."""
    for name in methods:
        setattr(owner, name, stopwatch.timed(phase, getattr(owner, name)))
