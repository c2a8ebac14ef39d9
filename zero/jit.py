"""The one way functions are compiled: numba, cached on disk, without the GIL, typed as the function it decorates."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function; the machine code is kept beside the module, so later processes start without compiling.

    It becomes part of every compiled function that calls it: a call would count the references of each array that it
    passes, which costs more than most of these functions do.
    """
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, boundscheck=False, forceinline=True)(function))
