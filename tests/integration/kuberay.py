"""KubeRay without Kubernetes: an API of few answers, an operator whose pods are `ray start`, and Ray's autoscaler."""

import copy
import os
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from deploy.private_ray import RAY_ENVIRONMENT
from tests.certificates import Authority, KeyPair
from tests.integration.processes import MARK, free_port, marked, wait_until
from tests.json_api import JsonHandler, serving

RAY = str(Path(sys.executable).with_name("ray"))
NAMESPACE = "zero"
STARTED = "Ray runtime started"
HEAD_GROUP = "headgroup"
"""As KubeRay names it."""


class Program:
    """A program that is or uses Ray, in a session of its own; whatever it leaves behind is ended with it.

    Args:
        log: where its output goes.
        command: the program with its arguments.
        environment: added to that of the tests.
    """

    def __init__(self, log: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._log = log
        self._mark = uuid.uuid4().hex
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **RAY_ENVIRONMENT, "RAY_AUTH_MODE": "token", **environment, MARK: self._mark},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        """Until it has written this."""

        def look() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            return text in self._log.read_text()

        wait_until(look, text)

    def go_on(self) -> None:
        """Give it a line of input."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """As a pod ends that is deleted: all of it, at once."""
        while found := marked(self._mark):
            for pid, _ in found:
                os.kill(pid, signal.SIGKILL)
        self._process.communicate()


@dataclass
class Pod:
    """Of the cluster.

    Attributes:
        name: its.
        group: of which group, or HEAD_GROUP.
        program: what runs in it.
        is_running: as Kubernetes says.
    """

    name: str
    group: str
    program: Program
    is_running: bool = False

    def to_json(self, cluster: str) -> dict[str, Any]:
        """As Kubernetes' API shows it."""
        kind = "head" if self.group == HEAD_GROUP else "worker"
        return {
            "metadata": {
                "name": self.name,
                "resourceVersion": "1",
                "labels": {"ray.io/cluster": cluster, "ray.io/node-type": kind, "ray.io/group": self.group},
            },
            "status": {
                "podIP": ray.util.get_node_ip_address(),
                "containerStatuses": [{"state": {"running": {}} if self.is_running else {"waiting": {}}}],
            },
        }


