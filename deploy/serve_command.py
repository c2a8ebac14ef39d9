"""`zero serve`: an agent on a port of this machine until somebody interrupts it."""

import socket
from typing import Annotated

import typer

from deploy.errors import BAD_INPUT, DeployError
from deploy.options import Root, RunName, latest_or_best
from deploy.resume import find_run
from deploy.run_context import DEFAULT_ROOT

DEFAULT_PORT = 8000
"""Where Ray Serve and its Kubernetes services answer, too."""


def serve_agent(
    run: RunName,
    host: Annotated[str, typer.Option(envvar="ZERO_HOST", help="Interface to serve on; there is no login.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option(envvar="ZERO_SERVE_PORT", min=0, max=65535, help="Where to serve; 0 takes a free one.")
    ] = DEFAULT_PORT,
    weights: Annotated[
        str,
        typer.Option(
            callback=latest_or_best,
            metavar="best|latest",
            help="What its evaluator scored highest, or its newest checkpoint; newer ones are taken as they appear.",
        ),
    ] = "best",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Another value of the run's config, for example search.num_simulations=64; repeatable.",
        ),
    ] = None,
    poll_seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How often to look for newer weights.")] = 5.0,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Serve the agent of a run: POST /act decides on positions, and the browser shows a page to play against it.

    Example: `zero serve runs/manual --weights latest --set search.num_simulations=64`
    """
    folder = find_run(run, root)
    from deploy.run_weights import WhichWeights  # noqa: PLC0415 - imports torch
    from deploy.serving import ServeOptions, check_served, serve_until_interrupted  # noqa: PLC0415 - imports Ray

    options = ServeOptions(
        run=folder.path,
        weights=WhichWeights(weights),
        overrides=tuple(overrides or ()),
        poll_seconds=poll_seconds,
    )
    training_step = check_served(options)
    port = _free_port(host, port)
    typer.echo(f"==> Starting Ray Serve for {folder.path} ({weights} weights, training step {training_step:,})")
    serve_until_interrupted(options, host, port)


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        DeployError: it is taken, or this machine has no such address.
    """
    try:
        with socket.create_server((host, port)) as bound:
            return bound.getsockname()[1]
    except OSError as error:
        raise DeployError(
            f"cannot serve on {host}:{port}: {error.strerror or error}; choose another --port or --host", BAD_INPUT
        ) from None
