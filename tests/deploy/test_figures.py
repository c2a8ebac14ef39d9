"""Tests of the figures of a run against what was counted."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.figures import GAMES, SCORE_COUNT, SCORE_SUM, CounterTotals, RunFigures, ScoreHistory
from deploy.scrape import Scrape, Series, Target


def actor_series(name: str, actor: int = 0, address: str = "127.0.0.1:1", **labels: str) -> Series:
    return Series(Target("actor", f"actor-{actor}", address), name, tuple(sorted(labels.items())))


def learner_series(name: str) -> Series:
    return Series(Target("learner", "learner", "127.0.0.1:2"), name)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 1000)), max_size=60
    )  # which actor, whether it restarts first, how much it counts
)
def test_totals_are_what_was_counted_however_often_actors_restart(steps: list[tuple[int, bool, int]]) -> None:
    """The sum over actors rises by exactly what they count, whether or not a restart moves them to another port."""
    counters, ports, totals = {0: 0, 1: 0, 2: 0}, {0: 0, 1: 0, 2: 0}, CounterTotals()

    def scrape() -> Scrape:
        return Scrape(
            0.0, {actor_series(GAMES, actor, f"host:{ports[actor]}"): float(counters[actor]) for actor in counters}
        )

    totals.update(scrape(), [GAMES])
    counted = 0
    for actor, restarts, increment in steps:
        if restarts:
            # A new process at a new port is first seen before it has counted anything.
            counters[actor], ports[actor] = 0, ports[actor] + 1
            totals.update(scrape(), [GAMES])
        counters[actor] += increment
        counted += increment
        assert totals.update(scrape(), [GAMES])[GAMES] == counted


def test_a_lower_value_at_the_same_address_is_a_restart_from_zero() -> None:
    """A counter that fell counts in full, as in Prometheus."""
    totals = CounterTotals()
    for value in (100.0, 150.0, 20.0):
        total = totals.update(Scrape(0.0, {actor_series(GAMES): value}), [GAMES])[GAMES]
    assert total == 50 + 20


def test_a_sum_of_scores_that_falls_is_no_restart() -> None:
    """Games may be lost, with scores below 0; a restart is told by the number of games, wherever it stands."""
    totals = CounterTotals()
    counted = (
        (10.0, 10.0),
        (7.0, 13.0),
        (-2.0, 20.0),
        (1.0, 3.0),
        (3.0, 3.0),
    )  # sums and counts; the last two start anew
    for sums_first in (True, False):
        totals = CounterTotals()
        for score_sum, score_count in counted:
            series = [(actor_series(SCORE_SUM), score_sum), (actor_series(SCORE_COUNT), score_count)]
            scrape = Scrape(0.0, dict(series if sums_first else series[::-1]))
            total = totals.update(scrape, [SCORE_SUM, SCORE_COUNT])
        assert (total[SCORE_SUM], total[SCORE_COUNT]) == (-12.0 + 1.0 + 2.0, 10.0 + 3.0)


def test_rates_are_means_over_the_window_and_outlive_a_silent_process() -> None:
    """Rates are increments over the last seconds, gauges keep their last value while a process does not answer."""
    figures = RunFigures()
    for second in range(60):
        rate = 2.0 if second < 40 else 6.0
        games = 2.0 * min(second, 40) + rate * max(0, second - 40)
        values = {actor_series(GAMES): games, learner_series("zero_learner_training_step"): float(second)}
        latest = figures.update(Scrape(float(second), values))
    assert latest.games_per_second == pytest.approx(6.0)
    assert latest.training_step == 59
    silent = figures.update(Scrape(60.0, {}))
    assert silent.training_step == 59
    assert silent.live_actors == 0


def test_samples_per_insert_is_the_ratio_of_both_rates() -> None:
    """Samples per insert relates positions drawn to steps stored within the window, in the table learned from."""
    figures = RunFigures()
    server = Target("replay_server", "replay_server", "127.0.0.1:3")
    for second in range(10):
        latest = figures.update(
            Scrape(
                float(second),
                {
                    Series(server, "zero_replay_inserted_steps_total", (("table", "self_play"),)): 100.0 * second,
                    Series(server, "zero_replay_sampled_positions_total", (("table", "self_play"),)): 800.0 * second,
                },
            )
        )
    assert latest.samples_per_insert == pytest.approx(8.0)


def test_before_the_first_figures_everything_is_unknown() -> None:
    """A run without processes has no figures, and no errors."""
    figures = RunFigures().update(Scrape(0.0, {}))
    assert math.isnan(figures.games_per_second)
    assert math.isnan(figures.training_step)
    assert figures.evaluation_scores == {}


def test_evaluation_scores_are_kept_by_player_once_measured() -> None:
    """NaN means not yet measured and never hides a measured score."""
    figures = RunFigures()
    evaluator = Target("evaluator", "evaluator", "127.0.0.1:4")
    for value in (float("nan"), 12.5, float("nan")):
        latest = figures.update(
            Scrape(0.0, {Series(evaluator, "zero_evaluator_score", (("player", "search"),)): value})
        )
    assert latest.evaluation_scores == {"search": 12.5}


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=12, max_size=200))
def test_first_and_present_scores_are_means_of_the_ends(scores: list[float]) -> None:
    """With one game a second, `first` and `now` are the means of the first and last third, at most a minute each."""
    history = ScoreHistory()
    history.add(0.0, 0.0, 0.0)
    for second, _ in enumerate(scores, start=1):
        history.add(float(second), sum(scores[:second]), float(second))
    # Time counts from the first game on, which is second 1.
    window = min(60.0, (len(scores) - 1) / 3)
    first = scores[: 1 + math.floor(window)]
    now = scores[math.floor(len(scores) - window) :]
    assert history.first() == pytest.approx(sum(first) / len(first), abs=1e-6)
    assert history.now() == pytest.approx(sum(now) / len(now), abs=1e-6)


def test_the_curve_leaves_out_stretches_without_games() -> None:
    """Points of the curve are means of equal stretches, oldest first."""
    history = ScoreHistory()
    history.add(0.0, 0.0, 0.0)
    for second, (total, count) in enumerate([(2, 1), (4, 2), (4, 2), (4, 2), (14, 3)], start=1):
        history.add(float(second), float(total), float(count))
    assert history.curve(4) == [2.0, 10.0]
    assert ScoreHistory().curve(4) == []
