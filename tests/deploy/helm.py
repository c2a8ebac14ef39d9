"""Helm's own engine without a cluster: installs our chart against a Kubernetes API of a few answers.

`python -m tests.deploy.helm` renders the examples again.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.json_api import JsonHandler, serving

CHART = Path(__file__).parents[2] / "deploy/chart"
CORE = {
    "v1": [
        ("configmaps", "ConfigMap"),
        ("persistentvolumeclaims", "PersistentVolumeClaim"),
        ("secrets", "Secret"),
        ("services", "Service"),
    ],
    "apps/v1": [("deployments", "Deployment"), ("statefulsets", "StatefulSet")],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy")],
    "policy/v1": [("poddisruptionbudgets", "PodDisruptionBudget")],
}
PROMETHEUS_OPERATOR = {
    "monitoring.coreos.com/v1": [("podmonitors", "PodMonitor"), ("prometheusrules", "PrometheusRule")],
    "monitoring.coreos.com/v1alpha1": [("scrapeconfigs", "ScrapeConfig")],
}
KUBERAY = {"ray.io/v1": [("rayclusters", "RayCluster")]}


@dataclass(frozen=True)
class Release:
    """What Helm made of a chart: all objects as one text, and what it tells its user."""

    manifest: str
    notes: str


@dataclass
class FakeCluster:
    """What a cluster has.

    Attributes:
        secrets: their names.
        operators: kinds that are not Kubernetes' own, by API version, with their names in the API.
    """

    secrets: Sequence[str] = ()
    operators: Mapping[str, list[tuple[str, str]]] = field(default_factory=lambda: PROMETHEUS_OPERATOR | KUBERAY)

    @property
    def kinds(self) -> Mapping[str, list[tuple[str, str]]]:
        """All kinds, by API version."""
        return {**CORE, **self.operators}


class _Handler(JsonHandler):
    cluster: FakeCluster

    def get(self, path: str) -> tuple[int, object]:
        """What Helm reads."""
        known: dict[tuple[str, ...], dict[str, Any]] = {
            ("version",): {"major": "1", "minor": "31", "gitVersion": "v1.31.0"},
            ("api",): {"kind": "APIVersions", "versions": ["v1"]},
            ("apis",): {"kind": "APIGroupList", "apiVersion": "v1", "groups": self._groups()},
        }
        for version in self.cluster.kinds:
            known["apis" if "/" in version else "api", *version.split("/")] = self._kinds(version)
        in_namespace = ("api", "v1", "namespaces", "zero")
        known[*in_namespace, "configmaps", "kube-root-ca.crt"] = {"kind": "ConfigMap", "apiVersion": "v1"}
        for name in self.cluster.secrets:
            known[*in_namespace, "secrets", name] = {"kind": "Secret", "apiVersion": "v1"}
        found = known.get(tuple(path.strip("/").split("/")))
        return super().get(path) if found is None else (200, found)

    def _groups(self) -> list[dict[str, Any]]:
        groups: dict[str, list[dict[str, str]]] = {}
        for found in self.cluster.kinds:
            group, separator, version = found.partition("/")
            if separator:
                groups.setdefault(group, []).append({"groupVersion": found, "version": version})
        return [
            {"name": name, "versions": versions, "preferredVersion": versions[0]} for name, versions in groups.items()
        ]

    def _kinds(self, version: str) -> dict[str, Any]:
        verbs = ["create", "get", "list", "patch", "update"]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": [
                {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
                for name, kind in self.cluster.kinds[version]
            ],
        }


def install(values: dict[str, Any], cluster: FakeCluster, name: str = "zero") -> Release:
    """Install our chart.

    Raises:
        helm_sdkpy.HelmError: the chart refused.
    """
    os.environ["HELM_DRIVER"] = "memory"  # keeps nothing of the release; read when the library is loaded
    helm = pytest.importorskip("helm_sdkpy")
    with serving(_Handler, cluster=cluster) as port:
        kubeconfig = yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "zero"}}],
                "users": [{"name": "fake", "user": {}}],
                "current-context": "fake",
            }
        )
        configuration = helm.Configuration("zero", kubeconfig)
        release = asyncio.run(helm.Install(configuration).run(name, str(CHART), values, wait=False))
    return Release(release["manifest"], release["info"]["notes"])


def example(name: str) -> dict[str, Any]:
    """The values of an example."""
    return yaml.safe_load((CHART / f"examples/{name}.yaml").read_text())


def render_examples() -> dict[str, str]:
    """The objects of every example, as they are committed."""
    cluster = FakeCluster(["zero-redis", "zero-tls", "zero-tokens"])
    names = sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))
    return {f"{name}.yaml": install(example(name), cluster).manifest for name in names}


if __name__ == "__main__":
    for file, manifest in render_examples().items():
        (CHART / "rendered" / file).write_text(manifest)
