"""What the READMEs show works as it stands."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replay_server.client import ReplayClient
from replay_server.errors import STATUS_CODES
from replay_server.metrics import Levels, ServerMetrics
from replay_server.removers import REMOVERS
from replay_server.selectors import SELECTORS
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.integration.processes import wait_until

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REPLAY_README = ROOT / "replay_server/README.md"
PAGES = (README, REPLAY_README, ROOT / "zero/README.md")


def snippets(page: Path) -> list[tuple[str, str]]:
    """Language and text of everything that a page shows to be run, in order."""
    return re.findall(r"```(\w*)\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_python_example_runs(tmp_path: Path) -> None:
    """The example stores its episode and draws from it, on a server that differs by its port alone."""
    (example,) = (text for language, text in snippets(README) if language == "python")
    with ReplayServer(ReplayServerSettings(tmp_path)) as bound:
        exec(compile(example.replace("127.0.0.1:8470", bound.address), "README.md", "exec"), {})
        with ReplayClient(bound.address) as client:
            table = client.server_info().tables["steps"]
    assert (table.num_trajectories, table.num_steps, table.sampled_positions) == (1, 40, 256)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file or folder of the project."""
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert len(links) > 2
    assert [link for link in links if not (page.parent / link).exists()] == []


class Terminal:
    """Types what a page shows, in an empty folder; ports are free ones, and everything stays on this machine."""

    def __init__(self, folder: Path, page: str) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {}
        self._ports = {port: str(free_port()) for port in sorted(set(re.findall(r"\b[89]47\d\b", page)))}
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ZERO_PORT": self._ports["8470"],
            "ZERO_METRICS_PORT": self._ports["9470"],
            "ZERO_REPLAY_ADDRESS": f"127.0.0.1:{self._ports['8470']}",
        }
        self._servers: list[subprocess.Popen[bytes]] = []

    def type(self, language: str, text: str) -> None:
        """Run a snippet."""
        here = re.sub(r"\b[89]47\d\b", lambda port: self._ports[port[0]], text).replace("0.0.0.0", "127.0.0.1")
        if language == "python":
            exec(compile(here, text, "exec"), self.names)
        elif "-m replay_server" in here:
            self._start(here)
        else:
            self._run(here)

    def _run(self, text: str) -> None:
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}{result.stderr}"

    def _start(self, text: str) -> None:
        """Start servers; they answer when this returns."""
        log = self.folder / f"log-{len(self._servers)}"
        with log.open("wb") as file:
            server = subprocess.Popen(
                ["bash", "-euc", f"trap : TERM\n{text}\nwait\nwait"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._servers.append(server)

        def answers() -> bool:
            assert server.poll() is None, f"{text}\n{log.read_text()}"
            return log.read_text().count("replay server at") == text.count("-m replay_server")

        wait_until(answers, text)

    def close(self) -> None:
        """End the servers, and wait until they have."""
        for server in self._servers:
            os.killpg(server.pid, signal.SIGTERM)
        for server in self._servers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """For the page of the replay server."""
    monkeypatch.chdir(tmp_path)
    terminal = Terminal(tmp_path, REPLAY_README.read_text())
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.slow
def test_the_replay_server_is_as_its_page_says(
    terminal: Terminal, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Every snippet works where it stands, from the top of the page to its end, against the servers that it starts."""
    for language, text in snippets(REPLAY_README):
        assert language in ("python", "bash"), f"this cannot be run:\n{text}"
        terminal.type(language, text)
    printed = capsys.readouterr().out
    for expected in re.findall(r"print\(.*\)  # (.*)", REPLAY_README.read_text()):
        assert expected in printed
    with terminal.names["client"] as client:
        tables = client.server_info().tables
    assert set(tables) == {"steps", "recent", "thirds", "tasks"}
    assert tables["steps"].num_trajectories == 50 + 50 + 1 + 1 + 1 + 1 - 1 - 1
    assert tables["steps"].sampled_positions >= 10 * 256 + 10 * 256 + 10 * 256 + 64
    assert tables["tasks"].num_trajectories == 0
    assert tables["recent"].rate_limiter.config.samples_per_insert == 4
    assert (tmp_path / "runs/manual/replay").is_dir()


def test_the_page_of_the_replay_server_knows_every_reason_and_strategy() -> None:
    """With its status code; none is missing or made up."""
    page = REPLAY_README.read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \|", page, flags=re.MULTILINE))
    assert rows == {reason.value: code.name for reason, code in STATUS_CODES.items()}
    for field, strategies in (("selector", SELECTORS), ("remover", REMOVERS)):
        (row,) = re.findall(rf"^\| `{field}` \| (.*) \|$", page, flags=re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row)) - {"priority_exponent"} == set(strategies)


def test_the_metrics_on_the_page_of_the_replay_server_are_there() -> None:
    """Under the names that it gives."""
    (table,) = re.findall(r"\| `zero_replay_\.\.\.` .*?\n\n", REPLAY_README.read_text(), flags=re.DOTALL)
    named = {f"zero_replay_{name}".removesuffix("_total") for name in re.findall(r"`(\w+)`", table)}
    metrics = ServerMetrics(lambda: Levels((), (), True, (), 0))
    assert len(named) > 15
    assert named - {family.name for family in metrics.registry.collect()} == set()
