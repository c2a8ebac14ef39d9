"""What shows runs or lets them live is started by `zero tensorboard`, `mlflow` and `ray`, and ends with the command."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

from tests.integration.processes import Command, free_port, wait_until

pytestmark = pytest.mark.slow


def answers(port: int) -> bool:
    """Whether a page is served there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
            return page.status == 200
    except OSError:
        return False


@pytest.mark.parametrize(("command", "needs"), [("tensorboard", "tensorboard"), ("mlflow", "flask")])
def test_a_launcher_warns_serves_and_leaves_nothing_behind(command: str, needs: str, tmp_path: Path) -> None:
    """Nothing to be shown is a warning; a signal to the command alone ends the program, too, with 130."""
    pytest.importorskip(needs)
    port = free_port()
    arguments = [str(Path(sys.executable).with_name("zero")), command, str(tmp_path), "--port", str(port)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("warning: ")
        wait_until(lambda: process.poll() is not None or answers(port), "a page, or the end")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not answers(port)


JOIN = """
import sys

import ray

from deploy.ray_cluster import joined_ray

with joined_ray(sys.argv[1]):
    print(len(ray.nodes()))
"""


def test_ray_can_be_joined_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its dashboard is served, who has its token joins; a signal to the command alone ends all of it, with 130."""
    pytest.importorskip("aiohttp_cors", reason="needs Ray's dashboard")
    port, cluster_port = free_port(), free_port()
    # Unix sockets: their paths must be short.
    with tempfile.TemporaryDirectory(prefix="zero-test-ray-", dir="/tmp") as temp_dir:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        arguments = ["ray", f"--port={port}", f"--cluster-port={cluster_port}"]
        with Command(tmp_path, *arguments, environment=token | {"RAY_TMPDIR": temp_dir}) as command:
            command.wait_for(f"serving http://127.0.0.1:{port} ")
            wait_until(lambda: answers(port), "the dashboard")
            join = [sys.executable, "-c", JOIN, f"127.0.0.1:{cluster_port}"]
            joined = subprocess.run(
                join, env=os.environ | token, capture_output=True, text=True, timeout=120, check=False
            )
            assert joined.stdout == "1\n", joined.stderr
            os.kill(command.pid, signal.SIGTERM)
            assert command.wait() == 130, command.output
            wait_until(lambda: not command.survivors(), "the end of every process", 30)
        assert not answers(port)
