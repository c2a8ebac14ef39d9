"""Test of the chart's RayCluster under Ray's own autoscaler: machines come with actors and go with them."""

import sys
from typing import Any

import pytest
import yaml

from tests.deploy.helm import CHART
from tests.integration.kuberay import Operator, Program, kuberay
from tests.integration.processes import wait_until

MACHINES = 3
LOOKS = 5
"""So often the autoscaler looks at what it has until we believe that it leaves it so."""


def rendered_cluster() -> dict[str, Any]:
    """The RayCluster of the chart, of at most MACHINES small machines that go soon."""
    found = yaml.safe_load_all((CHART / "rendered/ray.yaml").read_text())
    cluster = next(one for one in found if one and one["kind"] == "RayCluster")
    cluster["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] = 2
    (group,) = cluster["spec"]["workerGroupSpecs"]
    group["maxReplicas"] = MACHINES
    group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1"
    return cluster


@pytest.mark.slow
def test_machines_follow_the_actors() -> None:
    """None without actors, as many as there is room for actors with them but no more than allowed, none after them."""
    with kuberay(rendered_cluster()) as operator:
        command = [sys.executable, "-m", "tests.integration.occupant", str(MACHINES + 1), str(MACHINES)]
        occupant = Program(operator.folder / "occupant.log", command, {"RAY_ADDRESS": operator.gcs_address})
        try:
            occupant.wait_for("joined")
            looks_on(operator)
            assert not operator.machines
            occupant.go_on()
            occupant.wait_for(f"{MACHINES} on {MACHINES} machines")
            looks_on(operator)
            assert len(operator.machines) == replicas(operator) == MACHINES
            occupant.go_on()
            occupant.wait_for("0 more")
            occupant.go_on()
            occupant.wait_for("ended")
            wait_until(lambda: not operator.machines and replicas(operator) == 0, "the machines have gone")
            looks_on(operator)
            assert not operator.machines
            assert operator.most_pods == MACHINES
        finally:
            occupant.end()


def looks_on(operator: Operator) -> None:
    """Give the autoscaler the time to do more."""
    seen = operator.looks
    wait_until(lambda: operator.looks >= seen + LOOKS, "the autoscaler looks at its cluster")


def replicas(operator: Operator) -> int:
    """That the autoscaler wants."""
    return operator.cluster["spec"]["workerGroupSpecs"][0]["replicas"]
