"""Which run is trained, from which checkpoint, with which config; and what can be done to whole runs."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
from rich.console import Console

from deploy.cli import main
from deploy.errors import DeployError
from deploy.experiment_files import load_experiment
from deploy.resume import RunRequest, choose_run, find_run
from deploy.run_folder import RunFolder, create_run_folder, locked
from deploy.run_records import RunState
from deploy.runs_operations import delete_run, fork_run, pack_run, stop_run
from deploy.runs_views import print_list
from learner.checkpoint import MODEL_FILE, Checkpoint, CheckpointStore, KeepPolicy
from zero.config import ExperimentConfig

CONFIG = load_experiment("tic_tac_toe", [])


def trained(path: Path, *steps: int, state: RunState = RunState.INTERRUPTED) -> RunFolder:
    """A run with checkpoints that hold no real weights, and a file of data."""
    run = create_run_folder(path)
    run.begin(CONFIG)
    run.begin_session(CONFIG)
    store = CheckpointStore(run.checkpoints, KeepPolicy(last=10))
    for step in steps:
        run.statistics.mkdir(exist_ok=True)
        run.statistics_state.write_text(f'{{"step": {step}}}')
        store.save(Checkpoint(step, b"", {}, statistics=run.kept_statistics()), CONFIG)
    (run.replay / "redis").mkdir(parents=True)
    (run.replay / "redis/log").write_text("data")
    run.end_session(state, "the training steps were made" if state is RunState.FINISHED else "a signal")
    return run


def request(root: Path, **changes: object) -> RunRequest:
    """What a command line without options asks for."""
    return RunRequest(
        **(
            {"experiment": "tic_tac_toe", "overrides": [], "experiment_is_given": False, "new_run": None, "root": root}
            | changes
        )
    )


def fine(config: ExperimentConfig) -> None:
    """Takes any config."""


def test_without_being_asked_no_other_run_is_gone_on_with(tmp_path: Path) -> None:
    """An explicit checkpoint; else the same run; else, only by `latest`, the newest other; else a new run."""
    one, other = trained(tmp_path / "one", 5, 9), trained(tmp_path / "other", 3)
    new = choose_run(request(tmp_path), fine).folder
    assert new.path.parent == tmp_path
    assert not new.config_file.exists()
    assert choose_run(request(tmp_path, new_run=one.path), fine).folder == one
    assert choose_run(request(tmp_path, resume="latest"), fine).folder == other
    assert choose_run(request(tmp_path, resume="one"), fine).folder == one
    chosen = choose_run(request(tmp_path, resume=str(one.checkpoints / "step-000000005")), fine)
    assert chosen.folder == one
    assert one.steps() == [5]
    (aside,) = one.checkpoints.glob("aside-*/step-*")
    assert aside.name == "step-000000009"
    with pytest.raises(DeployError, match="no checkpoint of step 9; there are: 5"):
        choose_run(request(tmp_path, resume="one", step=9), fine)
    with pytest.raises(DeployError, match="there is no run in"):
        find_run("latest", tmp_path / "nowhere")


def test_what_differs_is_named_and_refused_unless_it_is_allowed_by_name(tmp_path: Path) -> None:
    """All differences in one line with the remedy; what is allowed is noted in the run's record."""
    run = trained(tmp_path / "run", 4)
    changed = ["learner.learning_rate=0.5", "search.num_simulations=3"]
    with pytest.raises(DeployError) as caught:
        choose_run(request(tmp_path, resume="run", overrides=changed), fine)
    text = str(caught.value)
    rate = CONFIG.learner.learning_rate
    assert f"learner.learning_rate was {json.dumps(rate)}, now 0.5. If that is meant" in text
    assert "--allow-change search.num_simulations --allow-change learner.learning_rate" in text
    with pytest.raises(DeployError, match=r"search.num_simulations was"):
        choose_run(request(tmp_path, resume="run", overrides=changed, allowed=["learner.learning_rate"]), fine)
    allowed = ["search.num_simulations", "learner.learning_rate"]
    chosen = choose_run(request(tmp_path, resume="run", overrides=changed, allowed=allowed), fine)
    assert chosen.config.learner.learning_rate == 0.5
    assert run.config() == chosen.config
    assert [change.path for change in run.record().changes] == allowed
    with pytest.raises(DeployError, match=r"network.blocks of .* cannot be changed: the weights are made for it"):
        choose_run(request(tmp_path, resume="run", overrides=["network.blocks=7"], allowed=["network.blocks"]), fine)


