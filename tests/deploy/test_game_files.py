"""Games in a user's own file: found, loaded, refused with the reason, and sent to processes that have no such file."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import load_experiment
from deploy.game_files import pack_game, register_game_file, unpack_game
from deploy.roles import check_experiment
from zero.games import registry
from zero.games.registry import make_game

GAME = '''
"""Tic-tac-toe under another name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from zero.games.tic_tac_toe import TicTacToe
from zero.jit import njit


@dataclass(frozen=True)
class Prize:
    amount: float


@njit
def scaled(rewards, amount):
    return (rewards * amount).astype(np.float32)


class Mine(TicTacToe):
    def __init__(self, prize: float = 1.0) -> None:
        self.prize = Prize(prize)

    def apply(self, states, actions):
        result = super().apply(states, actions)
        return replace(result, rewards=scaled(result.rewards, self.prize.amount))


class Broken(TicTacToe):
    def to_play(self, states):
        return np.zeros(len(states), np.int8)


class Unfinished(TicTacToe.__mro__[1]):
    pass


def make(options):
    return Mine(**options)


NUMBER = 3
'''


@pytest.fixture
def game_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GAME)
    return path


@pytest.mark.parametrize("attribute", ["Mine", "make"])
def test_a_game_in_a_file_is_played_by_its_name(game_file: Path, attribute: str) -> None:
    """A class takes the options by name, a function as a mapping."""
    config = load_experiment("tic_tac_toe", [f"game.name={game_file}:{attribute}", "game.options.prize=2.5"])
    check_experiment(config)
    game = make_game(config.game.name, config.game.options)
    assert (type(game).__name__, game.prize.amount) == ("Mine", 2.5)


def test_the_file_is_found_from_where_it_was_named(game_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an experiment's file from that file's folder, as an override from the current one; the config has it all."""
    experiment = game_file.with_name("experiment.toml")
    experiment.write_text('name = "mine"\n[game]\nname = "mine.py:Mine"\n')
    (game_file.parent / "elsewhere").mkdir()
    monkeypatch.chdir(game_file.parent / "elsewhere")
    assert load_experiment("../experiment.toml", []).game.name == f"{game_file.parent}/elsewhere/../mine.py:Mine"
    check_experiment(load_experiment("../experiment.toml", []))
    monkeypatch.chdir(game_file.parent)
    assert load_experiment("triangle", ["game.name=mine.py:Mine"]).game.name == f"{game_file}:Mine"


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("Broken", "breaks the contract of games: players must move in turns"),
        ("Unfinished", "Can't instantiate abstract class Unfinished"),
        ("Theirs", "the file defines no class or function 'Theirs'"),
        ("NUMBER", "the file defines no class or function 'NUMBER'"),
        ("Mine", "unexpected keyword argument 'size'"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(game_file: Path, attribute: str, text: str) -> None:
    """With what is wrong, before anything starts."""
    overrides = [f"game.name={game_file}:{attribute}", *(["game.options.size=3"] if attribute == "Mine" else [])]
    with pytest.raises(DeployError) as caught:
        check_experiment(load_experiment("tic_tac_toe", overrides))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == BAD_INPUT


def test_a_file_that_does_not_run_is_refused_with_the_line(tmp_path: Path) -> None:
    """So is one that is not there."""
    (tmp_path / "bad.py").write_text("x = 1\n\ny = x / 0\n")
    with pytest.raises(DeployError, match=r"bad.py', line 3: ZeroDivisionError: division by zero"):
        check_experiment(load_experiment("triangle", [f"game.name={tmp_path}/bad.py:Game"]))
    with pytest.raises(DeployError, match=r"gone.py': there is no such file"):
        check_experiment(load_experiment("triangle", [f"game.name={tmp_path}/gone.py:Game"]))


def test_a_game_travels_without_its_file(game_file: Path, tmp_path: Path) -> None:
    """Packed, it is played in a process on which the file was never seen, compiled functions and all."""
    config = load_experiment("tic_tac_toe", [f"game.name={game_file}:Mine", "game.options.prize=2.5"])
    assert pack_game(config) is None
    register_game_file(config)
    payload = pack_game(config)
    assert payload is not None
    (tmp_path / "payload").write_bytes(payload)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    game_file.unlink()
    program = (
        "from pathlib import Path\n"
        "from deploy.game_files import unpack_game\n"
        "from zero.config import ExperimentConfig\n"
        "from zero.games.registry import make_game\n"
        "config = ExperimentConfig.model_validate_json(Path('config.json').read_text())\n"
        "unpack_game(config, Path('payload').read_bytes())\n"
        "print(make_game(config.game.name, config.game.options).prize.amount)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.stdout == "2.5\n", result.stderr


def test_a_broken_game_that_travelled_is_refused_too(game_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As whatever a user can do something about."""
    config = load_experiment("tic_tac_toe", [f"game.name={game_file}:Mine"])
    register_game_file(config)
    payload = pack_game(config)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    with pytest.raises(DeployError, match="unexpected keyword argument 'size'"):
        unpack_game(load_experiment("tic_tac_toe", [f"game.name={game_file}:Mine", "game.options.size=3"]), payload)
