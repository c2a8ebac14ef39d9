"""Prometheus metrics of collected samples, read where they are counted."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from replay_server.data_queue import QueueCounts


class DataMetrics(Collector):
    """`zero_data_collected_samples_total` and others, by the buffer's name.

    Attributes:
        registry: that shows them; other registries may register this object, too.
    """

    def __init__(self) -> None:
        """Watches nothing yet."""
        self._watched: dict[str, tuple[Callable[[], QueueCounts], Callable[[], int], Callable[[], int]]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def watch(
        self,
        name: str,
        counts: Callable[[], QueueCounts],
        refused: Callable[[], int] = lambda: 0,
        missed: Callable[[], int] = lambda: 0,
    ) -> None:
        """Show what these functions count under a name, from now on."""
        self._watched[name] = (counts, refused, missed)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """See Collector."""
        collected = CounterMetricFamily("zero_data_collected_samples", "Samples collected.", labels=["name"])
        dropped = CounterMetricFamily("zero_data_dropped_samples", "Samples lost to a full queue.", labels=["name"])
        refused = CounterMetricFamily("zero_data_refused_samples", "Samples the buffer refused.", labels=["name"])
        missed = CounterMetricFamily(
            "zero_data_missed_chunks",
            "Chunks of samples that the server removed before they were read.",
            labels=["name"],
        )
        waiting = GaugeMetricFamily("zero_data_waiting_samples", "Samples not taken in yet.", labels=["name"])
        for name, (counts, count_refused, count_missed) in list(self._watched.items()):
            now = counts()
            collected.add_metric([name], now.collected)
            dropped.add_metric([name], now.dropped)
            refused.add_metric([name], count_refused())
            missed.add_metric([name], count_missed())
            waiting.add_metric([name], now.waiting)
        yield from (collected, dropped, refused, missed, waiting)
