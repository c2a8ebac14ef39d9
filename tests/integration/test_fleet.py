"""Tests of a run that lives in a Ray cluster of several nodes: scaled, and going on whatever dies around it."""

import json
import os
import random
import re
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.errors import BAD_INPUT
from deploy.fleet_record import FleetRecord, RoleState
from deploy.run_folder import RunFolder
from replay_server.client import ReplayClient
from tests.integration.processes import SMALL, Command, wait_until
from tests.integration.ray_clusters import RayCluster, ray_cluster
from tests.ledger import Ledger, check_that_nothing_is_lost
from tests.procfs import parent_of
from tests.replay_server.played import table_config

pytestmark = pytest.mark.slow
BACK_SECONDS = 60.0
"""So long the fleet may take to be what it shall be, after whatever has died."""
GCS_AWAY_SECONDS = 30.0
"""Ray's processes wait a minute for it, then they end."""
GAME = """
import os
from zero.games.tic_tac_toe import TicTacToe

class Mine(TicTacToe):
    padding = os.urandom(150_000)  # more than Ray keeps with an actor in one piece
"""


@dataclass(frozen=True)
class Running:
    """A run in a cluster.

    Attributes:
        cluster: its.
        nodes: of the cluster, beside the head.
        driver: the command that has started it.
        folder: its.
        ledger: a writer that is at it all the time.
    """

    cluster: RayCluster
    nodes: list[Any]
    driver: Command
    folder: RunFolder
    ledger: Ledger

    @property
    def fleet(self) -> FleetRecord:
        """As it says itself."""
        return FleetRecord.read(self.folder.fleet_file)

    def zero(self, *arguments: str) -> str:
        """The output of a command that succeeds."""
        with Command(self.folder.path.parent, *arguments) as command:
            assert command.wait() == 0, command.output
            return command.output

    def processes(self, role: str) -> list[int]:
        """Ids of the running processes of a role."""
        return sorted(one.pid or 0 for one in self.fleet.roles if one.role == role and one.state is RoleState.RUNS)

    def step(self) -> float:
        """The learner's, as the fleet has seen it last."""
        return (self.fleet.figures or {}).get("training_step") or 0.0

    def is_back(self, lost: Collection[int]) -> bool:
        """Whether every wanted role has a process, and none of those that were lost."""
        fleet = self.fleet
        alive = [one for one in fleet.roles if one.state is RoleState.RUNS and one.pid not in lost]
        return len(alive) == len(fleet.roles) and len(fleet.actors) == fleet.actors_wanted

    def goes_on(self, lost: Collection[int] = ()) -> None:
        """The fleet is back in time; inserts are acknowledged and training steps are made from here on."""
        wait_until(lambda: self.is_back(lost), "the fleet is back", BACK_SECONDS)
        acknowledged, step = len(self.ledger.acknowledged), self.step()
        wait_until(lambda: len(self.ledger.acknowledged) > acknowledged, "inserts go on")
        wait_until(lambda: self.step() > step, "learning goes on")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two actors of a game that is in a file of the user, on a head and two nodes."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "mine.py").write_text(GAME)
    options = [
        *(*SMALL, "--set=game.name=mine.py:Mine", "--no-evaluator", "--actors=2", "--minutes=10", "--metrics-port=0"),
        *("--insecure", "--no-live", "--run-dir=run", "--place=supervisor:cpu=1", "--place=replay-server:cpu=1"),
    ]
    with ray_cluster(head_cpus=4) as cluster:
        nodes = [cluster.add(cpus=6), cluster.add(cpus=6)]
        with Command(folder, "train", *options, f"--ray-address={cluster.address}") as driver:
            driver.wait_for("learning since")
            (folder / "mine.py").unlink()  # what other machines have of it
            run_folder = RunFolder(folder / "run")
            address = FleetRecord.read(run_folder.fleet_file).replay_address
            with ReplayClient(address) as client:
                client.create_table(table_config("ledger", capacity=10**6))
                with Ledger(address, "ledger", pause_seconds=0.2) as ledger:
                    yield Running(cluster, nodes, driver, run_folder, ledger)


