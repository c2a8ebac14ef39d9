"""Shows a run while it goes on: a live panel in a terminal, plain lines elsewhere."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from deploy.figures import Figures, Scores

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_INTERVAL_SECONDS = 10.0
UNKNOWN = "–"
PLAYERS = ("search", "policy", "perfect", "mcts", "flat", "mobility", "line-fill", "greedy", "random")
"""Whom an evaluator measures, the best that there should be first."""


@dataclass(frozen=True)
class Status:
    """What a view shows.

    Attributes:
        figures: the rates and versions; None before the first scrape.
        scores: how the self-play score moved.
        elapsed_seconds: since the roles were started.
        total_seconds: how long the run shall take at most; infinity for no end.
        num_actors: how many actors there shall be.
        capacity: of the replay table, in steps.
        restarts: how often each role was restarted.
        footer: where the run is to be found.
        stopping: the run is being ended.
        max_steps: the training step at which the run is finished; None for any number.
    """

    figures: Figures | None
    scores: Scores
    elapsed_seconds: float
    total_seconds: float
    num_actors: int
    capacity: int
    restarts: dict[str, int]
    footer: str = ""
    stopping: bool = False
    max_steps: int | None = None

    @property
    def seconds_left(self) -> float:
        """Until the time is over or, as fast as it goes now, the training steps are made; infinity if neither ends."""
        left = self.total_seconds - self.elapsed_seconds
        if self.max_steps is not None and self.figures is not None and self.figures.training_steps_per_second > 0:
            left = min(left, (self.max_steps - self.figures.training_step) / self.figures.training_steps_per_second)
        return max(0.0, left)

    @property
    def filled(self) -> float:
        """How much of the replay table holds steps, 0 to 1; NaN if nobody has said."""
        return math.nan if self.figures is None else self.figures.replay_steps / self.capacity


class View(ABC):
    """Where a run is shown; a context manager."""

    @abstractmethod
    def event(self, text: str) -> None:
        """Tell that something happened, in one line."""

    @abstractmethod
    def show(self, status: Status) -> None:
        """Show how the run stands."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainView(View):
    """Lines for logs: events as they come, one line of figures every few seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._next = clock()

    def event(self, text: str) -> None:
        """Tell that something happened, in one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, status: Status) -> None:
        """Show how the run stands, unless a line has just been written."""
        if status.figures is None or self._clock() < self._next:
            return
        self._next = self._clock() + PLAIN_INTERVAL_SECONDS
        left = "" if math.isinf(status.seconds_left) else f", {_clock_text(status.seconds_left)} left"
        replay = f"replay {_percent(status.filled)} full"
        self.event(f"{_clock_text(status.elapsed_seconds)}{left} {one_line(status.figures)} | {replay}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to tidy."""


class LiveView(View):
    """A panel that is drawn anew several times a second; events scroll above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def event(self, text: str) -> None:
        """Tell that something happened, in one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, status: Status) -> None:
        """Draw the panel."""
        self._live.update(render(status), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def one_line(figures: Figures) -> str:
    """The figures that matter most."""
    evaluation = ", ".join(f"{player} {score:.1f}" for player, score in in_order(figures.evaluation_scores))
    parts = [
        f"games/s {_number(figures.games_per_second)}",
        f"moves/s {_number(figures.moves_per_second)}",
        f"simulations/s {_number(figures.simulations_per_second)}",
        f"training step {_number(figures.training_step, 0)} ({_number(figures.training_steps_per_second)}/s)",
        f"samples per insert {_number(figures.samples_per_insert)}",
        f"weights {_number(figures.weights_version, 0)}",
        f"staleness {_number(figures.staleness_versions)}",
        *([f"reanalysed {_percent(figures.reanalysed_fraction)}"] if figures.reanalysed_fraction > 0 else []),
        f"replay steps {_number(figures.replay_steps, 0)}",
        f"score {_number(figures.recent_score)}",
    ]
    return " | ".join([*parts, f"evaluation {evaluation}"] if evaluation else parts)


def render(status: Status) -> RenderableType:
    """The panel."""
    title = "stopping and saving" if status.stopping else "training"
    body: list[RenderableType] = [_progress(status)]
    if status.figures is None:
        body.append(Text("waiting for the first figures …", style="dim"))
    else:
        body += [_throughput(status, status.figures), _scores(status.scores, status.figures)]
    restarts = ", ".join(f"{name} {count}" for name, count in status.restarts.items() if count)
    if restarts:
        body.append(Text(f"restarts: {restarts}", style="yellow"))
    body.append(Text(status.footer, style="dim", overflow="fold"))
    return Panel(Group(*body), title=title, title_align="left", border_style="cyan", padding=(0, 1))


def _progress(status: Status) -> RenderableType:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        expand=True,
    )
    elapsed, total = status.elapsed_seconds, status.total_seconds
    if math.isinf(total):
        progress.add_task(_clock_text(elapsed), total=None)
    else:
        progress.add_task(
            f"{_clock_text(elapsed)} of {_clock_text(total)}", total=total, completed=int(min(elapsed, total))
        )
    if status.figures is not None:
        steps = status.figures.replay_steps
        filled = 0.0 if math.isnan(steps) else steps
        if status.max_steps is not None:
            made = 0.0 if math.isnan(status.figures.training_step) else status.figures.training_step
            left = "" if math.isinf(status.seconds_left) else f", {_clock_text(status.seconds_left)} left"
            text = f"step {made:,.0f} of {status.max_steps:,}{left}"
            progress.add_task(text, total=status.max_steps, completed=int(min(made, status.max_steps)))
        progress.add_task(f"replay {filled:,.0f} steps", total=status.capacity, completed=int(filled))
    return progress


