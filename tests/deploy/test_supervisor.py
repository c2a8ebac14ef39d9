"""Tests of the policy by which roles are restarted, and of the order in which they stop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from deploy.ray_fleet import RayFleet, RunningRole
from deploy.role_host import Outcome
from deploy.roles import Assignment, Role
from deploy.run_context import RunContext
from deploy.supervisor import (
    MAX_BACKOFF_SECONDS,
    MAX_QUICK_FAILURES,
    QUICK_FAILURE_SECONDS,
    STOP_GRACE_SECONDS,
    RestartPolicy,
    Supervisor,
)


def test_a_role_that_fails_at_once_again_and_again_is_given_up() -> None:
    """Each quick failure doubles the wait, and the fifth in a row is the last."""
    policy = RestartPolicy()
    waits = [policy.backoff(1.0) for _ in range(MAX_QUICK_FAILURES)]
    assert waits == [0.5, 1.0, 2.0, 4.0, None]
    assert policy.restarts == MAX_QUICK_FAILURES - 1


def test_a_role_that_lived_is_restarted_soon_however_often() -> None:
    """A life longer than the threshold makes good for the failures before it."""
    policy = RestartPolicy()
    for _ in range(3):
        assert policy.backoff(1.0) is not None
        assert policy.backoff(1.0) is not None
        assert policy.backoff(QUICK_FAILURE_SECONDS) == 0.5
    assert policy.restarts == 9


def test_no_wait_is_longer_than_the_bound() -> None:
    """Back-off is bounded."""
    policy = RestartPolicy()
    waits = [policy.backoff(QUICK_FAILURE_SECONDS - 1) for _ in range(MAX_QUICK_FAILURES - 1)]
    assert all(wait is not None and wait <= MAX_BACKOFF_SECONDS for wait in waits)


class ScriptedFleet:
    """Roles without processes: those in `slow` never stop by themselves; waiting makes the clock go on."""

    def __init__(self, slow: set[str]) -> None:
        self.said: list[str] = []
        self.now = 0.0
        self._slow = slow
        self._stopped: set[str] = set()

    def start(self, assignment: Assignment) -> RunningRole:
        """At once."""
        name = cast("Any", assignment.name)
        return RunningRole(assignment, handle=None, ended=name, place=name)

    def ask_to_stop(self, running: RunningRole) -> None:
        """Note it; heeded at once unless slow."""
        self.said.append(f"ask {running.assignment.name}")
        self._stopped |= {running.assignment.name} - self._slow

    def wait(self, references: Sequence[Any], timeout: float) -> set[Any]:
        """Who has stopped; the timeout passes if nobody has."""
        ready = set(references) & self._stopped
        if not ready:
            self.now += timeout
        return ready

    def place_of(self, _: RunningRole) -> None:
        """Nowhere."""

    def outcome(self, _: RunningRole) -> Outcome:
        """A clean end."""
        return Outcome()

    def kill(self, running: RunningRole) -> None:
        """Note it."""
        self.said.append(f"end {running.assignment.name}")


def stopped(slow: set[str]) -> tuple[list[str], list[str], float]:
    """Stops two actors, learner, evaluator and replay server: what was done in order, what was told, how long."""
    fleet = ScriptedFleet(slow)
    events: list[str] = []
    supervisor = Supervisor(cast("RayFleet", fleet), events.append, lambda: fleet.now)
    for role in (Role.REPLAY_SERVER, Role.LEARNER, Role.ACTOR, Role.EVALUATOR):
        supervisor.start(Assignment(role, RunContext.of(Path())))
    supervisor.start(Assignment(Role.ACTOR, RunContext.of(Path()), index=1))
    supervisor.stop(lambda: False)
    return fleet.said, events, fleet.now


@pytest.mark.parametrize("slow", [set(), {"evaluator"}, {"actor-1"}, {"evaluator", "learner", "actor-0"}])
def test_actors_end_before_the_learner_is_asked_and_the_replay_server_outlives_all(slow: set[str]) -> None:
    """Whoever is slow, what was played is learned or saved before the replay server goes."""
    said, events, _ = stopped(slow)
    assert said.index("ask learner") > max(said.index("end actor-0"), said.index("end actor-1"))
    assert said.index("ask replay-server") > max(said.index("end learner"), said.index("end evaluator"))
    assert said[-1] == "end replay-server"
    assert sorted(events) == [f"{name} is ended now, it did not stop by itself" for name in sorted(slow)]


def test_the_learner_does_not_wait_for_a_slow_evaluator() -> None:
    """The evaluator is asked with the actors; its grace runs while the learner saves, and costs it once."""
    said, _, seconds = stopped({"evaluator"})
    assert said.index("ask evaluator") < said.index("end actor-0")
    assert said.index("ask learner") < said.index("end evaluator")
    assert STOP_GRACE_SECONDS <= seconds < STOP_GRACE_SECONDS + 1


def test_nothing_to_wait_for_still_takes_time() -> None:
    """While every post waits for its next start, polling rests instead of spinning."""
    pauses: list[float] = []
    supervisor = Supervisor(cast("RayFleet", ScriptedFleet(set())), lambda _: None, pause=pauses.append)
    supervisor.poll(0.5)
    assert pauses == [0.5]
