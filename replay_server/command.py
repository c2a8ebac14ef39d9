"""The server as a command: its options, and what becomes of them; `__main__` and `zero` run it."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

# What brings gRPC, Redis and numba is imported once the server is to start: --help must not wait for them.
from replay_server.credentials import SecuritySettings
from replay_server.ports import DEFAULT_METRICS_PORT, DEFAULT_PORT

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes: of what was fine and did not work out, of what cannot be used, of what a second signal has ended."""
DEFAULT_DATA_DIR = Path("runs/manual/replay")
LOG_LEVELS = ("debug", "info", "warning", "error")

_MIB = 1 << 20


class CommandError(typer.TyperException):
    """Ends a command with one line that names cause and remedy, and an exit code."""

    def __init__(self, text: str, exit_code: int = FAILED) -> None:
        super().__init__(" ".join(text.split()))
        self.exit_code = exit_code


def as_one_line(error: typer.TyperException) -> str:
    """What a command has to say about its end; empty where it has shown its help instead."""
    text = " ".join(error.format_message().split())
    if isinstance(error.__cause__, ValidationError):
        text += f", got {error.__cause__.errors()[0]['input']!r}"
    return text


def log_to_stderr(log_level: str) -> None:
    """Show what is logged from this level on, in colours where stderr is a terminal."""
    if not sys.stderr.isatty():
        logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        return
    from rich.console import Console  # noqa: PLC0415 - a log file needs neither
    from rich.highlighter import NullHighlighter  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415

    handler = RichHandler(console=Console(stderr=True), show_path=False, highlighter=NullHighlighter())
    logging.basicConfig(level=log_level.upper(), format="%(name)s: %(message)s", datefmt="[%X]", handlers=[handler])


def absolute(value: Path | None) -> Path | None:
    """The same for processes that run elsewhere; links stay, since what they point to may change."""
    return None if value is None else value.absolute()


def refuse_two_urls(redis_url: str | None, redis_url_file: Path | None) -> None:
    """Refuse a Redis that is named twice.

    Raises:
        CommandError: it is.
    """
    if redis_url is not None and redis_url_file is not None:
        raise CommandError("--redis-url and --redis-url-file name one Redis: give one of them", BAD_INPUT)


def read_redis_url(file: Path) -> str:
    """The URL of Redis in a file.

    Raises:
        CommandError: it cannot be read.
    """
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise CommandError(
            f"cannot read {file}: name a file with the URL of Redis and nothing else", BAD_INPUT
        ) from None


def _log_level(value: str) -> str:
    if value.lower() not in LOG_LEVELS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(LOG_LEVELS)}")
    return value.lower()


