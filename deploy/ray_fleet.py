"""Places roles with Ray: every role is one Ray actor that outlives whoever started it, until it is ended."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.placement import Placement
from deploy.role_host import NODE_IP, Outcome, Place, RoleHost
from deploy.roles import Addresses, Assignment, Role
from zero.config import ExperimentConfig

NAMESPACE = "zero"
"""Of the names that Ray knows the processes of runs by."""
ADOPTION_SECONDS = 10.0
"""A role that does not say what it is within this time is ended and started anew."""
FOLDER_ROLES = frozenset({Role.REPLAY_SERVER, Role.LEARNER, Role.EVALUATOR})
"""Those that keep the run's folder."""
COMPUTING_ROLES = frozenset({Role.ACTOR, Role.REANALYSER, Role.LEARNER})
"""Those that compute all the time."""


@dataclass(frozen=True)
class RunningRole:
    """A role that was started.

    Attributes:
        assignment: which one.
        handle: its Ray actor.
        ended: becomes its Outcome, or an error if the process died.
        place: becomes where it is.
    """

    assignment: Assignment
    handle: Any
    ended: "ray.ObjectRef[Outcome]"
    place: "ray.ObjectRef[Place]"


@dataclass(frozen=True)
class Supplies:
    """What every role of a run is given.

    Attributes:
        run_id: of the run.
        config: the experiment.
        game: its game, packed, where the command registered it; else None.
        placements: what roles ask of machines, by role; what is missing is as its role asks.
        log_level: of the roles' log files.
        is_local: Ray was started here, for this run alone.
    """

    run_id: str
    config: ExperimentConfig
    game: bytes | None
    placements: Mapping[str, Placement]
    log_level: str
    is_local: bool


class RayFleet:
    """Starts and ends roles, from a process that has joined Ray on a machine that holds the run's folder.

    Args:
        supplies: for every role.
    """

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self._config = supplies.config.model_dump(mode="json")
        self._names = f"{supplies.run_id}:role:"
        self._running: list[RunningRole] = []
        self._node_id = ray.get_runtime_context().get_node_id()
        self._has_gpu = _has_gpu(self._node_id)

    @property
    def host(self) -> str:
        """Where roles serve: this machine's loopback alone, or the addresses of the cluster's machines."""
        return "127.0.0.1" if self._supplies.is_local else NODE_IP

    @property
    def own_host(self) -> str:
        """Where this process serves."""
        return self.host or ray.util.get_node_ip_address()

    def start(self, assignment: Assignment) -> RunningRole:
        """Start a role; returns at once."""
        if assignment.role is Role.LEARNER and self._placement(Role.LEARNER).gpus:
            assignment = replace(assignment, device="cuda")  # who asks for a GPU does not mean a processor
        name = f"{self._names}{assignment.name}:{secrets.token_hex(4)}"
        handle: Any = (
            ray.remote(RoleHost)
            .options(name=name, namespace=NAMESPACE, lifetime="detached", **self._options(assignment.role))
            .remote(assignment, self._config, self._supplies.log_level, self._supplies.game)
        )
        return self._follow(assignment, handle)

    def end_others(self) -> None:
        """End what an earlier fleet of this run has left behind, whose machine has died."""
        for handle in self._others():
            ray.kill(handle)

    def adopt(self) -> list[RunningRole]:
        """The roles of this run that another fleet has started and that live; the others are ended."""
        answers: dict[Any, Any] = {handle.assignment.remote(): handle for handle in self._others()}
        if answers:
            ray.wait(list(answers), num_returns=len(answers), timeout=ADOPTION_SECONDS)
        for answer, handle in answers.items():
            try:
                self._follow(ray.get(answer, timeout=0), handle)
            except (RayActorError, TimeoutError):
                ray.kill(handle)
        return list(self._running)

    def wait(self, references: Sequence["ray.ObjectRef[Any]"], timeout: float) -> set["ray.ObjectRef[Any]"]:
        """Those that are ready, as soon as one is, or none after `timeout` seconds."""
        ready, _ = ray.wait(list(references), num_returns=1, timeout=timeout)
        return set(ready)

    def addresses(self, running: RunningRole) -> "ray.ObjectRef[Addresses]":
        """Becomes where a replay server answers."""
        return running.handle.addresses.remote()

    def addresses_of(self, answer: "ray.ObjectRef[Addresses]") -> Addresses | None:
        """What `addresses` has become, once ready; None if the process died before."""
        try:
            return ray.get(answer)
        except RayError:
            return None

    def outcome(self, running: RunningRole) -> Outcome:
        """How a role ended, once `ended` is ready."""
        try:
            return ray.get(running.ended)
        except RayActorError:
            return Outcome("its process died")
        except ActorUnschedulableError:
            return Outcome(
                "no machine that has the run's folder has the CPUs and GPUs that it asks for: "
                "give it others by --place, or take another machine",
                is_permanent=True,
            )
        except RayTaskError as error:
            return Outcome(" ".join(str(error.cause).split()))

    def place_of(self, running: RunningRole) -> Place | None:
        """Where a role is, once `place` is ready; None if its process died before."""
        try:
            return ray.get(running.place)
        except RayError:
            return None

    def ask_to_stop(self, running: RunningRole) -> None:
        """Tell a role to end; returns at once."""
        running.handle.stop.remote()

    def kill(self, running: RunningRole) -> None:
        """End the process of a role now."""
        ray.kill(running.handle)
        self._running.remove(running)

    def close(self) -> None:
        """End all processes that were started."""
        for running in list(self._running):
            self.kill(running)

    def _others(self) -> list[Any]:
        known: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        return [
            ray.get_actor(entry["name"], NAMESPACE)
            for entry in known
            if entry["namespace"] == NAMESPACE and entry["name"].startswith(self._names)
        ]

    def _follow(self, assignment: Assignment, handle: Any) -> RunningRole:
        running = RunningRole(assignment, handle, handle.ended.remote(), handle.place.remote())
        self._running.append(running)
        return running

    def _placement(self, role: Role) -> Placement:
        return self._supplies.placements.get(role.value, Placement())

    def _options(self, role: Role) -> dict[str, Any]:
        asked = self._placement(role)
        cpus = 1.0 if role in COMPUTING_ROLES else 0.0
        gpus = 1.0 if role is Role.LEARNER and self._has_gpu else 0.0
        options = placement_options(asked, cpus, gpus)
        if self._supplies.is_local:
            options["num_cpus"] = 0  # the operating system shares out the cores of this machine
        if role in FOLDER_ROLES and not asked.resources:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._node_id, soft=False)
        return {**options, "max_restarts": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}


def placement_options(asked: Placement, cpus: float, gpus: float) -> dict[str, Any]:
    """Options of a Ray actor that asks for this, and else for so many CPUs and GPUs."""
    return {
        "num_cpus": cpus if asked.cpus is None else asked.cpus,
        "num_gpus": gpus if asked.gpus is None else asked.gpus,
        "resources": dict(asked.resources),
    }


def _has_gpu(node_id: str) -> bool:
    """Whether a machine of the cluster has a GPU; the learner stays where the run's folder is, wherever others are."""
    resources = [node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id]
    return any(found.get("GPU", 0) >= 1 for found in resources)
