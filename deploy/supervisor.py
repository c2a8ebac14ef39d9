"""Keeps the wanted roles of a run alive: restarts what dies, lets go who is not wanted, stops all in order."""

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from deploy.errors import BAD_INPUT, FAILED, DeployError
from deploy.fleet_record import RoleState
from deploy.ray_fleet import RayFleet, RunningRole
from deploy.role_host import Outcome, Place
from deploy.roles import Addresses, Assignment, Role

QUICK_FAILURE_SECONDS = 30.0
"""A role that ends within this time of its start has failed at once."""
MAX_QUICK_FAILURES = 5
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 15.0
READY_POLL_SECONDS = 0.2
PLACEMENT_SECONDS = 30.0
"""A role whose process is not there after this time is waiting for a machine."""
STOP_STAGES = (
    ((Role.ACTOR, Role.REANALYSER, Role.EVALUATOR), (Role.ACTOR, Role.REANALYSER)),
    ((Role.LEARNER,), (Role.LEARNER, Role.EVALUATOR)),
    ((Role.REPLAY_SERVER,), (Role.REPLAY_SERVER,)),
)
"""Who is asked to stop, and who is awaited before the next are asked.

Actors and reanalysers end before the learner, so that it saves a state that includes all they did; an evaluator in the
middle of something keeps nobody from saving; the replay server outlives all.
"""
STOP_GRACE_SECONDS = 30.0
DRAIN_SECONDS = 60.0
"""Who is not wanted any more is ended after this time, whatever it still holds."""


class RestartPolicy:
    """Decides when a role may start again.

    Attributes:
        restarts: how often it did.
    """

    def __init__(self) -> None:
        self.restarts = 0
        self._quick_failures = 0

    def backoff(self, lived_seconds: float, *, may_give_up: bool = True) -> float | None:
        """Seconds to wait before the next start after a life of `lived_seconds`; None to give up."""
        if lived_seconds >= QUICK_FAILURE_SECONDS:
            self._quick_failures = 0
        self._quick_failures = min(self._quick_failures + 1, MAX_QUICK_FAILURES)
        if self._quick_failures == MAX_QUICK_FAILURES and may_give_up:
            return None
        self.restarts += 1
        return min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (self._quick_failures - 1))


@dataclass(frozen=True)
class RoleReport:
    """A post as an operator sees it.

    Attributes:
        name: of the role, unique within the run.
        role: which one.
        state: how it stands.
        place: where its process is; None if there is none.
        restarts: how often it was restarted.
    """

    name: str
    role: Role
    state: RoleState
    place: Place | None
    restarts: int


@dataclass
class _Post:
    """A role that must be filled: who fills it now, or when the next one starts; a learner may be done.

    Attributes:
        assignment: which one.
        policy: when it may start again.
        running: who fills it.
        place: where that one is, as far as it is known.
        place_known: whether it is, or never will be.
        said_to_wait: somebody was told that there is no machine for it.
        started_at: when it was filled.
        starts_at: when it is to be filled.
        asked_at: when whoever fills it was asked to stop, because it is not wanted.
        times_filled: how often.
        is_wanted: whether it is to be filled again.
        is_done: whether its work is done.
    """

    assignment: Assignment
    policy: RestartPolicy
    running: RunningRole | None = None
    place: Place | None = None
    place_known: bool = False
    said_to_wait: bool = False
    started_at: float = 0.0
    starts_at: float = 0.0
    asked_at: float | None = None
    times_filled: int = 0
    is_wanted: bool = True
    is_done: bool = False

    @property
    def state(self) -> RoleState:
        """How it stands."""
        if self.is_done:
            return RoleState.DONE
        if self.running is None:
            return RoleState.RESTARTS
        if self.asked_at is not None:
            return RoleState.LEAVES
        if self.place is not None:
            return RoleState.RUNS
        return RoleState.WAITS if self.said_to_wait else RoleState.STARTS


