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

from deploy.http_reply import BAD_REQUEST, CONFLICT, NOT_ALLOWED, NOT_FOUND, OK, TOO_LARGE, Reply, json_reply, refusal
from deploy.serving_agent import MAX_LEAVES, Decision, Version
from deploy.serving_metrics import ROUTES, ServeMetrics
from deploy.serving_positions import RequestError, play, read_game, read_positions, states_of
from zero.config import GameConfig
from zero.games.game import Game, GameError, States
from zero.wire.leaves import CONTENT_TYPE, Evaluation, LeavesError, pack_evaluation, unpack_observations

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
    """What is served.

    Attributes:
        run: its name.
        run_id: its id.
        experiment: its name.
        weights: which of its weights, "best", "latest" or "published".
        game: what is played.
    """

    run: str
    run_id: str
    experiment: str
    weights: str
    game: GameConfig


@dataclass(frozen=True)
class Evaluated:
    """What became of encoded leaves.

    Attributes:
        logits: float32 [B, A].
        values: float32 [B].
        version: of the weights.
    """

    logits: NDArray[np.float32]
    values: NDArray[np.float32]
    version: Version


@dataclass(frozen=True)
class AgentCalls:
    """What routes ask of an agent.

    Attributes:
        decide: searches positions.
        evaluate: gives the network's predictions for encoded observations [B, E].
        version: of the weights that decide now.
    """

    decide: Callable[[Asked], Awaitable[Answer]]
    evaluate: Callable[[NDArray[np.float32]], Awaitable[Evaluated]]
    version: Callable[[], Version]


class AgentHttp:
    """Routes of an agent.

    Args:
        game: what the agent plays.
        identity: what is served.
        agent: who answers.
        metrics: to count in.
    """

    def __init__(
        self,
        game: Game,
        identity: Identity,
        agent: AgentCalls,
        metrics: ServeMetrics,
    ) -> None:
        self._game = game
        self._identity = identity
        self._agent = agent
        self._metrics = metrics
        metrics.training_step.set_function(lambda: agent.version().training_step)
        metrics.weights_version.set_function(lambda: agent.version().weights_version or 0)
        self._page = PAGE.read_bytes()
        self._routes: dict[str, tuple[str, Callable[[bytes], Awaitable[Reply]]]] = {
            "/": ("GET", self._show_page),
            "/act": ("POST", self._act),
            "/evaluate": ("POST", self._evaluate),
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
        answer = await self._agent.decide(Asked(states_of(self._game, positions), seeds))
        self._metrics.positions.inc(len(positions))
        reply = json_reply({**_version(answer.version), "decisions": [_decision(one) for one in answer.decisions]})
        self._metrics.act_seconds.observe(time.perf_counter() - start)
        return reply

    async def _evaluate(self, body: bytes) -> Reply:
        start = time.perf_counter()
        if self._agent.version().weights_version is None:
            return refusal(
                CONFLICT,
                f"leaves are evaluated by published weights, these are the {self._identity.weights} ones of a run: "
                "start it with --weights published",
            )
        try:
            observations = unpack_observations(body, self._game.observation_spec)
            if len(observations) > MAX_LEAVES:
                return refusal(TOO_LARGE, f"there are {len(observations)} leaves, at most {MAX_LEAVES} are taken")
            # Here, not with those of others: who sends what is no position spoils no batch.
            encoded = self._game.encode(observations)
        except (LeavesError, GameError) as error:
            return refusal(BAD_REQUEST, str(error))
        evaluated = await self._agent.evaluate(encoded)
        version = evaluated.version
        answer = Evaluation(version.weights_version or 0, version.training_step, evaluated.logits, evaluated.values)
        self._metrics.leaves.inc(len(encoded))
        self._metrics.evaluate_seconds.observe(time.perf_counter() - start)
        return Reply(OK, pack_evaluation(answer), CONTENT_TYPE)

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
                "game_config": identity.game.model_dump(mode="json"),
                "num_players": self._game.num_players,
                "weights": identity.weights,
                **_version(self._agent.version()),
            }
        )

    async def _show_metrics(self, _: bytes) -> Reply:
        return Reply(OK, generate_latest(self._metrics.registry), CONTENT_TYPE_PLAIN_0_0_4)

    async def _show_page(self, _: bytes) -> Reply:
        return Reply(OK, self._page, "text/html; charset=utf-8")


def _version(version: Version) -> dict[str, Any]:
    return {
        "training_step": version.training_step,
        "weights_version": version.weights_version,
        "sha256": version.sha256,
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "action": decision.action,
        "value": decision.value,
        "legal_actions": decision.legal_actions.tolist(),
        "policy": decision.policy.tolist(),
    }
