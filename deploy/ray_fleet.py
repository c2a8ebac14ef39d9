"""Places roles with Ray: every role is one Ray actor, joined to this command and to nothing else in the cluster."""

import faulthandler
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.errors import BAD_INPUT, DeployError
from deploy.game_files import pack_game, unpack_game
from deploy.private_ray import set_ray_environment, start_private_ray
from deploy.roles import Addresses, Assignment, Role, run_role
from deploy.run_folder import RunFolder
from zero.config import ExperimentConfig

logger = logging.getLogger(__name__)

HOST_THREADS = 4
"""One for the role itself, the others answer while it runs."""
NICENESS = {Role.EVALUATOR: 5, Role.REANALYSER: 5}
"""Measuring and searching again give way to playing and learning where they share cores."""
CONNECT_SECONDS = 5.0
PARENT_POLL_SECONDS = 1.0
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


class RoleHost:
    """The inside of a Ray actor: one role and its log file.

    Args:
        assignment: which role; its host may be NODE_IP.
        config: the experiment as JSON data.
        log_level: of the role's log file.
        game: the experiment's game, packed, where the command registered it; else None.
    """

    def __init__(self, assignment: Assignment, config: dict[str, Any], log_level: str, game: bytes | None) -> None:
        if assignment.host == NODE_IP:
            assignment = replace(assignment, host=ray.util.get_node_ip_address())
        self._assignment = assignment
        self._config = ExperimentConfig.model_validate(config)
        self._game = game
        self._stop = Event()
        self._ended = Event()
        self._addresses: Future[Addresses] = Future()
        _log_to_file(assignment, log_level)
        threading.Thread(target=self._end_with_parent, args=(os.getppid(),), name="orphan-watch", daemon=True).start()

    def pid(self) -> int:
        """The process id, once the process runs."""
        return os.getpid()

    def addresses(self) -> Addresses:
        """Where the replay server answers; waits until it does."""
        return self._addresses.result()

    def run(self) -> Outcome:
        """Be the role until `stop`."""
        os.nice(NICENESS.get(self._assignment.role, 0))
        logger.info("%s starts", self._assignment.name)
        try:
            return self._run()
        finally:
            self._ended.set()

    def stop(self) -> None:
        """End the role; `run` returns when it has."""
        self._stop.set()

    def _run(self) -> Outcome:
        try:
            if self._game is not None and self._assignment.role is not Role.REPLAY_SERVER:
                unpack_game(self._config, self._game)
            run_role(self._assignment, self._config, self._stop, self._addresses.set_result)
        except DeployError as error:
            logger.exception("%s failed", self._assignment.name)
            return Outcome(str(error), error.is_permanent)
        except Exception as error:
            logger.exception("%s failed", self._assignment.name)
            text = " ".join(str(error).split())
            return Outcome(f"{type(error).__name__}: {text}; see {self._assignment.name}.log")
        logger.info("%s stopped", self._assignment.name)
        return Outcome()

    def _end_with_parent(self, parent: int) -> None:
        """End the role and this process once Ray is gone from this machine: Ray itself does not always see to it."""
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        logger.warning("%s ends because Ray has died", self._assignment.name)
        self._stop.set()
        self._ended.wait(ORPHAN_GRACE_SECONDS)
        os._exit(1)


@dataclass(frozen=True)
class RunningRole:
    """A role that was started.

    Attributes:
        assignment: which one.
        handle: its Ray actor.
        ended: becomes its Outcome, or an error if the process died.
        pid: becomes its process id.
    """

    assignment: Assignment
    handle: Any
    ended: "ray.ObjectRef[Outcome]"
    pid: "ray.ObjectRef[int]"