@dataclass
class Operator:
    """Lets there be the pods that a RayCluster names, one started after the other.

    Attributes:
        cluster: the RayCluster, as it is now.
        folder: for logs and Ray's files; a short path.
        gcs_port: of the head.
        pods: that there are.
        patches: how often the RayCluster was changed.
        looks: how often it was read.
        most_pods: that there ever were beside the head.
    """

    cluster: dict[str, Any]
    folder: Path
    gcs_port: int
    pods: dict[str, Pod] = field(default_factory=dict[str, Pod])
    patches: int = 0
    looks: int = 0
    most_pods: int = 0
    _number: int = 0
    _changed: threading.Event = field(default_factory=threading.Event)
    _closed: bool = False

    @property
    def name(self) -> str:
        """Of the cluster."""
        return self.cluster["metadata"]["name"]

    @property
    def gcs_address(self) -> str:
        """Of the head."""
        return f"{ray.util.get_node_ip_address()}:{self.gcs_port}"

    @property
    def machines(self) -> list[Pod]:
        """All pods but the head."""
        return [pod for pod in list(self.pods.values()) if pod.group != HEAD_GROUP]

    def patch(self, operations: Sequence[Mapping[str, Any]]) -> bool:
        """Change the cluster as JSON Patch says, RFC 6902; whether it could be.

        Only values that are there can be replaced, which Kubernetes insists on.
        """
        changed = copy.deepcopy(self.cluster)
        for operation in operations:
            *parents, last = operation["path"].strip("/").split("/")
            target: Any = changed
            for name in parents:
                target = target[int(name) if isinstance(target, list) else name]
            if operation["op"] != "replace" or last not in target:
                return False
            target[last] = operation["value"]
        self.cluster = changed
        self.patches += 1
        self._changed.set()
        return True

    def start_head(self) -> None:
        """Start Ray's head as the RayCluster says."""
        options = ["--head", f"--port={self.gcs_port}", "--include-dashboard=false", "--no-monitor"]
        options += [f"--temp-dir={self.folder}/ray"]
        head = self.cluster["spec"]["headGroupSpec"]
        self._start(HEAD_GROUP, head, options, {"RAY_enable_autoscaler_v2": "1"})

    def reconcile(self) -> None:
        """Follow the RayCluster until it is closed."""
        while self._changed.wait() and not self._closed:
            self._changed.clear()
            for group in self.cluster["spec"]["workerGroupSpecs"]:
                for name in group["scaleStrategy"]["workersToDelete"]:
                    if name in self.pods:
                        self.pods.pop(name).program.end()
                while sum(pod.group == group["groupName"] for pod in self.machines) < group["replicas"]:
                    self._start(group["groupName"], group, [f"--address={self.gcs_address}"])
                    self.most_pods = max(self.most_pods, len(self.machines))

    def close(self) -> None:
        """End `reconcile`."""
        self._closed = True
        self._changed.set()

    def end(self) -> None:
        """End all pods."""
        for pod in self.pods.values():
            pod.program.end()

    def _start(
        self, group: str, spec: Mapping[str, Any], options: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        name = f"{self.name}-{group}-{self._number}"
        self._number += 1
        parameters = {"num-cpus": _cpus(spec), **spec["rayStartParams"]}
        arguments = [
            *(RAY, "start", "--block", "--disable-usage-stats", *options),
            *(f"--{key}={value}" for key, value in parameters.items()),
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        named = {"RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": group}  # so that the autoscaler knows it
        program = Program(self.folder / f"{name}.log", arguments, {**named, **(environment or {})})
        self.pods[name] = Pod(name, group, program)
        program.wait_for(STARTED)
        self.pods[name].is_running = True


def _cpus(spec: Mapping[str, Any]) -> str:
    """That KubeRay gives a machine of a group."""
    return spec["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]


class _Api(JsonHandler):
    operator: Operator

    def get(self, path: str) -> tuple[int, object]:
        """What Ray's autoscaler reads."""
        operator = self.operator
        if path == f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{operator.name}":
            operator.looks += 1
            return 200, operator.cluster
        if path == f"/api/v1/namespaces/{NAMESPACE}/pods":
            pods = [pod.to_json(operator.name) for pod in list(operator.pods.values())]
            return 200, {"metadata": {"resourceVersion": "1"}, "items": pods}
        return super().get(path)

    def patch(self, change: Any) -> tuple[int, object]:
        """What it wants otherwise."""
        return (200, self.operator.cluster) if self.operator.patch(change) else (422, {"kind": "Status"})


@contextmanager
def kuberay(cluster: dict[str, Any]) -> Iterator[Operator]:
    """A RayCluster with its head and its autoscaler, on this machine."""
    # A process reads it once, so that all clusters of these tests have the same.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cluster = {**cluster, "metadata": {**cluster["metadata"], "namespace": NAMESPACE}}
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="zero-test-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        authority = Authority(folder)
        pair = authority.issue()
        operator = Operator(cluster, folder, free_port())
        try:
            with (
                serving(_Api, _mutual_tls(authority, pair), operator=operator) as port,
                ThreadPoolExecutor(1, thread_name_prefix="operator") as executor,
            ):
                operator.start_head()
                following = executor.submit(operator.reconcile)
                autoscaler = _start_autoscaler(operator, authority, pair, port)
                try:
                    yield operator
                finally:
                    autoscaler.end()
                    operator.close()
                    following.result()
        finally:
            operator.end()


def _mutual_tls(authority: Authority, pair: KeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _start_autoscaler(operator: Operator, authority: Authority, pair: KeyPair, port: int) -> Program:
    """What KubeRay runs beside the head."""
    arguments = [RAY, "kuberay-autoscaler", f"--cluster-name={operator.name}", f"--cluster-namespace={NAMESPACE}"]
    environment = {
        "AUTOSCALER_METRIC_PORT": str(free_port()),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
        "RAY_KUBERAY_CA_CERT_PATH": str(authority.file),
        "RAY_KUBERAY_CLIENT_CERT_PATH": str(pair.certificate_file),
        "RAY_KUBERAY_CLIENT_KEY_PATH": str(pair.key_file),
    }
    return Program(
        operator.folder / "autoscaler.log", [*arguments, f"--gcs-address={operator.gcs_address}"], environment
    )
