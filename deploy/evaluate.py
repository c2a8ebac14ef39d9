"""Measures a run once, by its newest or its best weights, and prints what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from actors.contests import POLICY, SEARCH, Contest, Evaluation, EvaluationReport
from actors.evaluation import EvaluationScore
from actors.evaluator import evaluate_weights
from deploy.errors import BAD_INPUT, DeployError
from deploy.json_text import json_text
from deploy.roles import check_experiment
from deploy.run_folder import RunFolder
from deploy.run_weights import WhichWeights, read_weights
from zero.games.game import GameError

DESCRIPTIONS = {
    "random": "uniform random legal actions",
    "greedy": "highest immediate reward",
    "line-fill": "one ply: reward and how full the lines are",
    "mobility": "one ply: reward and room for the next shapes",
    "perfect": "the solved game",
    "flat": "best mean of random games after each action, so many per action",
    "mcts": "tree search by random games, so many per move",
    POLICY: "the network's policy alone",
    SEARCH: "the network with search, no noise",
}
"""Of the players by name, or by what stands before the number in it."""


@dataclass(frozen=True)
class Measurement:
    """What is measured of a run.

    Attributes:
        num_games: seeds per player, or per pair.
        baselines: names of baselines; None for the experiment's.
        simulations: numbers of simulations per move to search with, besides those of the experiment.
        weights: which of the run.
    """

    num_games: int
    baselines: Sequence[str] | None = None
    simulations: Sequence[int] = ()
    weights: WhichWeights = WhichWeights.LATEST


def evaluate_run(
    run_dir: Path, overrides: Sequence[str], measurement: Measurement, console: Console, *, as_json: bool = False
) -> Mapping[str, EvaluationScore]:
    """Play fixed seeds with every player, or for each pair of a game for two; prints tables.

    Args:
        run_dir: the run's folder.
        overrides: `section.key=value`, of the run's config.
        measurement: of what.
        console: where to print.
        as_json: print one JSON object instead of tables.

    Returns:
        The scores, by player.

    Raises:
        DeployError: no run, no such weights, or some that do not fit; no such baseline.
    """
    folder = RunFolder(run_dir.absolute())
    config = folder.config(overrides)
    check_experiment(config)
    found = read_weights(folder, config, measurement.weights)
    try:
        evaluation = Evaluation(config, measurement.num_games, measurement.baselines, measurement.simulations)
    except GameError as error:
        raise DeployError(str(error), BAD_INPUT) from error
    if as_json:
        report = _measure(evaluation, found.payload, measurement.num_games, Console(quiet=True))
        facts = {
            "run": str(folder.path),
            "experiment": config.name,
            "training_step": found.training_step,
            "weights": measurement.weights,
            "games": measurement.num_games,
            "simulations": config.search.num_simulations,
        }
        console.print(json_text(facts | _results(report)), markup=False, highlight=False, soft_wrap=True)
        return report.scores
    console.print(
        f"==> Evaluating {config.name} at training step {found.training_step:,} ({measurement.weights}) "
        f"on {measurement.num_games} fixed seeds, {config.search.num_simulations} simulations per move",
        highlight=False,
    )
    report = _measure(evaluation, found.payload, measurement.num_games, console)
    if report.ratings:
        console.print(_results_table(report))
        console.print(_ratings_table(report))
    else:
        console.print(_scores_table(report))
    return report.scores


def _results(report: EvaluationReport) -> dict[str, Any]:
    """As JSON data; contests of a game for one player would say its scores again."""
    contests = [
        {"player": contest.player, "opponent": contest.opponent} | asdict(score)
        for contest, score in report.contests.items()
        if contest.opponent is not None
    ]
    return {"scores": report.scores, "contests": contests, "ratings": report.ratings}


def _measure(evaluation: Evaluation, payload: bytes, num_games: int, console: Console) -> EvaluationReport:
    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[Contest, TaskID] = {}

        def advance(contest: Contest, ended: int) -> None:
            if contest not in tasks:
                tasks[contest] = progress.add_task(str(contest), total=num_games)
            progress.advance(tasks[contest], ended)

        return evaluate_weights(evaluation, payload, advance)


def _scores_table(report: EvaluationReport) -> Table:
    """Of a game for one player."""
    table = Table("player", "mean score", "± standard error", "median", "games", "what it does")
    for player, score in report.scores.items():
        table.add_row(
            player,
            f"{score.mean:.2f}",
            f"{score.standard_error:.2f}",
            f"{score.median:.2f}",
            str(score.num_games),
            _description(player),
        )
    return table


def _results_table(report: EvaluationReport) -> Table:
    """Of the pairs of a game for two players, each playing both sides."""
    table = Table("player", "opponent", "mean result", "± standard error", "won", "drawn", "lost")
    for contest, score in report.contests.items():
        drawn = score.num_games - score.num_won - score.num_lost
        counts = (score.num_won, drawn, score.num_lost)
        table.add_row(
            contest.player,
            contest.opponent,
            f"{score.mean:+.3f}",
            f"{score.standard_error:.3f}",
            *(f"{count}" for count in counts),
        )
    return table


def _ratings_table(report: EvaluationReport) -> Table:
    """Of the players of a game for two, the strongest first."""
    table = Table("player", "Elo", "± standard error", "what it does")
    for player, rating in sorted(report.ratings.items(), key=lambda item: -item[1].elo):
        table.add_row(player, f"{rating.elo:.0f}", f"{rating.standard_error:.0f}", _description(player))
    return table


def _description(player: str) -> str:
    return DESCRIPTIONS.get(player) or DESCRIPTIONS.get(player.rpartition("-")[0], "")
