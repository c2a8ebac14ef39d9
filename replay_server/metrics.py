"""What the server measures: its own registry, every series there from the start, no label that grows with the run."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from replay_server.machine import Disk, memory_limit_bytes
from replay_server.redis_state import RedisState
from zero.wire.codec import Reason

REMOVAL_CAUSES = ("evicted", "deleted", "used_up")
"""Why trajectories are removed: for newer ones, by a call, or because all their items were drawn often enough."""
INSERT_RESULTS = ("stored", "duplicate", "refused")
"""What becomes of inserts: something was new, nothing was, nothing was stored."""

_AGE_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0, 100000.0)
_VERSION_BUCKETS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0, 10.0, 30.0)


class TableState(NamedTuple):
    """What a table holds, and who waits for it.

    Attributes:
        table: its name.
        steps: stored.
        trajectories: stored.
        items: stored.
        memory_bytes: of it when it is full.
        waiting_inserts: held by its rate limiter.
        waiting_samples: held by its rate limiter.
        priority_mass: what a draw takes its share of: of a prioritized table the sum of priority ^ exponent, else the
            items.
        max_priority: the highest seen, which new steps get.
        samples_per_insert: its rate limiter's aim; 0 without one.
        error_buffer: how far its rate limiter lets samples and inserts get ahead.
        difference: samples_per_insert x inserts - samples; what error_buffer bounds.
        duplicate_seeds: stored trajectories whose episode seed an earlier one has, too.
    """

    table: str
    steps: int
    trajectories: int
    items: int
    memory_bytes: int
    waiting_inserts: int
    waiting_samples: int
    priority_mass: float
    max_priority: float
    samples_per_insert: float
    error_buffer: float
    difference: float
    duplicate_seeds: int


@dataclass(frozen=True)
class Levels:
    """What is read off at every scrape.

    Attributes:
        tables: their states.
        live_processes: by role.
        store_available: whether Redis takes inserts.
        in_flight_bytes: by direction.
        max_in_flight_bytes: the most allowed.
        redis: how Redis is doing.
        disk: that a private Redis writes to; nothing where Redis is somebody else's.
    """

    tables: Iterable[TableState]
    live_processes: Iterable[tuple[str, int]]
    store_available: bool
    in_flight_bytes: Iterable[tuple[str, int]] = ()
    max_in_flight_bytes: int = 0
    redis: RedisState = RedisState()  # noqa: RUF009 -- a NamedTuple
    disk: Disk = Disk()  # noqa: RUF009 -- a NamedTuple


@dataclass(frozen=True)
class TableMetrics:
    """The counters of one table."""

    inserted_steps: Counter
    inserted_bytes: Counter
    inserted_trajectories: Counter
    duplicates: Counter
    evicted_steps: Counter
    removed: Mapping[str, Counter]
    sampled_positions: Counter
    sampled_bytes: Counter
    insert_wait: Callable[[float], None]
    sample_wait: Callable[[float], None]
    priorities_updated: Counter
    priorities_gone: Counter
    columns_updated: Counter
    columns_gone: Counter
    columns_outdated: Counter
    peeked_positions: Counter


class ServerMetrics:
    """All metrics of one server.

    Attributes:
        registry: holds them and nothing else.
        rejected: refused calls by reason.
        inserts: calls and requests on streams, by result.
        insert_seconds: of a whole insert.
        acknowledge_seconds: of an insert, from its being let in on.
        sample_seconds: of a whole sample.
        sample_age_seconds: mean age of the drawn steps of a batch.
        sample_versions_behind: mean number of weights versions that the drawn steps of a batch are behind.
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
        disable_created_metrics()  # a series more for each counter and histogram that nobody reads
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_LevelCollector(read_levels))
        self.rejected = self._counter("rejected_requests", "Calls refused, by reason.", "reason")
        for reason in Reason:
            self.rejected.labels(reason.value)
        self.inserts = self._counter("inserts", "Inserts by result: calls, and requests on streams.", "result")
        for result in INSERT_RESULTS:
            self.inserts.labels(result)
        self.insert_seconds = self._histogram("insert_seconds", "Inserts from arrival to acknowledgement.")
        self.acknowledge_seconds = self._histogram(
            "acknowledge_seconds", "Inserts into Redis from their being let in by the rate limiter to acknowledgement."
        )
        self.sample_seconds = self._histogram("sample_seconds", "Samples from arrival to answer.")
        self.sample_age_seconds = self._histogram(
            "sample_age_seconds", "Batches by the mean age of their steps since these were stored.", _AGE_BUCKETS
        )
        self.sample_versions_behind = self._histogram(
            "sample_versions_behind",
            "Batches by the mean number of weights versions that their steps are behind the newest.",
            _VERSION_BUCKETS,
        )
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
        self._gauge("memory_limit_bytes", "Memory of the machine, or of the container if less.").set(
            memory_limit_bytes()
        )
        self._redis_info = self._gauge("redis_info", "How soon Redis flushes what it acknowledges.", "appendfsync")
        self._tables = _TableCounters(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"zero_replay_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"zero_replay_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _BUCKETS) -> Histogram:
        return Histogram(f"zero_replay_{name}", text, buckets=buckets, registry=self.registry)

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
        return self._tables.of(table)

    def forget_table(self, table: str) -> None:
        """Show nothing more of a table that was deleted."""
        self._tables.forget(table)


