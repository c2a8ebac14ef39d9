"""Every command of `zero`, whatever it does: it explains itself, completes, and ends a mistake with one line."""

import io
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from deploy.cli import app, main
from deploy.experiment_files import load_experiment
from deploy.run_folder import RunFolder, open_or_create_run_folder

NOBODY = "127.0.0.1:1"
"""Where no server answers."""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All commands below a group, by the words that name them."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = tuple(commands(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty one, a file, and runs: one never trained, others with a damaged part."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("untrained", "damaged-config", "damaged-record", "damaged-checkpoint"):
        open_or_create_run_folder(folder / "runs" / name, load_experiment("tic_tac_toe", []))
    RunFolder(folder / "runs/damaged-config").config_file.write_text("name = ")
    RunFolder(folder / "runs/damaged-record").record_file.write_text("{}")
    checkpoint = RunFolder(folder / "runs/damaged-checkpoint").checkpoints / "step-000000007"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no TOML, no archive, no trajectories")
    return folder


@pytest.fixture
def folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, in which the command runs, without terminal and where no server answers."""
    monkeypatch.chdir(runs)
    monkeypatch.setenv("ZERO_REPLAY_ADDRESS", NOBODY)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return runs


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and what stands on stderr."""
    monkeypatch.setattr(sys, "argv", ["zero", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), capsys.readouterr().err


MISTAKES = [
    ("train --resume nowhere", 2, "nowhere"),
    ("train --resume untrained --step 5", 2, "no checkpoint of step 5"),
    ("train --resume damaged-config", 2, "damaged-config"),
    ("train --resume damaged-record", 2, "damaged-record"),
    ("train --run-dir file", 2, "file"),
    ("train --statistics nowhere.toml", 2, "nowhere.toml"),
    ("train --sink paper", 2, "paper"),
    ("train --tls-certificate a.pem --tls-key b.pem", 2, "--tls-ca"),
    ("replay-server --redis-url-file nowhere", 2, "nowhere"),
    ("replay-server --tls-certificate nowhere.pem --tls-key nowhere.key", 2, "nowhere"),
    ("replay-server --port 70000", 2, "--port"),
    ("replay-server --data-dir file", 1, "file"),
    ("serve nowhere", 2, "nowhere"),
    ("serve untrained --port 70000", 2, "--port"),
    ("serve untrained --weights newest", 2, "best, latest or published"),
    (f"serve untrained --replay-address {NOBODY}", 2, "--weights published"),
    ("play nowhere", 2, "nowhere"),
    ("play untrained", 2, "no checkpoint"),
    ("play untrained --human 2", 2, "--human"),
    ("play damaged-checkpoint", 2, "step-000000007"),
    ("watch nowhere", 2, "nowhere"),
    ("watch damaged-config", 2, "damaged-config"),
    ("watch untrained --host 203.0.113.1", 2, "203.0.113.1"),
    ("export empty --format safetensors", 2, "empty"),
    ("export untrained --format safetensors", 2, "no checkpoint"),
    ("export untrained --format paper", 2, "paper"),
    ("tensorboard runs --port 0", 2, "--port"),
    ("mlflow runs --port 99999", 2, "--port"),
    ("ray --port soon", 2, "--port"),
    ("stop nowhere", 2, "nowhere"),
    ("status nowhere", 2, "nowhere"),
    ("scale nowhere --actors 2", 2, "nowhere"),
    ("scale untrained --actors 2", 2, "does not go on"),
    ("scale untrained", 2, "--actors"),
    (f"train --experiment tic_tac_toe --ray-address {NOBODY} --place player:cpu=1", 2, "player:cpu=1"),
    ("train --experiment tic_tac_toe --detach", 2, "--ray-address"),
    ("learner --run-dir file", 2, "file"),
    ("learner --experiment nowhere", 2, "nowhere"),
    ("learner --experiment tic_tac_toe --run-dir runs/damaged-checkpoint", 2, "step-000000007"),
    ("actor --index -1", 2, "--index"),
    ("actor --experiment file", 2, "file"),
    ("actor --inference 127.0.0.1:8000", 2, "http://HOST:PORT"),
    (f"actor --experiment tic_tac_toe --replay-address {NOBODY} --tls-ca nowhere.pem", 2, "nowhere.pem"),
    ("reanalyser --token-file nowhere", 2, "nowhere"),
    ("evaluate nowhere", 2, "nowhere"),
    ("evaluate untrained", 2, "no checkpoint"),
    ("evaluate damaged-checkpoint", 2, "step-000000007"),
    ("evaluate untrained --games 0", 2, "--games"),
    ("evaluate --json", 2, "--json"),
    (f"replay info --replay-address {NOBODY}", 1, NOBODY),
    ("replay tables --replay-address nowhere", 2, "--replay-address"),
    ("replay peek", 2, "TABLE"),
    ("replay export games", 2, "FILE"),
    ("replay verify games --tls-ca nowhere", 2, "nowhere"),
    ("replay reset games --token-file nowhere", 2, "nowhere"),
    ("replay delete games --yes --replay-address :8470", 2, "--replay-address"),
    ("replay import nowhere", 2, "nowhere"),
    ("replay import file", 2, "file"),
    ("replay limit games", 2, "at least one limit"),
    ("statistics run --run-dir nowhere", 2, "nowhere"),
    ("statistics run --run-dir runs/untrained --sink paper", 2, "paper"),
    ("statistics list --statistics file", 2, "file"),
    ("runs list --fly", 2, "--fly"),
    ("runs show nowhere", 2, "nowhere"),
    ("runs show empty", 2, "empty"),
    ("runs compare untrained damaged-config", 2, "damaged-config"),
    ("runs show damaged-record", 2, "damaged-record"),
    ("runs show untrained --verify", 2, "no manifest"),
    ("runs compare untrained", 2, "two runs"),
    ("runs compare untrained nowhere", 2, "nowhere"),
    ("runs fork nowhere new", 2, "nowhere"),
    ("runs fork untrained new", 2, "no checkpoint"),
    ("runs export nowhere new", 2, "nowhere"),
    ("runs export untrained file", 2, "exists"),
    ("runs export untrained nowhere/new.tar.gz", 2, "nowhere"),
    ("runs delete nowhere --yes", 2, "nowhere"),
    ("runs delete untrained", 2, "--yes"),
    ("profile actor --run nowhere", 2, "nowhere"),
    ("profile learner --seconds 0", 2, "--seconds"),
    ("profile learner --run untrained --experiment triangle", 2, "--experiment"),
    ("profile show nowhere", 2, "nowhere"),
    ("profile show untrained", 2, "--profile"),
    ("config show --experiment nowhere", 2, "nowhere"),
    ("config check --experiment file", 2, "file"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "named"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
@pytest.mark.usefixtures("folder")
def test_a_mistake_ends_with_one_line_that_names_it(
    line: str, code: int, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 for what cannot be used, 1 for what did not work out: a line on stderr, no traceback, whatever the command."""
    found, err = run(line.split(), monkeypatch, capsys)
    (last,) = [text for text in err.splitlines() if not text.startswith("warning: ")]
    assert last.startswith("error: ")
    assert named in last
    assert found == code


def test_every_command_has_a_mistake_above() -> None:
    """A new command is not forgotten."""
    named = {
        command for command in COMMANDS for line, _, _ in MISTAKES if tuple(line.split())[: len(command)] == command
    }
    assert set(COMMANDS) == named


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help ends with a line that could be typed."""
    monkeypatch.setattr(sys, "argv", ["zero", *command, "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    out = " ".join(capsys.readouterr().out.split())
    assert "Example" in out
    assert f"zero {' '.join(command)}" in out.partition("Example")[2]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("zero ru", ["runs"]),
        ("zero runs ", ["compare", "delete", "export", "fork", "list", "show"]),
        ("zero profile le", ["learner"]),
        ("zero evaluate --simul", ["--simulations"]),
        ("zero runs show unt", ["untrained"]),
        ("zero train --resume damaged-c", ["damaged-checkpoint", "damaged-config"]),
        ("zero config show --experiment connect", ["connect_four"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_shell_completes_commands_options_and_runs(
    typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `zero --install-completion` has Bash ask."""
    monkeypatch.setenv("_ZERO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    monkeypatch.setattr(sys, "argv", ["zero"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert sorted(capsys.readouterr().out.split()) == offered


def test_a_port_that_is_taken_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is nobody's mistake: 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, err = run(["replay-server", "--data-dir", str(folder / "new"), "--port", port], monkeypatch, capsys)
    assert code == 1
    assert port in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "line",
    ["config show", "config check", "runs list", "runs show untrained", "runs compare untrained damaged-checkpoint",
     "status untrained", "statistics list"],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_json_is_all_that_is_printed(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script reads stdout as one document."""
    monkeypatch.setattr(sys, "argv", ["zero", *line.split(), "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert json.loads(capsys.readouterr().out)