def test_a_config_that_was_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    """What counts is what the checkpoint was made with."""
    run = trained(tmp_path / "run", 4)
    run.config_file.write_text(run.config_file.read_text().replace("td_steps = ", "td_steps = 1"))
    with pytest.raises(DeployError, match=r"learner.td_steps was"):
        choose_run(request(tmp_path, resume="run"), fine)


def test_a_run_without_an_intact_checkpoint_begins_anew_only_if_that_is_allowed(tmp_path: Path) -> None:
    """Else it is refused with every damage named; one that is intact is gone on with; what is damaged is kept aside."""
    run = trained(tmp_path / "run", 4, 8)
    (run.checkpoints / "step-000000008" / MODEL_FILE).write_bytes(b"damaged")
    assert choose_run(request(tmp_path, resume="run", allow_fresh=True), fine).notes == (
        "goes on from training step 4",
    )
    (run.checkpoints / "step-000000004" / MODEL_FILE).write_bytes(b"damaged")
    with pytest.raises(DeployError, match=r"step-000000008.*step-000000004.*or add --allow-fresh"):
        choose_run(request(tmp_path, resume="run"), fine)
    notes = choose_run(request(tmp_path, resume="run", allow_fresh=True), fine).notes
    assert notes[0] == "begins: it has no checkpoint"
    assert "lost its checkpoints" in notes[1]
    assert run.steps() == []
    assert len(list(run.checkpoints.glob("aside-*/step-*"))) == 2