class RayFleet:
    """Starts and stops roles; leaving it ends everything that it started.

    Args:
        config: the experiment.
        ray_address: a cluster to join, "auto" for the one of this machine; None starts Ray here.
        num_actors: how many actor roles there will be; None for one per core, less one for the learner, and in a
            cluster less one for each reanalyser.
        num_reanalysers: how many of these there will be; on one machine they give way to the others.
        log_level: of the roles' log files.

    Attributes:
        num_actors: how many there will be.

    Raises:
        DeployError: the cluster cannot be joined.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        ray_address: str | None,
        num_actors: int | None,
        num_reanalysers: int,
        log_level: str,
    ) -> None:
        self._config = config.model_dump(mode="json")
        self._game = pack_game(config)
        self._log_level = log_level
        self._is_local = ray_address is None
        self._temp_dir: Path | None = None
        self._running: list[RunningRole] = []
        set_ray_environment()
        if ray_address is None:
            self.num_actors = num_actors or max(1, len(os.sched_getaffinity(0)) - 1)
            # One for the learner and each role that computes all the time.
            self._temp_dir = start_private_ray(num_cpus=self.num_actors + num_reanalysers + 1)
        else:
            _join_ray(ray_address)
            self.num_actors = num_actors or max(1, int(ray.cluster_resources().get("CPU", 0)) - 1 - num_reanalysers)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._has_gpu = _has_gpu(self._node_id)

    @property
    def host(self) -> str:
        """Where roles serve: this machine's loopback alone, or the addresses of the cluster's machines."""
        return "127.0.0.1" if self._is_local else NODE_IP

    def start(self, assignment: Assignment) -> RunningRole:
        """Start a role; returns at once."""
        actor_class = ray.remote(RoleHost)
        handle: Any = actor_class.options(**self._options(assignment.role)).remote(
            assignment, self._config, self._log_level, self._game
        )
        running = RunningRole(assignment, handle, handle.run.remote(), handle.pid.remote())
        self._running.append(running)
        return running

    def wait(self, references: Sequence["ray.ObjectRef[Any]"], timeout: float) -> set["ray.ObjectRef[Any]"]:
        """Those that are ready, as soon as one is, or none after `timeout` seconds."""
        ready, _ = ray.wait(list(references), num_returns=1, timeout=timeout)
        return set(ready)

    def addresses(self, running: RunningRole) -> "ray.ObjectRef[Addresses]":
        """Becomes where a replay server answers."""
        return running.handle.addresses.remote()

    def addresses_of(self, answer: "ray.ObjectRef[Addresses]") -> Addresses:
        """What `addresses` has become, once ready."""
        return ray.get(answer)

    def outcome(self, running: RunningRole) -> Outcome:
        """How a role ended, once `ended` is ready."""
        try:
            return ray.get(running.ended)
        except RayActorError:
            return Outcome("its process died")
        except RayTaskError as error:
            return Outcome(" ".join(str(error.cause).split()))

    def pid_of(self, running: RunningRole) -> int | None:
        """The process id of a role, once `pid` is ready; None if its process died before."""
        try:
            return ray.get(running.pid)
        except (RayActorError, RayTaskError):
            return None

    def ask_to_stop(self, running: RunningRole) -> None:
        """Tell a role to end; returns at once."""
        running.handle.stop.remote()

    def kill(self, running: RunningRole) -> None:
        """End the process of a role now."""
        ray.kill(running.handle)
        self._running.remove(running)

    def close(self) -> None:
        """End all processes that were started, and Ray too if it was started here."""
        for running in list(self._running):
            self.kill(running)
        ray.shutdown()
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)

    def _options(self, role: Role) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_cpus": 1 if role in {Role.ACTOR, Role.REANALYSER, Role.LEARNER} else 0,
            "max_concurrency": HOST_THREADS,
            "max_restarts": 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
        }
        if role is Role.LEARNER and self._has_gpu:
            options["num_gpus"] = 1
        if role in {Role.REPLAY_SERVER, Role.LEARNER, Role.EVALUATOR}:
            # They keep the run's folder, which lies on this machine.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._node_id, soft=False)
        return options


def _has_gpu(node_id: str) -> bool:
    """Whether a machine of the cluster has a GPU; the learner stays where the run's folder is, wherever others are."""
    resources = [node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id]
    return any(found.get("GPU", 0) >= 1 for found in resources)


def _join_ray(ray_address: str) -> None:
    if ray_address.startswith("ray://"):
        raise DeployError(
            f"--ray-address {ray_address}: run the command on a machine of the cluster and give host:port or auto",
            BAD_INPUT,
        )
    _refuse_if_silent(ray_address)
    try:
        ray.init(address=ray_address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DeployError(
            f"--ray-address {ray_address}: {first_line}; if the cluster asks for a token, "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error


def _refuse_if_silent(ray_address: str) -> None:
    """Raise DeployError if nothing listens there: Ray would try for a minute."""
    host, separator, port = ray_address.rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except ValueError:
        raise DeployError(f"--ray-address {ray_address}: write it as host:port, or auto", BAD_INPUT) from None
    except OSError as error:
        raise DeployError(f"--ray-address {ray_address}: {error.strerror or error}") from None


def _log_to_file(assignment: Assignment, log_level: str) -> None:
    """Send the log of this process to the run's folder, if that is on this machine; else Ray keeps it."""
    logs = RunFolder(assignment.run_dir).logs
    if not logs.is_dir():
        logging.basicConfig(level=log_level.upper())
        return
    path = logs / f"{assignment.name}.log"
    logging.basicConfig(
        filename=path,
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    # Kept open for the life of the process: a crash in compiled code writes its stack there.
    faulthandler.enable(path.open("a"))
