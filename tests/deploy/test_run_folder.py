"""A run's folder says what the run is, what became of it, and whether it is as the last session left it."""

import json
from pathlib import Path

import pytest

from deploy.errors import DeployError
from deploy.experiment_files import load_experiment
from deploy.run_context import RunContext
from deploy.run_folder import RunFolder, create_run_folder, locked
from deploy.run_records import RunRecord, RunState

CONFIG = load_experiment("tic_tac_toe", ["seed=7"])


def begun(folder: Path) -> RunFolder:
    """A run without any session."""
    run = create_run_folder(folder)
    run.begin(CONFIG, "shop")
    return run


def test_the_record_tells_what_the_run_is_and_what_became_of_it(tmp_path: Path) -> None:
    """Identity, environment with versions, seeds, and one entry per session with how it ended."""
    run = begun(tmp_path / "mine")
    run.begin_session(CONFIG)
    assert run.record().state is RunState.RUNNING
    (run.checkpoints / "step-000000012").mkdir(parents=True)
    run.end_session(RunState.FINISHED, "the time was over")
    run.begin_session(CONFIG)
    record = RunRecord.read(run.record_file)
    assert (record.run_id, record.application, record.name) == (run.run_id(), "shop", "mine")
    first, second = record.sessions
    assert (first.state, first.reason, first.training_step) == (RunState.FINISHED, "the time was over", 12)
    assert first.ended_at is not None
    assert first.ended_at > first.started_at
    assert {"torch", "numpy", "ray", "zero-selfplay"} <= first.environment.packages.keys()
    assert [session.seeds.entropy for session in record.sessions] == [7, 7]
    assert [session.seeds.session for session in record.sessions] == [0, 1]
    assert (second.state, second.ended_at) == (RunState.RUNNING, None)
    assert run.context() == RunContext("shop", tmp_path, "mine")
    assert run.context().path == run.path


def test_a_damaged_or_newer_record_is_refused_in_one_line(tmp_path: Path) -> None:
    """Nothing is guessed out of a record that is not what it was."""
    run = begun(tmp_path / "run")
    text = run.record_file.read_text()
    for damaged, complaint in (
        (text[:-20], "is damaged"),
        (text.replace('"application"', '"aplication"'), "is damaged"),
        (text.replace('"schema_version": 1', '"schema_version": 2'), "schema version 2, this program reads up to 1"),
    ):
        run.record_file.write_text(damaged)
        with pytest.raises(DeployError, match=complaint) as caught:
            run.record()
        assert "\n" not in str(caught.value)


def test_the_manifest_finds_every_file_that_is_not_as_it_was(tmp_path: Path) -> None:
    """Missing, new and changed files are named; the replay server's own data are its own affair."""
    run = begun(tmp_path / "run")
    run.begin_session(CONFIG)
    run.replay.mkdir()
    for path in (run.logs / "learner.log", run.checkpoints / "a/b", run.replay / "log"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("something")
    with pytest.raises(DeployError, match="no manifest"):
        run.differences_from_manifest()
    run.end_session(RunState.INTERRUPTED, "a signal")
    assert run.differences_from_manifest() == []
    noted = json.loads(run.manifest_file.read_text())["files"]
    assert noted.keys() == {"checkpoints/a/b", "config.toml", "logs/learner.log", "run.json", "run_id"}
    (run.checkpoints / "a/b").write_text("somethinh")
    (run.logs / "learner.log").unlink()
    (run.path / "extra").touch()
    (run.replay / "log").write_text("else")
    assert run.differences_from_manifest() == [
        "logs/learner.log is missing",
        "extra is new",
        "checkpoints/a/b was changed",
    ]


def test_others_see_whether_a_run_is_going_on(tmp_path: Path) -> None:
    """By the lock, which dies with its holder; looking does not keep anybody from starting."""
    run = begun(tmp_path / "run")
    assert not run.is_in_use()
    with locked(run):
        assert run.is_in_use()
    assert not run.is_in_use()


def test_requests_are_meant_for_the_session_that_they_found(tmp_path: Path) -> None:
    """The next one forgets what nobody heeded."""
    run = begun(tmp_path / "run")
    for file in (run.stop_file, run.scale_file, run.fleet_file):
        file.touch()
    run.forget_requests()
    run.forget_requests()
    assert not any(file.exists() for file in (run.stop_file, run.scale_file, run.fleet_file))
