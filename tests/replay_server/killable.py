"""A replay server in a process of its own, which can be killed and started again at the same address."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVE = """
import signal, sys
from pathlib import Path
from replay_server.server import ReplayServer, ReplayServerSettings
with ReplayServer(ReplayServerSettings(Path(sys.argv[1]), port=int(sys.argv[2]))) as bound:
    print(bound.address, flush=True)
    signal.sigwait({signal.SIGTERM})
"""


class KillableServer:
    """Its data folder, port and, while it runs, its process.

    Attributes:
        address: host:port; the same after a restart.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; returns when it serves."""
        port = self.address.rpartition(":")[2] or "0"
        command = [sys.executable, "-c", SERVE, str(self._data_dir), port]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the server has not started"

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextmanager
def killable_server(data_dir: Path) -> Iterator[KillableServer]:
    """A running server, killed at the end."""
    server = KillableServer(data_dir)
    server.start()
    try:
        yield server
    finally:
        server.kill()