def test_a_run_is_scaled_while_it_goes_on(run: Running) -> None:
    """From two actors to eight and back: those that leave end by themselves, the others are not touched."""
    first = run.processes("actor")
    assert "has 8 actors" in run.zero("scale", "run", "--actors=8")
    assert set(first) < set(run.processes("actor"))
    assert len({parent_of(pid) for pid in run.processes("actor")}) > 1, "they are on several nodes"
    assert "has 2 actors" in run.zero("scale", "run", "--actors=2")
    assert run.processes("actor") == first
    assert run.driver.output.count("delivered what it held and left") == 6
    status = json.loads(run.zero("status", "run", "--json"))
    assert status["state"] == "running"
    assert {role["name"] for role in status["fleet"]["roles"]} == {"replay-server", "learner", "actor-0", "actor-1"}
    assert all(role["node"] and role["restarts"] == 0 for role in status["fleet"]["roles"])
    wait_until(lambda: all(role.weights_version for role in run.fleet.actors), "they play with published weights")
    run.goes_on()


def test_a_run_goes_on_without_who_has_started_it(run: Running) -> None:
    """kill -9 of the command."""
    os.kill(run.driver.pid, signal.SIGKILL)
    run.driver.wait()
    run.goes_on()


def test_a_run_goes_on_when_its_supervisor_dies(run: Running) -> None:
    """Ray starts it again, with all it needs; the roles do not notice, and it keeps them alive as before."""
    before = run.processes("learner"), run.processes("replay-server"), run.processes("actor")
    written_at = run.fleet.written_at
    for pid in run.cluster.processes_of(run.cluster.head, "DetachedRun"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: run.fleet.written_at > written_at and "goes on" in supervisor_log(run), "it is there again")
    run.goes_on()
    assert (run.processes("learner"), run.processes("replay-server"), run.processes("actor")) == before
    run.zero("scale", "run", "--actors=4")
    assert len(run.processes("actor")) == 4


def test_actors_that_die_come_back(run: Running) -> None:
    """kill -9 of some at random."""
    killed = random.Random(0).sample(run.processes("actor"), 2)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    run.goes_on(killed)


def test_actors_of_a_dead_node_come_back_elsewhere(run: Running) -> None:
    """A node without power: its actors are on another one within a minute."""
    node = max(run.nodes, key=lambda node: len(run.cluster.processes_of(node, "RoleHost")))
    lost = run.cluster.processes_of(node, "RoleHost")
    assert lost
    run.cluster.kill(node)
    run.nodes.remove(node)
    run.goes_on(lost)


def test_a_run_goes_on_without_the_control_service_of_ray(run: Running) -> None:
    """While the GCS is away, inserts and learning go on; an actor that dies meanwhile comes back afterwards."""
    run.cluster.kill_gcs()
    killed = run.processes("actor")[0]
    os.kill(killed, signal.SIGKILL)
    acknowledged, step, seen = len(run.ledger.acknowledged), run.step(), run.fleet.written_at
    wait_until(lambda: (run.fleet.written_at - seen).total_seconds() > GCS_AWAY_SECONDS, "the time goes by")
    assert len(run.ledger.acknowledged) > acknowledged
    assert run.step() > step
    assert not run.is_back([killed])
    run.cluster.start_gcs()
    run.goes_on([killed])


def test_a_run_in_a_cluster_is_stopped_and_has_lost_nothing(run: Running) -> None:
    """`zero stop` reaches it: it saves and leaves no process. What was acknowledged is all there, once."""
    run.ledger.close()
    assert len(run.ledger.acknowledged) > 300
    with ReplayClient(run.fleet.replay_address) as client:
        check_that_nothing_is_lost(client, "ledger", [run.ledger])
    pids = [one.pid for one in run.fleet.roles]
    assert "has stopped at training step" in run.zero("stop", "run")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of every role", 20)
    wait_until(lambda: not run.cluster.processes_of(run.cluster.head, "DetachedRun"), "the end of the supervisor", 20)
    assert "interrupted: `zero stop`" in run.zero("status", "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_learner_that_shall_have_a_gpu_computes_on_nothing_else(run: Running) -> None:
    """Where its machine has one and its PyTorch finds none, the run ends with a line that says so."""
    options = ["--no-evaluator", "--actors=1", "--minutes=10", "--metrics-port=0", "--insecure", "--no-live"]
    options += ["--place=learner:gpu=1", "--run-dir=other", f"--ray-address={run.cluster.address}"]
    with Command(run.folder.path.parent, "train", *SMALL, *options) as command:
        assert command.wait() == BAD_INPUT, command.output
    assert re.search(r"--place learner:gpu: .* an image with CUDA", command.output)
    assert "learning since" not in command.output


def supervisor_log(run: Running) -> str:
    """All of it."""
    return (run.folder.logs / "supervisor.log").read_text()
