"""`zero watch`: a page that shows a run while it goes on, or afterwards, until somebody interrupts it."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from deploy.errors import BAD_INPUT, DeployError
from deploy.interrupts import run_until_interrupted
from deploy.options import ClientTokenFile, PlaintextToken, Root, RunName, TlsCa
from deploy.resume import find_run
from deploy.run_context import DEFAULT_ROOT
from replay_server.command import TlsCertificate, TlsKey
from replay_server.credentials import Credentials

DEFAULT_PORT = 8090


def watch(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    run: RunName,
    host: Annotated[str, typer.Option(help="Interface to serve on; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes a free one.")] = DEFAULT_PORT,
    root: Root = DEFAULT_ROOT,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
) -> None:
    """Show a run in the browser: what every role does, figures over time, and the games that actors have just played.

    It reads the run's folder and asks its replay server for the newest games; a run that has ended shows its figures.

    Example: `zero watch latest --port 8090`
    """
    folder = find_run(run, root)
    from deploy.watching import RunPage  # noqa: PLC0415 - loads the compiled games

    credentials = Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure)
    with RunPage(folder, credentials) as page:

        class Handler(BaseHTTPRequestHandler):
            """Hands requests to the page."""

            def do_GET(self) -> None:
                """Answer."""
                url = urlsplit(self.path)
                reply = page.reply(url.path, {name: values[-1] for name, values in parse_qs(url.query).items()})
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class has it
                """Requests are nothing to tell."""

        try:
            server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise DeployError(
                f"cannot serve on {host}:{port}: {error.strerror or error}; choose another --port or --host", BAD_INPUT
            ) from None
        typer.echo(f"{folder.path} at http://{host}:{server.server_port} (Ctrl-C stops)")
        run_until_interrupted(lambda stop: _serve(server, stop))


def _serve(server: ThreadingHTTPServer, stop: Event) -> None:
    with server:
        thread = Thread(target=server.serve_forever, name="watch", daemon=True)
        thread.start()
        stop.wait()
        server.shutdown()
        thread.join()
