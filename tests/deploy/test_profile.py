"""`zero profile` says where the time of a role goes, and keeps it with a run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy import profile_learner
from deploy.cli import app
from deploy.experiment_files import load_experiment
from deploy.profile_actor import NETWORK, PHASES, RULES, TREE
from deploy.profile_files import ProfileRecord
from deploy.run_folder import open_or_create_run_folder
from deploy.run_records import RunState
from deploy.stopwatch import Stopwatch

SMALL = [
    "--experiment", "tic_tac_toe", "--set", "self_play.games_per_actor=4", "--set", "search.num_simulations=4"
]  # fmt: skip


def test_inner_phases_rest_the_outer_one() -> None:
    """Time goes to the innermost phase, and to none outside of all."""
    readings = iter([1.0, 3.0, 7.0, 8.0, 20.0, 21.0])
    stopwatch = Stopwatch(PHASES, lambda: next(readings))
    with stopwatch.phase(TREE), stopwatch.phase(NETWORK):
        pass
    with stopwatch.phase(RULES):
        pass
    assert {name: seconds for name, seconds in stopwatch.seconds.items() if seconds} == {
        TREE: 3.0,
        NETWORK: 4.0,
        RULES: 1.0,
    }


def test_json_tells_shares_and_rates() -> None:
    """Every phase took part of the time, together nearly all of it, and the rates fit each other."""
    # Games of one move end, and are sent, with every move, however few of them a busy machine makes.
    short = [*SMALL, "--set", "self_play.max_moves=1"]
    result = CliRunner().invoke(app, ["profile", "actor", *short, "--seconds", "0.5", "--json"])
    assert result.exit_code == 0, result.output
    profile = json.loads(result.stdout)
    shares = profile["shares"]
    assert set(shares) == set(PHASES)
    assert all(share > 0 for share in shares.values())
    assert 0.8 < sum(shares.values()) <= 1.0
    assert profile["games"] == 4
    assert profile["simulations_per_second"] == pytest.approx(4 * profile["moves_per_second"])
    assert profile["finished_games"] > 0


def test_table_names_every_part() -> None:
    """For people there is a table."""
    result = CliRunner().invoke(app, ["profile", "actor", *SMALL, "--seconds", "0.1"])
    assert result.exit_code == 0, result.output
    for name in (*PHASES, "simulations/s", "moves/s"):
        assert name in result.stdout


def test_learning_is_profiled_on_a_server_of_its_own(tmp_path: Path) -> None:
    """Every phase of every step took part of the time; the profile is kept with the run, and in its manifest."""
    overrides = [value for value in SMALL[2:] if value != "--set"]
    config = load_experiment("tic_tac_toe", [*overrides, "network.channels=4", "learner.batch_size=16"])
    folder = open_or_create_run_folder(tmp_path / "run", config)
    folder.begin_session(config)
    folder.end_session(RunState.FINISHED, "the time was over")
    arguments = ["profile", "learner", "--run", "run", "--root", str(tmp_path), "--seconds", "0.3", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--set", "learner.publish_interval_steps=1"])
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert set(measured["shares"]) == set(profile_learner.PHASES)
    assert all(share > 0 for share in measured["shares"].values())
    assert 0.5 < sum(measured["shares"].values()) <= 1.0
    assert measured["batch_size"] == 16
    assert measured["training_steps"] == pytest.approx(measured["training_steps_per_second"] * measured["wall_seconds"])
    (file,) = folder.profiles.iterdir()
    kept = ProfileRecord.read(file)
    assert kept.role == "learner"
    assert kept.profile == measured
    assert folder.differences_from_manifest() == []
