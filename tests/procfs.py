"""What Linux says of other processes, for tests and benchmarks that stop, count and weigh them."""

import os
import signal
import time
from pathlib import Path

_PARENT, _USER_TICKS, _SYSTEM_TICKS = 1, 11, 12
_RUNNING_OR_WAITING = "RSD"


def suspend(pid: int) -> None:
    """Stop a process until it gets SIGCONT; returns when none of its threads runs any more."""
    os.kill(pid, signal.SIGSTOP)
    while any(_fields(thread)[0] in _RUNNING_OR_WAITING for thread in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = _fields(Path(f"/proc/{pid}"))
    return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """What a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def parent_of(pid: int) -> int | None:
    """The process id of the parent; None if the process has ended."""
    try:
        return int(_fields(Path(f"/proc/{pid}"))[_PARENT])
    except OSError:
        return None


def children_of(parent: int) -> list[int]:
    """Process ids."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if parent_of(int(path.name)) == parent]


def _fields(folder: Path) -> list[str]:
    """Of `stat`, from the state on: the name before it may hold any character but ends with the last bracket."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
