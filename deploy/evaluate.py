"""Measures a run once, from its newest checkpoint, and prints a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from actors.evaluation import EvaluationScore
from actors.evaluator import evaluate_weights
from actors.metrics import PLAYERS
from deploy.errors import BAD_INPUT, DeployError
from deploy.roles import check_experiment
from deploy.run_folder import RunFolder
from learner.checkpoint import CheckpointError, CheckpointStore

DESCRIPTIONS = {
    "random": "uniform random legal actions",
    "greedy": "highest immediate reward",
    "policy": "the network's policy alone",
    "search": "the network with search, no noise",
}


def evaluate_run(
    run_dir: Path, overrides: Sequence[str], num_games: int, console: Console
) -> dict[str, EvaluationScore]:
    """Play `num_games` fixed seeds with every player; prints progress and a table.

    Args:
        run_dir: the run's folder.
        overrides: `section.key=value`, of the run's config.
        num_games: seeds per player.
        console: where to print.

    Returns:
        The scores, by player.

    Raises:
        DeployError: no run, no checkpoint, or one that does not fit.
    """
    folder = RunFolder(run_dir.absolute())
    config = folder.config(overrides)
    check_experiment(config)
    try:
        checkpoint = CheckpointStore(folder.checkpoints).newest(config)
    except CheckpointError as error:
        raise DeployError(str(error), BAD_INPUT) from error
    if checkpoint is None:
        raise DeployError(f"{folder.path} holds no checkpoint yet; train it first", BAD_INPUT)
    console.print(
        f"==> Evaluating {config.name} at training step {checkpoint.training_step:,} "
        f"on {num_games} fixed seeds, {config.search.num_simulations} simulations per move",
        highlight=False,
    )
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {player: progress.add_task(player, total=num_games) for player in PLAYERS}
        scores = evaluate_weights(
            config, checkpoint.model, num_games, lambda player, ended: progress.advance(tasks[player], ended)
        )
    console.print(_table(scores))
    return scores


def _table(scores: dict[str, EvaluationScore]) -> Table:
    table = Table("player", "mean score", "± standard error", "games", "what it does")
    for player, score in scores.items():
        table.add_row(
            player, f"{score.mean:.2f}", f"{score.standard_error:.2f}", str(score.num_games), DESCRIPTIONS[player]
        )
    return table
