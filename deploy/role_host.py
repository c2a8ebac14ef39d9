"""The inside of a Ray actor that is one role: it lives as long as the role, whoever asks for it meanwhile."""

import asyncio
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import ray

from deploy.errors import DeployError
from deploy.game_files import unpack_game
from deploy.ray_process import end_with_ray, log_to_run_folder
from deploy.roles import Addresses, Assignment, Role, run_role
from deploy.run_folder import RunFolder
from deploy.sampler import sampled
from zero.config import ExperimentConfig

logger = logging.getLogger(__name__)

NICENESS = {Role.EVALUATOR: 5, Role.REANALYSER: 5}
"""Measuring and searching again give way to playing and learning where they share cores."""
ORPHAN_GRACE_SECONDS = 10.0
"""Time to save and stop once there is nobody left to report to."""
NODE_IP = ""
"""As a host: the address of the machine that Ray chose."""


@dataclass(frozen=True)
class Outcome:
    """How a role ended.

    Attributes:
        error: one line; None for a clean end.
        is_permanent: starting it again cannot help.
    """

    error: str | None = None
    is_permanent: bool = False


@dataclass(frozen=True)
class Place:
    """Where a process is.

    Attributes:
        node: address of its machine.
        pid: its process id there.
    """

    node: str
    pid: int


class RoleHost:
    """One role in a thread of its own, and answers about it from Ray's event loop.

    Args:
        assignment: which role; its host may be NODE_IP.
        config: the experiment as JSON data.
        log_level: of the role's log file.
        game: the experiment's game, packed, where the command registered it; else None.
    """

    def __init__(self, assignment: Assignment, config: dict[str, Any], log_level: str, game: bytes | None) -> None:
        self._assigned = assignment
        self._config = ExperimentConfig.model_validate(config)
        self._game = game
        self._stop = Event()
        self._addresses: Future[Addresses] = Future()
        log_to_run_folder(assignment.run_dir, assignment.name, log_level)
        executor = ThreadPoolExecutor(1, thread_name_prefix=assignment.role.value)
        self._outcome = executor.submit(self._run, _on_this_node(assignment))
        end_with_ray(assignment.name, self._save)

    async def assignment(self) -> Assignment:
        """Which role this is."""
        return self._assigned

    async def place(self) -> Place:
        """Where the process is, once it runs."""
        return Place(ray.util.get_node_ip_address(), os.getpid())

    async def addresses(self) -> Addresses:
        """Where the replay server answers; waits until it does."""
        return await asyncio.shield(asyncio.wrap_future(self._addresses))

    async def ended(self) -> Outcome:
        """How the role ended; waits until it has."""
        return await asyncio.shield(asyncio.wrap_future(self._outcome))

    async def stop(self) -> None:
        """End the role; `ended` answers when it has."""
        self._stop.set()

    def _run(self, assignment: Assignment) -> Outcome:
        os.nice(NICENESS.get(assignment.role, 0))
        logger.info("%s starts", assignment.name)
        try:
            if self._game is not None and assignment.role is not Role.REPLAY_SERVER:
                unpack_game(self._config, self._game)
            with sampled(RunFolder(assignment.run_dir), assignment.name) if assignment.profile else nullcontext():
                run_role(assignment, self._config, self._stop, self._addresses.set_result)
        except DeployError as error:
            logger.exception("%s failed", assignment.name)
            return Outcome(str(error), error.is_permanent)
        except Exception as error:
            logger.exception("%s failed", assignment.name)
            text = " ".join(str(error).split())
            return Outcome(f"{type(error).__name__}: {text}; see {assignment.name}.log")
        logger.info("%s stopped", assignment.name)
        return Outcome()

    def _save(self) -> None:
        self._stop.set()
        wait([self._outcome], ORPHAN_GRACE_SECONDS)


def _on_this_node(assignment: Assignment) -> Assignment:
    """The same assignment, serving where others reach it."""
    if assignment.host != NODE_IP:
        return assignment
    return replace(assignment, host=ray.util.get_node_ip_address())
