"""What the server measures: its own registry, every series there from the start, no label that grows with the run."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zero.wire.codec import Reason

_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0, 10.0, 30.0)


class TableSize(NamedTuple):
    """How much a table holds.

    Attributes:
        table: its name.
        steps: stored.
        trajectories: stored.
    """

    table: str
    steps: int
    trajectories: int


@dataclass(frozen=True)
class Levels:
    """What is read off at every scrape.

    Attributes:
        tables: their sizes.
        live_processes: by role.
        store_available: whether Redis takes inserts.
    """

    tables: Iterable[TableSize]
    live_processes: Iterable[tuple[str, int]]
    store_available: bool


@dataclass(frozen=True)
class TableMetrics:
    """The counters of one table."""

    inserted_steps: Counter
    inserted_trajectories: Counter
    duplicates: Counter
    evicted_steps: Counter
    sampled_positions: Counter
    insert_wait: Callable[[float], None]
    sample_wait: Callable[[float], None]


class ServerMetrics:
    """All metrics of one server.

    Attributes:
        registry: holds them and nothing else.
        rejected: refused calls by reason.
        insert_seconds: of a whole Insert call.
        sample_seconds: of a whole Sample call.
        redis_commit_seconds: of one group commit.
        weights_version: the newest.
        weights_published_timestamp: when it was published.
        recovery_seconds: how long the start took to load the log.
        insecure: 1 if other machines are served without TLS or tokens.
        certificate_expiry: Unix time at which the server's certificate ends; infinite without one.
        stale_credentials: by kind, 1 while files have changed and cannot be used.
    """

    def __init__(self, read_levels: Callable[[], Levels]) -> None:
        """read_levels is called from the thread that scrapes."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_LevelCollector(read_levels))
        self.rejected = self._counter("rejected_requests", "Calls refused, by reason.", "reason")
        for reason in Reason:
            self.rejected.labels(reason.value)
        self.insert_seconds = self._histogram("insert_seconds", "Insert calls from arrival to acknowledgement.")
        self.sample_seconds = self._histogram("sample_seconds", "Sample calls from arrival to answer.")
        self.redis_commit_seconds = self._histogram("redis_commit_seconds", "One round trip that commits inserts.")
        self.weights_version = self._gauge("weights_version", "Version of the newest weights.")
        self.weights_published_timestamp = self._gauge(
            "weights_published_timestamp_seconds", "Unix time at which this server took the newest weights."
        )
        self.recovery_seconds = self._gauge("recovery_seconds", "How long loading the log took at the last start.")
        self.insecure = self._gauge("insecure", "1 if other machines are served without TLS or tokens (--insecure).")
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which the server's certificate ends; +Inf without one.",
        )
        self.certificate_expiry.set(math.inf)  # never an alert where there is nothing to expire
        self.stale_credentials = self._gauge(
            "stale_credentials", "1 while files have changed, cannot be used, and the earlier stay in force.", "kind"
        )
        for kind in ("certificate", "tokens"):
            self.stale_credentials.labels(kind)
        self._redis_info = self._gauge("redis_info", "How soon Redis flushes what it acknowledges.", "appendfsync")
        self._inserted_steps = self._counter("inserted_steps", "Steps stored.", "table")
        self._inserted_trajectories = self._counter("inserted_trajectories", "Trajectories stored.", "table")
        self._duplicates = self._counter(
            "duplicate_trajectories", "Trajectories acknowledged and not stored again.", "table"
        )
        self._evicted_steps = self._counter("evicted_steps", "Steps that made room for newer ones.", "table")
        self._sampled = self._counter("sampled_positions", "Positions drawn and delivered.", "table")
        self._insert_wait = self._counter("insert_wait_seconds", "Time inserts were held by the rate limiter.", "table")
        self._sample_wait = self._counter("sample_wait_seconds", "Time samples were held by the rate limiter.", "table")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"zero_replay_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"zero_replay_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"zero_replay_{name}", text, buckets=_BUCKETS, registry=self.registry)

    def set_appendfsync(self, policy: str) -> None:
        """Show the policy that Redis follows."""
        self._redis_info.clear()
        self._redis_info.labels(policy).set(1)

    def set_weights(self, version: int, published_at: float) -> None:
        """Show the newest version and the Unix time at which it was published."""
        self.weights_version.set(version)
        self.weights_published_timestamp.set(published_at)

    def of_table(self, table: str) -> TableMetrics:
        """The counters of a table, at 0 when first asked for."""
        return TableMetrics(
            inserted_steps=self._inserted_steps.labels(table),
            inserted_trajectories=self._inserted_trajectories.labels(table),
            duplicates=self._duplicates.labels(table),
            evicted_steps=self._evicted_steps.labels(table),
            sampled_positions=self._sampled.labels(table),
            insert_wait=self._insert_wait.labels(table).inc,
            sample_wait=self._sample_wait.labels(table).inc,
        )


class _LevelCollector(Collector):
    """Reads levels when asked instead of having them set on every change."""

    def __init__(self, read_levels: Callable[[], Levels]) -> None:
        self._read_levels = read_levels

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        levels = self._read_levels()
        steps = GaugeMetricFamily("zero_replay_steps", "Steps stored now.", labels=["table"])
        trajectories = GaugeMetricFamily("zero_replay_trajectories", "Trajectories stored now.", labels=["table"])
        for size in levels.tables:
            steps.add_metric([size.table], size.steps)
            trajectories.add_metric([size.table], size.trajectories)
        processes = GaugeMetricFamily(
            "zero_replay_live_processes", "Processes that registered lately.", labels=["role"]
        )
        for role, number in levels.live_processes:
            processes.add_metric([role], number)
        available = GaugeMetricFamily(
            "zero_replay_store_available", "1 while Redis takes inserts.", value=float(levels.store_available)
        )
        return iter((steps, trajectories, processes, available))
