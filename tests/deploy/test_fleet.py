"""Tests of a fleet that is scaled, adopted and looked at: who is asked to leave, what is told, what is refused."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import pytest

from deploy.cli import main
from deploy.errors import DeployError
from deploy.experiment_files import load_experiment
from deploy.fleet_operations import fleet_of, scale_run
from deploy.fleet_record import FleetRecord, FleetRole, RoleState, ScaleRequest
from deploy.placement import Placement, parse_placements
from deploy.ray_fleet import RayFleet, RunningRole
from deploy.role_host import Outcome, Place
from deploy.roles import Assignment, Role
from deploy.run_context import RunContext
from deploy.run_folder import RunFolder, create_run_folder, locked
from deploy.run_records import RunState
from deploy.supervisor import DRAIN_SECONDS, MAX_QUICK_FAILURES, QUICK_FAILURE_SECONDS, Supervisor


class Fleet:
    """Roles without processes, that end when they are told to, by the test or by being asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.alive: list[str] = []
        self.asked: list[str] = []
        self.outcomes: dict[str, Outcome] = {}

    def start(self, assignment: Assignment) -> RunningRole:
        """At once."""
        self.alive.append(assignment.name)
        return self.running(assignment)

    @staticmethod
    def running(assignment: Assignment) -> RunningRole:
        """As if it had been started."""
        return RunningRole(
            assignment,
            handle=None,
            ended=cast("Any", ("ended", assignment.name)),
            place=cast("Any", ("place", assignment.name)),
        )

    def adopt(self) -> list[RunningRole]:
        """An actor of a fleet before."""
        self.alive.append("actor-1")
        return [self.running(actor(1))]

    def ask_to_stop(self, running: RunningRole) -> None:
        """Note it."""
        self.asked.append(running.assignment.name)

    def wait(self, references: Any, timeout: float) -> set[Any]:
        """Who has ended, and where everybody is."""
        self.now += timeout
        return {(what, name) for what, name in references if what == "place" or name in self.outcomes}

    def place_of(self, _: RunningRole) -> Place:
        """Somewhere."""
        return Place("10.0.0.1", 4711)

    def outcome(self, running: RunningRole) -> Outcome:
        """As the test has it."""
        return self.outcomes.pop(running.assignment.name)

    def kill(self, running: RunningRole) -> None:
        """It is gone."""
        self.alive.remove(running.assignment.name)


def actor(index: int) -> Assignment:
    return Assignment(Role.ACTOR, RunContext.of(Path()), index=index)


def actors(count: int) -> list[Assignment]:
    return [actor(index) for index in range(count)]


@pytest.fixture
def fleet() -> Fleet:
    """Empty."""
    return Fleet()


@pytest.fixture
def supervisor(fleet: Fleet) -> Supervisor:
    """Of the fleet; events are forgotten."""
    return Supervisor(cast("RayFleet", fleet), lambda _: None, lambda: fleet.now)


def test_who_is_not_wanted_is_asked_to_leave_and_nobody_else(fleet: Fleet, supervisor: Supervisor) -> None:
    """The highest numbers go once they have ended by themselves; their posts are not filled again."""
    supervisor.want(Role.ACTOR, actors(4))
    supervisor.poll(1.0)
    supervisor.want(Role.ACTOR, actors(2))
    supervisor.poll(1.0)
    assert fleet.asked == ["actor-2", "actor-3"]
    assert len(fleet.alive) == 4
    assert (supervisor.count(Role.ACTOR, RoleState.RUNS), supervisor.count(Role.ACTOR, RoleState.LEAVES)) == (2, 2)
    fleet.outcomes = {"actor-2": Outcome(), "actor-3": Outcome("out of luck")}
    for _ in range(5):
        supervisor.poll(1.0)
    assert fleet.alive == ["actor-0", "actor-1"]
    assert list(supervisor.restarts) == fleet.alive


def test_who_does_not_leave_is_ended_in_the_end(fleet: Fleet, supervisor: Supervisor) -> None:
    """It holds up nothing for ever."""
    supervisor.want(Role.ACTOR, actors(1))
    supervisor.poll(1.0)
    supervisor.want(Role.ACTOR, [])
    supervisor.poll(DRAIN_SECONDS - 1)
    assert fleet.alive == ["actor-0"]
    supervisor.poll(2.0)
    assert fleet.alive == []


