"""Tests of the command line up to where a role starts."""

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.best_weights import BestWeights, Candidate
from actors.evaluation import EvaluationScore
from deploy.cli import main, program_as_typed
from deploy.experiment_files import load_experiment
from deploy.figures import RunFigures
from deploy.run_folder import RunFolder, locked, open_or_create_run_folder
from deploy.run_records import RunState
from deploy.session import closing_lines
from learner.checkpoint import Checkpoint, CheckpointStore
from replay_server.ports import DEFAULT_METRICS_PORT
from zero.config import parse_config
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes

PROMETHEUS_CONFIG = Path(__file__).parents[2] / "deploy/prometheus/prometheus.yml"

SMALL = ["network.channels=4", "network.blocks=1", "self_play.max_moves=4", 'evaluation.baselines=["random"]']

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zero", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run_main


BAD_INPUT = {
    "unknown section": (["--set", "serach.num_simulations=3"], "serach"),
    "unknown key": (["--set", "search.simulations=3"], "search.simulations: no such setting; allowed: num_simulations"),
    "wrong type": (["--set", "search.num_simulations=many"], "search.num_simulations"),
    "out of range": (["--set", "learner.batch_size=0"], "greater than or equal to 1, got 0"),
    "not a number": (["--set", "learner.learning_rate=nan"], "learner.learning_rate"),
    "no assignment": (["--set", "search"], "section.key=value"),
    "a value as a section": (["--set", "seed.x=3"], "seed"),
    "wrong choice": (["--set", "replay.durability=maybe"], "'memory' or 'redis'"),
    "values that exclude each other": (["--set", "network.support_min=90"], "support_min"),
    "table that cannot work": (["--set", "replay.min_size_to_sample=200000"], "exceeds capacity"),
    "unknown game": (["--set", "game.name=chess"], "unknown game 'chess'; known: connect_four, tic_tac_toe, triangle"),
    "unknown game option": (["--set", "game.options.size=3"], "size"),
    "unknown baseline": (["--set", 'evaluation.baselines=["random","gnu"]'], "baselines: there is no baseline 'gnu'"),
    "baseline of another game": (["--set", 'evaluation.baselines=["mcts-10"]'], "two players without chance only"),
    "no simulations": (["--set", "evaluation.simulations=[0]"], "evaluation.simulations.0"),
    "unknown experiment": (["--experiment", "chess"], "'chess'"),
    "folder as experiment": (["--experiment", "."], "Is a directory"),
}


