"""Where collectors attach: one inlet per name, claimed by one producer at a time, released again."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

from replay_server.data_queue import DataQueue, QueueClosedError, QueueCounts, Stamped
from replay_server.own_copy import own_copy

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Inlet(Protocol[T_contra]):
    """One producer's way into a buffer, here or on a server."""

    def put(self, data: T_contra, time: float) -> None:
        """Take a sample by value, with the time at which it was collected.

        Raises:
            FieldMismatch: its fields are others.
            QueueFullError: there was no room.
            QueueClosedError: the inlet is closed, or another producer has taken the name over.
        """
        ...

    def counts(self) -> QueueCounts:
        """What became of samples so far."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether it is closed, or has failed, so that its counts stay as they are."""
        ...

    def close(self) -> None:
        """Take nothing more, and give the name back; what was taken still arrives."""
        ...


class InletSource(Protocol):
    """What inlets lead into: a DataUser of this process, or a table on a server."""

    def open_inlet(self, *, exclusive: bool = True) -> Inlet[Any]:
        """A new inlet.

        Args:
            exclusive: no other one may be open; False if others may, who say so, too.

        Raises:
            KeyError: another producer has claimed the name.
        """
        ...

    def counts(self) -> QueueCounts:
        """What became of all that was collected through this object."""
        ...


class QueueInlet(Generic[T]):
    """An inlet into a queue of this process."""

    def __init__(self, queue: DataQueue[T], check: Callable[[T], None], closed: Callable[[], None]) -> None:
        """`check` refuses malformed samples; `closed` is called once."""
        self._queue = queue
        self._check = check
        self._closed = closed
        self._is_open = True

    def put(self, data: T, time: float) -> None:
        """See Inlet."""
        if not self._is_open:
            raise QueueClosedError("the collector was released: acquire it again")
        self._check(data)
        self._queue.put(Stamped(time, own_copy(data)))

    def counts(self) -> QueueCounts:
        """Of the whole queue, whoever collected."""
        return self._queue.counts()

    @property
    def has_ended(self) -> bool:
        """See Inlet."""
        return not self._is_open

    def close(self) -> None:
        """See Inlet."""
        if self._is_open:
            self._is_open = False
            self._closed()


class OpenedInlets:
    """The inlets that were opened into one place; for any thread."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._open: list[Inlet[Any]] = []
        self._ended = QueueCounts(0, 0, 0)

    def add(self, inlet: Inlet[Any]) -> None:
        """One was opened; of those that have ended only their counts are kept."""
        with self._lock:
            ended = [one for one in self._open if one.has_ended]
            self._ended = self._sum(ended)
            self._open = [*(one for one in self._open if one not in ended), inlet]

    def counts(self) -> QueueCounts:
        """Of all together."""
        with self._lock:
            return self._sum(self._open)

    def _sum(self, inlets: list[Inlet[Any]]) -> QueueCounts:
        counts = (self._ended, *(inlet.counts() for inlet in inlets))
        return QueueCounts(*map(sum, zip(*counts, strict=True)))


class Claims:
    """How many hold one name, and whether others may."""

    def __init__(self) -> None:
        """Nobody holds it yet."""
        self._lock = threading.Lock()
        self._holders = 0
        self._exclusive = False

    def claim(self, *, exclusive: bool) -> None:
        """Hold the name.

        Raises:
            KeyError: somebody holds it and either side wants it alone.
        """
        with self._lock:
            if self._holders and (exclusive or self._exclusive):
                raise KeyError("it is already acquired: release it first, or acquire with exclusive=False")
            self._holders += 1
            self._exclusive = exclusive

    def release(self) -> None:
        """Hold it no more."""
        with self._lock:
            self._holders -= 1


class InletsDict(Mapping[str, InletSource]):
    """Sources by name, of which inlets are acquired and released; for any thread."""

    def __init__(self, sources: Mapping[str, InletSource]) -> None:
        """A live view of `sources`."""
        self._sources = sources
        self._lock = threading.Lock()
        self._open: dict[str, list[Inlet[Any]]] = {}

    def acquire(self, name: str, *, exclusive: bool = True) -> Inlet[Any]:
        """Claim a name.

        Raises:
            KeyError: no such name, or it is already acquired.
        """
        if name not in self._sources:
            raise KeyError(f"no collector {name!r}; there are {sorted(self._sources)}")
        try:
            inlet = self._sources[name].open_inlet(exclusive=exclusive)
        except KeyError as error:
            raise KeyError(f"collector {name!r}: {error.args[0]}") from None
        with self._lock:
            self._open[name] = [*(one for one in self._open.get(name, ()) if not one.has_ended), inlet]
        return inlet

    def release(self, name: str) -> None:
        """Give back all that were acquired here under a name.

        Raises:
            KeyError: none were.
        """
        with self._lock:
            inlets = self._open.pop(name, [])
        if not inlets:
            raise KeyError(f"collector {name!r} was not acquired here")
        with ExitStack() as stack:  # all are closed, also when one fails
            for inlet in inlets:
                stack.callback(inlet.close)

    def __getitem__(self, name: str) -> InletSource:
        return self._sources[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
