"""The one way functions are compiled: numba, cached on disk, without the GIL, typed as the function it decorates."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar, cast

import numba
from numba.core.event import Event, Listener, install_listener

P = ParamSpec("P")
R = TypeVar("R")


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function; the machine code is kept beside the module, so later processes start without compiling.

    It becomes part of every compiled function that calls it: a call would count the references of each array that it
    passes, which costs more than most of these functions do.
    """
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, boundscheck=False, forceinline=True)(function))


class CompilationStopped(Exception):  # noqa: N818 -- no error: it was asked for
    """What was being compiled is not wanted any more."""


@contextmanager
def compiling_unless(is_unwanted: Callable[[], bool]) -> Generator[None]:
    """Break off what is compiled meanwhile, by any thread, between two steps of the compiler.

    Compiling all of a search takes half a minute; a process that is to end must not finish that first.

    Args:
        is_unwanted: whether to break off; asked many times a second.

    Raises:
        CompilationStopped: by the call that needed the compiled function.
    """
    with install_listener("numba:run_pass", _Watch(is_unwanted)):
        yield


class _Watch(Listener):
    def __init__(self, is_unwanted: Callable[[], bool]) -> None:
        self._is_unwanted = is_unwanted

    def on_start(self, event: Event) -> None:  # noqa: ARG002 -- as in the base class
        if self._is_unwanted():
            raise CompilationStopped

    def on_end(self, event: Event) -> None:
        pass