def test_who_has_no_process_yet_is_not_waited_for(fleet: Fleet, supervisor: Supervisor) -> None:
    """It holds nothing, and it may wait for a machine for ever."""
    supervisor.want(Role.ACTOR, actors(3))
    supervisor.want(Role.ACTOR, actors(1))
    assert (fleet.alive, fleet.asked) == (["actor-0"], [])


def test_who_is_wanted_again_while_leaving_is_replaced(fleet: Fleet, supervisor: Supervisor) -> None:
    """It was asked and goes; its post is filled again at once, and that is no restart."""
    supervisor.want(Role.ACTOR, actors(1))
    supervisor.poll(1.0)
    supervisor.want(Role.ACTOR, [])
    supervisor.want(Role.ACTOR, actors(1))
    fleet.outcomes = {"actor-0": Outcome()}
    supervisor.poll(1.0)
    assert fleet.alive == []
    for _ in range(2):
        fleet.outcomes = {}
        supervisor._pause = lambda _: None
        supervisor.poll(0.1)
    assert fleet.alive == ["actor-0"]
    assert fleet.asked == ["actor-0"]
    assert supervisor.restarts == {"actor-0": 0}


def test_who_lives_is_adopted_and_not_started_again(fleet: Fleet, supervisor: Supervisor) -> None:
    """A supervisor that takes over starts only who is missing."""
    supervisor.adopt()
    supervisor.want(Role.ACTOR, actors(3))
    assert fleet.alive == ["actor-1", "actor-0", "actor-2"]


def test_one_actor_that_cannot_live_does_not_end_the_others(fleet: Fleet, supervisor: Supervisor) -> None:
    """Its machine may be broken: it is tried for ever. If none can live, the run ends with the reason."""

    def fail(name: str) -> None:
        fleet.outcomes = {name: Outcome("no luck")}
        for _ in range(20):
            supervisor.poll(1.0)

    supervisor.want(Role.ACTOR, actors(2))
    supervisor.poll(1.0)
    fleet.now += QUICK_FAILURE_SECONDS
    for _ in range(2 * MAX_QUICK_FAILURES):
        fail("actor-0")
    assert supervisor.restarts == {"actor-0": 2 * MAX_QUICK_FAILURES, "actor-1": 0}
    supervisor.want(Role.ACTOR, actors(1))
    fleet.outcomes = {"actor-1": Outcome()}
    supervisor.poll(1.0)
    with pytest.raises(DeployError, match="actor-0 failed 5 times in a row: no luck"):
        fail("actor-0")


def test_placements_are_read_by_role() -> None:
    """CPUs and GPUs and whatever machines were given, the last of a role counts."""
    assert parse_placements([]) == {}
    assert parse_placements(["actor:cpu=2", "learner:cpu=4,gpu=0.5,disk=1", "actor:cpu=1"]) == {
        "actor": Placement(1.0),
        "learner": Placement(4.0, 0.5, {"disk": 1.0}),
    }


@pytest.mark.parametrize("text", ["worker:cpu=1", "actor", "actor:cpu", "actor:cpu=many", "actor:cpu=-1", "actor:"])
def test_a_placement_that_cannot_be_is_refused_in_one_line(text: str) -> None:
    """With an example."""
    with pytest.raises(DeployError, match=r"--place .*learner:cpu=4,gpu=1"):
        parse_placements([text])