def _throughput(status: Status, figures: Figures) -> Table:
    table = Table.grid(padding=(0, 3), expand=True)
    for _ in range(3):
        table.add_column(ratio=1)
    cells = [
        ("games/s", _number(figures.games_per_second)),
        ("moves/s", _number(figures.moves_per_second)),
        ("simulations/s", _number(figures.simulations_per_second)),
        ("training steps/s", _number(figures.training_steps_per_second)),
        ("training step", _number(figures.training_step, 0)),
        ("samples per insert", _number(figures.samples_per_insert)),
        ("weights version", _number(figures.weights_version, 0)),
        ("staleness, versions", _number(figures.staleness_versions)),
        ("actors", f"{figures.live_actors} of {status.num_actors}"),
        ("policy loss", _number(figures.policy_loss, 3)),
        ("value loss", _number(figures.value_loss, 3)),
        ("learner waits", _percent(figures.batch_wait_fraction)),
    ]
    if figures.reanalysed_fraction > 0:
        cells += [
            ("reanalysed", _percent(figures.reanalysed_fraction)),
            ("searches behind, versions", _number(figures.search_staleness_versions)),
        ]
    for row in range(0, len(cells), 3):
        table.add_row(*(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in cells[row : row + 3]))
    return table


def _scores(scores: Scores, figures: Figures) -> Table:
    table = Table.grid(padding=(0, 2))
    curve = sparkline(scores.curve)
    table.add_row(
        Text("self-play score", style="dim"),
        Text.assemble((f"{_number(scores.first)} → {_number(figures.recent_score)}", "bold green"), "  ", curve),
    )
    if figures.evaluation_scores:
        text = Text("   ").join(
            Text.assemble((f"{player} ", "dim"), (_number(score), "bold green"))
            for player, score in in_order(figures.evaluation_scores)
        )
        table.add_row(Text("evaluation", style="dim"), text)
    return table


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of blocks, the lowest and highest filling the height."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def in_order(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Evaluation scores from the best player that there should be to the worst; "search-64" is a search too."""

    def place(player: str) -> tuple[int, str]:
        kind = player if player in PLAYERS else player.rpartition("-")[0]
        return PLAYERS.index(kind) if kind in PLAYERS else len(PLAYERS), player

    return sorted(scores.items(), key=lambda item: place(item[0]))


def _number(value: float, digits: int = 1) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:,.{digits}f}"


def _percent(fraction: float) -> str:
    return UNKNOWN if math.isnan(fraction) else f"{100 * fraction:.0f} %"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
