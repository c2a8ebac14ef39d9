"""`zero profile` says where the time of a role goes, and keeps it with a run."""

import json
import threading
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
from deploy.sampler import Sampler, sampled
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


def test_a_thread_is_seen_where_it_is() -> None:
    """The stack of the thread that is looked at, outermost first, and of no other one; it goes on meanwhile."""
    written: list[str] = []
    event = threading.Event()

    def innermost() -> None:
        while sampler.looks < 3:
            event.wait(0.001)

    sampler = Sampler(written.append)
    with sampler:
        innermost()
    stacks = {stack: int(count) for stack, _, count in (line.rpartition(" ") for line in written[-1].splitlines())}
    assert sum(stacks.values()) >= 3
    here = f";{__name__}.{test_a_thread_is_seen_where_it_is.__name__}"
    assert all(here in stack for stack in stacks)
    assert any(f"{here};{here[1:]}.<locals>.innermost" in stack for stack in stacks)


def test_the_functions_that_took_most_of_the_time_are_shown(tmp_path: Path) -> None:
    """Of the newest file of every role: the share of each function itself, and with what it calls, recursion or not."""
    folder = open_or_create_run_folder(tmp_path / "run", load_experiment("tic_tac_toe", []))
    with sampled(folder, "actor-0"):
        pass
    (older,) = folder.profiles.iterdir()
    assert older.name.startswith("actor-0-2")
    actor, learner = (folder.profiles / f"{role}-99990101-000000-000000.folded" for role in ("actor-0", "learner"))
    actor.write_text("run;play 6\nrun;play;search;play 3\nrun 1\n")
    learner.write_text("run 7\n")
    command = ["profile", "show", "run", "--root", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {role: one["samples"] for role, one in told.items()} == {"actor-0": 10, "learner": 7}
    assert told["actor-0"]["functions"] == [
        {"function": "play", "own": 0.9, "together": 0.9},
        {"function": "run", "own": 0.1, "together": 1.0},
        {"function": "search", "own": 0.0, "together": 0.3},
    ]
    result = CliRunner().invoke(app, [*command, "--top", "1"])
    assert "play" in result.stdout
    assert "search" not in result.stdout
    learner.write_text("run seven\n")
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert "is damaged" in str(result.exception)
