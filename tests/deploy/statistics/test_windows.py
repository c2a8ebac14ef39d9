"""Tests of aggregation: against a naive re-computation, and that nothing is left out however events arrive."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deploy.statistics.definitions import DEFAULTS, Aggregation, Statistic
from deploy.statistics.windows import Aggregator, Point, Window
from zero.events import Event, EventBatch, EventSeries, batches

NAIVE = {
    Aggregation.LATEST: lambda values: values[-1],
    Aggregation.MEAN: statistics.fmean,
    Aggregation.SUM: math.fsum,
    Aggregation.MIN: min,
    Aggregation.MAX: max,
    Aggregation.COUNT: len,
    Aggregation.STD: lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
}


def statistic(aggregation: Aggregation, **settings: object) -> Statistic:
    given = {"name": str(aggregation), "event": "x", "aggregation": aggregation, **settings}
    return Statistic.model_validate({"every_seconds": 10} | given if "every_steps" not in settings else given)


def arriving(values: list[tuple[float, int, float]], name: str = "x", process: str = "me", **labels: str) -> EventBatch:
    """Events (value, step, time) of one series as one batch."""
    series = EventSeries(name, tuple(sorted(labels.items())))
    (batch,) = batches([Event(series, *event) for event in values], process, "id")
    return batch


def arriving_about(process: str, values: list[tuple[float, int, float]]) -> EventBatch:
    """Events of a series that says which process it is about."""
    (batch,) = batches([Event(EventSeries("x", (("process", process),)), *event) for event in values], "me", "about")
    return batch


VALUES = st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 3)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=25)
@given(VALUES, st.lists(st.integers(1, 7), max_size=30), st.sampled_from(["steps", "seconds"]))
def test_every_interval_says_what_its_events_say(drawn: list[tuple[float, int]], cuts: list[int], unit: str) -> None:
    """However events are cut into batches, the points are those of a naive grouping, and every event is in one."""
    clock = np.cumsum([pause for _, pause in drawn])
    events = [(value, int(time), float(time)) for (value, _), time in zip(drawn, clock, strict=True)]
    aggregator = Aggregator([statistic(kind, **{f"every_{unit}": 4}) for kind in NAIVE])
    points: list[Point] = []
    rest = events
    for cut in [*cuts, len(events)]:
        if rest[:cut]:
            points += aggregator.add([arriving(rest[:cut])], 1e9)
        rest = rest[cut:]
    points += aggregator.close_all(1e9)
    groups: dict[int, list[tuple[float, int, float]]] = {}
    for event in events:
        groups.setdefault(event[1] // 4, []).append(event)
    for kind, naive in NAIVE.items():
        found = [point for point in points if point.name == kind]
        expected = [naive([value for value, _, _ in group]) for group in groups.values()]
        assert [point.value for point in found] == pytest.approx(expected, rel=1e-6, abs=1e-3)
        assert [(point.step, point.time) for point in found] == [group[-1][1:] for group in groups.values()]
    counts = [point.value for point in points if point.name == Aggregation.COUNT]
    assert sum(counts) == len(events)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(-50, 50)), min_size=1, max_size=80), st.integers(0, 79))
def test_nothing_is_left_out_whenever_it_comes_and_wherever_the_process_restarts(
    arrivals: list[tuple[int, int]], restart: int
) -> None:
    """Late events, clocks that differ, a restart with saved windows: all points together hold every event once."""
    kinds = [statistic(Aggregation.COUNT), statistic(Aggregation.SUM), statistic(Aggregation.TOTAL)]
    aggregator = Aggregator(kinds)
    points: list[Point] = []
    now = 1000.0
    for position, (pause, skew) in enumerate(arrivals):
        now += pause / 10
        points += aggregator.add([arriving([(1.0, position, now + skew)], process=f"actor-{position % 3}")], now)
        points += aggregator.close_due(now)
        if position == restart:
            saved = {
                name: {series: Window.model_validate_json(window.model_dump_json()) for series, window in open_.items()}
                for name, open_ in aggregator.windows.items()
            }
            aggregator = Aggregator(kinds, saved)
    points += aggregator.close_all(now)
    for kind in (Aggregation.COUNT, Aggregation.SUM):
        assert sum(point.value for point in points if point.name == kind) == len(arrivals)
    assert max(point.value for point in points if point.name == Aggregation.TOTAL) == len(arrivals)
    assert all(point.time <= now for point in points)


def test_a_rate_is_per_second_of_all_time_also_of_that_without_events() -> None:
    """Ten events in every ten seconds are one per second; after an idle minute the rate covers it."""
    aggregator = Aggregator([statistic(Aggregation.RATE)])
    points = aggregator.add([arriving([(1.0, 0, 1000.0 + second) for second in range(20)])], 1020.0)
    points += aggregator.close_due(1020.0)
    assert [point.value for point in points] == [1.0, 1.0]
    assert aggregator.close_due(1080.0) == []
    aggregator.add([arriving([(1.0, 0, 1080.0)] * 7)], 1080.0)
    assert [point.value for point in aggregator.close_due(1090.0)] == [0.1]


def test_a_rate_by_steps_is_per_second_too() -> None:
    """Between the first event of an interval and that of the next one."""
    aggregator = Aggregator([statistic(Aggregation.RATE, every_steps=10)])
    events = [(3.0, step, 50.0 + step / 2) for step in range(31)]
    points = aggregator.add([arriving(events)], 1000.0)
    assert [point.value for point in points] == [6.0, 6.0, 6.0]


def test_a_rate_of_one_metric_to_another_keeps_both_in_step() -> None:
    """Events of the same interval are set against each other, even if both come in one go with the next interval's."""
    aggregator = Aggregator([statistic(Aggregation.RATE, denominator="y")])
    above = [(8.0, 0, 1000.0), (8.0, 0, 1009.0), (30.0, 0, 1011.0)]
    below = [(1.0, 0, 1001.0), (1.0, 0, 1008.0), (10.0, 0, 1012.0)]
    points = aggregator.add([arriving(above), arriving(below, name="y")], 1013.0)
    assert [point.value for point in [*points, *aggregator.close_due(1020.0)]] == [8.0, 3.0]


