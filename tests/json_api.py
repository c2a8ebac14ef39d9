"""A server of JSON on this machine, for tests of those who call one."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """Answers calls with a status and what becomes JSON; whatever is created is there."""

    def get(self, path: str) -> tuple[int, object]:
        """What there is at a path without its query."""
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        return 404, {**status, "message": f"there is no {path}"}

    def patch(self, change: Any) -> tuple[int, object]:
        """What comes of a change."""
        raise NotImplementedError(f"nothing can be changed, as {change} would")

    def do_GET(self) -> None:
        """Called by the base class, as the others are."""
        self._answer(*self.get(self.path.partition("?")[0]))

    def do_PATCH(self) -> None:
        """A change."""
        self._answer(*self.patch(json.loads(self._body())))

    def do_POST(self) -> None:
        """Something new."""
        self._answer_bytes(201, self.headers["Content-Type"], self._body())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int, body: object) -> None:
        self._answer_bytes(status, "application/json", json.dumps(body).encode())

    def _answer_bytes(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- as in the base class
        """Nobody reads it."""


@contextmanager
def serving(handler: type[JsonHandler], tls: ssl.SSLContext | None = None, **attributes: Any) -> Iterator[int]:
    """Serve meanwhile, at the port that this gives, by a handler that has these attributes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), attributes)) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="json-api")
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
