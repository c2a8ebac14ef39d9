"""Answers HTTP requests for an agent, from bytes to bytes; whoever serves brings the web server and the batches."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from deploy.http_reply import BAD_REQUEST, NOT_ALLOWED, NOT_FOUND, OK, TOO_LARGE, Reply, json_reply, refusal
from deploy.serving_agent import Decision, Version
from deploy.serving_metrics import ROUTES, ServeMetrics
from deploy.serving_positions import RequestError, play, read_game, read_positions, states_of
from zero.games.game import Game, States

PAGE = Path(__file__).parent / "serve_page" / "index.html"
MAX_BODY_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Asked:
    """Positions of one request.

    Attributes:
        states: uint64 [B, state_size], in which somebody is to move.
        seeds: uint64 [B], of the search.
    """

    states: States
    seeds: NDArray[np.uint64]


@dataclass(frozen=True)
class Answer:
    """What became of an Asked: a decision per position, all by the weights of one version."""

    decisions: Sequence[Decision]
    version: Version


@dataclass(frozen=True)
class Identity:
    """What is served: the run's name and id, its experiment, and which of its weights ("best" or "latest")."""

    run: str
    run_id: str
    experiment: str
    weights: str


class AgentHttp:
    """Routes of an agent.

    Args:
        game: what the agent plays.
        identity: what is served.
        decide: asks the agent.
        version: of the weights that decide now.
        metrics: to count in.
    """

    def __init__(
        self,
        game: Game,
        identity: Identity,
        decide: Callable[[Asked], Awaitable[Answer]],
        version: Callable[[], Version],
        metrics: ServeMetrics,
    ) -> None:
        self._game = game
        self._identity = identity
        self._decide = decide
        self._version = version
        self._metrics = metrics
        self._page = PAGE.read_bytes()
        self._routes: dict[str, tuple[str, Callable[[bytes], Awaitable[Reply]]]] = {
            "/": ("GET", self._show_page),
            "/act": ("POST", self._act),
            "/game": ("POST", self._show_game),
            "/health": ("GET", self._show_health),
            "/metrics": ("GET", self._show_metrics),
            "/version": ("GET", self._show_version),
        }

    async def answer(self, method: str, path: str, body: bytes) -> Reply:
        """The response to a request; what was sent wrongly gets `{"error": ONE LINE}` with a 4xx status."""
        reply = await self._routed(method, path, body)
        route = path if path in ROUTES else "other"
        self._metrics.requests.labels(route, f"{reply.status // 100}xx").inc()
        return reply

    async def _routed(self, method: str, path: str, body: bytes) -> Reply:
        if path not in self._routes:
            return refusal(NOT_FOUND, f"there is no {path}; there are {', '.join(self._routes)}")
        allowed, answer = self._routes[path]
        if method != allowed and not (method == "HEAD" and allowed == "GET"):
            return refusal(NOT_ALLOWED, f"{path} takes {allowed}, not {method}")
        if len(body) > MAX_BODY_BYTES:
            return refusal(TOO_LARGE, f"the body has {len(body)} bytes, at most {MAX_BODY_BYTES} are taken")
        try:
            return await answer(body)
        except RequestError as error:
            return refusal(BAD_REQUEST, str(error))

    async def _act(self, body: bytes) -> Reply:
        start = time.perf_counter()
        positions = read_positions(body)
        seeds = np.array([position.seed for position in positions], np.uint64)
        answer = await self._decide(Asked(states_of(self._game, positions), seeds))
        self._metrics.positions.inc(len(positions))
        reply = json_reply({**_version(answer.version), "decisions": [_decision(one) for one in answer.decisions]})
        self._metrics.act_seconds.observe(time.perf_counter() - start)
        return reply

    async def _show_game(self, body: bytes) -> Reply:
        sent = read_game(body)
        played = play(self._game, [sent.seed], [sent.moves], ["game"])
        return json_reply(
            {
                "svg": self._game.render_svg(played.states),
                "over": bool(self._game.terminated(played.states)[0]),
                "to_play": int(self._game.to_play(played.states)[0]),
                "legal_actions": np.flatnonzero(self._game.legal_action_mask(played.states)[0]).tolist(),
                "scores": played.scores[0].tolist(),
                "stats": {name: float(values[0]) for name, values in self._game.stats(played.states).items()},
            }
        )

    async def _show_health(self, _: bytes) -> Reply:
        return json_reply({"status": "ok"})

    async def _show_version(self, _: bytes) -> Reply:
        identity = self._identity
        return json_reply(
            {
                "run": identity.run,
                "run_id": identity.run_id,
                "experiment": identity.experiment,
                "game": self._game.name,
                "num_players": self._game.num_players,
                "weights": identity.weights,
                **_version(self._version()),
            }
        )

    async def _show_metrics(self, _: bytes) -> Reply:
        self._metrics.training_step.set(self._version().training_step)
        return Reply(OK, generate_latest(self._metrics.registry), CONTENT_TYPE_PLAIN_0_0_4)

    async def _show_page(self, _: bytes) -> Reply:
        return Reply(OK, self._page, "text/html; charset=utf-8")


def _version(version: Version) -> dict[str, Any]:
    return {"training_step": version.training_step, "sha256": version.sha256}


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "action": decision.action,
        "value": decision.value,
        "legal_actions": decision.legal_actions.tolist(),
        "policy": decision.policy.tolist(),
    }