# --- what the commands say: of a run that somebody else trains ---


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has ended."""
    found = create_run_folder(tmp_path / "run")
    config = load_experiment("tic_tac_toe", [])
    found.begin(config)
    found.begin_session(config)
    found.end_session(RunState.FINISHED, "the time was over")
    return found


def record(wanted: int, states: list[RoleState]) -> FleetRecord:
    roles = [
        FleetRole(name=f"actor-{index}", role="actor", state=state, node="10.0.0.1", pid=1, restarts=0)
        for index, state in enumerate(states)
    ]
    return FleetRecord(
        written_at=datetime.now(UTC),
        elapsed_seconds=1.0,
        actors_wanted=wanted,
        replay_address="r:1",
        metrics_address="m:1",
        roles=tuple(roles),
        figures={"games_per_second": 2.5, "weights_version": 7.0},
    )


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command line; returns exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["zero", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out + captured.err

    return run


def test_a_run_that_does_not_go_on_is_not_scaled(
    folder: RunFolder, zero: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """One line says how it ended and how it goes on; its status is told all the same; without a run, which."""
    code, output = zero("scale", str(folder.path), "--actors=2")
    assert code == 2
    assert f"is finished (the time was over): go on with it by `zero train --resume {folder.path}`" in output
    code, output = zero("status", str(folder.path))
    assert code == 0
    assert "is finished: the time was over" in output
    code, output = zero("status", str(folder.path), "--json")
    assert json.loads(output)["state"] == "finished"
    for command in (["scale", "--actors=2"], ["status"]):
        code, output = zero(command[0], str(tmp_path / "nowhere"), *command[1:])
        assert code == 2
        assert "No such file or directory; name the folder of a run" in output
        assert output.count("\n") == 1


def test_a_fleet_that_does_not_answer_is_told_apart(folder: RunFolder) -> None:
    """Trained by hand; a supervisor that hangs; one that has died with nobody to start it again."""
    with locked(folder):
        with pytest.raises(DeployError, match="trained without a fleet"):
            fleet_of(folder, 0.1)
        stale = record(2, []).model_copy(update={"written_at": datetime(2020, 1, 1, tzinfo=UTC)})
        stale.write(folder.fleet_file)
        with pytest.raises(DeployError, match=r"has not answered for [\d]+ s: see `ray status`"):
            fleet_of(folder, 0.1)
    with pytest.raises(DeployError, match=r"has died and nobody starts it again.*--resume"):
        fleet_of(folder, 0.1)


def test_a_clock_that_is_wrong_makes_no_fleet_silent(folder: RunFolder) -> None:
    """Whoever writes while we look is alive."""
    stale = record(2, []).model_copy(update={"written_at": datetime(2020, 1, 1, tzinfo=UTC)})
    stale.write(folder.fleet_file)
    stop = Event()

    def live() -> None:
        while not stop.wait(0.05):
            stale.model_copy(update={"elapsed_seconds": datetime.now(UTC).timestamp()}).write(folder.fleet_file)

    thread = Thread(target=live)
    thread.start()
    with locked(folder):
        assert fleet_of(folder, 10).actors_wanted == 2
    stop.set()
    thread.join()


def test_scaling_waits_until_the_actors_are_there_and_the_others_gone(folder: RunFolder) -> None:
    """The request is a file that the fleet heeds; the answer says what there is."""
    runs, starts, leaves = RoleState.RUNS, RoleState.STARTS, RoleState.LEAVES
    record(1, [runs]).write(folder.fleet_file)
    with locked(folder):
        assert "was asked for 3 actors" in scale_run(folder, 3, 0)
        assert ScaleRequest.read(folder.scale_file).actors == 3
        for states in ([runs, runs, starts], [runs, runs, runs, leaves], [runs, runs]):
            record(3, states).write(folder.fleet_file)
            with pytest.raises(DeployError, match=r"shall have 3 actors; after 0.01 s \d run and \d still leave"):
                scale_run(folder, 3, 0.01)
        record(3, [runs, runs, runs]).write(folder.fleet_file)
        assert "has 3 actors" in scale_run(folder, 3, 10)
        record(0, []).write(folder.fleet_file)
        assert "has 0 actors" in scale_run(folder, 0, 10)


def test_a_status_shows_roles_machines_versions_and_rates(
    folder: RunFolder, zero: Callable[..., tuple[int, str]]
) -> None:
    """As a table for people, as JSON for programs."""
    shown = record(2, [RoleState.RUNS, RoleState.WAITS])
    first = shown.roles[0].model_copy(update={"weights_version": 7.0, "rate": 12.25})
    shown = shown.model_copy(update={"roles": (first, *shown.roles[1:])})
    with locked(folder):
        shown.write(folder.fleet_file)
        _, text = zero("status", str(folder.path))
        _, output = zero("status", str(folder.path), "--json")
    for expected in ("1 of 2 wanted actors run", "waits for a machine", "10.0.0.1", "12.2", "games/s 2.5", "r:1"):
        assert expected in text, expected
    assert json.loads(output)["fleet"]["roles"][0]["weights_version"] == 7.0


def test_options_of_a_cluster_need_one(zero: Callable[..., tuple[int, str]]) -> None:
    """Without, they would do nothing."""
    for option in ("--detach", "--place=actor:cpu=2"):
        code, output = zero("train", "--experiment=tic_tac_toe", option)
        assert code == 2
        assert f"{option.partition('=')[0]} does not go with a run on this machine: give --ray-address" in output
