"""A Ray cluster of several nodes on this machine, whose nodes and control service can be killed."""

import os
import secrets
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from deploy.private_ray import RAY_ENVIRONMENT
from replay_server.embedded_redis import find_redis_server
from tests.integration.processes import free_port, wait_until
from tests.procfs import children_of

OBJECT_STORE_BYTES = 80 * 2**20


class RayCluster:
    """Nodes that are groups of processes of this machine.

    Args:
        head_cpus: logical ones of the head, on which commands run.
        temp_dir: where Ray keeps sockets and logs; a short path.

    Attributes:
        head: the node on which commands run.
    """

    def __init__(self, head_cpus: int, temp_dir: Path) -> None:
        self._cluster = Cluster()
        self.head: Any = self._cluster.add_node(
            num_cpus=head_cpus,
            num_gpus=1,  # whether there is one or not: Ray believes it
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            temp_dir=str(temp_dir),
        )

    @property
    def address(self) -> str:
        """Of the head, host:port."""
        return self._cluster.address

    def add(self, cpus: int) -> Any:
        """One more node."""
        return self._cluster.add_node(num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES)

    def kill(self, node: Any) -> None:
        """What a machine that loses power leaves of its processes: nothing, and nobody is told."""
        raylet = _pid(node, "raylet")
        for pid in (raylet, *children_of(raylet)):
            os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_gcs(self) -> None:
        """End the control service."""
        self.head.kill_gcs_server(check_alive=False)

    def start_gcs(self) -> None:
        """Start the control service again, where it was."""
        self.head.start_gcs_server()

    def processes_of(self, node: Any, actor_class: str) -> list[int]:
        """The processes on a node that are Ray actors of a class."""
        return [pid for pid in children_of(_pid(node, "raylet")) if actor_class in _command(pid)]

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


def _pid(node: Any, process: str) -> int:
    return node.all_processes[process][0].process.pid


@contextmanager
def ray_cluster(head_cpus: int) -> Iterator[RayCluster]:
    """A cluster of a head alone, which keeps what it knows in a Redis of its own, so that its GCS may die."""
    port = free_port()
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="zero-test-", dir="/tmp") as folder:
        command = [find_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as store:
            # A process reads it once, so that all clusters of these tests have the same.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            settings = {
                **RAY_ENVIRONMENT,
                "RAY_REDIS_ADDRESS": f"127.0.0.1:{port}",
                "RAY_raylet_start_wait_time_s": "120",  # the machine may be busy
            }
            before = {name: os.environ.get(name) for name in settings}
            os.environ.update(settings)
            try:
                wait_until(lambda: _answers(port), "Redis for Ray")
                cluster = RayCluster(head_cpus, Path(folder) / "ray")
                try:
                    yield cluster
                finally:
                    cluster.close()
            finally:
                for name, value in before.items():
                    os.environ.pop(name)
                    if value is not None:
                        os.environ[name] = value
                store.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
