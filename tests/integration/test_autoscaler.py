"""Test of the chart's RayCluster under Ray's own autoscaler: machines come with actors and go with them."""

from typing import Any

import pytest
import ray
import yaml

from deploy.placement import Placement
from deploy.ray_cluster import joined_ray
from deploy.ray_fleet import placement_options
from tests.deploy.helm import CHART
from tests.integration.kuberay import Operator, kuberay
from tests.integration.processes import wait_until

MACHINES = 3
LOOKS = 5
"""So often the autoscaler looks at what it has until we believe that it leaves it so."""


class Sits:
    """An actor that takes room."""

    def node(self) -> str:
        """Where it is."""
        return ray.get_runtime_context().get_node_id()


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
    with kuberay(rendered_cluster()) as operator, joined_ray(operator.gcs_address):
        looks_on(operator)
        assert not operator.machines
        options = placement_options(Placement(), 1.0, 0.0)
        actors: list[Any] = [ray.remote(Sits).options(**options).remote() for _ in range(MACHINES + 1)]
        answers = [actor.node.remote() for actor in actors]
        ready, waiting = ray.wait(answers, num_returns=MACHINES, timeout=90)
        assert len(set(ray.get(ready))) == MACHINES, "on a machine each"
        looks_on(operator)
        assert len(operator.machines) == replicas(operator) == MACHINES
        assert not ray.wait(waiting, timeout=0)[0], "there is no machine for it"
        for actor in actors:
            ray.kill(actor)
        wait_until(lambda: not operator.machines and replicas(operator) == 0, "the machines have gone")
        looks_on(operator)
        assert not operator.machines
        assert operator.most_pods == MACHINES


def looks_on(operator: Operator) -> None:
    """Give the autoscaler the time to do more."""
    seen = operator.looks
    wait_until(lambda: operator.looks >= seen + LOOKS, "the autoscaler looks at its cluster")


def replicas(operator: Operator) -> int:
    """That the autoscaler wants."""
    return operator.cluster["spec"]["workerGroupSpecs"][0]["replicas"]
