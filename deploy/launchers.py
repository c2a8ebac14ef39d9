"""`zero tensorboard`, `zero mlflow` and `zero ray`: start what shows a run, after a look whether there is anything."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from deploy.errors import BAD_INPUT, DeployError
from deploy.interrupts import INTERRUPTED, POLL_SECONDS, Interrupts

ENDING_SECONDS = 10.0
"""A program that is told to end is killed after so long."""

Place = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or one that holds runs.")]
Host = Annotated[str, typer.Option(help="Interface to serve on.")]


def _port(default: int) -> object:
    return typer.Option(min=1, max=65535, help=f"Port to serve on, {default} by default.")


def tensorboard(runs: Place = Path("runs"), host: Host = "127.0.0.1", port: Annotated[int, _port(6006)] = 6006) -> None:
    """Start TensorBoard on a run, or on all runs of a folder, until Ctrl-C.

    Example: `zero tensorboard runs --port 6006`
    """
    _refuse_missing("tensorboard.main", "pip install 'zero-selfplay[tensorboard]'")
    _warn_unless(any(runs.glob("**/events.out.tfevents.*")), f"there are no event files in {runs} yet")
    arguments = ["--logdir", str(runs), "--host", host, "--port", str(port)]
    _run([sys.executable, "-m", "tensorboard.main", *arguments], f"http://{host}:{port}")


def mlflow(
    store: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where MLflow keeps runs: the folder mlruns beside them.")
    ] = Path("runs/mlruns"),
    host: Host = "127.0.0.1",
    port: Annotated[int, _port(5000)] = 5000,
) -> None:
    """Start MLflow's page on the runs of `zero train --sink mlflow`, until Ctrl-C; needs all of MLflow.

    Example: `zero mlflow runs/mlruns --port 5000`
    """
    # The client that the extra brings is a small part of MLflow, without its server.
    _refuse_missing("flask", "pip install mlflow")
    _warn_unless(any(store.glob("*/meta.yaml")), f"MLflow keeps no runs in {store} yet")
    arguments = ["--backend-store-uri", store.absolute().as_uri(), "--host", host, "--port", str(port)]
    _run([sys.executable, "-m", "mlflow", "server", *arguments], f"http://{host}:{port}")


def ray(
    host: Host = "127.0.0.1",
    port: Annotated[int, _port(8265)] = 8265,
    cluster_port: Annotated[int, typer.Option(min=1, max=65535, help="Port that machines join the cluster at.")] = 6379,
) -> None:
    """Start a Ray head with its dashboard, for `zero train --ray-address auto`, until Ctrl-C.

    Example: `zero ray --port 8265`
    """
    _warn_unless(importlib.util.find_spec("aiohttp_cors") is not None, "no dashboard: pip install 'ray[default]'")
    typer.echo("the dashboard asks for a token, which `ray get-auth-token --generate` prints")
    dashboard = ["--dashboard-host", host, "--dashboard-port", str(port)]
    arguments = ["--head", "--block", "--disable-usage-stats", "--port", str(cluster_port), *dashboard]
    _run([sys.executable, "-m", "ray.scripts.scripts", "start", *arguments], f"http://{host}:{port}")


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _refuse_missing(module: str, remedy: str) -> None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise DeployError(f"{module.partition('.')[0]} is not installed: {remedy}", BAD_INPUT)


def _warn_unless(condition: object, text: str) -> None:
    if not condition:
        typer.echo(f"warning: {text}", err=True)


def _run(command: Sequence[str], address: str) -> None:
    """Run a program until it ends; a signal, which is its ordinary end, ends it before this command."""
    typer.echo(f"serving {address} (Ctrl-C stops)")
    environment = os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with Interrupts() as interrupts, subprocess.Popen(command, env=environment) as process:  # noqa: S603 - ours
        while process.poll() is None and not interrupts.count:
            _wait(process, POLL_SECONDS)
        if interrupts.count:
            process.terminate()
            _wait(process, ENDING_SECONDS)
            process.kill()
            raise typer.Exit(INTERRUPTED)
        code = process.returncode
    if code:
        raise DeployError(f"{command[2]} ended with exit code {code}")
