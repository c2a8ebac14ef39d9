"""Tests of what a run shows."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from deploy.figures import Figures, RunFigures, ScoreHistory
from deploy.live import LiveView, PlainView, Status, in_order, one_line, render, sparkline
from deploy.scrape import Scrape

FOOTER = "metrics http://127.0.0.1:9470/metrics"
UNKNOWN = RunFigures().update(Scrape(0.0, {}))
KNOWN = replace(
    UNKNOWN,
    games_per_second=12.5,
    moves_per_second=678.0,
    simulations_per_second=21_696.0,
    training_steps_per_second=14.2,
    training_step=1234.0,
    samples_per_insert=7.9,
    weights_version=123.0,
    staleness_versions=3.5,
    replay_steps=45_678.0,
    recent_score=34.5,
    evaluation_scores={"random": 2.2, "greedy": 6.7, "policy": 21.0, "search": 42.0},
)


def status(figures: Figures | None) -> Status:
    scores = ScoreHistory()
    for second in range(100):
        scores.add(float(second), float(second**2), float(second))
    return Status(figures, scores.in_short(), 125.0, 600.0, 1, 100_000, {"learner": 0, "actor-0": 2}, FOOTER)


def shown(figures: Figures | None, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render(status(figures)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_panel_shows_every_figure() -> None:
    """Rates, versions, scores, baselines, restarts and addresses are all to be seen."""
    text = shown(KNOWN)
    for expected in (
        "2:05 of 10:00",
        "45,678",
        "12.5",
        "678.0",
        "21,696.0",
        "14.2",
        "1,234",
        "7.9",
        "123",
        "3.5",
        "34.5",
        "search 42.0",
        "random 2.2",
        "actor-0 2",
        "http://127.0.0.1:9470/metrics",
    ):
        assert expected in text, expected
    assert "learner 0" not in text


def test_the_panel_can_be_drawn_before_anything_is_known_and_in_a_narrow_terminal() -> None:
    """Nothing known yet is no error, and no line is wider than the terminal."""
    assert "waiting for the first figures" in shown(None)
    assert "nan" not in shown(UNKNOWN)
    assert all(len(line) <= 60 for line in shown(KNOWN, width=60).splitlines())


def test_what_was_searched_again_is_shown_where_something_was() -> None:
    """In both views, and in neither of a run without reanalysers."""
    reanalysed = replace(KNOWN, reanalysed_fraction=0.375, search_staleness_versions=2.25)
    assert "reanalysed 38 %" in one_line(reanalysed)
    text = " ".join(shown(reanalysed).split())
    assert "reanalysed 38 %" in text
    assert "searches behind, versions 2.2" in text
    for figures in (KNOWN, replace(KNOWN, reanalysed_fraction=0.0)):
        assert "reanalysed" not in one_line(figures) + shown(figures)


def test_one_line_holds_the_main_figures() -> None:
    """The plain view says the same in one line."""
    assert "\n" not in one_line(KNOWN)
    assert "training step 1,234 (14.2/s)" in one_line(KNOWN)
    assert "evaluation search 42.0, policy 21.0, greedy 6.7, random 2.2" in one_line(KNOWN)


def test_the_plain_view_writes_one_line_per_interval() -> None:
    """However often it is shown, a line comes every ten seconds; events come at once."""
    now = [0.0]
    file = io.StringIO()
    with PlainView(Console(file=file, width=80), lambda: now[0]) as view:
        for second in range(21):
            now[0] = float(second)
            view.show(status(KNOWN))
        view.event("learner died [1]")
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 + 1
    assert lines[-1] == "learner died [1]"


def test_how_long_it_takes_yet_and_how_full_the_table_is_are_told() -> None:
    """The time that is left, or less if the steps are made sooner at the present rate; nothing without an end."""
    bounded = replace(status(KNOWN), max_steps=1234 + 142)
    assert bounded.seconds_left == pytest.approx(10.0)
    assert replace(bounded, max_steps=10**9).seconds_left == pytest.approx(600 - 125)
    assert replace(bounded, max_steps=1).seconds_left == 0
    assert replace(status(UNKNOWN), total_seconds=math.inf, max_steps=5).seconds_left == math.inf
    file = io.StringIO()
    with PlainView(Console(file=file, width=200)) as view:
        view.show(bounded)
    assert file.getvalue().startswith("2:05, 0:10 left games/s")
    assert file.getvalue().endswith("| replay 46 % full\n")
    console = Console(file=io.StringIO(), width=100)
    console.print(render(bounded))
    assert "step 1,234 of 1,376, 0:10 left" in console.file.getvalue()


def test_the_live_view_draws_and_leaves_the_terminal_as_it_was() -> None:
    """The panel is drawn on a terminal; the cursor is shown again at the end."""
    file = io.StringIO()
    with LiveView(Console(file=file, width=80, force_terminal=True)) as view:
        view.show(status(KNOWN))
        view.event("learner died")
    assert FOOTER in file.getvalue()
    assert "learner died" in file.getvalue()
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_the_sparkline_spans_lowest_to_highest() -> None:
    """The lowest value is the lowest block, the highest the full one; equal values make a flat line."""
    assert sparkline([1.0, 8.0]) == "▁█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""


def test_players_are_shown_from_the_best_that_there_should_be() -> None:
    """Searches before the policy before the baselines, whatever they score; strangers come last."""
    names = ["gnu", "greedy", "mcts-1000", "policy", "random", "search", "search-64", "mobility", "perfect"]
    order = [name for name, _ in in_order(dict.fromkeys(names, 1.0))]
    assert order == ["search", "search-64", "policy", "perfect", "mcts-1000", "mobility", "greedy", "random", "gnu"]
