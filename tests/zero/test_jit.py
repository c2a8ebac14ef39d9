"""Tests of compiling: it is broken off when it is not wanted any more, and leaves nothing behind then."""

import numpy as np
import pytest
from numba.core.caching import NullCache

from zero.jit import CompilationStopped, compiling_unless, njit


@njit
def inner(values: np.ndarray) -> float:
    """Called by `outer`, and so compiled with it."""
    return values[0] + values[1]


@njit
def outer(values: np.ndarray) -> float:
    """What is compiled for every dtype it is called with."""
    return inner(values) + values[2]


@pytest.fixture(autouse=True)
def _nothing_on_disk() -> None:
    """Machine code of an earlier run would leave nothing to compile."""
    inner._cache = outer._cache = NullCache()


def test_compiling_ends_when_it_is_not_wanted() -> None:
    """It ends in mid-compilation with an exception of its own; the same function compiles and runs afterwards."""
    steps: list[int] = []

    def is_unwanted() -> bool:
        steps.append(1)
        return len(steps) > 40

    values = np.ones(3)
    with compiling_unless(is_unwanted), pytest.raises(CompilationStopped):
        outer(values)
    assert len(steps) == 41
    assert outer(values) == 3.0


def test_compiling_goes_on_while_it_is_wanted() -> None:
    """Who may break it off and does not is asked now and then."""
    steps: list[int] = []
    with compiling_unless(lambda: steps.append(1) is not None):
        assert outer(np.ones(3, np.float32)) == 3.0
    assert steps
