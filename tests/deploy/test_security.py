"""Tests of the command line's side of security: what may not start, what may not be typed, what is never shown."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.cli import main
from deploy.errors import BAD_INPUT, DeployError
from deploy.interrupts import INTERRUPTED
from deploy.ray_fleet import RayFleet, RunningRole
from deploy.role_host import Outcome
from deploy.roles import Addresses, Assignment, Role
from deploy.run_context import RunContext
from deploy.supervisor import Supervisor
from replay_server.client import ReplayClient, ReplayError, ReplayTimeout
from replay_server.credentials import Credentials
from replay_server.embedded_redis import find_redis_server
from tests.certificates import Authority
from tests.deploy.test_supervisor import ScriptedFleet
from tests.integration.processes import SMALL, Command, wait_until
from tests.replay_server.played import played, table_config

TOKEN = "a-token-of-an-actor-7f3e"
PASSWORD = "sesame-open-0451"

Run = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command that is refused as bad input; returns its one line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["zero", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert caught.value.code == BAD_INPUT
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[Path]:
    """A Redis that asks for PASSWORD."""
    path = tmp_path / "redis.sock"
    lines = f'port 0\nunixsocket "{path}"\nrequirepass {PASSWORD}\nsave ""\nappendonly yes\ndir "{tmp_path}"\n'
    (tmp_path / "redis.conf").write_text(lines)
    with (tmp_path / "redis.log").open("wb") as log:
        store = subprocess.Popen([find_redis_server(), str(tmp_path / "redis.conf")], stdout=log, stderr=log)
    try:
        wait_until(path.exists, "Redis")
        yield path
    finally:
        store.terminate()
        store.wait(30)


def test_a_server_for_other_machines_needs_tls_and_tokens(refused: Run, tmp_path: Path) -> None:
    """One line with the remedy and exit code 2; nothing is left behind."""
    ports = ["--port=0", "--metrics-port=0"]
    line = refused("replay-server", "--host=0.0.0.0", *ports)
    assert "'0.0.0.0' without TLS and tokens: give --tls-certificate, --tls-key and --token-file" in line
    assert "--insecure" in line
    pair = Authority(tmp_path).issue()
    tls = [f"--tls-certificate={pair.certificate_file}", f"--tls-key={pair.key_file}"]
    assert "without tokens" in refused("replay-server", "--host=0.0.0.0", *ports, *tls)
    assert "go together" in refused("replay-server", *ports, tls[0])
    assert "No such file" in refused("replay-server", *ports, "--token-file=nowhere")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}@localhost:6379/0",
        f"redis://me:{PASSWORD}@localhost:6379/0",
        f"rediss://me:{PASSWORD}@/x@localhost",
        f"unix:///run/redis.sock?db=0&password={PASSWORD}",
    ],
)
@pytest.mark.parametrize("command", ["replay-server", "train"])
def test_no_password_stands_on_a_command_line(refused: Run, command: str, url: str) -> None:
    """It is refused with what to do instead, and not repeated."""
    line = refused(command, f"--redis-url={url}")
    assert "ZERO_REDIS_URL" in line
    assert PASSWORD not in line


def test_the_url_of_redis_is_given_once_and_can_be_read(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as text and as a file; the file must be there and hold text."""
    for command in ("replay-server", "train"):
        assert "give one of them" in refused(command, "--redis-url=redis://localhost", "--redis-url-file=url")
    assert "cannot read" in refused("replay-server", "--redis-url-file=nowhere")
    Path("url").write_bytes(b"\xff\xfe")
    assert "cannot read" in refused("replay-server", "--redis-url-file=url")