@pytest.mark.parametrize("command", [["config", "show"], ["config", "check"], ["train"]])
@pytest.mark.parametrize(("arguments", "expected"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_ends_with_one_line_that_names_it(
    run: Run, command: list[str], arguments: list[str], expected: str
) -> None:
    """A wrong key or value costs one line on stderr and exit code 2, and leaves nothing behind."""
    code, out, err = run(*command, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "option", "given"),
    [
        (["fly"], "command", "fly"),
        (["train", "--fly"], "option", "--fly"),
        (["train", "fly"], "argument", "fly"),
        (["train", "--minutes"], "--minutes", "requires an argument"),
        (["train", "--minutes", "soon"], "--minutes", "'soon'"),
        (["train", "--actors", "0"], "--actors", "'0'"),
        (["train", "--metrics-port", "70000"], "--metrics-port", "'70000'"),
        (["train", "--log-level", "loud"], "--log-level", "'loud'"),
        (["actor", "--index", "-1"], "--index", "'-1'"),
        (["learner", "--device", "tpu"], "--device", "'tpu'"),
        *(
            ([role, "--replay-address", address], "--replay-address", repr(address))
            for role in ("learner", "actor", "evaluate")
            for address in ("localhost", "8470", ":8470", "host:", "host:http", "host:0", "host:65536", "")
        ),
        *(
            ([role, "--host", host], "--host", repr(host))
            for role in ("learner", "actor", "evaluate")
            for host in ("0.0.0.0", "::", "[::]", "0", "")
        ),
    ],
)
def test_a_bad_option_ends_with_one_line_that_names_it(run: Run, arguments: list[str], option: str, given: str) -> None:
    """What the option parser refuses costs one line on stderr, with option and value, and exit code 2."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert option in err
    assert given in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    """A learner or a served agent that must have a GPU ends before it computes on anything else."""
    folder = open_or_create_run_folder(tmp_path / "run", load_experiment("tic_tac_toe", []))
    code, _, err = run("serve", str(folder.path), "--gpus", "1")
    assert (code, err.partition(":")[0]) == (2, "error")
    assert re.fullmatch(r"error: --gpus: .*; give --gpus 0, or a machine and an image with CUDA\n", err)
    code, _, err = run("learner", "--device", "cuda", "--experiment", "tic_tac_toe")
    assert code == 2
    assert re.fullmatch(
        r"error: --device cuda, .*: .*; give --device auto, gpu=0, or a machine and an image with CUDA\n", err
    )


def test_no_command_shows_the_help(run: Run) -> None:
    """`zero` alone lists the commands and ends as a mistake, `zero --help` ends well; neither says `error:`."""
    for arguments, expected in (([], 2), (["--help"], 0)):
        code, out, err = run(*arguments)
        assert (code, err) == (expected, "")
        assert "replay-server" in out


def test_an_interrupted_command_ends_as_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before a role runs is exit code 130, without a traceback."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.cli.load_experiment", interrupted)
    code, out, err = run("config", "show")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_an_experiment_that_is_no_toml_is_named(run: Run) -> None:
    """A broken file is one line."""
    Path("broken.toml").write_text("name = ")
    code, _, err = run("config", "show", "-e", "broken.toml")
    assert code == 2
    assert "no TOML" in err


def test_config_prints_what_runs(run: Run) -> None:
    """`zero config` prints the complete effective config, overrides included, as TOML."""
    code, out, _ = run("config", "show", "-e", "tic_tac_toe", "--set", "seed=5")
    assert code == 0
    assert parse_config(out, []) == load_experiment("tic_tac_toe", ["seed=5"])


@pytest.mark.parametrize("option", [["--run-dir", "other"], ["--run-name", "other"]])
def test_resume_names_the_run(run: Run, tmp_path: Path, option: list[str]) -> None:
    """--resume refuses in one line what would be another run."""
    open_or_create_run_folder(tmp_path / "run", load_experiment("triangle", []))
    code, _, err = run("train", "--resume", "run", *option)
    assert code == 2
    assert err == f"error: {option[0]} does not go with --resume, which names the run\n"


def test_an_experiment_of_the_environment_is_not_ignored_beside_a_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZERO_EXPERIMENT counts as given."""
    monkeypatch.setenv("ZERO_EXPERIMENT", "tic_tac_toe")
    open_or_create_run_folder(tmp_path / "run", load_experiment("triangle", []))
    code, _, err = run("evaluate", "--run", "run")
    assert code == 2
    assert err.startswith("error: --experiment does not go with --run")
    code, _, err = run("train", "--resume", "run")
    assert code == 2
    assert "game.name of " in err


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate", "--run"]])
def test_a_folder_that_holds_no_intact_run_is_named(run: Run, tmp_path: Path, command: list[str]) -> None:
    """Neither a folder without a run nor an emptied config is taken for a run of the default config."""
    code, _, err = run(*command, "nowhere")
    assert code == 2
    assert re.match(r"error: run folder '\S+/nowhere': No such file or directory; name the folder of a run.*\n$", err)
    folder = open_or_create_run_folder(tmp_path / "run", load_experiment("triangle", []))
    text = folder.config_file.read_text()
    for damaged, lacks in (("", "discount"), (text[: text.index("[replay]")], "replay")):
        folder.config_file.write_text(damaged)
        code, _, err = run(*command, "run")
        assert code == 2
        assert re.match(rf"error: \S+config.toml is damaged: it lacks .*{lacks}.*\n$", err)


@pytest.mark.parametrize("minutes", ["inf", "nan", "1e7", "-1", "0"])
def test_no_run_lasts_for_ever(run: Run, minutes: str) -> None:
    """Minutes are finite, positive, and not absurd."""
    code, _, err = run("train", f"--minutes={minutes}")
    assert code == 2
    assert re.match(r"error: .*--minutes.*must be above 0 and at most 1000000, got \S+\n$", err)


def test_a_run_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    """--run-dir of an existing run says how to go on with it."""
    config = load_experiment("triangle", [])
    folder = open_or_create_run_folder(tmp_path / "run", config)
    folder.begin_session(config)
    folder.end_session(RunState.FINISHED, "the time was over")
    code, _, err = run("train", "--run-dir", "run")
    assert code == 2
    assert "holds a finished run (the time was over, training step 0): go on with it by --resume run" in err


def test_evaluate_needs_a_run_with_a_checkpoint(run: Run, tmp_path: Path) -> None:
    """Measuring what was never trained is one line."""
    open_or_create_run_folder(tmp_path / "run", load_experiment("triangle", []))
    code, _, err = run("evaluate", "--run", "run")
    assert code == 2
    assert "no checkpoint yet" in err


def test_evaluate_measures_a_run_with_the_overrides_given(run: Run, tmp_path: Path) -> None:
    """--set changes the run's own config; what the checkpoint does not fit, the game or the network, is refused."""
    small = [*SMALL, "search.max_num_considered_actions=2"]
    config = load_experiment("tic_tac_toe", small)
    folder = open_or_create_run_folder(tmp_path / "run", config)
    game = make_game(config.game.name, config.game.options)
    weights = weights_to_bytes(make_network(game, config.network, 0))
    CheckpointStore(folder.checkpoints).save(Checkpoint(7, weights, {}), config)
    evaluate = ["evaluate", "--run", "run", "--games", "2", "--set"]
    code, out, _ = run(*evaluate, "search.num_simulations=3")
    assert code == 0
    assert "training step 7 (latest) on 2 fixed seeds, 3 simulations" in " ".join(out.split())
    code, _, err = run(*evaluate, "network.channels=8")
    assert code == 2
    assert "the checkpoint was made with network.channels 4, the config says 8" in err
    code, _, err = run(*evaluate, "game.name=connect_four")
    assert code == 2
    assert 'was made with game.name "tic_tac_toe", the config says "connect_four"' in err
    code, _, err = run(*evaluate, "search.simulations=3")
    assert code == 2
    assert "search.simulations: no such setting" in err


def test_evaluate_measures_the_best_weights_of_a_run(run: Run, tmp_path: Path) -> None:
    """--weights best takes what the evaluator kept, and names what is missing, damaged or of another network."""
    config = load_experiment("tic_tac_toe", [*SMALL, "search.num_simulations=2"])
    folder = open_or_create_run_folder(tmp_path / "run", config)
    evaluate = ["evaluate", "--run", "run", "--games", "2", "--weights", "best"]
    code, _, err = run(*evaluate)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no best weights: no evaluator has measured any yet" in err
    weights = weights_to_bytes(make_network(make_game("tic_tac_toe", {}), config.network, 0))
    score = EvaluationScore.of(np.zeros(4))
    BestWeights(folder.best, config, ()).offer(Candidate(weights, 123, 45), score)
    code, out, _ = run(*evaluate)
    assert code == 0
    assert "at training step 123 (best) on 2 fixed seeds" in " ".join(out.split())
    code, _, err = run(*evaluate, "--set", "network.channels=8")
    assert (code, err.count("\n")) == (2, 1)
    assert "the best weights were made with network.channels 4, the config says 8" in err
    (found,) = folder.best.glob("*.safetensors")
    found.write_bytes(weights[:-1])
    code, _, err = run(*evaluate)
    assert (code, err.count("\n")) == (2, 1)
    assert "does not match its sha256" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--run", "run", "--weights", "worst"], "must be latest or best, got 'worst'"),
        (["--weights", "best"], "--weights does not go with the evaluator, which measures new weights: give --run"),
    ],
)
def test_which_weights_is_said_of_a_run(run: Run, arguments: list[str], text: str) -> None:
    """Anything else is refused in one line."""
    code, _, err = run("evaluate", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert text in err


def test_a_game_that_breaks_its_contract_is_refused_by_the_command(run: Run, tmp_path: Path) -> None:
    """In one line, with the rule that it breaks, before anything is started or written."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from zero.games.tic_tac_toe import TicTacToe\n"
        "class Endless(TicTacToe):\n"
        "    def terminated(self, states):\n"
        "        return np.zeros(len(states), np.bool_)\n"
    )
    for command in (["train"], ["config", "show"], ["learner"], ["actor"], ["evaluate"]):
        code, _, err = run(*command, "--set", "game.name=mine.py:Endless")
        assert (code, err.count("\n")) == (2, 1)
        assert "breaks the contract of games: exactly the positions that are not over have legal actions" in err


def test_what_is_suggested_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Suggested commands call the program as it was called, by its short name where the PATH finds it."""
    program = tmp_path / "zero"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program_as_typed(str(program)) == "zero"
    monkeypatch.setenv("PATH", "/nowhere")
    assert program_as_typed(str(program)) == str(program)
    assert program_as_typed(".venv/bin/zero") == ".venv/bin/zero"
    assert program_as_typed("/a folder/zero") == "'/a folder/zero'"
    assert program_as_typed("/usr/lib/python3/pytest/__main__.py") == "zero"
    lines = closing_lines(RunFolder(tmp_path), RunFigures(), None, ".venv/bin/zero")
    assert not any("best weights" in line for line in lines)
    (tmp_path / "best").mkdir()
    lines = closing_lines(RunFolder(tmp_path), RunFigures(), None, ".venv/bin/zero")
    assert any(line.split() == ["best", "weights", str(tmp_path / "best")] for line in lines)
    assert [line.split(" --")[0].strip() for line in lines[-2:]] == [".venv/bin/zero evaluate", ".venv/bin/zero train"]


def test_the_command_line_waits_for_no_large_library() -> None:
    """`zero --help` is quick because nothing large is imported for it."""
    check = "import sys, deploy.cli; print(sorted({'torch', 'ray', 'numba', 'redis', 'grpc'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_prometheus_config_fits_the_default_port() -> None:
    """prometheus.yml asks where `zero train` and `zero replay-server` serve by default, and promtool accepts it."""
    (url,) = re.findall(r"url: *(\S+)", PROMETHEUS_CONFIG.read_text())
    assert url == f"http://127.0.0.1:{DEFAULT_METRICS_PORT}/sd"
    promtool = shutil.which("promtool")
    if promtool:
        subprocess.run([promtool, "check", "config", str(PROMETHEUS_CONFIG)], check=True, capture_output=True)


def test_a_second_learner_in_the_same_folder_is_refused(run: Run, tmp_path: Path) -> None:
    """Two learners would overwrite each other's checkpoints."""
    folder = open_or_create_run_folder(tmp_path / "run", load_experiment("tic_tac_toe", []))
    with locked(folder):
        code, _, error = run("learner", "--experiment=tic_tac_toe", f"--run-dir={folder.path}")
    assert code == 1
    assert error.startswith("error: ")
    assert "is in use by another learner" in error


def test_a_log_is_coloured_in_a_terminal_alone() -> None:
    """Every command logs alike; what reads stderr as a file gets plain lines, with date and level."""
    text = "from replay_server.command import log_to_stderr; log_to_stderr('info'); import logging; "
    command = [sys.executable, "-c", text + "logging.getLogger('learner').warning('the disk is full')"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.fullmatch(r"20\S+ \S+ WARNING learner: the disk is full\n", plain)
    ours, theirs = pty.openpty()
    subprocess.run(command, stderr=theirs, env=os.environ | {"TERM": "xterm"}, check=True)
    coloured = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert "\x1b[" in coloured
    assert "the disk is full" in coloured
