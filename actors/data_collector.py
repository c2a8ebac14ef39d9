"""Collects samples, or whole trajectories, in the process that makes them: stamps each and hands it on."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from replay_server.data_metrics import DataMetrics
from replay_server.data_queue import QueueCounts
from replay_server.inlets import Inlet, InletsDict, InletSource

T = TypeVar("T")


class DataCollector(Generic[T]):
    """One producer's end of a buffer, for any number of threads; leaving it as a context releases it.

    Args:
        inlet: where samples go: `DataUser.open_inlet()` of this process, or that of a buffer on a server.
        clock: gives the time at which a sample is collected, in seconds.
    """

    def __init__(self, inlet: Inlet[T], *, clock: Callable[[], float] = time.time) -> None:
        self._inlet = inlet
        self._clock = clock

    def collect(self, data: T) -> None:
        """Take a sample by value; samples of one thread keep their order.

        Returns at once, unless a full queue blocks.

        Raises:
            FieldMismatch: its fields are not those of the buffer; nothing else is lost.
            ValueError: the clock gave no finite time.
            QueueFullError: the queue is full and rejects, or has blocked for too long.
            QueueClosedError: the collector was released, or another producer has taken its name over.
        """
        collected_at = self._clock()
        if not math.isfinite(collected_at):
            raise ValueError(f"the collector's clock gave {collected_at}: no such time can be stored")
        self._inlet.put(data, collected_at)

    def counts(self) -> QueueCounts:
        """What became of samples so far."""
        return self._inlet.counts()

    def close(self) -> None:
        """Release the name; what was collected still arrives."""
        self._inlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class DataCollectorsDict(Mapping[str, DataCollector[Any]]):
    """Collectors by name; the mapping shows those that were acquired here.

    Args:
        sources: where samples go, by name: the `data_collectors_dict` of a DataUsersDict, or buffers on a server.
        clock: of the collectors.

    Attributes:
        metrics: what became of the samples that were collected under each name, for Prometheus.
    """

    def __init__(
        self, sources: InletsDict | Mapping[str, InletSource], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._inlets = sources if isinstance(sources, InletsDict) else InletsDict(sources)
        self._clock = clock
        self.metrics = DataMetrics()
        self._collectors: dict[str, DataCollector[Any]] = {}

    def acquire(self, name: str, *, exclusive: bool = True) -> DataCollector[Any]:
        """The collector of a name, for one producer.

        Args:
            name: of the buffer.
            exclusive: False to let others who say so, too, collect under the same name.

        Raises:
            KeyError: no such name, or it is already acquired.
        """
        collector = DataCollector[Any](self._inlets.acquire(name, exclusive=exclusive), clock=self._clock)
        self._collectors[name] = collector
        self.metrics.watch(name, self._inlets[name].counts)
        return collector

    def release(self, name: str) -> None:
        """Let others acquire a name; its collectors take nothing more.

        Raises:
            KeyError: it is not acquired.
        """
        try:
            self._inlets.release(name)
        finally:
            self._collectors.pop(name, None)

    def close(self) -> None:
        """Release all."""
        with ExitStack() as stack:  # all are released, also when one fails
            for name in self._collectors:
                stack.callback(self.release, name)

    def __getitem__(self, name: str) -> DataCollector[Any]:
        return self._collectors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._collectors)

    def __len__(self) -> int:
        return len(self._collectors)
