"""What CONTRIBUTING.md shows works as it stands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from actors.baselines import PerfectPlayer
from deploy.experiment_files import load_experiment
from deploy.interrupts import INTERRUPTED
from deploy.roles import check_experiment
from tests.integration.processes import SMALL, Command
from zero.games.registry import make_game

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def game_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the game of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nim.py").write_text(CODE[0])
    return tmp_path


def overrides() -> list[str]:
    """The settings that the page gives to `zero train`."""
    (command,) = re.findall(r"zero train .*?\n```", PAGE, flags=re.DOTALL)
    words = shlex.split(command.removesuffix("```").replace("\\\n", ""))
    return [word for word in words[2:] if word != "--set"]


def test_the_game_of_the_page_passes_the_test_of_the_page(game_folder: Path) -> None:
    """Both as they stand."""
    names: dict = {"__name__": "nim"}
    for text in CODE:
        exec(compile(text, "CONTRIBUTING.md", "exec"), names)
    names["test_nim_keeps_the_contract"]()


def test_the_experiment_of_the_page_can_be_built(game_folder: Path) -> None:
    """By the path of the file, with its option; and the game is the one that it says it is."""
    config = load_experiment("triangle", overrides())
    check_experiment(config)
    game = make_game(config.game.name, config.game.options)
    assert game.planes_shape == (31, 1, 1)
    # Whoever is left a multiple of four loses: the solver finds how many to take.
    left = np.array([1, 2, 3, 5, 6, 7, 9, 18], np.uint64)
    for player in (0, 1):
        states = np.stack([left, np.full_like(left, player)], axis=1)
        assert PerfectPlayer(game).choose(states, left).tolist() == (left % 4 - 1).tolist()


@pytest.mark.parametrize("name", re.findall(r"^\| `((?:open_spiel|gymnasium):.*?)`", PAGE, flags=re.MULTILINE))
def test_games_of_other_libraries_are_there(name: str) -> None:
    """Under the names that the page gives, where the library is installed."""
    pytest.importorskip({"open_spiel": "pyspiel"}.get(name.partition(":")[0], "gymnasium"), reason="needs the extra")
    assert make_game(name, {}).num_actions > 1


@pytest.mark.slow
def test_the_game_of_the_page_is_learned_in_all_processes(game_folder: Path) -> None:
    """`zero train` sends it to the processes that play, learn and measure; the run is measured afterwards."""
    settings = [f"--set={override}" for override in overrides()]
    small = [option for option in SMALL if not option.startswith("--experiment")]
    train = ["train", *small, *settings, "--minutes=10", "--metrics-port=0", "--run-dir=run"]
    with Command(game_folder, *train) as command:
        command.wait_for("learning since", 120)
        command.wait_for("evaluation search", 120)
        command.interrupt()
        assert command.wait(60) == INTERRUPTED, command.output
    with Command(game_folder, "evaluate", "--run=run", "--games=4", "--baseline=perfect") as command:
        assert command.wait(60) == 0, command.output
        assert "perfect" in command.output
