"""Tests of `python -m replay_server`: the replay server as a program of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from replay_server.client import ReplayClient, ReplayError
from tests.replay_server.played import played, table_config

pytestmark = pytest.mark.slow

PROGRAM = (sys.executable, "-m", "replay_server")
ELSEWHERE = ("deploy", "learner", "actors", "torch", "ray", "pandas", "cloudpickle")
"""What must not be imported: our algorithms, and what they need."""


class Program:
    """A running server; `address` is where it answers."""

    def __init__(self, folder: Path, *arguments: str, python: tuple[str, ...] = ()) -> None:
        self._log = (folder / "log").open("w+")
        command = (sys.executable, *python, *PROGRAM[1:], "--metrics-port=0", "--data-dir=data", *arguments)
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=self._log, text=True)
        line = self._stdout.readline()
        found = re.match(r"replay server at (\S+), metrics http://\S+/metrics", line)
        assert found, line + self.log()
        self.address = found[1]

    @property
    def _stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def log(self) -> str:
        """What it has written to stderr."""
        return Path(self._log.name).read_text()

    def end(self) -> None:
        """Whatever is left of it."""
        self.process.kill()
        self.process.wait()
        self._stdout.close()
        self._log.close()


@contextmanager
def running(folder: Path, *arguments: str, python: tuple[str, ...] = ()) -> Iterator[Program]:
    """A server, ended on leaving if it has not ended by itself."""
    program = Program(folder, *arguments, python=python)
    try:
        yield program
    finally:
        program.end()


def test_it_serves_alone_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """Nothing of our algorithms, of PyTorch or Ray is imported on the way to an answer; a restart has the data."""
    with running(tmp_path, "--port=0", python=("-X", "importtime")) as program:
        with ReplayClient(program.address) as client:
            client.create_table(table_config("games"))
            assert client.insert("games", [played(1)]).stored == 1
            assert len(client.sample("games", 3, {"reward": 2}).keys) == 3
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(20) == 0, program.log()
        imported = {name.split(".")[0] for name in re.findall(r"import time:.*\| +(\S+)", program.log())}
    assert {"replay_server", "grpc", "numba", "redis"} <= imported
    assert imported.isdisjoint(ELSEWHERE)
    with running(tmp_path, "--port=0") as program:
        with ReplayClient(program.address) as client:
            assert [one.trajectory_id for one in client.read_trajectories("games")] == ["t1"]
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(20) == 0, program.log()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Although a call is held: exit code 130."""
    with running(tmp_path, "--port=0") as program, ReplayClient(program.address, repeat=False) as client:
        client.create_table(table_config("games"))

        def sample() -> None:
            with suppress(ReplayError):
                client.sample("games", 1, {"reward": 1})

        held = threading.Thread(target=sample)
        held.start()
        while client.server_info().tables["games"].rate_limiter.waiting_samples == 0:
            pass
        program.process.send_signal(signal.SIGINT)
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(20) == 130
        held.join(20)
        assert not held.is_alive()


def refused(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and the one line with which it ends; log lines aside."""
    result = subprocess.run(
        [*PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert len(lines) == 1, result.stderr
    return result.returncode, lines[0]


def test_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """Exit code 2 for what was given, 1 for what does not work out; from options and from the environment."""
    code, line = refused(tmp_path, "--port=many")
    assert (code, "'--port'" in line) == (2, True)
    code, line = refused(tmp_path, ZERO_PORT="many")
    assert (code, "ZERO_PORT" in line) == (2, True)
    code, line = refused(tmp_path, "--host=0.0.0.0", "--port=0", "--metrics-port=0")
    assert (code, "--tls-certificate" in line) == (2, True)
    code, line = refused(tmp_path, "--port=0", "--metrics-port=0", "--max-in-flight-mib=255", "--max-message-mib=64")
    assert (code, "--max-in-flight-mib 255 is too little for --max-message-mib 64" in line) == (2, True)
    assert "at least 256 MiB" in line
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused(tmp_path, f"--port={port}", "--metrics-port=0")
    assert (code, line.startswith(f"error: cannot listen on 127.0.0.1:{port}")) == (1, True)


def test_its_limits_are_options(tmp_path: Path) -> None:
    """What is larger than they allow is refused."""
    limits = ("--max-message-mib=1", "--max-table-mib=1", "--max-in-flight-mib=8", "--max-waiting-calls=1")
    with running(tmp_path, "--port=0", *limits) as program, ReplayClient(program.address) as client:
        assert client.server_info().max_in_flight_bytes == 8 << 20
        with pytest.raises(ReplayError, match="BAD_CONFIG"):
            client.create_table(table_config("games", capacity=1_000_000))
        client.create_table(table_config("games", capacity=10_000))
        with pytest.raises(ReplayError, match="MESSAGE_TOO_LARGE"):
            client.insert("games", [played(n, 1000) for n in range(100)])


def test_help_waits_for_no_large_library() -> None:
    """`--help` names every option without importing what only a server needs."""
    check = "import sys, replay_server.__main__; print(sorted({'numba', 'redis', 'grpc', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    result = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, check=True)
    for option in ("--data-dir", "--port", "--redis-url", "--tls-certificate", "--token-file", "--insecure"):
        assert option in result.stdout
