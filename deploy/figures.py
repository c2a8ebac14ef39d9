"""Turns scrapes into the figures of a run: rates over a window, scores, versions."""

import math
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from deploy.scrape import Scrape, Series
from zero.self_play_table import TABLE_NAME

RATE_WINDOW_SECONDS = 15.0
"""Rates are means over the last this many seconds."""
SCORE_WINDOW_SECONDS = 60.0
"""Scores at the beginning and now are means over this much of the run, or a third of a shorter one."""
CURVE_POINTS = 32
"""Of a curve that is shown in a line."""

GAMES = "zero_actor_games_total"
MOVES = "zero_actor_moves_total"
SIMULATIONS = "zero_actor_simulations_total"
SCORE_SUM = "zero_actor_score_sum"
SCORE_COUNT = "zero_actor_score_count"
TRAINING_STEPS = "zero_learner_training_steps_total"
BATCH_WAIT = "zero_learner_batch_wait_seconds_total"
INSERTED = "zero_replay_inserted_steps_total"
SAMPLED = "zero_replay_sampled_positions_total"
EVALUATIONS = "zero_evaluator_evaluations_total"
COUNTERS = (
    GAMES,
    MOVES,
    SIMULATIONS,
    SCORE_SUM,
    SCORE_COUNT,
    TRAINING_STEPS,
    BATCH_WAIT,
    INSERTED,
    SAMPLED,
    EVALUATIONS,
)

NOT_YET = float("nan")

_COUNT_OF = {SCORE_SUM: SCORE_COUNT}
"""What may fall while its process lives, and the counter beside it that cannot."""


@dataclass(frozen=True)
class Figures:
    """The state of a run at a moment; NaN where nothing is known yet.

    Attributes:
        elapsed_seconds: since the first scrape.
        live_actors: actors that answered.
        games_per_second: of all actors, as moves and simulations.
        training_steps_per_second: optimizer updates.
        training_step: optimizer updates of the whole run.
        samples_per_insert: positions drawn per step stored, within the window.
        batch_wait_fraction: part of its time that the learner waited for batches.
        weights_version: the newest published.
        staleness_versions: how far the data of the last batch lay behind it, in versions.
        search_staleness_versions: how far the searches lay behind it whose results the last batch had.
        reanalysed_fraction: part of the last batch that was searched again after play.
        replay_steps: steps that can be drawn.
        games: games finished since the first scrape.
        recent_score: mean of the last 100 games of every actor.
        policy_loss: of the last batch that was measured, as value_loss.
        evaluations: evaluations finished since the first scrape.
        evaluation_scores: mean score on the fixed seeds, by player.
    """

    elapsed_seconds: float
    live_actors: int
    games_per_second: float
    moves_per_second: float
    simulations_per_second: float
    training_steps_per_second: float
    training_step: float
    samples_per_insert: float
    batch_wait_fraction: float
    weights_version: float
    staleness_versions: float
    search_staleness_versions: float
    reanalysed_fraction: float
    replay_steps: float
    games: float
    recent_score: float
    policy_loss: float
    value_loss: float
    evaluations: float
    evaluation_scores: dict[str, float] = field(default_factory=dict[str, float])


class CounterTotals:
    """Sums counters over processes so that what a process has counted still counts after its restart.

    As in Prometheus, a series counts from its first value on, and a value below the one before is a restart from 0. A
    sum of scores below 0 falls without one: its process has restarted if the number of these scores fell.
    """

    def __init__(self) -> None:
        self._last: dict[Series, float] = {}
        self._totals: dict[str, float] = defaultdict(float)

    def update(self, scrape: Scrape, names: Iterable[str]) -> dict[str, float]:
        """Take in a scrape; returns the total of every name so far."""
        wanted = set(names)
        followed = wanted | {_COUNT_OF[name] for name in wanted & _COUNT_OF.keys()}
        now = {
            series: value for series, value in scrape.values.items() if series.name in followed and _is_of_run(series)
        }
        for series, value in now.items():
            counter = replace(series, name=_COUNT_OF.get(series.name, series.name))
            has_restarted = now.get(counter, math.inf) < self._last.get(counter, -math.inf)
            self._totals[series.name] += value if has_restarted else value - self._last.get(series, value)
        self._last.update(now)
        return {name: self._totals[name] for name in wanted}


@dataclass(frozen=True)
class Scores:
    """How the mean score of finished games moved, in short.

    Attributes:
        first: at the beginning; NaN before any game.
        now: of late.
        curve: over time, oldest first.
    """

    first: float
    now: float
    curve: tuple[float, ...]


