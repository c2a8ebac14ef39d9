"""Agents over HTTP without Ray Serve: the same answers from a web server in a thread of the test."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np

from deploy.run_weights import RunWeights
from deploy.serving_agent import Agent
from deploy.serving_http import AgentCalls, AgentHttp, Answer, Asked, Evaluated, Identity
from deploy.serving_metrics import ServeMetrics
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes


def payload_of(config: ExperimentConfig, seed: int) -> bytes:
    """Fresh weights."""
    return weights_to_bytes(make_network(make_game(config.game.name, config.game.options), config.network, seed))


class PublishingAgent:
    """An agent whose weights a test changes, as a replica of `zero serve --weights published` does.

    Attributes:
        agent: who answers now.
        http: its routes.
    """

    def __init__(self, config: ExperimentConfig, seed: int = 0, version: int | None = 1) -> None:
        self._config = config
        self._game = make_game(config.game.name, config.game.options)
        self.swap(seed, version)

        async def decide(asked: Asked) -> Answer:
            return Answer(self.agent.decide(asked.states, asked.seeds), self.agent.version)

        async def evaluate(encoded: np.ndarray) -> Evaluated:
            agent = self.agent
            return Evaluated(*agent.evaluate(encoded), agent.version)

        identity = Identity("a run", "id", config.name, "published", config.game)
        calls = AgentCalls(decide, evaluate, lambda: self.agent.version)
        self.http = AgentHttp(self._game, identity, calls, ServeMetrics())

    def swap(self, seed: int, version: int | None) -> None:
        """Take fresh weights of another seed."""
        dtype = self.agent.dtype if hasattr(self, "agent") else None
        self.agent = Agent(self._config, self._game, RunWeights(payload_of(self._config, seed), 10, version), dtype)


class _Server(ThreadingHTTPServer):
    """Ends the connections that clients keep, so that its end is noticed."""

    daemon_threads = False

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self._connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def end_connections(self) -> None:
        for connection in self._connections:
            with suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def over_http(agent: AgentHttp, port: int = 0) -> Iterator[str]:
    """The address at which the agent answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else a body waits 40 ms for the headers to be acknowledged

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = asyncio.run(agent.answer(self.command, self.path, body))
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = _answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(port, Handler)
    serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.end_connections()
        server.server_close()
