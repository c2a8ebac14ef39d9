"""Tests of what an operator watches: dashboards and alerts on a real Prometheus over a real run on a Ray cluster."""

import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis

from deploy.interrupts import INTERRUPTED
from replay_server.client import ProcessRegistration, ReplayClient, ReplayError
from replay_server.credentials import Credentials
from replay_server.embedded_redis import find_redis_server
from tests.certificates import Authority
from tests.deploy.test_dashboards import DASHBOARDS
from tests.integration.processes import SMALL, Command, free_port, wait_until
from tests.integration.prometheus import Prometheus
from tests.procfs import suspend
from tests.replay_server.played import played, table_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus"),
]
ROLES = {"actor", "evaluator", "learner", "replay_server"}


class RayHead:
    """A Ray cluster of one machine that asks for a token, with its metrics."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Unix sockets: their paths must be short.
        self._temp_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zero-test-ray-", dir="/tmp")))
        log = stack.enter_context((folder / "ray.log").open("wb"))
        self.process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=3"),
                *(f"--port={self.address.partition(':')[2]}", f"--metrics-export-port={free_port()}"),
                *("--include-dashboard=true", f"--dashboard-port={free_port()}", f"--temp-dir={self._temp_dir}"),
                *("--object-store-memory=100000000", "--disable-usage-stats"),
            ],
            env={**os.environ, **self.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stack.callback(self._end)
        # Written when all else has started.
        self.metrics_list = self._temp_dir / "prom_metrics_service_discovery.json"
        wait_until(self.metrics_list.exists, "Ray's list of its metrics", 120)

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class GuardedServer:
    """A replay server with a certificate that ends soon, tokens, and a Redis of its own that has little memory."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self.port, self.metrics_port = free_port(), free_port()
        authority = Authority(folder)
        self._pair = authority.issue()  # ends tomorrow
        self.tokens = folder / "tokens"
        self.tokens.write_text("me:" + 64 * "a" + "\n")
        token = folder / "token"
        token.write_text(64 * "a" + "\n")
        self.redis_socket = folder / "redis.sock"
        log = stack.enter_context((folder / "redis.log").open("wb"))
        options = ["--port", "0", "--unixsocket", str(self.redis_socket), "--save", "", "--appendonly", "yes"]
        self.redis = subprocess.Popen([find_redis_server(), *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(self.redis.wait)
        stack.callback(self.redis.kill)
        wait_until(self.redis_socket.exists, "Redis")
        self.command = self._start()
        self.client = stack.enter_context(
            ReplayClient(f"127.0.0.1:{self.port}", credentials=Credentials(authority.file, token_file=token))
        )

    def _start(self) -> Command:
        command = self._stack.enter_context(
            Command(
                self._folder,
                *("replay-server", f"--port={self.port}", f"--metrics-port={self.metrics_port}"),
                *(f"--tls-certificate={self._pair.certificate_file}", f"--tls-key={self._pair.key_file}"),
                *(f"--token-file={self.tokens}", f"--redis-url=unix://{self.redis_socket}"),
            )
        )
        command.wait_for("replay server at")
        return command

    def restart(self) -> None:
        """Kill it and start it again."""
        os.kill(self.command.pid, signal.SIGKILL)
        self.command.wait()
        self.command = self._start()

    def fill_memory(self) -> None:
        """Leave its Redis hardly any room."""
        with redis.Redis(unix_socket_path=str(self.redis_socket)) as client:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.1))


@contextmanager
def misbehaving(client: ReplayClient) -> Iterator[None]:
    """Meanwhile a client sends the same trajectory again and again, and asks for a table that is not there."""
    stop = threading.Event()

    def misbehave() -> None:
        while not stop.wait(0.05):
            client.insert("again", [played(1)])
            with suppress(ReplayError):
                client.sample("nowhere", 1, {"action": 1})

    client.create_table(table_config("again"))
    thread = threading.Thread(target=misbehave)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def roles_up(prometheus: Prometheus) -> set[str]:
    """The roles of the run that Prometheus reaches."""
    return {json.loads(series)["role"] for series, up in prometheus.values('up{job="run"}').items() if up}


def without_figures(prometheus: Prometheus, boards: str = "[!i]*") -> list[str]:
    """Queries of the dashboards that have nothing to show, but for `inference`, which only a served agent fills.

    Args:
        prometheus: who is asked.
        boards: names of the dashboards, with wildcards.
    """
    empty: list[str] = []
    for file in DASHBOARDS.glob(f"{boards}.json"):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "10s").replace("$job", "run")
                if all(math.isnan(value) for value in prometheus.values(query).values()):
                    empty.append(f"{file.stem}: {panel['title']}: {query}")
    return empty


