"""Options that several commands of the command line share; the server's own are in replay_server/command.py."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.experiment_files import built_in_names
from deploy.run_context import DEFAULT_ROOT
from replay_server.command import absolute
from replay_server.ports import DEFAULT_ADDRESS


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise typer.BadParameter(f"write it as host:port, for example {DEFAULT_ADDRESS}, got {value!r}")
    return value


def _url(value: str | None) -> str | None:
    if value is not None and not value.startswith(("http://", "https://")):
        raise typer.BadParameter(f"write it as http://HOST:PORT, for example http://127.0.0.1:8000, got {value!r}")
    return value


def latest_or_best(value: str) -> str:
    """The value, if it is one of the two."""
    if value not in {"latest", "best"}:
        raise typer.BadParameter(f"must be latest or best, got {value!r}")
    return value


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the runs in ROOT that begin so, for a shell."""
    root = Path(context.params.get("root") or DEFAULT_ROOT)
    return sorted(path.parent.name for path in root.glob(f"{incomplete}*/config.toml"))


def complete_experiment(incomplete: str) -> list[str]:
    """Names of built-in experiments that begin so, for a shell."""
    return [name for name in built_in_names() if name.startswith(incomplete)]


Experiment = Annotated[
    str,
    typer.Option(
        "--experiment",
        "-e",
        envvar="ZERO_EXPERIMENT",
        metavar="NAME|PATH",
        autocompletion=complete_experiment,
        help=f"A built-in experiment ({', '.join(built_in_names())}) or a TOML file.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Another value of the config, for example search.num_simulations=64; repeatable.",
    ),
]
RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's folder, its name in ROOT, or `latest`.", autocompletion=complete_run),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ReplayAddress = Annotated[
    str,
    typer.Option(
        envvar="ZERO_REPLAY_ADDRESS",
        callback=_host_and_port,
        metavar="HOST:PORT",
        help="Where the replay server answers.",
    ),
]
Inference = Annotated[
    str | None,
    typer.Option(
        envvar="ZERO_INFERENCE",
        callback=_url,
        metavar="URL",
        help="Let the agent that `zero serve --weights published` serves there evaluate the leaves of the search; "
        "without, it is done where the actor is.",
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        envvar="ZERO_REPLAY_TLS_CA",
        callback=absolute,
        metavar="FILE",
        help="PEM certificates that the replay server's is checked against; turns TLS on.",
    ),
]
TlsName = Annotated[
    str | None,
    typer.Option(
        envvar="ZERO_REPLAY_TLS_NAME",
        metavar="NAME",
        help="The name that the replay server's certificate is for, where roles reach it by another one.",
    ),
]
ClientTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="ZERO_REPLAY_TOKEN_FILE",
        callback=absolute,
        metavar="FILE",
        help="Token for the replay server, on the first line.",
    ),
]
PlaintextToken = Annotated[
    bool,
    typer.Option(
        "--insecure", envvar="ZERO_REPLAY_INSECURE", help="Send the token to other machines without TLS, too."
    ),
]
Root = Annotated[
    Path,
    typer.Option(
        envvar="ZERO_ROOT",
        metavar="DIR",
        help="The folder that holds the runs; on a cluster a volume that its machines share, if there is one.",
    ),
]
Application = Annotated[
    str,
    typer.Option(envvar="ZERO_APPLICATION", help="Whose runs these are, for whoever follows several applications."),
]
SinkNames = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="json|tensorboard|mlflow|console",
        help="Where statistics go; repeatable. By default json, tensorboard if that is installed, and mlflow if "
        "--mlflow-uri is given.",
    ),
]
MlflowUri = Annotated[
    str | None,
    typer.Option(
        envvar="MLFLOW_TRACKING_URI", metavar="URI", help="Of MLflow; without, it keeps a folder beside the run."
    ),
]
StatisticsFile = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        callback=absolute,
        metavar="FILE",
        help="TOML with further statistics, in [[statistic]] tables; `zero statistics list` shows what one is.",
    ),
]
