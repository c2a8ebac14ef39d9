"""Uses the data of a buffer: takes in what was collected, gives it out, counts, draws, saves."""

import logging
import shutil
import threading
from collections import UserDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np

from learner.stamps import Stamps
from replay_server.data_buffer import DataBuffer, FedBuffer
from replay_server.data_metrics import DataMetrics
from replay_server.data_queue import DataQueue, Overflow, QueueCounts
from replay_server.inlets import Claims, Inlet, InletsDict, QueueInlet
from replay_server.state_file import flush_folder, read_state, write_state
from zero.trajectories import PriorityUpdates, SequenceBatch

logger = logging.getLogger(__name__)

R = TypeVar("R")

_KIND = "DataUser"
_CURRENT = "current"
_BUFFER = "buffer"
_TIMES = "times"


class DataUser(Generic[R]):
    """The consumers' end of a buffer, for any number of threads.

    Samples are added in the order in which they were collected, by one thread at a time. One that the buffer does not
    take is left out, counted and logged; those around it are added.
    """

    def __init__(
        self,
        buffer: DataBuffer[Any, R],
        *,
        overflow: Overflow | str = Overflow.DROP_OLDEST,
        block_seconds: float = 60.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        """The only user of this buffer object.

        Args:
            buffer: what stores the samples, here or on a server.
            overflow: what happens to samples when as many as the buffer's `max_queue_size` wait; of a buffer on a
                server the buffer itself says so.
            block_seconds: how long "block" waits.
            rng: draws what `sample` gives; None seeds one from the system.
        """
        self._buffer = buffer
        self._rng = np.random.default_rng() if rng is None else rng
        self._queue = DataQueue[Any](buffer.max_queue_size, overflow, block_seconds=block_seconds)
        self._claims = Claims()
        self._lock = threading.RLock()
        # All of the following is guarded by the lock.
        self._stamps = Stamps()
        self._refused = 0

    # --- taking in ---------------------------------------------------------------------------------------------------

    def open_inlet(self, *, exclusive: bool = True) -> Inlet[Any]:
        """Where a collector attaches; see InletSource.

        Raises:
            KeyError: it is already acquired.
        """
        if isinstance(self._buffer, FedBuffer):
            return self._buffer.open_inlet(exclusive=exclusive)
        self._claims.claim(exclusive=exclusive)
        return QueueInlet(self._queue, self._buffer.check, self._claims.release)

    def update(self) -> None:
        """Move what was collected into the buffer."""
        with self._lock:
            if isinstance(self._buffer, FedBuffer):
                for times_of_part in self._buffer.pull():
                    self._stamps.add(times_of_part)
                return
            waiting = self._queue.take()
            times: list[float] = []
            try:
                while waiting:
                    sample = waiting.popleft()
                    if self._add(sample.data):
                        times.append(sample.time)
            finally:
                self._stamps.add(times)
                self._queue.give_back(waiting)

    def _add(self, data: Any) -> bool:
        try:
            self._buffer.add(data)
        except Exception:
            self._refused += 1
            logger.exception("a sample was left out: %s does not take it", type(self._buffer).__name__)
            return False
        return True

    # --- giving out --------------------------------------------------------------------------------------------------

    def get_data(self) -> R:
        """Everything stored, after an update."""
        with self._lock:
            self.update()
            return self._buffer.get_data()

    def snapshot(self, chunk_size: int = 1000) -> Iterator[R]:
        """Everything stored after an update, in pieces of at most `chunk_size` samples: never all of it at once."""
        with self._lock:
            self.update()
            pieces = self._buffer.snapshot(chunk_size)
        yield from pieces

    def sample(self, batch_size: int, sequence_length: int = 1) -> SequenceBatch:
        """Draw sequences of consecutive samples after an update; see DataBuffer.sample."""
        with self._lock:
            self.update()
            return self._buffer.sample(batch_size, sequence_length, self._rng)

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Draw samples in proportion to these priorities from now on; see DataBuffer.update_priorities."""
        with self._lock:
            self._buffer.update_priorities(updates)

    # --- counting ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock:
            return len(self._buffer)

    @property
    def max_size(self) -> int | None:
        """The most samples that the buffer stores; None where nobody has said."""
        return self._buffer.max_size

    @property
    def max_queue_size(self) -> int | None:
        """The most samples that wait; None for any number."""
        return self._buffer.max_queue_size

    def count_data_added_since(self, timestamp: float) -> int:
        """How many samples that an update took in were collected strictly after a time of the collectors' clock.

        Exact up to half a million; more than that are counted within a thousandth.
        """
        with self._lock:
            return self._stamps.count_after(timestamp)

    def size_and_added(self) -> tuple[int, int]:
        """Samples stored, and samples ever taken in, at one moment."""
        with self._lock:
            return len(self._buffer), len(self._stamps)

    def counts(self) -> QueueCounts:
        """What became of what was collected in this process."""
        return self._buffer.counts() if isinstance(self._buffer, FedBuffer) else self._queue.counts()

    @property
    def refused(self) -> int:
        """Samples that the buffer did not take."""
        return self._refused + (self._buffer.refused if isinstance(self._buffer, FedBuffer) else 0)

    @property
    def missed(self) -> int:
        """Chunks of samples that a server had removed before this user read them."""
        return self._buffer.missed if isinstance(self._buffer, FedBuffer) else 0

    # --- saving ------------------------------------------------------------------------------------------------------

    def save_state(self, path: Path) -> None:
        """Write everything that was taken in, after an update, into a folder: the new state or, on failure, the old.

        Raises:
            NotImplementedError: the buffer cannot be saved.
            TypeError: a sample cannot be saved.
            OSError: the disk refused.
        """
        with self._lock:
            self.update()
            path.mkdir(parents=True, exist_ok=True)
            old = _current(path)
            new = path / ("b" if old == path / "a" else "a")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            self._buffer.save_state(new / _BUFFER)
            times, counts = self._stamps.entries()
            write_state(new / _TIMES, _KIND, {"times": times, "counts": counts, "refused": self.refused})
            flush_folder(new)
            write_state(path / _CURRENT, _KIND, {"folder": new.name})
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)

    def load_state(self, path: Path) -> None:
        """Go on from what was saved; what was collected and waits still comes in with the next update.

        Raises:
            StateError: damaged, or of another version or buffer.
            FileNotFoundError: nothing was saved there.
        """
        with self._lock:
            folder = _current(path)
            if folder is None:
                raise FileNotFoundError(f"no saved state in {path}")
            state = read_state(folder / _TIMES, _KIND)
            self._buffer.load_state(folder / _BUFFER)
            self._stamps = Stamps(state["times"], state["counts"])
            self._refused = state["refused"]


def _current(path: Path) -> Path | None:
    """The folder that counts."""
    if not (path / _CURRENT).exists():
        return None
    return path / read_state(path / _CURRENT, _KIND)["folder"]


class DataUsersDict(UserDict[str, DataUser[Any]]):
    """Data users by name.

    Attributes:
        metrics: what became of their samples, for Prometheus.
    """

    def __init__(self, users: Mapping[str, DataUser[Any]] | None = None, /, **named: DataUser[Any]) -> None:
        """Those of a mapping and those given by keyword, which override."""
        self.metrics = DataMetrics()
        super().__init__(dict(users or {}) | named)
        self._inlets = InletsDict(self)

    @classmethod
    def from_data_buffers(
        cls, buffers: Mapping[str, DataBuffer[Any, Any]] | None = None, /, **named: DataBuffer[Any, Any]
    ) -> Self:
        """A data user for every buffer of a mapping and every one given by keyword; keywords override."""
        return cls({name: DataUser(buffer) for name, buffer in (dict(buffers or {}) | named).items()})

    def __setitem__(self, name: str, user: DataUser[Any]) -> None:
        super().__setitem__(name, user)
        self.metrics.watch(name, user.counts, lambda: user.refused, lambda: user.missed)

    @property
    def data_collectors_dict(self) -> InletsDict:
        """Where collectors attach: `actors.data_collector.DataCollectorsDict` makes collectors of it."""
        return self._inlets

    def acquire(self, name: str, *, exclusive: bool = True) -> Inlet[Any]:
        """Claim the inlet of a name.

        Raises:
            KeyError: no such name, or it is already acquired.
        """
        return self._inlets.acquire(name, exclusive=exclusive)

    def release(self, name: str) -> None:
        """Let others acquire a name.

        Raises:
            KeyError: it is not acquired.
        """
        self._inlets.release(name)

    def save_state(self, path: Path) -> None:
        """Save every user into the subfolder of its name; see DataUser.save_state."""
        for name, user in self.items():
            user.save_state(path / name)

    def load_state(self, path: Path) -> None:
        """Load every user from the subfolder of its name; see DataUser.load_state."""
        for name, user in self.items():
            user.load_state(path / name)
