"""Helm's own engine without a cluster: installs our chart against a Kubernetes API of a few answers.

`python -m tests.deploy.helm` renders the examples again.
"""

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy/chart"
GROUPS = {
    "": ("v1", ("configmaps", "ConfigMap"), ("secrets", "Secret"), ("services", "Service")),
    "apps": ("v1", ("deployments", "Deployment"), ("statefulsets", "StatefulSet")),
    "networking.k8s.io": ("v1", ("networkpolicies", "NetworkPolicy")),
    "policy": ("v1", ("poddisruptionbudgets", "PodDisruptionBudget")),
}
PROMETHEUS_OPERATOR = {
    "monitoring.coreos.com": ("v1", ("podmonitors", "PodMonitor"), ("prometheusrules", "PrometheusRule"))
}


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
        has_operator: whether it has the kinds of the Prometheus operator.
    """

    secrets: Sequence[str] = ()
    has_operator: bool = True

    @property
    def groups(self) -> dict[str, Any]:
        """API groups with their kinds."""
        return GROUPS | (PROMETHEUS_OPERATOR if self.has_operator else {})


class _Handler(BaseHTTPRequestHandler):
    cluster: FakeCluster

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        self._answer(*self._find(path))

    def _find(self, path: list[str]) -> tuple[int, dict[str, Any]]:
        known: dict[tuple[str, ...], dict[str, Any]] = {
            ("version",): {"major": "1", "minor": "31", "gitVersion": "v1.31.0"},
            ("api",): {"kind": "APIVersions", "versions": ["v1"]},
            ("apis",): {"kind": "APIGroupList", "apiVersion": "v1", "groups": self._groups()},
        }
        for group, (version, *_) in self.cluster.groups.items():
            known["apis" if group else "api", *([group] if group else []), version] = self._kinds(group)
        in_namespace = ("api", "v1", "namespaces", "zero")
        known[*in_namespace, "configmaps", "kube-root-ca.crt"] = {"kind": "ConfigMap", "apiVersion": "v1"}
        for name in self.cluster.secrets:
            known[*in_namespace, "secrets", name] = {"kind": "Secret", "apiVersion": "v1"}
        nothing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        found = known.get(tuple(path))
        return (404, nothing) if found is None else (200, found)

    def do_POST(self) -> None:
        """Whatever is created is there."""
        self._answer_bytes(201, self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"])))

    def _groups(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "versions": [{"groupVersion": f"{name}/{version}", "version": version}],
                "preferredVersion": {"groupVersion": f"{name}/{version}", "version": version},
            }
            for name, (version, *_) in self.cluster.groups.items()
            if name
        ]

    def _kinds(self, group: str) -> dict[str, Any]:
        version, *kinds = self.cluster.groups[group]
        verbs = ["create", "get", "list", "patch", "update"]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": [
                {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
                for name, kind in kinds
            ],
        }

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self._answer_bytes(status, "application/json", json.dumps(body).encode())

    def _answer_bytes(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- as in the base class
        """Nobody reads it."""


@contextmanager
def _serving(cluster: FakeCluster) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def install(values: dict[str, Any], cluster: FakeCluster, name: str = "zero") -> Release:
    """Install our chart.

    Raises:
        helm_sdkpy.HelmError: the chart refused.
    """
    os.environ["HELM_DRIVER"] = "memory"  # keeps nothing of the release; read when the library is loaded
    helm = pytest.importorskip("helm_sdkpy")
    with _serving(cluster) as address:
        kubeconfig = yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "fake", "cluster": {"server": address}}],
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