def test_dashboards_show_figures_and_alerts_fire_in_their_faults(tmp_path: Path) -> None:
    """A run on a Ray cluster fills every panel without an alert; every fault that is easily made fires its alert.

    The cluster asks for a token and outlives the run.
    """
    with ExitStack() as stack:
        head = RayHead(stack, tmp_path)
        cluster = [f"--ray-address={head.address}", "--actors=1", "--insecure", "--metrics-port=0"]
        calm = ["--set=learner.publish_interval_steps=50", '--set=evaluation.baselines=["random"]']
        run = stack.enter_context(
            Command(
                tmp_path,
                *("train", *SMALL, *calm, *cluster, "--minutes=10", "--run-dir=run"),
                environment=head.environment,
            )
        )
        guarded = GuardedServer(stack, tmp_path)
        grpc, metrics = run.wait_for(r"replay +(\S+), metrics http://(\S+)/metrics", 90).groups()
        guarded_metrics = f"127.0.0.1:{guarded.metrics_port}"
        prometheus = stack.enter_context(
            Prometheus(tmp_path, {"run": metrics, "guarded": guarded_metrics}, head.metrics_list)
        )
        run.wait_for("learning since", 120)
        wait_until(lambda: roles_up(prometheus) >= ROLES, "all roles are scraped")
        empty: list[str] = []

        def all_show_figures() -> bool:
            empty[:] = without_figures(prometheus)
            return not empty

        try:
            wait_until(all_show_figures, "figures in every panel", 120)
        except AssertionError:
            errors = {target["scrapeUrl"]: target["lastError"] for target in prometheus.targets()}
            raise AssertionError(f"no figures: {empty}; scraped: {errors}") from None
        assert [name for name, labels in prometheus.firing().items() if labels["job"] == "run"] == []
        fire_alerts(stack, prometheus, run, guarded, grpc)
        run.interrupt()
        assert run.wait(60) == INTERRUPTED, run.output
        assert head.process.poll() is None


def fire_alerts(stack: ExitStack, prometheus: Prometheus, run: Command, guarded: GuardedServer, address: str) -> None:
    """Make faults, as many at once as do not hide each other, and wait for their alerts."""
    client = stack.enter_context(ReplayClient(address))
    nobody_there = f"127.0.0.1:{free_port()}"
    for server, role in ((client, "actor"), (guarded.client, "learner")):
        registration = ProcessRegistration(server, role, "not-there", nobody_there, os.getpid())
        stack.callback(registration.close)
    guarded.tokens.write_text("no token\n")
    guarded.fill_memory()
    (learner,) = run.pids_of("learner")
    suspend(learner)
    try:
        with misbehaving(client):
            expect(
                prometheus,
                *("ZeroCertificateExpires", "ZeroDuplicateInserts", "ZeroMemoryAlmostFull", "ZeroNoActors"),
                *("ZeroNoInserts", "ZeroNoLearnerSteps", "ZeroProcessNotScraped", "ZeroRequestsRefused"),
                "ZeroStaleCredentials",
            )
    finally:
        os.kill(learner, signal.SIGCONT)
    guarded.tokens.write_text("me:" + 64 * "a" + "\n")
    seen: list[dict[str, float]] = []

    def new_process_seen() -> bool:
        # None at all while it is down or too busy to be scraped: only another one counts as a new process.
        now = prometheus.values('process_start_time_seconds{job="guarded"}')
        if now and now not in seen:
            seen.append(now)
            return True
        return False

    wait_until(new_process_seen, "the scrape of the process")
    for _ in range(4):
        guarded.restart()
        wait_until(new_process_seen, "the scrape of a new process")
    expect(prometheus, "ZeroKeepsRestarting")
    guarded.redis.kill()
    expect(prometheus, "ZeroStoreUnavailable")
    os.kill(guarded.command.pid, signal.SIGKILL)
    expect(prometheus, "ZeroReplayServerDown")


def expect(prometheus: Prometheus, *alerts: str) -> None:
    """Wait until all of these fire, with texts that have nothing left to fill in."""
    missing = set(alerts)

    def all_fire() -> bool:
        firing = prometheus.firing()
        missing.difference_update(firing)
        assert not any("{{" in text for alert in firing.values() for text in alert.values())
        return not missing

    try:
        wait_until(all_fire, "alerts", 90)
    except AssertionError:
        raise AssertionError(f"silent: {sorted(missing)}; firing: {sorted(prometheus.firing())}") from None
