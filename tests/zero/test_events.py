"""Tests of metric events on their way: nothing is changed, whatever there is of them."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zero.events import (
    MAX_EVENTS_PER_BATCH,
    MAX_SERIES_PER_BATCH,
    Event,
    EventSeries,
    batches,
    events_signature,
    from_trajectory,
    to_trajectory,
)

TEXT = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=8)
SERIES = st.builds(
    lambda name, labels: EventSeries(f"m{name}", tuple(sorted(labels.items()))),
    st.integers(0, 90),
    st.dictionaries(TEXT, TEXT, max_size=2),
)
EVENTS = st.builds(Event, SERIES, st.floats(allow_nan=False), st.integers(0, 2**62), st.floats(0, 2**32))


@settings(deadline=None, max_examples=50)
@given(st.lists(EVENTS, max_size=200))
def test_events_arrive_as_they_were_sent(events: list[Event]) -> None:
    """Name, labels, value, step, time, order and sender survive the way through trajectories of the table's columns."""
    arrived: list[Event] = []
    for batch in batches(events, "actor-3", "abc"):
        trajectory = to_trajectory(batch)
        assert {name: str(column.dtype) for name, column in trajectory.columns.items()} == {
            spec.name: spec.dtype for spec in events_signature()
        }
        read = from_trajectory(trajectory)
        assert read.process == "actor-3"
        assert len(read.series) <= MAX_SERIES_PER_BATCH
        columns = (read.index.tolist(), read.values.tolist(), read.steps.tolist(), read.times.tolist())
        arrived += [Event(read.series[index], *rest) for index, *rest in zip(*columns, strict=True)]
    assert arrived == events


def test_many_events_go_in_parts_with_ids_of_their_own() -> None:
    """No part is larger than what is sent at once."""
    events = [Event(EventSeries("x"), float(number), 0, 0.0) for number in range(2 * MAX_EVENTS_PER_BATCH + 5)]
    parts = batches(events, "me", "id")
    assert [len(part.values) for part in parts] == [MAX_EVENTS_PER_BATCH, MAX_EVENTS_PER_BATCH, 5]
    assert len({part.batch_id for part in parts}) == 3


@pytest.mark.parametrize("stats", [{}, {"x": 1.0}, {'x{"a":1}': 0.0}, {"x{": 0.0}, {"x": 0.5}])
def test_events_without_names_are_refused(stats: dict[str, float]) -> None:
    """An index that names nothing, and names that are damaged."""
    (batch,) = batches([Event(EventSeries("x"), 1.0, 0, 0.0)], "me", "id")
    with pytest.raises(ValueError, match=r"."):
        from_trajectory(replace(to_trajectory(batch), stats=stats))