class Supervisor:
    """Fills posts and keeps them filled.

    Args:
        fleet: starts roles.
        on_event: told in one line whenever a role starts, dies or is restarted.
        clock: monotonic seconds.
        pause: waits for some seconds.
    """

    def __init__(
        self,
        fleet: RayFleet,
        on_event: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fleet = fleet
        self._pause = pause
        self._on_event = on_event
        self._clock = clock
        self._posts: list[_Post] = []

    @property
    def is_finished(self) -> bool:
        """Whether the learner has made the training steps that it was to make."""
        return any(post.is_done for post in self._posts)

    @property
    def restarts(self) -> dict[str, int]:
        """How often each role was restarted, by name."""
        return {post.assignment.name: post.policy.restarts for post in list(self._posts)}

    @property
    def reports(self) -> list[RoleReport]:
        """How every post stands."""
        return [
            RoleReport(post.assignment.name, post.assignment.role, post.state, post.place, post.policy.restarts)
            for post in list(self._posts)  # which another thread may change
        ]

    def count(self, role: Role, state: RoleState) -> int:
        """How many posts of a role stand like that."""
        return sum(post.assignment.role is role and post.state is state for post in list(self._posts))

    def adopt(self) -> None:
        """Take over the roles that live, of a supervisor that has died."""
        for running in self._fleet.adopt():
            if self._post(running.assignment.name) is not None:
                self._fleet.kill(running)
                continue
            post = _Post(running.assignment, RestartPolicy(), running, started_at=self._clock(), times_filled=1)
            self._posts.append(post)

    def start(self, assignment: Assignment) -> None:
        """Fill a post, unless somebody does, and keep it filled."""
        post = self._post(assignment.name)
        if post is not None:
            post.assignment = assignment
            return
        post = _Post(assignment, RestartPolicy())
        self._posts.append(post)
        self._fill(post)

    def want(self, role: Role, assignments: Sequence[Assignment]) -> None:
        """Let these be all of a role: who is missing starts, the others deliver what they hold and leave."""
        names = {assignment.name for assignment in assignments}
        for assignment in assignments:
            self.start(assignment)
        for post in list(self._posts):
            if post.assignment.role is role:
                post.is_wanted = post.assignment.name in names
                if not post.is_wanted:
                    self._dismiss(post)

    def start_replay_server(self, assignment: Assignment, interrupted: Callable[[], bool]) -> Addresses | None:
        """Fill the replay server's post and wait until it answers; from then on its ports stay the same.

        Returns:
            Where it answers; None if interrupted before it did.

        Raises:
            DeployError: it could not start.
        """
        self.start(assignment)
        post = self._post(assignment.name)
        if post is None or post.running is None:
            raise RuntimeError("a started post is filled")
        answer = self._fleet.addresses(post.running)
        while not interrupted():
            self._attend_start(post, post.running)
            ready = self._fleet.wait([post.running.ended, answer], READY_POLL_SECONDS)
            if post.running.ended in ready:
                outcome = self._fleet.outcome(post.running)
                exit_code = BAD_INPUT if outcome.is_permanent else FAILED
                raise DeployError(f"{assignment.name}: {outcome.error or 'ended at once'}", exit_code)
            addresses = self._fleet.addresses_of(answer) if answer in ready else None
            if addresses is not None:
                post.assignment = _at(assignment, addresses)
                return addresses
        return None

    def poll(self, timeout: float) -> None:
        """Restart what has died; waits at most `timeout` seconds for something to happen.

        Raises:
            DeployError: a role cannot live; its last error, in one line.
        """
        references = [
            reference
            for post in self._posts
            if post.running is not None
            for reference in ((post.running.ended,) if post.place_known else (post.running.ended, post.running.place))
        ]
        if references:
            ready = self._fleet.wait(references, timeout)
        else:
            ready = set[object]()
            self._pause(timeout)
        for post in list(self._posts):
            if post.running is not None:
                self._attend(post, post.running, ready)
            elif self._clock() >= post.starts_at and not post.is_done:
                self._fill(post)

    def stop(
        self, hurried: Callable[[], bool], before_replay_server: Callable[[], None] = lambda: None
    ) -> dict[Role, str]:
        """Stop all roles in order, each given time to end well unless `hurried()`; returns the errors of some roles.

        `before_replay_server` is called when it is the last one left.
        """
        errors: dict[Role, str] = {}
        for asked, awaited in STOP_STAGES:
            if Role.REPLAY_SERVER in asked:
                before_replay_server()
            for post in self._posts:
                if post.assignment.role in asked and post.running is not None:
                    self._fleet.ask_to_stop(post.running)
            posts = [post for post in self._posts if post.assignment.role in awaited]
            running = [post.running for post in posts if post.running is not None]
            errors |= self._await_end(running, hurried)
            for role in running:
                self._fleet.kill(role)
            for post in posts:
                post.running = None
        return errors

    def _await_end(self, running: Sequence[RunningRole], hurried: Callable[[], bool]) -> dict[Role, str]:
        errors: dict[Role, str] = {}
        remaining = {role.ended: role for role in running}
        deadline = self._clock() + STOP_GRACE_SECONDS
        while remaining and self._clock() < deadline and not hurried():
            for ended in self._fleet.wait(list(remaining), READY_POLL_SECONDS):
                role = remaining.pop(ended)
                error = self._fleet.outcome(role).error
                if error is not None:
                    self._on_event(f"{role.assignment.name} did not end well: {error}")
                    errors[role.assignment.role] = error
        for role in remaining.values():
            self._on_event(f"{role.assignment.name} is ended now, it did not stop by itself")
        return errors

    def _post(self, name: str) -> _Post | None:
        return next((post for post in self._posts if post.assignment.name == name), None)

    def _fill(self, post: _Post) -> None:
        entropy = post.assignment.entropy
        # Whoever fills a post again draws other numbers: an actor must not play the same games once more.
        incarnation = None if entropy is None else entropy + post.times_filled
        post.running = self._fleet.start(replace(post.assignment, entropy=incarnation))
        post.times_filled += 1
        post.started_at = self._clock()
        post.place = None
        post.place_known = False
        post.said_to_wait = False
        post.asked_at = None

    def _dismiss(self, post: _Post) -> None:
        """Let whoever fills a post leave, which then is no more."""
        if post.running is None:
            self._posts.remove(post)
        elif not post.place_known:  # it has no process yet, and so nothing to deliver
            self._fleet.kill(post.running)
            self._posts.remove(post)
        elif post.asked_at is None:
            self._fleet.ask_to_stop(post.running)
            post.asked_at = self._clock()

    def _attend(self, post: _Post, running: RunningRole, ready: Container[object]) -> None:
        if running.ended in ready:
            self._vacate(post, running, self._fleet.outcome(running))
        elif post.asked_at is not None and self._clock() - post.asked_at > DRAIN_SECONDS:
            self._vacate(post, running, Outcome(f"it did not stop within {DRAIN_SECONDS:.0f} s"))
        elif not post.place_known:
            self._look_for_process(post, running, is_there=running.place in ready)

    def _attend_start(self, post: _Post, running: RunningRole) -> None:
        if not post.place_known:
            ready = self._fleet.wait([running.place], 0.0)
            self._look_for_process(post, running, is_there=running.place in ready)

    def _look_for_process(self, post: _Post, running: RunningRole, *, is_there: bool) -> None:
        name = post.assignment.name
        if is_there:
            post.place_known = True
            post.place = self._fleet.place_of(running)
            post.started_at = self._clock()
            if post.place is not None:
                self._on_event(f"{name} runs, process {post.place.pid} on {post.place.node}")
        elif not post.said_to_wait and self._clock() - post.started_at > PLACEMENT_SECONDS:
            post.said_to_wait = True
            self._on_event(f"{name} waits for Ray to find it a machine with a free CPU (see `ray status`)")

    def _vacate(self, post: _Post, running: RunningRole, outcome: Outcome) -> None:
        self._fleet.kill(running)
        post.running = post.place = None
        if post.asked_at is not None:
            self._leave(post, outcome)
        elif outcome.error is None and post.assignment.role is Role.LEARNER:
            post.is_done = True
        else:
            self._restart(post, outcome)

    def _leave(self, post: _Post, outcome: Outcome) -> None:
        name = post.assignment.name
        how = "delivered what it held and left" if outcome.error is None else f"did not end well: {outcome.error}"
        self._on_event(f"{name} {how}")
        if not post.is_wanted:
            self._posts.remove(post)
        post.starts_at = self._clock()

    def _restart(self, post: _Post, outcome: Outcome) -> None:
        name = post.assignment.name
        error = outcome.error or "ended without being asked"
        if outcome.is_permanent:
            raise DeployError(f"{name}: {error}", BAD_INPUT)
        lived = self._clock() - post.started_at
        backoff = post.policy.backoff(lived, may_give_up=not self._others_live(post.assignment.role))
        if backoff is None:
            raise DeployError(f"{name} failed {MAX_QUICK_FAILURES} times in a row: {error}", FAILED)
        post.starts_at = self._clock() + backoff
        self._on_event(f"{name} died ({error}); restart {post.policy.restarts} in {backoff:.1f} s")

    def _others_live(self, role: Role) -> bool:
        """Whether another post of a role is filled by somebody who can live: then one may fail for ever."""
        return any(
            post.assignment.role is role
            and post.place is not None
            and self._clock() - post.started_at >= QUICK_FAILURE_SECONDS
            for post in self._posts
        )


def _at(assignment: Assignment, addresses: Addresses) -> Assignment:
    """The same assignment at the ports that it was given."""
    port, metrics_port = (int(address.rpartition(":")[2]) for address in (addresses.grpc, addresses.metrics))
    return replace(assignment, port=port, metrics_port=metrics_port)