class _TableCounters:
    """The counters of all tables."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"zero_replay_{name}", text, ("table", *labels), registry=registry)

        self._inserted_steps = counter("inserted_steps", "Steps stored.")
        self._inserted_bytes = counter("inserted_bytes", "Bytes of the columns of steps stored.")
        self._inserted_trajectories = counter("inserted_trajectories", "Trajectories stored.")
        self._duplicates = counter("duplicate_trajectories", "Trajectories acknowledged and not stored again.")
        self._evicted_steps = counter("evicted_steps", "Steps that made room for newer ones.")
        self._removed = counter("removed_trajectories", "Trajectories removed, by cause.", "cause")
        self._sampled = counter("sampled_positions", "Positions drawn and delivered.")
        self._sampled_bytes = counter("sampled_bytes", "Bytes of the columns of sequences drawn.")
        self._insert_wait = counter("insert_wait_seconds", "Time inserts were held by the rate limiter.")
        self._sample_wait = counter("sample_wait_seconds", "Time samples were held by the rate limiter.")
        self._priorities = counter(
            "priority_updates", "Priorities that came, by whether the position was still stored.", "result"
        )
        self._columns = counter(
            "column_updates",
            "Steps for which new values came: updated, no longer stored (gone), or of a greater version (outdated).",
            "result",
        )
        self._peeked = counter("peeked_positions", "Positions looked at, beside the rate limiter.")

    def of(self, table: str) -> TableMetrics:
        return TableMetrics(
            inserted_steps=self._inserted_steps.labels(table),
            inserted_bytes=self._inserted_bytes.labels(table),
            inserted_trajectories=self._inserted_trajectories.labels(table),
            duplicates=self._duplicates.labels(table),
            evicted_steps=self._evicted_steps.labels(table),
            removed={cause: self._removed.labels(table, cause) for cause in REMOVAL_CAUSES},
            sampled_positions=self._sampled.labels(table),
            sampled_bytes=self._sampled_bytes.labels(table),
            insert_wait=self._insert_wait.labels(table).inc,
            sample_wait=self._sample_wait.labels(table).inc,
            priorities_updated=self._priorities.labels(table, "updated"),
            priorities_gone=self._priorities.labels(table, "gone"),
            columns_updated=self._columns.labels(table, "updated"),
            columns_gone=self._columns.labels(table, "gone"),
            columns_outdated=self._columns.labels(table, "outdated"),
            peeked_positions=self._peeked.labels(table),
        )

    def forget(self, table: str) -> None:
        for counter in (
            self._inserted_steps,
            self._inserted_bytes,
            self._inserted_trajectories,
            self._duplicates,
            self._evicted_steps,
            self._sampled,
            self._sampled_bytes,
            self._insert_wait,
            self._sample_wait,
            self._peeked,
        ):
            counter.remove(table)
        for cause in REMOVAL_CAUSES:
            self._removed.remove(table, cause)
        for result in ("updated", "gone"):
            self._priorities.remove(table, result)
        for result in ("updated", "gone", "outdated"):
            self._columns.remove(table, result)


class _LevelCollector(Collector):
    """Reads levels when asked instead of having them set on every change."""

    def __init__(self, read_levels: Callable[[], Levels]) -> None:
        self._read_levels = read_levels

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        levels = self._read_levels()
        by_table = [
            GaugeMetricFamily(f"zero_replay_{name}", text, labels=["table"]) for name, text in _TABLE_LEVELS.items()
        ]
        waiting = GaugeMetricFamily(
            "zero_replay_waiting_calls", "Calls held by the rate limiter now.", labels=["table", "kind"]
        )
        for state in levels.tables:
            for family, value in zip(by_table, _table_levels(state), strict=True):
                family.add_metric([state.table], value)
            waiting.add_metric([state.table, "insert"], state.waiting_inserts)
            waiting.add_metric([state.table, "sample"], state.waiting_samples)
        # Not "role": Prometheus gives the role of the scraped process to every series.
        processes = _family("live_processes", "Processes that registered lately.", "process", levels.live_processes)
        in_flight = _family(
            "in_flight_bytes",
            "Bytes of requests being handled and answers being sent.",
            "direction",
            levels.in_flight_bytes,
        )
        allowed = GaugeMetricFamily(
            "zero_replay_max_in_flight_bytes",
            "The most bytes in flight, both directions together; three quarters of it for either.",
            value=levels.max_in_flight_bytes,
        )
        available = GaugeMetricFamily(
            "zero_replay_store_available", "1 while Redis takes inserts.", value=float(levels.store_available)
        )
        return iter((*by_table, waiting, processes, in_flight, allowed, available, *_machine_levels(levels)))


_TABLE_LEVELS = {
    "steps": "Steps stored now.",
    "trajectories": "Trajectories stored now.",
    "items": "Positions that may be drawn now.",
    "table_memory_bytes": "Bytes that the table takes when it is full; mapped when it was created.",
    "priority_mass": "Sum of priority ^ exponent where that decides what is drawn, else the items.",
    "max_priority": "The highest priority seen, which new steps get.",
    "limiter_samples_per_insert": "What the rate limiter aims at; 0 without a ratio.",
    "limiter_error_buffer": "How far the rate limiter's difference may get from 0.",
    "limiter_difference": "samples_per_insert x items inserted - positions drawn, since the rate limiter began; 0 "
    "without a ratio.",
    "duplicate_episode_seeds": "Trajectories stored now that were dealt from the seed of an earlier one.",
}


def _table_levels(state: TableState) -> tuple[float, ...]:
    """In the order of _TABLE_LEVELS."""
    return (
        state.steps,
        state.trajectories,
        state.items,
        state.memory_bytes,
        state.priority_mass,
        state.max_priority,
        state.samples_per_insert,
        state.error_buffer,
        state.difference,
        state.duplicate_seeds,
    )


def _machine_levels(levels: Levels) -> Iterator[Metric]:
    state, disk = levels.redis, levels.disk
    for name, text, value in (
        (
            "redis_write_failed",
            "1 while the last write of Redis to its append-only file went wrong.",
            state.write_failed,
        ),
        ("redis_memory_bytes", "Memory that Redis uses.", state.used_memory_bytes),
        ("redis_max_memory_bytes", "The most memory that Redis may use; 0 without a limit.", state.max_memory_bytes),
        ("redis_file_bytes", "Size of the append-only file of Redis.", state.file_bytes),
        ("disk_free_bytes", "Room on the disk that a private Redis writes to; 0 of 0 without one.", disk.free_bytes),
        ("disk_bytes", "Size of the disk that a private Redis writes to; 0 without one.", disk.total_bytes),
    ):
        yield GaugeMetricFamily(f"zero_replay_{name}", text, value=float(value))
    yield CounterMetricFamily(
        "zero_replay_redis_delayed_fsyncs",
        "Writes of Redis that waited for a flush in the background, since Redis started.",
        value=float(state.delayed_fsyncs),
    )


def _family(name: str, text: str, label: str, values: Iterable[tuple[str, int]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"zero_replay_{name}", text, labels=[label])
    for value, number in values:
        family.add_metric([value], number)
    return family
