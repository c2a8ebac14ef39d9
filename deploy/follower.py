"""Follows a run that a Ray cluster keeps: shows it, hands signals on, and waits while its supervisor is away."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError

from deploy.detached_run import Plan, Progress, ending_of
from deploy.errors import BAD_INPUT, FAILED, DeployError
from deploy.live import Status, View
from deploy.run_folder import RunFolder
from deploy.run_records import RunState
from deploy.session import Ending

FOLLOW_SECONDS = 0.5
ANSWER_SECONDS = 5.0
PATIENCE_SECONDS = 120.0
"""A supervisor that does not answer for so long is followed no more."""


class Follower:
    """One process's look at a run.

    Args:
        run: its Ray actor.
        plan: what it was started with.
        view: where it is shown.
        signals: how often this process was told to stop, so far.
    """

    def __init__(self, run: Any, plan: Plan, view: View, signals: Callable[[], int]) -> None:
        self._run = run
        self._plan = plan
        self._view = view
        self._signals = signals
        self._handed_on = 0
        self._incarnation = ""
        self._seen = 0
        self._is_shown = False

    def follow(self, *, detach: bool) -> Ending | None:
        """Show the run until it ends; returns how it has ended, or None as soon as it trains if `detach`.

        Raises:
            DeployError: it has failed, or its supervisor does not answer any more.
        """
        with ExitStack() as shown:
            while True:
                progress = self._ask()
                if progress.ending is not None:
                    shown.close()
                self._tell(progress)
                trains = progress.status is not None and not progress.status.stopping
                if progress.ending is not None or (detach and trains):
                    return progress.ending
                if progress.status is not None:
                    self._show(progress.status, shown)
                time.sleep(FOLLOW_SECONDS)

    def _show(self, status: Status, shown: ExitStack) -> None:
        if not self._is_shown:
            shown.enter_context(self._view)
            self._is_shown = True
        self._view.show(status)

    def _tell(self, progress: Progress) -> None:
        for line in progress.events:
            self._view.event(line)
        if progress.error is not None:
            raise DeployError(*progress.error)

    def _ask(self) -> Progress:
        """What the supervisor answers, as soon as it does: it may be about to be started again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self._hand_signals_on()
            try:
                answer = self._run.progress.remote(self._incarnation, self._seen)
                return self._counted(ray.get(answer, timeout=ANSWER_SECONDS))
            except ActorUnschedulableError:
                raise DeployError(
                    "this machine has not what the supervisor asks for: give it less by --place supervisor:cpu=0",
                    BAD_INPUT,
                ) from None
            except (RayActorError, GetTimeoutError):
                ending = ending_of(RunFolder(self._plan.run_dir), self._plan.num_sessions)
            if ending is not None:
                error = (ending.reason, FAILED) if ending.state is RunState.FAILED else None
                return Progress(self._incarnation, [], None, ending, error)
            time.sleep(FOLLOW_SECONDS)
        raise DeployError(
            f"the supervisor of {self._plan.run_dir} does not answer; it goes on as soon as Ray can start it again: "
            "see `ray status`"
        )

    def _counted(self, progress: Progress) -> Progress:
        if progress.incarnation != self._incarnation:
            self._incarnation, self._seen = progress.incarnation, 0
        self._seen += len(progress.events)
        if progress.ending is not None or progress.error is not None:
            self._run.release.remote()
        return progress

    def _hand_signals_on(self) -> None:
        while self._handed_on < self._signals():
            self._run.stop.remote()
            self._handed_on += 1
