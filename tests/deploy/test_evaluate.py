"""What `zero evaluate --run` prints, from a real checkpoint."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deploy.errors import BAD_INPUT, DeployError
from deploy.evaluate import Measurement, evaluate_run
from deploy.experiment_files import load_experiment
from deploy.run_folder import open_or_create_run_folder
from learner.checkpoint import Checkpoint, CheckpointStore
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes

SMALL = ["network.channels=4", "network.blocks=1", "search.num_simulations=2", "search.max_num_considered_actions=2"]


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a run of a built-in experiment with a checkpoint of fresh weights."""

    def make(experiment: str) -> Path:
        config = load_experiment(experiment, SMALL)
        folder = open_or_create_run_folder(tmp_path / experiment, config)
        weights = weights_to_bytes(make_network(make_game(config.game.name, {}), config.network, 0))
        CheckpointStore(folder.checkpoints).save(Checkpoint(7, weights, {}), config)
        return folder.path

    return make


def printed(run: Path, games: int, *baselines: str, simulations: tuple[int, ...] = ()) -> list[str]:
    console = Console(file=StringIO(), width=160)
    evaluate_run(run, [], Measurement(games, baselines or None, simulations), console)
    text = console.file.getvalue() if isinstance(console.file, StringIO) else ""
    return text.splitlines()


def rows(lines: list[str], first_cell: str) -> list[list[str]]:
    """Cells of the rows that begin with a cell."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    return [row for row in cells if row[0] == first_cell]


def test_a_game_for_one_shows_scores(run_of: Callable[[str], Path]) -> None:
    """Mean, standard error and median of the game's own baselines, the policy, and every number of simulations."""
    lines = printed(run_of("triangle"), 3, simulations=(1,))
    for player, does in (
        ("random", "uniform random"),
        ("mobility", "room for the next shapes"),
        ("policy", "policy alone"),
        ("search-1", "with search"),
        ("search", "with search"),
    ):
        [(_, mean, error, median, games, text)] = rows(lines, player)
        assert float(mean) > 0
        assert float(error) >= 0
        assert float(median) > 0
        assert games == "3"
        assert does in text


def test_a_game_for_two_shows_results_and_ratings(run_of: Callable[[str], Path]) -> None:
    """Every pair with what was won, drawn and lost, then the ratings, the strongest first."""
    lines = printed(run_of("tic_tac_toe"), 10, "random", "perfect")
    met = {(row[0], row[1]): row for player in ("perfect", "policy", "search") for row in rows(lines, player)}
    _, _, mean, _, won, drawn, lost = met["perfect", "random"]
    assert int(won) + int(drawn) + int(lost) == 10
    assert float(mean) == (int(won) - int(lost)) / 10
    assert met["policy", "perfect"][4] == "0"
    assert {("search", "random"), ("search", "perfect"), ("search", "policy")} <= set(met)
    ratings = [float(rows(lines, player)[-1][1]) for player in ("perfect", "random")]
    assert ratings[0] > ratings[1] == 0


def test_an_unknown_baseline_is_refused_in_one_line(run_of: Callable[[str], Path]) -> None:
    """Before anything is played."""
    with pytest.raises(DeployError, match="there is no baseline 'gnu'; known: random") as caught:
        printed(run_of("tic_tac_toe"), 2, "gnu")
    assert caught.value.exit_code == BAD_INPUT


def test_json_says_what_the_tables_say(run_of: Callable[[str], Path]) -> None:
    """One document: what was measured, scores, contests and ratings; what is no number is null."""
    run, console = run_of("tic_tac_toe"), Console(file=StringIO())
    scores = evaluate_run(run, [], Measurement(1, ("random",)), console, as_json=True)
    assert isinstance(console.file, StringIO)
    told = json.loads(console.file.getvalue())
    assert (told["run"], told["training_step"], told["weights"], told["games"]) == (str(run), 7, "latest", 1)
    assert {player: score["mean"] for player, score in told["scores"].items()} == {
        player: score.mean for player, score in scores.items()
    }
    assert told["scores"]["policy"]["standard_error"] is None
    assert {(contest["player"], contest["opponent"]) for contest in told["contests"]} >= {("search", "policy")}
    assert told["ratings"]["random"]["elo"] == 0