def test_a_rate_waits_for_what_it_is_relative_to() -> None:
    """Without a denominator there is no point, and what was counted stays for the next one."""
    aggregator = Aggregator([statistic(Aggregation.RATE, denominator="y")])
    aggregator.add([arriving([(8.0, 0, 1000.0)])], 1000.0)
    assert aggregator.close_due(1010.0) == []
    aggregator.add([arriving([(2.0, 0, 1011.0)], name="y")], 1011.0)
    assert [point.value for point in aggregator.close_due(1020.0)] == [4.0]


def test_labels_choose_events_and_name_points() -> None:
    """`labels` lets in some, `by` keeps them apart; the process that sent them is a label, unless they have it."""
    by = statistic(Aggregation.SUM, name="by", by="player")
    one = statistic(Aggregation.SUM, name="one", labels={"player": "search"})
    who = statistic(Aggregation.SUM, name="who", by="process")
    aggregator = Aggregator([by, one, who])
    event = [(1.0, 0, 5.0)]
    arrived = [arriving(event, player="search"), arriving(event, player="random", process="you"), arriving(event)]
    arrived.append(arriving_about("them", event))
    assert aggregator.add(arrived, 6.0) == []
    points = {point.name: point.value for point in aggregator.close_all(6.0)}
    assert points == {"by/search": 1.0, "by/random": 1.0, "one": 1.0, "who/me": 2.0, "who/you": 1.0, "who/them": 1.0}


def test_what_is_not_finite_is_in_no_point() -> None:
    """A client of another make may send it."""
    aggregator = Aggregator([statistic(Aggregation.SUM)])
    aggregator.add([arriving([(math.nan, 0, 1.0), (math.inf, 0, 1.0), (2.0, 0, 1.0), (1.0, 0, math.nan)])], 2.0)
    assert [point.value for point in aggregator.close_all(2.0)] == [2.0]


def test_an_event_from_the_future_does_not_keep_the_others_waiting() -> None:
    """A clock that is an hour ahead moves no interval beyond now."""
    aggregator = Aggregator([statistic(Aggregation.COUNT)])
    aggregator.add([arriving([(1.0, 0, 1004.0 + 3600)])], 1004.0)
    aggregator.add([arriving([(1.0, 0, 1005.0)])], 1005.0)
    assert [point.value for point in aggregator.close_due(1010.0)] == [2.0]


def test_after_the_learner_went_back_the_newest_value_is_the_latest() -> None:
    """Steps that come again, after a restart from an older checkpoint, are not hidden by those that were lost."""
    aggregator = Aggregator([statistic(Aggregation.LATEST, every_steps=10)])
    points = aggregator.add([arriving([(1.0, 25, 1.0), (2.0, 7, 2.0)])], 3.0)
    assert [(point.value, point.step) for point in [*points, *aggregator.close_all(3.0)]] == [(2.0, 25)]


def test_the_defaults_are_what_a_run_is_known_by() -> None:
    """The 22 numbers that such runs have always shown, and our own."""
    names = {default.name for default in DEFAULTS}
    assert len(names) == len(DEFAULTS)
    assert names >= {
        "loss/total",
        "loss/policy",
        "loss/value",
        "loss/entropy",
        "loss/td_error",
        "learner/learning_rate",
        "learner/importance_sampling_exponent",
        "episode/score",
        "episode/length",
        "episode/stat",
        "search/simulations_per_move",
        "search/depth",
        "episode/step_reward",
        "replay/steps",
        "total/simulations",
        "total/episodes",
        "total/weights_updates",
        "progress/live",
        "progress/inserts_in_flight",
        "speed/training_steps_per_second",
        "speed/episodes_per_second",
        "speed/simulations_per_second",
    }
    assert names >= {
        "search/unique_leaf_ratio",
        "loss/target_entropy",
        "loss/clamped_targets",
        "learner/staleness_versions",
        "replay/samples_per_insert",
        "replay/refused_inserts",
        "evaluation/score",
        "learner/batch_wait_fraction",
        "search/optimism",
    }


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({}, "one of every_seconds and every_steps"),
        ({"every_seconds": 1, "every_steps": 1}, "one of every_seconds and every_steps"),
        ({"every_seconds": 1, "denominator": "y"}, "belongs to a rate"),
        ({"every_seconds": 0}, "greater than 0"),
        ({"every_seconds": 1, "x_axis": "step"}, "Extra inputs"),
    ],
)
def test_a_statistic_that_cannot_be_is_refused(wrong: dict[str, object], why: str) -> None:
    """With the reason."""
    with pytest.raises(ValidationError, match=why):
        Statistic.model_validate({"name": "a", "event": "x", "aggregation": "mean", **wrong})
