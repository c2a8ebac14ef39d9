"""Runs the real command line and sees to every process that comes of it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

MARK = "ZERO_TEST_MARK"
ZERO = Path(sys.executable).with_name("zero")
Value = TypeVar("Value")
PATIENCE_SECONDS = 120.0
"""For what comes within seconds on a machine that does nothing else."""

SMALL = [
    "--experiment=tic_tac_toe",
    *(
        f"--set={override}"
        for override in (
            "self_play.games_per_actor=16",
            "search.num_simulations=4",
            "search.max_num_considered_actions=4",
            "network.channels=8",
            "network.blocks=1",
            "replay.min_size_to_sample=200",
            "learner.batch_size=32",
            "learner.publish_interval_steps=5",
            "learner.checkpoint_interval_seconds=2",
            "evaluation.interval_seconds=2",
            "evaluation.num_games=4",
        )
    ),
]
"""Options of a run that learns its first steps within seconds."""


def wait_until(condition: Callable[[], Value | None], what: str, timeout: float = PATIENCE_SECONDS) -> Value:
    """The first value of `condition` that is neither None nor False."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value is not None and value is not False:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout} s: {what}")


def free_port() -> int:
    """A port that nobody listens on, for programs that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Command:
    """One `zero` command with its output, in a session of its own; whatever it leaves behind is ended on leaving.

    Args:
        folder: where it runs and its output goes.
        arguments: of `zero`.
        environment: added to the environment of the tests.
    """

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self._output_file = folder / f"output-{self.mark}.txt"
        with self._output_file.open("wb") as output:
            self._process = subprocess.Popen(
                [str(ZERO), *arguments],
                cwd=folder,
                env={**os.environ, **(environment or {}), MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output_file.read_text()

    def wait_for(self, pattern: str, timeout: float = PATIENCE_SECONDS) -> re.Match[str]:
        """The first place of its output that matches."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            if found is None and self._process.poll() is not None:
                raise AssertionError(f"ended with {self._process.returncode} before {pattern!r}:\n{self.output}")
            return found

        try:
            return wait_until(look, pattern, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    def pids_of(self, role: str) -> list[int]:
        """The processes that filled a role, the newest last."""
        return [int(pid) for pid in re.findall(rf"{role} runs, process (\d+)", self.output)]

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to every process of the foreground group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Its exit code."""
        return self._process.wait(timeout)

    def survivors(self) -> list[str]:
        """Command lines of the processes that descend from it and still run."""
        return [line for _, line in marked(self.mark)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid, _ in marked(self.mark):
            os.kill(pid, signal.SIGKILL)
        self._process.wait()


def marked(mark: str) -> list[tuple[int, str]]:
    """Process ids and command lines of the processes whose environment holds the mark; zombies have none."""
    found: list[tuple[int, str]] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append((int(folder.name), line.replace(b"\0", b" ").decode(errors="replace")))
    return found
