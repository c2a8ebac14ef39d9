"""What the machine has for this process: memory, also as a container allows it, room on a disk, open files."""

import os
import resource
import shutil
from pathlib import Path
from typing import NamedTuple

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of version 2 and 1, as a container sees its own."""


class Disk(NamedTuple):
    """A disk; all 0 where there is none to look at.

    Attributes:
        free_bytes: that this process may still write.
        total_bytes: of the file system.
    """

    free_bytes: int = 0
    total_bytes: int = 0


def memory_limit_bytes(limits: tuple[Path, ...] = _CGROUP_LIMITS) -> int:
    """The memory of the machine, or of the container if that has less.

    Args:
        limits: files that may hold the container's limit.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in limits:
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():  # else it says "max"
            memory = min(memory, int(text))
    return memory


def allow_open_files() -> int:
    """Let this process open as many files as the system allows it, and say how many; every connection is one.

    Shells commonly begin with 1,024, for the sake of programs that use select(2), which is none of ours.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def disk_of(folder: Path) -> Disk:
    """The disk that a folder lies on; nothing while the folder is not there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return Disk()
    return Disk(usage.free, usage.total)
