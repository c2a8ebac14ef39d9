"""Runs the whole suite in several processes; what is named by its file runs in this one, where it starts sooner."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest

MAX_PROCESSES = 4
"""Each of them takes a gigabyte of memory."""
WAITING_PROCESSES = 1
"""More than there are cores, as tests wait for servers, too."""

# Networks of tests are tiny: threads of PyTorch, which reads this when it is imported, would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Choose the number of processes of pytest-xdist where the command line does not; -n 0 means this one."""
    if hasattr(config, "workerinput") or config.option.usepdb or config.option.collectonly:
        return  # one of those processes, which must not start more; or nothing to be spread
    if getattr(config.option, "numprocesses", 0) is None and not any(".py" in argument for argument in config.args):
        config.option.numprocesses = min(len(os.sched_getaffinity(0)) + WAITING_PROCESSES, MAX_PROCESSES)
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # or the few long tests, of whole runs, would begin last


@pytest.fixture(scope="session", autouse=True)
def _nothing_was_left_open() -> Iterator[None]:
    """What no test has closed is an error of the last one: after it, a process of pytest-xdist would keep it secret."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _no_registered_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """A game is registered for one test: the next one of the process, of whatever file, does not know it."""
    if "zero.games.registry" in sys.modules:
        monkeypatch.setattr("zero.games.registry._REGISTERED", {})
