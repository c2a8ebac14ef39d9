"""`zero statistics`: keeps the statistics of a run whose roles were started by hand, and says what there are."""

import json
from pathlib import Path
from threading import Event
from typing import Annotated

import tomli_w
import typer
from rich.console import Console

from deploy.interrupts import run_until_interrupted
from deploy.options import (
    AsJson,
    ClientTokenFile,
    MlflowUri,
    PlaintextToken,
    ReplayAddress,
    SinkNames,
    StatisticsFile,
    TlsCa,
)
from deploy.run_folder import RunFolder
from replay_server.command import LogLevel, MetricsPort, TlsCertificate, TlsKey, log_to_stderr
from replay_server.credentials import Credentials
from replay_server.ports import DEFAULT_ADDRESS, DEFAULT_METRICS_PORT

statistics = typer.Typer(
    no_args_is_help=True, help="Aggregate what the roles of a run record, for TensorBoard, MLflow, files, the console."
)


@statistics.command("run")
def run(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    run_dir: Annotated[Path, typer.Option(metavar="DIR", help="The run's folder; a learner has begun a run there.")],
    replay_address: ReplayAddress = DEFAULT_ADDRESS,
    replay_metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the replay server serves /metrics.")
    ] = f"127.0.0.1:{DEFAULT_METRICS_PORT}",
    sinks: SinkNames = None,
    mlflow_uri: MlflowUri = None,
    statistics_file: StatisticsFile = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
    host: Annotated[str, typer.Option(help="Interface that serves the metrics of this command.")] = "127.0.0.1",
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
) -> None:
    """Keep the statistics of a run whose roles run already; `zero train` does this by itself. Ctrl-C ends it.

    Nothing is missed while it does not run: events wait on the replay server, some 500,000 of them.

    Example: `zero statistics run --run-dir runs/manual --sink tensorboard --sink console`
    """
    # What brings gRPC is imported by the command that needs it.
    from deploy.run_records import RunState  # noqa: PLC0415
    from deploy.statistics.run_statistics import (  # noqa: PLC0415
        EventSource,
        StatisticsSettings,
        run_statistics,
    )

    log_to_stderr(log_level)
    folder = RunFolder(run_dir.absolute())
    config = folder.config()
    settings = StatisticsSettings(None if sinks is None else tuple(sinks), mlflow_uri, statistics_file)
    settings.check()
    credentials = Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure)
    source = EventSource(replay_address, replay_metrics, credentials, host, metrics_port)
    typer.echo(f"statistics of {config.name} into {', '.join(settings.chosen())} (Ctrl-C stops)")
    console = Console()

    def print_line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with run_statistics(source, folder, config, settings, print_line) as running:
        run_until_interrupted(_wait)
        running.state = RunState.INTERRUPTED


def _wait(stop: Event) -> None:
    stop.wait()


@statistics.command("list")
def list_statistics(
    statistics_file: StatisticsFile = None,
    as_json: AsJson = False,
) -> None:
    """Print all statistics as TOML: a file for --statistics looks like this.

    Example: `zero statistics list > mine.toml`
    """
    from deploy.statistics.definitions import load_statistics  # noqa: PLC0415 - imports numpy

    found = [
        statistic.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        for statistic in load_statistics(statistics_file)
    ]
    typer.echo(json.dumps(found) if as_json else tomli_w.dumps({"statistic": found}), nl=as_json)
