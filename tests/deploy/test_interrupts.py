"""Tests of what signals do to a role."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.interrupts import INTERRUPTED

ROLE = """
import sys, threading
from deploy.interrupts import run_until_interrupted

def role(stop):
    print("runs", flush=True)
    stop.wait()
    print("stops", flush=True)
    if sys.argv[1] == "slow":
        threading.Event().wait()

run_until_interrupted(role)
"""


@contextmanager
def role(kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a role, which has begun."""
    process = subprocess.Popen([sys.executable, "-c", ROLE, kind], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "runs\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_a_role_end_well(number: signal.Signals) -> None:
    """SIGINT and SIGTERM set `stop`; a role that heeds it ends with exit code 0."""
    with role("quick") as process:
        process.send_signal(number)
        assert process.wait(20) == 0


def test_the_second_signal_ends_a_role_that_does_not_stop(capfd: pytest.CaptureFixture[str]) -> None:
    """A role in the middle of something long ends at once, with exit code 130 and no traceback."""
    with role("slow") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stops\n"
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == INTERRUPTED
        assert time.monotonic() - sent < 5
    assert "Traceback" not in capfd.readouterr().err
