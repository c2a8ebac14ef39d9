"""Measures what metric events cost: to record them in a role, and to aggregate those of many actors beside a run.

Run: .venv/bin/python -m tests.benchmarks.events [--actors 1 100 1000] [--per-actor 150]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import prometheus_client

from deploy.private_replay_server import private_replay_server
from deploy.run_records import RunState
from deploy.statistics.definitions import load_statistics
from deploy.statistics.event_reader import EventTable
from deploy.statistics.pipeline import Pipeline, PipelineMetrics, StateFile
from deploy.statistics.sinks import JsonLinesSink, Outcome
from replay_server import recorded_metrics
from replay_server.client import ReplayClient
from replay_server.recorded_metrics import RecordingRegistry
from zero.events import EVENTS_TABLE, Event, EventSeries, batches, events_table, to_trajectory

RECORDED = 50_000
SERIES = tuple(
    EventSeries(f"zero_actor_{name}")
    for name in ("moves", "simulations", "recent_score", "search_depth", "unique_leaf_ratio", "policy_entropy_nats",
                 "search_optimism", "episode_score", "episode_steps", "weights_version")
)  # fmt: skip
"""Of an actor; the statistics that are on by default take most of them."""


def seconds_per_call(call: Callable[[float], None]) -> float:
    """Processor seconds."""
    started = time.process_time()
    for number in range(RECORDED):
        call(float(number))
    return (time.process_time() - started) / RECORDED


def recording() -> float:
    """Processor seconds that an event costs whoever records it, besides the metric itself."""
    registry = RecordingRegistry()
    recorded = recorded_metrics.Gauge("zero_benchmark", "Recorded.", registry=registry)
    plain = prometheus_client.Gauge("zero_benchmark", "Not recorded.", registry=prometheus_client.CollectorRegistry())
    return seconds_per_call(recorded.set) - seconds_per_call(plain.set)


def send(client: ReplayClient, actors: int, per_actor: int) -> None:
    """One second of events of so many actors, as they send them."""
    now = time.time()
    for actor in range(actors):
        events = [
            Event(SERIES[number % len(SERIES)], float(number), 1000, now + number / per_actor)
            for number in range(per_actor)
        ]
        name = f"actor-{actor}"
        client.insert(EVENTS_TABLE, [to_trajectory(one) for one in batches(events, name, f"{name}-{now}")])


def aggregating(client: ReplayClient, folder: Path, actors: int, per_actor: int) -> tuple[float, float]:
    """Seconds by the clock and of this process's processor to take in a second of events."""
    states = StateFile(folder / "state.json")
    sinks = [JsonLinesSink(folder / "points.jsonl")]
    pipeline = Pipeline(EventTable(client), None, load_statistics(None), states, sinks, PipelineMetrics())
    send(client, actors, per_actor)
    pipeline.poll()  # what is done once per series
    send(client, actors, per_actor)
    wall, cpu = time.perf_counter(), time.process_time()
    pipeline.poll()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pipeline.close(Outcome(RunState.FINISHED))
    return wall, cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--per-actor", type=int, default=150, help="events per second of an actor")
    options = parser.parse_args()
    cost = recording()
    print(f"to record an event: {cost * 1e6:.1f} µs of the processor, {1 / cost:,.0f} per second; of an actor that")
    print(f"records {options.per_actor} per second {options.per_actor * cost:.3%} of its time")
    with (
        tempfile.TemporaryDirectory() as name,
        private_replay_server(Path(name) / "data") as address,
        ReplayClient(address) as client,
    ):
        client.create_table(events_table())
        for actors in options.actors:
            wall, cpu = aggregating(client, Path(name), actors, options.per_actor)
            number = actors * options.per_actor
            print(
                f"{actors:>5} actors: {number:>7,} events in {wall:.2f} s, {number / wall:>9,.0f} per second; "
                f"the driver of the run spends {cpu:.1%} of a core on one second of them"
            )


if __name__ == "__main__":
    main()
