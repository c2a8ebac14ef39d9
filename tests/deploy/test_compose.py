"""Tests of the compose file: what it asks for exists, and every command and setting in it is one of ours."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from deploy import cli
from replay_server import __main__ as replay_server

DOCKER = Path(__file__).parents[2] / "deploy/docker"
FILE = DOCKER / "compose.yaml"
HOSTNAME = "fffffffb1c2d"
"""The highest a container's hostname can be, in what matters."""


def plain(text: str) -> str:
    """Without what compose replaces."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text).replace("$$", "$")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Its services by their names, with nothing set in the environment."""
    return yaml.safe_load(plain(FILE.read_text()))["services"]


def arguments(service: dict[str, Any], folder: Path) -> list[str]:
    """What follows the program's name in the container; a shell is really asked, in a container of that hostname."""
    if "entrypoint" not in service:
        return service.get("command", [])
    for name, text in {"hostname": f"echo {HOSTNAME}", "zero": 'printf "%s\\n" "$@"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    result = subprocess.run(service["entrypoint"], capture_output=True, text=True, check=True, env=environment)
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", ["replay-server", "learner", "actor", "evaluator"])
def test_every_setting_is_one_of_ours(
    name: str, services: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line of the image takes the arguments and the environment, and leaves nothing of them unread."""
    service = services[name]
    words = arguments(service, tmp_path)
    command: Any = typer.main.get_command(replay_server.app)
    if service["image"] == "zero":
        command, words = typer.main.get_command(cli.app).commands[words[0]], words[1:]
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)
    read = command.make_context(name, words).params
    assert set(service["environment"]) <= {option.envvar for option in command.params}
    if name == "actor":
        assert (read["host"], read["index"]) == (HOSTNAME, 0xFFFFFFF)


def test_what_it_names_exists(services: dict[str, Any]) -> None:
    """Targets of the Dockerfile, and files and folders of the checkout."""
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    built = [service["build"] for service in services.values() if "build" in service]
    assert {build["target"] for build in built} == {"replay-server", "roles"} <= set(targets)
    assert all((DOCKER / build["context"] / build["dockerfile"]).is_file() for build in built)
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert all((DOCKER / source).exists() for source in mounted if source.startswith("."))


def test_grafana_finds_prometheus_and_the_dashboards(services: dict[str, Any]) -> None:
    """Where the provisioned files look is where the compose file puts it."""
    folders = dict(reversed(volume.split(":")[:2]) for volume in services["grafana"]["volumes"])
    provisioning = DOCKER / folders["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/zero.yml").read_text())["providers"]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert provider["options"]["path"] == str(home.parent)
    assert (DOCKER / folders[str(home.parent)] / home.name).is_file()
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    url = urlsplit(source["url"])
    assert services["prometheus"]["network_mode"] == f"service:{url.hostname}"
    assert services[str(url.hostname)]["ports"] == [f"127.0.0.1:{url.port}:9090"]
