"""Tests of the images, built by podman from our Dockerfile and run as an operator would: guarded, and stopped."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from replay_server.client import ReplayClient
from tests.deploy.containers import GUARDED, Container, Podman, podman_with_base, why_not
from tests.integration.processes import SMALL, free_port, wait_until
from tests.ledger import Ledger, check_that_nothing_is_lost
from tests.replay_server.played import table_config

pytestmark = [pytest.mark.images, pytest.mark.skipif(bool(why_not()), reason=why_not() or "podman is there")]

MAX_COMPRESSED_BYTES = 250_000_000
GRACE_SECONDS = 60
"""As in compose.yaml and the chart."""


@dataclass(frozen=True)
class Image:
    """What was built, and by what it is run."""

    podman: Podman
    name: str


@pytest.fixture(scope="module")
def podman_and_base() -> Iterator[tuple[Podman, str]]:
    """What builds, and upon what."""
    with podman_with_base() as found:
        yield found


@pytest.fixture(scope="module")
def replay_image(podman_and_base: tuple[Podman, str]) -> Image:
    """The image of the replay server."""
    podman, base = podman_and_base
    return Image(podman, podman.build("replay-server", base))


@pytest.fixture(scope="module")
def roles_image(podman_and_base: tuple[Podman, str]) -> Image:
    """The image of all other roles."""
    podman, base = podman_and_base
    return Image(podman, podman.build("roles", base))


@pytest.fixture(scope="module")
def server(replay_image: Image) -> Container:
    """A replay server, guarded, with a volume of its own for its data."""
    arguments = [f"--port={free_port()}", "--metrics-port=0"]
    return replay_image.podman.start(replay_image.name, *arguments, options=["--volume=replay:/data"])


def address(server: Container) -> str:
    """Of a server, once it is there."""
    return server.wait_for(r"replay server at (\S+),").group(1)


def test_the_replay_image_is_small(replay_image: Image) -> None:
    """All its layers, its base included, as a registry sends them."""
    layers = replay_image.podman.compressed_bytes(replay_image.name)
    unpacked = replay_image.podman.unpacked_bytes(replay_image.name)
    report = f"layers of {layers} bytes compressed, {unpacked} bytes unpacked"
    assert sum(layers) < MAX_COMPRESSED_BYTES, report


def test_the_server_can_do_little_but_serve(server: Container) -> None:
    """An ordinary user without rights and a root that nothing writes to; neither torch, Ray, pip nor its settings."""
    address(server)
    assert server.execute("id", "-u").stdout == "10001\n"
    status = server.execute("cat", "/proc/1/status").stdout.splitlines()
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    for path in ("/file", "/opt/zero/file", "/usr/file"):
        assert "Read-only file system" in server.execute("touch", path).stderr
    for module in ("torch", "ray", "pip", "setuptools"):
        assert f"No module named '{module}'" in server.execute("python3", "-c", f"import {module}").stderr
    assert server.execute("ls", "/etc/pip.conf", "/run/secrets/ca").stdout == ""


def test_a_restart_loses_nothing(server: Container) -> None:
    """Stopped while inserts come, it ends in time with 0; started again it has them all, and the writer goes on."""
    with ReplayClient(address(server)) as client:
        client.create_table(table_config(capacity=1_000_000))
        with Ledger(address(server), "games") as ledger:
            wait_until(lambda: len(ledger.acknowledged) > 100, "inserts")
            assert server.stop(GRACE_SECONDS) == 0, server.output
            before = len(ledger.acknowledged)
            server.start()
            wait_until(lambda: len(ledger.acknowledged) > before, "inserts after the restart")
        check_that_nothing_is_lost(client, "games", [ledger])


def test_a_mistake_ends_with_one_line(replay_image: Image) -> None:
    """That of an address which others can reach, without certificates."""
    result = replay_image.podman.run("run", "--rm", *GUARDED, "--network=host", replay_image.name, "--host=0.0.0.0")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len((result.stdout + result.stderr).splitlines()) == 1


def test_learner_and_actor_train_and_end_in_time(server: Container, roles_image: Image) -> None:
    """Guarded, as an ordinary user: weights come of what was played, again and again, and SIGTERM ends both in time."""
    start, settings = roles_image.podman.start, [f"--replay-address={address(server)}", "--metrics-port=0", *SMALL]
    learner = start(roles_image.name, "learner", *settings)
    actor = start(roles_image.name, "actor", "--index=7", *settings)
    with ReplayClient(address(server)) as client:
        first = wait_until(lambda: client.server_info().weights_version, "weights")
        wait_until(lambda: client.server_info().weights_version > first + 2, "better weights")
    assert learner.execute("id", "-u").stdout == "10001\n"
    assert "Read-only file system" in actor.execute("touch", "/file").stderr
    assert actor.stop(GRACE_SECONDS) == 0, actor.output
    assert learner.stop(GRACE_SECONDS) == 0, learner.output