class ScoreHistory:
    """How the mean score of finished games moved."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._sums: list[float] = []
        self._counts: list[float] = []

    def add(self, seconds: float, score_sum: float, score_count: float) -> None:
        """Note the sum and number of all scores so far; times must not go back."""
        if score_count > 0 or not self._seconds:
            self._seconds.append(seconds)
            self._sums.append(score_sum)
            self._counts.append(score_count)

    def in_short(self) -> Scores:
        """All of it, for who shows it."""
        return Scores(self.first(), self.now(), tuple(self.curve(CURVE_POINTS)))

    def first(self) -> float:
        """Mean score at the beginning; NaN before any game."""
        return self._mean(0, self._index(self._begin() + self._window()))

    def now(self) -> float:
        """Mean score of late; NaN before any game."""
        return self._mean(self._index(self._end() - self._window()), len(self._seconds) - 1)

    def curve(self, num_points: int) -> list[float]:
        """Mean score of `num_points` equal stretches of time, oldest first; stretches without a game are left out."""
        begin, length = self._begin(), self._end() - self._begin()
        cuts = [self._index(begin + length * point / num_points) for point in range(num_points + 1)]
        means = [self._mean(left, right) for left, right in pairwise(cuts)]
        return [mean for mean in means if not math.isnan(mean)]

    def _begin(self) -> float:
        return self._seconds[1] if len(self._seconds) > 1 else 0.0

    def _end(self) -> float:
        return self._seconds[-1] if self._seconds else 0.0

    def _window(self) -> float:
        return min(SCORE_WINDOW_SECONDS, (self._end() - self._begin()) / 3)

    def _index(self, seconds: float) -> int:
        return max(0, bisect_right(self._seconds, seconds) - 1)

    def _mean(self, left: int, right: int) -> float:
        if not self._seconds or self._counts[right] <= self._counts[left]:
            return NOT_YET
        return (self._sums[right] - self._sums[left]) / (self._counts[right] - self._counts[left])


@dataclass(frozen=True)
class _Moment:
    seconds: float
    totals: dict[str, float]


class ProcessFigures:
    """How every process of a run does by itself: its rate over the window, and the weights that it has."""

    RATES = frozenset({MOVES, TRAINING_STEPS})

    def __init__(self) -> None:
        self._window: deque[tuple[float, dict[Series, float]]] = deque()
        self._versions: dict[str, float] = {}

    def update(self, scrape: Scrape) -> None:
        """Take in a scrape."""
        counted = {series: value for series, value in scrape.values.items() if series.name in self.RATES}
        self._window.append((scrape.seconds, counted))
        while len(self._window) > 2 and self._window[1][0] <= scrape.seconds - RATE_WINDOW_SECONDS:
            self._window.popleft()
        self._versions = {
            series.target.process_id: value
            for series, value in scrape.values.items()
            if series.name.endswith("_weights_version") and not series.labels
        }

    def versions(self) -> dict[str, float]:
        """Of the weights that each has, by process id."""
        return self._versions

    def rates(self) -> dict[str, float]:
        """Moves or training steps per second of each, by process id."""
        if not self._window:
            return {}
        (begin, oldest), (end, newest) = self._window[0], self._window[-1]
        return {
            series.target.process_id: (value - oldest[series]) / (end - begin)
            for series, value in newest.items()
            if series in oldest and end > begin
        }


class RunFigures:
    """Follows a run through its scrapes.

    Attributes:
        scores: how the mean score of self-play moved.
    """

    def __init__(self) -> None:
        self.scores = ScoreHistory()
        self._counters = CounterTotals()
        self._started: float | None = None
        self._window: deque[_Moment] = deque()
        self._last_known: dict[str, float] = {}
        self._evaluation_scores: dict[str, float] = {}

    def update(self, scrape: Scrape) -> Figures:
        """Take in a scrape; returns the figures now."""
        if self._started is None:
            self._started = scrape.seconds
        totals = self._counters.update(scrape, COUNTERS)
        self.scores.add(scrape.seconds, totals[SCORE_SUM], totals[SCORE_COUNT])
        self._window.append(_Moment(scrape.seconds, totals))
        # The oldest moment stays until the next one is as old as the window, so that the window is always filled.
        while len(self._window) > 2 and self._window[1].seconds <= scrape.seconds - RATE_WINDOW_SECONDS:
            self._window.popleft()
        for series, value in scrape.select("zero_evaluator_score").items():
            if not math.isnan(value):
                self._evaluation_scores[dict(series.labels)["player"]] = value
        return Figures(
            elapsed_seconds=scrape.seconds - self._started,
            live_actors=len(scrape.targets("actor")),
            games_per_second=self._rate(GAMES),
            moves_per_second=self._rate(MOVES),
            simulations_per_second=self._rate(SIMULATIONS),
            training_steps_per_second=self._rate(TRAINING_STEPS),
            training_step=self._latest(scrape, "zero_learner_training_step"),
            samples_per_insert=_ratio(self._rate(SAMPLED), self._rate(INSERTED)),
            batch_wait_fraction=self._rate(BATCH_WAIT),
            weights_version=self._latest(scrape, "zero_replay_weights_version"),
            staleness_versions=self._latest(scrape, "zero_learner_staleness_versions"),
            search_staleness_versions=self._latest(scrape, "zero_learner_search_staleness_versions"),
            reanalysed_fraction=self._latest(scrape, "zero_learner_reanalysed_ratio"),
            replay_steps=self._latest(scrape, "zero_replay_steps"),
            games=totals[GAMES],
            recent_score=self._latest(scrape, "zero_actor_recent_score"),
            policy_loss=self._latest(scrape, "zero_learner_policy_loss"),
            value_loss=self._latest(scrape, "zero_learner_value_loss"),
            evaluations=totals[EVALUATIONS],
            evaluation_scores=dict(self._evaluation_scores),
        )

    def _rate(self, name: str) -> float:
        oldest, newest = self._window[0], self._window[-1]
        return _ratio(newest.totals[name] - oldest.totals[name], newest.seconds - oldest.seconds)

    def _latest(self, scrape: Scrape, name: str) -> float:
        """Mean of a gauge over its processes; the last known one while none answers."""
        values = [value for series, value in scrape.select(name).items() if _is_of_run(series)]
        if values:
            self._last_known[name] = sum(values) / len(values)
        return self._last_known.get(name, NOT_YET)


def _is_of_run(series: Series) -> bool:
    """Of a replay server's tables, the one that is learned from counts."""
    return dict(series.labels).get("table", TABLE_NAME) == TABLE_NAME


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else NOT_YET
