"""Which processes are alive: they say so again and again, and are forgotten when they stop."""

import re
import threading
import time
from collections import Counter
from typing import NamedTuple

from replay_server.errors import Refusal
from zero.wire.codec import Reason

TTL_SECONDS = 15.0
"""How long a registration holds."""

MAX_PROCESSES = 10_000
"""More live processes than this are refused."""

KNOWN_ROLES = ("actor", "evaluator", "inference", "learner", "reanalyser", "other")
"""Roles in metrics; any other role counts as "other"."""

_ADDRESS = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,253}:\d{1,5}")


class Process(NamedTuple):
    """A live process.

    Attributes:
        role: what it does.
        process_id: unique among live processes.
        metrics_address: host:port of its /metrics.
        pid: of its operating system.
    """

    role: str
    process_id: str
    metrics_address: str
    pid: int


class ProcessRegistry:
    """Live processes, for any thread."""

    def __init__(self, ttl_seconds: float = TTL_SECONDS) -> None:
        """Registrations hold ttl_seconds."""
        self.ttl_seconds = ttl_seconds
        self._lock = threading.Lock()
        self._until: dict[str, tuple[float, Process]] = {}

    def register(self, process: Process) -> None:
        """Note that a process is alive.

        Raises:
            Refusal: BAD_MESSAGE.
        """
        if not re.fullmatch(r"[a-z0-9_-]{1,32}", process.role):
            raise Refusal(Reason.BAD_MESSAGE, "role must be 1 to 32 characters out of a-z, 0-9, '-' and '_'")
        if not 1 <= len(process.process_id) <= 128:
            raise Refusal(Reason.BAD_MESSAGE, "process_id must have 1 to 128 characters")
        if not _ADDRESS.fullmatch(process.metrics_address):
            raise Refusal(Reason.BAD_MESSAGE, "metrics_address must be host:port")
        with self._lock:
            self._forget()
            if process.process_id not in self._until and len(self._until) >= MAX_PROCESSES:
                raise Refusal(Reason.BAD_MESSAGE, f"{MAX_PROCESSES} processes are registered already")
            self._until[process.process_id] = (time.monotonic() + self.ttl_seconds, process)

    def _forget(self) -> None:
        now = time.monotonic()
        for process_id in [process_id for process_id, (until, _) in self._until.items() if until < now]:
            del self._until[process_id]

    def live(self) -> list[Process]:
        """Processes whose registration holds, by id."""
        with self._lock:
            self._forget()
            return [self._until[process_id][1] for process_id in sorted(self._until)]

    def count_by_role(self) -> list[tuple[str, int]]:
        """Live processes of every known role."""
        counts = Counter(process.role if process.role in KNOWN_ROLES else "other" for process in self.live())
        return [(role, counts[role]) for role in KNOWN_ROLES]
