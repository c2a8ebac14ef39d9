"""What shows a run is started by `zero tensorboard` and `zero mlflow`, serves, and ends with the command."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.integration.processes import free_port, wait_until

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
