"""Writes to Redis that are held up for as long as a test needs them to be under way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from replay_server.log_writer import LogWriter


@contextmanager
def held_writes() -> Iterator[threading.Event]:
    """Hold up every write from now on until the end; gives an event that is set when the first one has come."""
    execute = LogWriter._execute
    came, go_on = threading.Event(), threading.Event()

    def wait_and_execute(*arguments: object, **keywords: object) -> None:
        came.set()
        assert go_on.wait(20)
        execute(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogWriter, "_execute", wait_and_execute)
        try:
            yield came
        finally:
            go_on.set()