def _without_password(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Take a URL with a password from the environment alone."""
    source = context.get_parameter_source(parameter.name or "")
    user, at, _ = (value or "").partition("://")[2].rpartition("@")
    holds_password = (at and ":" in user) or "password=" in (value or "")
    if holds_password and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter(
            "others can see the password on a command line: set ZERO_REDIS_URL, or write the URL to a --redis-url-file"
        )
    return value


LogLevel = Annotated[
    str,
    typer.Option(
        envvar="ZERO_LOG_LEVEL", callback=_log_level, metavar="LEVEL", help="One of debug, info, warning, error."
    ),
]
MetricsPort = Annotated[
    int,
    typer.Option(
        envvar="ZERO_METRICS_PORT",
        min=0,
        max=65535,
        help="Where /metrics is served, in plain text and without a token; 0 takes a free one.",
    ),
]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        envvar="ZERO_REDIS_URL",
        callback=_without_password,
        metavar="URL",
        help="Redis that keeps the data, for example redis://host:6379/0; a private one is started without. "
        "With a password only by the environment variable or --redis-url-file.",
    ),
]
RedisUrlFile = Annotated[
    Path | None,
    typer.Option(
        envvar="ZERO_REDIS_URL_FILE", callback=absolute, metavar="FILE", help="Holds the URL instead of --redis-url."
    ),
]
TlsCertificate = Annotated[
    Path | None,
    typer.Option(
        envvar="ZERO_REPLAY_TLS_CERTIFICATE", callback=absolute, metavar="FILE", help="PEM certificate to show."
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(envvar="ZERO_REPLAY_TLS_KEY", callback=absolute, metavar="FILE", help="Its private key, PEM."),
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        envvar="ZERO_REPLAY_TLS_CLIENT_CA",
        callback=absolute,
        metavar="FILE",
        help="Clients must show a certificate that one of these has signed, PEM.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="ZERO_REPLAY_TOKEN_FILE",
        callback=absolute,
        metavar="FILE",
        help="Clients must show one of these tokens; a line name:token for each.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        envvar="ZERO_REPLAY_INSECURE",
        help="Let other machines in without TLS or tokens; on a trusted network only.",
    ),
]


def serve(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    data_dir: Annotated[
        Path,
        typer.Option(
            envvar="ZERO_DATA_DIR", callback=absolute, metavar="DIR", help="Where a private Redis keeps its data."
        ),
    ] = DEFAULT_DATA_DIR,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    redis_prefix: Annotated[
        str, typer.Option(envvar="ZERO_REDIS_PREFIX", help="Of all keys, so that several servers can share a Redis.")
    ] = "zero",
    host: Annotated[
        str, typer.Option(envvar="ZERO_HOST", help="Interface to serve on; any but loopback needs TLS and tokens.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="ZERO_PORT", min=0, max=65535, help="Where gRPC is served; 0 takes a free one.")
    ] = DEFAULT_PORT,
    metrics_port: MetricsPort = DEFAULT_METRICS_PORT,
    health_port: Annotated[
        int | None,
        typer.Option(
            envvar="ZERO_REPLAY_HEALTH_PORT",
            min=0,
            max=65535,
            help="Where gRPC health alone is served, without TLS and tokens, for probes; nowhere by default.",
        ),
    ] = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    max_message_mib: Annotated[
        int, typer.Option(envvar="ZERO_MAX_MESSAGE_MIB", min=1, max=1024, help="The largest message, in MiB.")
    ] = 16,
    max_table_mib: Annotated[
        int | None,
        typer.Option(
            envvar="ZERO_MAX_TABLE_MIB",
            min=1,
            help="All tables together, in MiB; by default four fifths of the memory.",
        ),
    ] = None,
    max_in_flight_mib: Annotated[
        int,
        typer.Option(envvar="ZERO_MAX_IN_FLIGHT_MIB", min=4, help="The most requests and answers in flight, in MiB."),
    ] = 256,
    max_waiting_calls: Annotated[
        int, typer.Option(envvar="ZERO_MAX_WAITING_CALLS", min=1, help="The most calls that wait for a rate limiter.")
    ] = 1024,
    log_level: LogLevel = "info",
) -> None:
    """Be the replay server: keep trajectories, serve sequences and weights, list live processes at /sd.

    Certificates and tokens are read again when their files change.

    Examples: `zero replay-server --port 8470 --data-dir runs/manual/replay` and
    `zero replay-server --host 0.0.0.0 --tls-certificate tls.crt --tls-key tls.key --token-file tokens`
    """
    refuse_two_urls(redis_url, redis_url_file)
    if max_in_flight_mib < 4 * max_message_mib:
        raise CommandError(
            f"--max-in-flight-mib {max_in_flight_mib} is too little for --max-message-mib {max_message_mib}: "
            f"give at least {4 * max_message_mib} MiB, or smaller messages",
            BAD_INPUT,
        )
    log_to_stderr(log_level)
    from replay_server.security import SecurityError  # noqa: PLC0415
    from replay_server.server import (  # noqa: PLC0415
        BoundAddresses,
        ReplayServerError,
        ReplayServerSettings,
        run_replay_server,
    )

    settings = ReplayServerSettings(
        data_dir,
        host=host,
        port=port,
        metrics_port=metrics_port,
        health_port=health_port,
        security=SecuritySettings(
            certificate_file=tls_certificate,
            key_file=tls_key,
            client_ca_file=tls_client_ca,
            token_file=token_file,
            insecure=insecure,
        ),
        redis_url=redis_url if redis_url_file is None else read_redis_url(redis_url_file),
        redis_prefix=redis_prefix,
        max_message_bytes=max_message_mib * _MIB,
        max_table_bytes=None if max_table_mib is None else max_table_mib * _MIB,
        max_in_flight_bytes=max_in_flight_mib * _MIB,
        max_waiting_calls=max_waiting_calls,
    )

    def say(bound: BoundAddresses) -> None:
        health = f", health at {bound.health_address}" if bound.health_address else ""
        metrics = f"metrics http://{bound.metrics_address}/metrics and …/sd"
        typer.echo(f"replay server at {bound.address}, {metrics}{health} (Ctrl-C stops)")

    try:
        asyncio.run(_until_interrupted(lambda stop: run_replay_server(settings, stop, say)))
    except ReplayServerError as error:
        raise CommandError(str(error), BAD_INPUT if isinstance(error, SecurityError) else FAILED) from error


async def _until_interrupted(run: Callable[[threading.Event], None]) -> None:
    """Run `run(stop)` in a thread and set `stop` on the first signal; the second ends the process at once."""
    stop = threading.Event()

    def on_signal() -> None:
        if stop.is_set():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)  # an exception would wait for the thread
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await asyncio.to_thread(run, stop)