@pytest.mark.parametrize("command", ["replay-server", "train"])
def test_the_help_shows_no_value_of_the_environment(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the variables alone."""
    monkeypatch.setenv("ZERO_REDIS_URL", f"redis://:{PASSWORD}@localhost")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["zero", command, "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "ZERO_REDIS_URL" in shown
    assert PASSWORD not in shown


class RefusingFleet(ScriptedFleet):
    """A fleet whose roles may not start."""

    def addresses(self, running: RunningRole) -> Any:
        """Never there."""
        return f"addresses of {running.assignment.name}"

    def outcome(self, _: RunningRole) -> Outcome:
        """For good."""
        return Outcome("may not", is_permanent=True)


def test_a_run_whose_replay_server_may_not_start_ends_as_bad_input() -> None:
    """Exit code 2, as by hand."""
    fleet = RefusingFleet(set())
    supervisor = Supervisor(cast("RayFleet", fleet), lambda _: None)
    assignment = Assignment(Role.REPLAY_SERVER, RunContext.of(Path()))
    fleet.ask_to_stop(fleet.start(assignment))
    with pytest.raises(DeployError, match="replay-server: may not") as caught:
        supervisor.start_replay_server(assignment, lambda: False)
    assert caught.value.exit_code == BAD_INPUT


def test_a_password_is_in_no_repr() -> None:
    """What may be logged does not show it."""
    assignment = Assignment(Role.REPLAY_SERVER, RunContext.of(Path()), redis_url=f"redis://:{PASSWORD}@localhost")
    assert PASSWORD not in repr(assignment)
    assert PASSWORD not in repr(Addresses("a", "b"))


def test_a_guarded_server_by_hand_shows_no_secret(tmp_path: Path, redis_socket: Path) -> None:
    """With TLS, tokens and a Redis password it serves who may, refuses others, and shows none of the secrets.

    Neither output, metrics nor command lines of any of its processes hold them.
    """
    authority = Authority(tmp_path)
    pair = authority.issue()
    (tmp_path / "tokens").write_text(f"actors:{TOKEN}\n")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "wrong").write_text(f"{TOKEN}x\n")
    environment = {
        "ZERO_REDIS_URL": f"unix://{redis_socket}?password={PASSWORD}",
        "ZERO_REPLAY_TLS_CERTIFICATE": str(pair.certificate_file),
        "ZERO_REPLAY_TLS_KEY": pair.key_file.name,
        "ZERO_REPLAY_TOKEN_FILE": "tokens",
        "ZERO_REPLAY_HEALTH_PORT": "0",
    }
    ports = ["--port=0", "--metrics-port=0", "--log-level=debug"]
    with Command(tmp_path, "replay-server", *ports, environment=environment) as server:
        found = server.wait_for(r"replay server at (\S+), metrics http://(\S+)/metrics and …/sd, health at (\S+)")
        good = Credentials(ca_file=authority.file, token_file=tmp_path / "token")
        with ReplayClient(found[1], credentials=good) as client:
            client.create_table(table_config())
            assert client.insert("games", [played(1)]).stored == 1
        wrong = replace(good, token_file=tmp_path / "wrong")
        with ReplayClient(found[1], credentials=wrong) as client, pytest.raises(ReplayError, match="UNAUTHENTICATED"):
            client.server_info(timeout=10)
        with grpc.insecure_channel(found[3]) as channel:
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        with urllib.request.urlopen(f"http://{found[2]}/metrics", timeout=10) as response:
            metrics = response.read().decode()
        (tmp_path / "tokens").write_text(f"actors:{TOKEN}:{TOKEN}\n")
        server.wait_for("earlier credentials stay in force")
        everything = "\n".join((server.output, metrics, *server.survivors()))
        server.interrupt()
        assert server.wait(20) == 0, server.output
        everything += server.output
    assert "zero replay-server" in everything, "the command lines were looked at"
    assert 'zero_replay_rejected_requests_total{reason="UNAUTHENTICATED"} 1.0' in everything
    for secret in (TOKEN, PASSWORD, pair.key_file.read_text().splitlines()[1]):
        assert secret not in everything


@pytest.mark.parametrize("role", ["learner", "actor", "evaluate"])
def test_a_role_whose_credentials_cannot_be_used_says_so(refused: Run, role: str) -> None:
    """One line and exit code 2, before it connects."""
    arguments = [role, "--experiment=tic_tac_toe"]
    to_others = [*arguments, "--replay-address=replay:8470"]
    assert "for all to read" in refused(*to_others, f"--token-file={write(Path('good'), TOKEN)}")
    assert "No such file" in refused(*arguments, "--tls-ca=nowhere")
    assert "over TLS only" in refused(*arguments, "--tls-certificate=nowhere", "--tls-key=nowhere")
    assert "line 1 is no name:token" in refused(*arguments, f"--token-file={write(Path('bad'), 'bad')}")


def write(path: Path, text: str) -> Path:
    """Write and return a file."""
    path.write_text(text)
    return path


def test_a_run_with_a_certificate_needs_its_authority(refused: Run) -> None:
    """Its own roles would not trust the replay server."""
    assert "--tls-ca" in refused("train", "--tls-certificate=crt", "--tls-key=key")


@pytest.mark.slow
def test_a_run_over_mutual_tls_learns_and_shows_no_secret(tmp_path: Path, redis_socket: Path) -> None:
    """Certificates, the token and the Redis URL reach every role as files; a stranger is refused.

    Neither output, log files, metrics nor command lines show any of them, those of Ray included.
    """
    authority = Authority(tmp_path)
    pair = authority.issue()
    write(tmp_path / "tokens", f"run:{TOKEN}\n")
    write(tmp_path / "url", f"unix://{redis_socket}?password={PASSWORD}\n")
    options = [
        *(f"--tls-certificate={pair.certificate_file}", f"--tls-key={pair.key_file}", f"--tls-ca={authority.file}"),
        *(f"--tls-client-ca={authority.file}", "--token-file=tokens", "--redis-url-file=url"),
        *("--minutes=10", "--metrics-port=0", "--no-live", "--run-dir=run", "--log-level=debug"),
    ]
    with Command(tmp_path, "train", *SMALL, *options) as run:
        run.wait_for("learning since", 120)
        found = run.wait_for(r"replay +(\S+), metrics http://(\S+)/metrics")
        stranger = Credentials(ca_file=authority.file, token_file=tmp_path / "tokens")
        with ReplayClient(found[1], credentials=stranger) as client, pytest.raises(ReplayTimeout):
            client.server_info(timeout=1)
        with urllib.request.urlopen(f"http://{found[2]}/metrics", timeout=10) as response:
            shown = [response.read().decode(), *run.survivors()]
        run.interrupt()
        assert run.wait(60) == INTERRUPTED, run.output
        shown += [run.output, *(path.read_text() for path in (tmp_path / "run").rglob("*.log"))]
    everything = "\n".join(shown)
    for seen in ("ray", "zero_replay_inserted_steps_total", "client run has shown its token", "learner stopped"):
        assert seen in everything, "it was looked at"
    for secret in (TOKEN, PASSWORD, pair.key_file.read_text().splitlines()[1]):
        assert secret not in everything
