"""Tests of recorded metrics and of their way to a real server."""

import math
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from replay_server import event_sender, recorded_metrics
from replay_server.client import ReplayClient, registered_process
from replay_server.event_sender import EventSender
from replay_server.recorded_metrics import Counter, Gauge, Histogram, RecordingRegistry, Summary
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.roles import wait_until
from zero.events import EVENTS_TABLE, Event, EventSeries, from_trajectory


def outcomes(registry: RecordingRegistry) -> dict[str, float]:
    """How many events came to which end."""
    found = {
        outcome: registry.get_sample_value("zero_events_total", {"outcome": outcome}) or 0.0
        for outcome in recorded_metrics.OUTCOMES
    }
    return {outcome: number for outcome, number in found.items() if number}


def test_every_change_of_a_metric_is_an_event() -> None:
    """With the name, the labels and the step of that moment; Prometheus sees what it always saw."""
    registry = RecordingRegistry()
    counter = Counter("games", "Help.", registry=registry)
    gauge = Gauge("score", "Help.", ["player"], registry=registry)
    histogram = Histogram("length", "Help.", buckets=(1, 2), registry=registry)
    summary = Summary("stat", "Help.", ["b", "a"], registry=registry)
    counter.inc()
    registry.events.step = 7
    counter.inc(3)
    gauge.labels("search").set(2.5)
    gauge.labels(player="search").set(3.5)
    histogram.observe(1.5)
    summary.labels("x", "y").observe(-1)
    recorded = registry.events.take()
    assert [(event.series.to_text(), event.value, event.step) for event in recorded] == [
        ("games", 1.0, 0),
        ("games", 3.0, 7),
        ('score{"player":"search"}', 2.5, 7),
        ('score{"player":"search"}', 3.5, 7),
        ("length", 1.5, 7),
        ('stat{"a":"y","b":"x"}', -1.0, 7),
    ]
    assert registry.events.take() == []
    assert registry.get_sample_value("games_total") == 4
    assert registry.get_sample_value("score", {"player": "search"}) == 3.5
    assert registry.get_sample_value("length_bucket", {"le": "2.0"}) == 1
    assert registry.get_sample_value("stat_sum", {"b": "x", "a": "y"}) == -1


def test_what_is_not_finite_or_too_much_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no event; nothing else is lost, and nothing waits."""
    monkeypatch.setattr(recorded_metrics, "MAX_EVENTS_WAITING", 3)
    registry = RecordingRegistry()
    gauge = Gauge("loss", "Help.", registry=registry)
    for value in (1.0, math.nan, math.inf, -math.inf, 2.0, 3.0, 4.0, 5.0):
        gauge.set(value)
    assert outcomes(registry) == {"recorded": 3, "not_finite": 3, "full": 2}
    assert [event.value for event in registry.events.take()] == [1.0, 2.0, 3.0]


def test_a_metric_of_another_registry_records_nothing() -> None:
    """It is as in Prometheus."""
    gauge = Gauge("loss", "Help.", registry=CollectorRegistry())
    gauge.set(1.0)
    assert gauge.recorder is None


def test_labels_that_cannot_be_sent_are_refused() -> None:
    """At the first use, not when it is too late."""
    gauge = Gauge("loss", "Help.", ["player"], registry=RecordingRegistry())
    with pytest.raises(ValueError, match="longer than 128"):
        gauge.labels("x" * 128)


def stored(client: ReplayClient) -> list[Event]:
    """All events on the server, in the order in which they came."""
    return [
        Event(batch.series[index], value, step, time)
        for batch in map(from_trajectory, client.read_trajectories(EVENTS_TABLE))
        for index, value, step, time in zip(
            batch.index.tolist(), batch.values.tolist(), batch.steps.tolist(), batch.times.tolist(), strict=True
        )
    ]


def test_all_events_arrive_once_although_the_server_was_away(tmp_path: Path) -> None:
    """Recorded before it was there, while it is, while it is restarted, and right before the end."""
    registry = RecordingRegistry()
    gauge = Gauge("x", "Help.", registry=registry)
    gauge.set(0)
    server = ReplayServer(ReplayServerSettings(tmp_path))
    bound = server.start()
    with ReplayClient(bound.address) as client:
        with registered_process(client, "actor", "actor-0", registry, "127.0.0.1", 0):
            wait_until(lambda: EVENTS_TABLE in client.server_info().tables and len(stored(client)) == 1)
            server.stop()
            for value in range(1, 100):
                gauge.set(value)
            server = ReplayServer(ReplayServerSettings(tmp_path, port=int(bound.address.rpartition(":")[2])))
            server.start()
            wait_until(lambda: len(stored(client)) == 100)
            gauge.set(100)
        assert [event.value for event in stored(client)] == list(range(101))
        assert stored(client)[0].series == EventSeries("x")
        client.delete_table(EVENTS_TABLE)
    server.stop()
    assert outcomes(registry) == {"recorded": 101}


def test_what_a_server_never_takes_is_counted_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end waits a bounded time, and says how many events are lost."""
    monkeypatch.setattr(event_sender, "CLOSING_SECONDS", 0.2)
    monkeypatch.setattr(event_sender, "REQUEST_SECONDS", 0.1)
    registry = RecordingRegistry()
    Gauge("x", "Help.", registry=registry).set(1)
    with ReplayClient("127.0.0.1:1") as client:
        EventSender(client, "me", registry.events).close()
    assert outcomes(registry) == {"recorded": 1, "not_sent": 1}
