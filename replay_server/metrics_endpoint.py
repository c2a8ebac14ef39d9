"""The HTTP endpoint for Prometheus: /metrics of this server, /sd with everybody who is alive."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from replay_server.errors import ReplayServerError
from replay_server.processes import Process, ProcessRegistry

_HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,260}")


class MetricsEndpoint:
    """Serves from a thread of its own until closed."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, processes: ProcessRegistry) -> None:
        """Port 0 takes a free one.

        Raises:
            ReplayServerError: the port is taken.
        """
        handler = type("Handler", (_Handler,), {"registry": registry, "processes": processes})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise ReplayServerError(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another metrics port"
            ) from None
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="replay-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and join the thread."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    processes: ProcessRegistry
    timeout = 10.0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, content_type, encode(self.registry))
        elif path == "/sd":
            targets = [_target(process) for process in (self._own_process(), *self.processes.live())]
            self._answer(200, "application/json", json.dumps(targets).encode())
        else:
            self._answer(404, "text/plain", b"/metrics and /sd are served here\n")

    def _own_process(self) -> Process:
        """This server, under the name by which the asker has reached it: it may listen on every interface."""
        host = self.headers.get("Host", "")
        if not _HOST.fullmatch(host):
            host = ":".join(str(part) for part in self.connection.getsockname()[:2])
        return Process("replay_server", "replay-server", host, 0)

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- as in the base class
        """Scrapes are not news."""


def _target(process: Process) -> dict[str, object]:
    return {
        "targets": [process.metrics_address],
        "labels": {"role": process.role, "process_id": process.process_id},
    }
