"""`zero serve`: an agent on a port of this machine until somebody interrupts it."""

import socket
from typing import Annotated

import typer

from deploy.errors import BAD_INPUT, DeployError
from deploy.fleet_record import FleetRecord
from deploy.options import ClientTokenFile, PlaintextToken, Root, RunName, TlsCa, TlsName
from deploy.resume import find_run
from deploy.roles import checked_device
from deploy.run_context import DEFAULT_ROOT
from deploy.run_folder import RunFolder
from replay_server.command import TlsCertificate, TlsKey
from replay_server.credentials import Credentials
from replay_server.ports import DEFAULT_ADDRESS

PUBLISHED = "published"
DEFAULT_PORT = 8000
"""Where Ray Serve and its Kubernetes services answer, too."""


def _which(value: str) -> str:
    if value not in {"best", "latest", PUBLISHED}:
        raise typer.BadParameter(f"must be best, latest or {PUBLISHED}, got {value!r}")
    return value


def serve_agent(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
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
            callback=_which,
            metavar="best|latest|published",
            help="What its evaluator scored highest, its newest checkpoint, or what its learner publishes; newer ones "
            "are taken as they appear.",
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
    gpus: Annotated[
        float, typer.Option(min=0, max=1, help="Compute on a GPU, or on a share of one as Ray counts; 0 on the CPU.")
    ] = 0.0,
    replay_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of --weights published: where the replay server answers; by default the one of the run that goes on.",
        ),
    ] = None,
    tls_ca: TlsCa = None,
    tls_name: TlsName = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Serve the agent of a run: POST /act decides on positions, and the browser shows a page to play against it.

    With --weights published it also evaluates the leaves of actors that were started with --inference.

    Examples: `zero serve runs/manual --weights latest --set search.num_simulations=64` and
    `zero serve latest --weights published --gpus 1 --poll-seconds 1`
    """
    folder = find_run(run, root)
    is_published = weights == PUBLISHED
    if replay_address is not None and not is_published:
        raise DeployError("--replay-address is where published weights come from: give --weights published", BAD_INPUT)
    checked_device("cuda" if gpus else "cpu", "--gpus", "--gpus 0")
    from deploy.run_weights import WhichWeights  # noqa: PLC0415 - imports torch
    from deploy.serving import ServeOptions, check_served, serve_until_interrupted  # noqa: PLC0415 - imports Ray

    options = ServeOptions(
        run=folder.path,
        weights=WhichWeights.BEST if is_published else WhichWeights(weights),
        overrides=tuple(overrides or ()),
        poll_seconds=poll_seconds,
        replay_address=(replay_address or _address_of(folder)) if is_published else None,
        credentials=Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure, tls_name),
        gpus=gpus,
    )
    training_step = check_served(options)
    port = _free_port(host, port)
    typer.echo(f"==> Starting Ray Serve for {folder.path} ({weights} weights, training step {training_step:,})")
    serve_until_interrupted(options, host, port)


def _address_of(folder: RunFolder) -> str:
    """Where the replay server of a run answers that goes on; else where it does by default."""
    try:
        return FleetRecord.read(folder.fleet_file).replay_address
    except FileNotFoundError:
        return DEFAULT_ADDRESS


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
