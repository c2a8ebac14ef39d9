"""Tests of the roles started by hand, and of what they say when they cannot start."""

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from deploy.interrupts import INTERRUPTED
from deploy.run_context import RunContext
from deploy.run_folder import RunFolder
from deploy.scrape import Scraper
from replay_server.embedded_redis import find_redis_server
from tests.integration.processes import SMALL, Command, free_port, wait_until

pytestmark = pytest.mark.slow
SERIES = {
    "replay_server": "zero_replay_inserted_steps_total",
    "learner": "zero_learner_training_steps_total",
    "actor": "zero_actor_moves_total",
    "evaluator": "zero_evaluator_evaluations_total",
}
"""A counter of every role that rises in any healthy run."""


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


class FourTerminals:
    """The roles, each started by a command of its own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.server = stack.enter_context(
            Command(folder, "replay-server", "--port=0", "--metrics-port=0", f"--data-dir={folder / 'replay'}")
        )
        found = self.server.wait_for(r"replay server at (\S+), metrics http://(\S+)/metrics")
        self.address, self.metrics_address = found[1], found[2]
        to_server = f"--replay-address={self.address}"
        self.others = [
            stack.enter_context(Command(folder, *arguments, *SMALL, to_server))
            for arguments in (["learner", "--run-dir=run", "--application=shop"], ["actor"], ["evaluate"])
        ]
        self.scraper = Scraper(self.metrics_address)
        stack.callback(self.scraper.close)

    def counts(self) -> dict[str, float]:
        """The counter of every role, 0 while it does not answer."""
        scrape = self.scraper.scrape()
        return {role: sum(scrape.select(name).values()) for role, name in SERIES.items()}


def test_four_roles_by_hand_make_a_run(tmp_path: Path) -> None:
    """Replay server, learner, actor and evaluator in four terminals train; each ends with 0, whatever ends it.

    SIGTERM the server, `zero stop` the learner, which saves, SIGINT the others.
    """
    with ExitStack() as stack:
        terminals = FourTerminals(stack, tmp_path)
        wait_until(lambda: min(terminals.counts().values()) > 0, "every role counts")
        terminals.others[1].wait_for(r"plays 16 games at once in torch\.\w+: \d+ simulations/s, measured in [\d.]+ s")
        with Command(tmp_path, "stop", "run") as stopping:
            assert stopping.wait() == 0, stopping.output
            step = RunFolder(tmp_path / "run").newest_step()
            assert f"has stopped at training step {step:,}" in stopping.output
        assert not RunFolder(tmp_path / "run").stop_file.exists()
        assert RunFolder(tmp_path / "run").context() == RunContext("shop", tmp_path, "run")
        for role in terminals.others[1:]:
            role.interrupt()
        for role in terminals.others:
            assert role.wait(30) == 0, role.output
            assert "Traceback" not in role.output
        os.kill(terminals.server.pid, 15)
        assert terminals.server.wait(30) == 0, terminals.server.output
        assert not terminals.server.survivors()
    assert list((tmp_path / "run/checkpoints").glob("step-*"))


def ends_with(folder: Path, code: int, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command that cannot start; returns its only `error:` line."""
    with Command(folder, *arguments, environment=environment) as command:
        assert command.wait(60) == code, command.output
        assert "Traceback" not in command.output
        (line,) = [line for line in command.output.splitlines() if line.startswith("error: ")]
        assert command.output.splitlines()[-1] == line
        assert not command.survivors()
    return line


def test_a_taken_port_is_named_by_every_role(tmp_path: Path, taken_port: int) -> None:
    """A port in use ends a role, or a whole run, with one line that names it."""
    data = f"--data-dir={tmp_path / 'replay'}"
    for arguments in (
        ["replay-server", data, f"--port={taken_port}", "--metrics-port=0"],
        ["replay-server", data, "--port=0", f"--metrics-port={taken_port}"],
        ["train", *SMALL, f"--metrics-port={taken_port}"],
    ):
        assert str(taken_port) in ends_with(tmp_path, 1, *arguments)
    with Command(tmp_path, "replay-server", data, "--port=0", "--metrics-port=0") as server:
        found = server.wait_for(r"replay server at (\S+),")
        to_server = f"--replay-address={found[1]}"
        for role in ("learner", "actor", "evaluate"):
            line = ends_with(tmp_path, 1, role, *SMALL, to_server, f"--metrics-port={taken_port}")
            assert f"127.0.0.1:{taken_port} is in use" in line


def test_an_unreachable_redis_is_named(tmp_path: Path) -> None:
    """Without its Redis neither the server nor a run starts; the reason is one line, without the password."""
    url = {"ZERO_REDIS_URL": f"redis://:sesame@127.0.0.1:{free_port()}/0"}
    for arguments in (["replay-server", "--port=0", "--metrics-port=0"], ["train", *SMALL, "--metrics-port=0"]):
        line = ends_with(tmp_path, 1, *arguments, environment=url)
        assert "Redis" in line
        assert "sesame" not in line


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong --ray-address is one line."""
    address = f"127.0.0.1:{free_port()}"
    assert address in ends_with(tmp_path, 1, "train", *SMALL, f"--ray-address={address}")
    assert "ray://" in ends_with(tmp_path, 2, "train", *SMALL, "--ray-address=ray://127.0.0.1:1")


def test_a_start_that_failed_leaves_the_folder_to_the_corrected_command(tmp_path: Path, taken_port: int) -> None:
    """Whatever kept a run from starting, the same --run-dir serves the next attempt; a run that began keeps it."""
    train = ["train", *SMALL, "--run-dir=run"]
    for wrong in (
        [f"--ray-address=127.0.0.1:{free_port()}"],
        [f"--metrics-port={taken_port}"],
        ["--metrics-port=0", f"--redis-url=redis://127.0.0.1:{free_port()}/0"],
    ):
        ends_with(tmp_path, 1, *train, *wrong)
    with Command(tmp_path, *train, "--metrics-port=0") as run:
        run.wait_for("learning since", 90)
        run.interrupt()
        assert run.wait(60) == INTERRUPTED, run.output
    assert "--allow-change seed" in ends_with(tmp_path, 2, *train, "--set=seed=9", "--metrics-port=0")


def test_a_run_keeps_its_data_in_a_given_redis(tmp_path: Path) -> None:
    """With --redis-url the data go there under the run's own id, and that Redis outlives the run."""
    socket_path = tmp_path / "redis.sock"
    with (tmp_path / "redis.log").open("wb") as log:
        options = ["--port", "0", "--unixsocket", str(socket_path), "--save", "", "--appendonly", "yes"]
        store = subprocess.Popen([find_redis_server(), *options], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(socket_path.exists, "Redis")
            arguments = [*SMALL, "--minutes=10", "--metrics-port=0", f"--redis-url=unix://{socket_path}"]
            with Command(tmp_path, "train", *arguments, "--run-dir=my-run") as run:
                run.wait_for("learning since", 120)
                run.interrupt()
                assert run.wait(60) == INTERRUPTED, run.output
                assert not run.survivors()
            client = redis.Redis(unix_socket_path=str(socket_path))
            keys = client.keys()
            client.close()
            assert keys
            prefix = f"zero:{RunFolder(tmp_path / 'my-run').run_id()}:"
            assert all(key.startswith(prefix.encode()) for key in keys)
        finally:
            store.terminate()
            store.wait(30)
