"""Tests of what can be done with the agent of a run: play in the terminal, export, and the launchers' warnings."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console

from deploy.cli import main
from deploy.errors import DeployError
from deploy.experiment_files import load_experiment
from deploy.export import export_run, random_encodings
from deploy.play import PlayOptions, play_run
from deploy.run_folder import open_or_create_run_folder
from deploy.run_weights import WhichWeights
from learner.checkpoint import CheckpointStore
from learner.learner import Learner
from zero.games.registry import make_game

SMALL = ["network.channels=4", "network.blocks=1", "search.num_simulations=4", "search.max_num_considered_actions=2"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoint of a fresh learner."""
    config = load_experiment("tic_tac_toe", SMALL)
    folder = open_or_create_run_folder(tmp_path_factory.mktemp("runs") / "run", config)
    game = make_game(config.game.name, config.game.options)
    learner = Learner(config, game, torch.device("cpu"))
    CheckpointStore(folder.checkpoints).save(learner.checkpoint(), config)
    return folder.path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["zero", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def typed(*answers: str) -> Callable[[str], str]:
    given: Iterator[str] = iter(answers)
    return lambda _: next(given)


def test_the_agent_can_be_watched(run_dir: Path) -> None:
    """Every position is drawn up to the end, and the score is the game's."""
    console = Console(record=True, width=100)
    score = play_run(run_dir, PlayOptions(seed=3), console)
    text = console.export_text()
    moves = re.findall(r"move (\d+): the agent plays (\d+), score (\S+)", text)
    assert 5 <= len(moves) <= 9
    assert len({action for _, action, _ in moves}) == len(moves)
    assert float(moves[-1][2]) == score
    assert f"Score {score:g} of the first player" in text


def test_a_human_types_legal_moves_against_the_agent(run_dir: Path) -> None:
    """What is not legal is refused with what is; the other player is the agent; q leaves."""
    console = Console(record=True, width=100)
    assert play_run(run_dir, PlayOptions(human=0), console, typed("?", "9", "x", "4", "4", "q")) == 0
    text = console.export_text()
    assert "legal moves: 0, 1, 2, 3, 4, 5, 6, 7, 8" in text
    assert "not legal: '9'" in text
    assert "not legal: '4'" in text
    assert re.findall(r"move \d+: (\w+ \w+ \w+|you play 4)", text)[:2] == ["you play 4", "the agent plays"]


def test_a_player_that_the_game_has_not_is_refused(run_dir: Path) -> None:
    """With the number that it has."""
    with pytest.raises(DeployError, match="has 2 player"):
        play_run(run_dir, PlayOptions(human=2), Console())


def test_weights_are_exported_with_a_card(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the checkpoint's; the card says game, config, score, data and hashes."""
    assert command(monkeypatch, "export", str(run_dir), "--output", str(tmp_path), "--format", "safetensors") == 0
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert tensors["stem.weight"].shape[0] == 4
    card = (tmp_path / "README.md").read_text()
    for expected in ("tic_tac_toe", "not measured", "**Data**", '"channels": 4', "sha256"):
        assert expected in card


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter about itself
def test_every_format_computes_what_the_network_does(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Checked on random positions in batches of several sizes; --json says where and how exactly."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    assert command(monkeypatch, "export", str(run_dir), "--output", str(tmp_path), "--json") == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["deviation"] < 1e-5
    assert sorted(told["files"]) == ["README.md", "model.onnx", "model.pt2", "model.safetensors"]
    assert {path.name for path in tmp_path.iterdir()} >= set(told["files"])


def test_positions_to_check_with_differ() -> None:
    """Games have begun, and are not over."""
    game = make_game("connect_four", {})
    encoded = random_encodings(game, 16, 0)
    assert len(np.unique(encoded, axis=0)) > 8


def test_a_format_that_there_is_not_is_refused(run_dir: Path) -> None:
    """Before anything is written."""
    with pytest.raises(DeployError, match="no format 'tflite'"):
        export_run(run_dir, None, ["tflite"], WhichWeights.LATEST)
    assert not (run_dir / "exports").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["play", "nowhere"], "run folder"),
        (["export", "nowhere"], "run folder"),
        (["evaluate", "nowhere"], "run folder"),
        (["evaluate", "a", "--run", "b"], "give the run once"),
        (["play", "nowhere", "--weights", "newest"], "must be latest or best"),
        (["tensorboard", "--port", "0"], "--port"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in every command."""
    assert command(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert text in error