def test_a_copied_run_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two folders with one id are named where runs are listed and where one of them goes on; a fork is no copy."""
    run = trained(tmp_path / "run", 4)
    assert not any("one id" in note for note in choose_run(request(tmp_path, resume="run"), fine).notes)
    fork_run(run, tmp_path / "fork", 4, [])
    shutil.copytree(run.path, tmp_path / "copy")
    (note,) = [note for note in choose_run(request(tmp_path, resume="run"), fine).notes if "one id" in note]
    assert note.startswith("has one id with copy: ")
    print_list(tmp_path, Console(), as_json=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "one id" in line]
    assert set(line.partition(" have")[0].split(", ")) == {"run", "copy"}


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    """It is neither begun again, nor ended at once with success."""
    run = trained(tmp_path / "run", 4, state=RunState.FINISHED)
    with pytest.raises(DeployError, match=r"holds a finished run .the training steps were made, training step 4."):
        choose_run(request(tmp_path, new_run=run.path), fine)
    with pytest.raises(DeployError, match="has 4 training steps already: give more than that as --max-steps"):
        choose_run(request(tmp_path, resume="run", max_steps=4), fine)
    notes = choose_run(request(tmp_path, resume="run", max_steps=5), fine).notes
    assert notes == ("goes on from training step 4", "had finished: the training steps were made, training step 4")


def test_a_fork_is_a_run_of_its_own(tmp_path: Path) -> None:
    """Of any checkpoint, with the data and other settings; it knows where it comes from, and plays other games."""
    run = trained(tmp_path / "run", 5, 9)
    fork = fork_run(run, tmp_path / "fork", 5, ["learner.learning_rate=0.5"])
    assert fork.steps() == [5]
    assert run.steps() == [9, 5]
    assert (fork.replay / "redis/log").read_text() == "data"
    assert fork.config().learner.learning_rate == 0.5
    assert fork.kept_statistics() == {"run": {"step": 5}}  # as they stood then
    record = fork.record()
    assert record.run_id != run.run_id()
    assert (record.parent.run_id, record.parent.training_step) == (run.run_id(), 5)
    assert fork.begin_session(fork.config()).seeds.session == 1
    # It differs from its checkpoint by what was meant: going on with it needs no further leave.
    assert choose_run(request(tmp_path, resume="fork"), fine).config == fork.config()
    with pytest.raises(DeployError, match=r"network.blocks of .* cannot be changed"):
        fork_run(run, tmp_path / "other", None, ["network.blocks=7"])
    with pytest.raises(DeployError, match="no checkpoint of step 6"):
        fork_run(run, tmp_path / "other", 6, [])
    with locked(run), pytest.raises(DeployError, match="in use"):
        fork_run(run, tmp_path / "other", 5, [])
    assert not (tmp_path / "other").exists()


def test_a_packed_run_can_be_unpacked_and_a_deleted_one_is_gone(tmp_path: Path) -> None:
    """With or without its data; never while somebody trains."""
    run = trained(tmp_path / "run", 5)
    for name, with_data in (("all.tar.gz", True), ("small.tar.gz", False)):
        assert pack_run(run, tmp_path / name, with_data=with_data) == (tmp_path / name).stat().st_size
        with tarfile.open(tmp_path / name) as archive:
            archive.extractall(tmp_path / name.partition(".")[0], filter="data")
        unpacked = RunFolder(tmp_path / name.partition(".")[0] / "run")
        assert unpacked.differences_from_manifest() == []
        assert (unpacked.replay / "redis/log").exists() == with_data
    with pytest.raises(DeployError, match="exists; name a new file"):
        pack_run(run, tmp_path / "all.tar.gz", with_data=True)
    with locked(run), pytest.raises(DeployError, match="in use"):
        delete_run(run)
    assert delete_run(run)
    assert not run.path.exists()


def test_stopping_asks_and_waits(tmp_path: Path) -> None:
    """Whoever trains sees the request; the command returns when it has stopped, or says that it has not."""
    run = trained(tmp_path / "run", 5)
    assert "nobody trains" in stop_run(run, 10)
    entered, seen = Event(), Event()

    def train() -> None:
        with locked(run):
            entered.set()
            while not run.stop_file.exists():
                seen.wait(0.01)
            seen.set()

    thread = Thread(target=train)
    thread.start()
    assert entered.wait(10)
    assert stop_run(run, 10) == f"{run.path} has stopped at training step 5"
    assert seen.is_set()
    thread.join()
    with locked(run), pytest.raises(DeployError, match=r"still trains after 0.1 s"):
        stop_run(run, 0.1)


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command line; returns exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["zero", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out + captured.err

    return run


def test_runs_are_listed_shown_and_compared(tmp_path: Path, run_main: Callable[..., tuple[int, str]]) -> None:
    """For people and for scripts; a run that was killed is not taken for one that goes on."""
    one = trained(tmp_path / "one", 5, 9)
    fork = fork_run(one, tmp_path / "two", 5, ["learner.learning_rate=0.5"])
    fork.begin_session(fork.config())
    root = f"--root={tmp_path}"
    code, out = run_main("runs", "list", root, "--json")
    assert code == 0
    found = {run["name"]: run for run in json.loads(out)}
    assert {name: (run["state"], run["training_step"]) for name, run in found.items()} == {
        "one": ("interrupted", 9),
        "two": ("killed", 5),
    }
    code, out = run_main("runs", "list", root)
    assert (code, out.index("two") < out.index("one")) == (0, True)
    code, out = run_main("runs", "show", "one", root, "--verify")
    assert code == 0
    assert "step-000000009" in out.replace("\n", "")
    assert "every file is as the last session left it" in out
    (one.checkpoints / "step-000000005/model.safetensors").write_bytes(b"x")
    code, out = run_main("runs", "show", "one", root, "--verify")
    assert code == 1
    assert "checkpoints/step-000000005/model.safetensors was changed" in out
    code, out = run_main("runs", "compare", "one", "two", root, "--json")
    assert (code, json.loads(out)["config"]) == (0, {"learner.learning_rate": [CONFIG.learner.learning_rate, 0.5]})
    code, out = run_main("runs", "compare", "one", root)
    assert (code, out) == (2, "error: name two runs or more\n")
    code, out = run_main("runs", "show", "nowhere", root)
    assert code == 2
    assert out.count("\n") == 1


def test_looking_at_runs_waits_for_no_large_library(tmp_path: Path) -> None:
    """`zero runs list` and `zero stop` are quick."""
    check = (
        "import sys; sys.argv[1:] = ['runs', 'list', '--root', sys.argv[1]]; import deploy.cli;\n"
        "try: deploy.cli.main()\n"
        "except SystemExit: print(sorted({'torch', 'ray', 'numba'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", check, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
