"""Evaluates the leaves of an actor's searches by a served agent: one HTTP request for those of all its games."""

import http.client
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from actors.metrics import ActorMetrics
from zero.config import ConfigError, GameConfig, describe_difference
from zero.games.game import Game
from zero.wire.leaves import CONTENT_TYPE, Evaluation, LeavesError, pack_observations, unpack_evaluation

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""A service that answered before and has been away for so long ends the actor."""
ATTEMPT_SECONDS = 20.0
_FIRST_PAUSE_SECONDS = 0.05
_MAX_PAUSE_SECONDS = 2.0
_IS_AWAY = (OSError, http.client.HTTPException)


class InferenceError(Exception):
    """A served agent cannot be used, or not any more; one line that names cause and remedy."""


class InferenceStopped(Exception):  # noqa: N818 -- no error: it was asked for
    """The actor is to end, and what was asked is not wanted any more."""


class _AwayError(Exception):
    """It may be answered later; the text says what came instead."""


@dataclass(frozen=True)
class Address:
    """Where an agent is served, by `http://HOST:PORT` or `https://HOST`, perhaps below a path.

    Attributes:
        url: as it was given, without a slash at its end.

    Raises:
        ConfigError: it is no such address.
    """

    url: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment:
            raise ConfigError(f"--inference: write it as http://HOST:PORT, got {self.url!r}")

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is opened by its first request, and again by the next one after it was closed."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=ATTEMPT_SECONDS)

    @property
    def path(self) -> str:
        """What precedes the routes of the agent."""
        return urlsplit(self.url).path.rstrip("/")


class InferenceClient:
    """A network that is elsewhere, as a search asks it; for one thread.

    Args:
        address: of the agent.
        game: what is played.
        metrics: to count in.
        stop: ends what is under way.

    Attributes:
        training_step: of the weights that answered last.
    """

    def __init__(self, address: Address, game: Game, metrics: ActorMetrics, stop: Event) -> None:
        self.training_step = 0
        self._address = address
        self._connection = address.connect()
        self._num_actions = game.num_actions
        self._metrics = metrics
        self._stop = stop
        self._oldest_version: int | None = None

    def evaluate_observations(
        self, observations: NDArray[np.generic]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Policy logits [B, A] and values [B] of compact observations [B, ...].

        A service that is away is asked again, for RETRY_SECONDS.

        Raises:
            InferenceError: it refuses, answers something else, or stays away.
            InferenceStopped: `stop` was set meanwhile.
        """
        body = pack_observations(observations)
        started = time.perf_counter()
        answer = self._persist(lambda: self._request("POST", "/evaluate", body), RETRY_SECONDS)
        self._metrics.inference_seconds.observe(time.perf_counter() - started)
        self._metrics.inference_leaves.inc(len(observations))
        evaluation = self._read(answer, len(observations))
        self.training_step = evaluation.training_step
        oldest = evaluation.weights_version if self._oldest_version is None else self._oldest_version
        self._oldest_version = min(oldest, evaluation.weights_version)
        return evaluation.logits, evaluation.values

    def take_version(self) -> int:
        """The oldest weights that have answered since this was asked last: newer ones may come during a search."""
        version, self._oldest_version = self._oldest_version, None
        if version is None:
            raise ValueError("nothing was evaluated since")
        return version

    def wait_until_served(self, game: GameConfig) -> bool:
        """Wait until the agent answers, however long that takes, and see that it is of this game.

        Returns:
            Whether it is served; False if `stop` was set first.

        Raises:
            InferenceError: it plays another game, or cannot evaluate leaves.
        """
        try:
            answer = self._persist(lambda: self._request("GET", "/version"), None)
        except InferenceStopped:
            return False
        try:
            identity = json.loads(answer)
            served, published = {"game": identity["game_config"]}, identity["weights_version"]
        except (ValueError, KeyError, TypeError):
            raise InferenceError(f"{self._address.url} serves no agent of `zero serve`: look at --inference") from None
        different = describe_difference(served, {"game": game.model_dump(mode="json")}, "its agent plays")
        if different:
            raise InferenceError(f"inference at {self._address.url}: {different}")
        if published is None:
            raise InferenceError(
                f"inference at {self._address.url}: it serves the {identity.get('weights')} weights of a run, "
                "not those that are published: start it with --weights published"
            )
        return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _read(self, answer: bytes, num_leaves: int) -> Evaluation:
        try:
            return unpack_evaluation(answer, num_leaves, self._num_actions)
        except LeavesError as error:
            raise InferenceError(f"inference at {self._address.url}: {error}") from None

    def _persist(self, attempt: Callable[[], bytes], seconds: float | None) -> bytes:
        """What the attempt gives, repeated while the service is away, for so many seconds or for ever."""
        started, pause, said = time.monotonic(), _FIRST_PAUSE_SECONDS, False
        while not self._stop.is_set():
            try:
                return attempt()
            except _AwayError as error:
                if seconds is not None and time.monotonic() - started > seconds:
                    raise InferenceError(
                        f"inference at {self._address.url}: {error}, for {seconds:.0f} s; start `zero serve RUN "
                        "--weights published` there, or play without --inference"
                    ) from None
                if not said:
                    logger.warning("waiting for inference at %s: %s", self._address.url, error)
                said = True
            self._metrics.inference_retries.inc()
            self._stop.wait(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        raise InferenceStopped

    def _request(self, method: str, route: str, body: bytes | None = None) -> bytes:
        headers = {} if body is None else {"Content-Type": CONTENT_TYPE}
        try:
            self._connection.request(method, self._address.path + route, body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except _IS_AWAY as error:
            self._connection.close()
            raise _AwayError(" ".join(str(error).split()) or type(error).__name__) from error
        if response.status == http.client.OK:
            return answer
        text = _error_in(answer)
        # Not found is what Ray Serve says while the agent starts.
        if response.status >= http.client.INTERNAL_SERVER_ERROR or response.status == http.client.NOT_FOUND:
            raise _AwayError(f"status {response.status}: {text}")
        raise InferenceError(f"inference at {self._address.url} refuses: {text}")


def _error_in(answer: bytes) -> str:
    """What an answer says is wrong, in one line."""
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer[:200].decode(errors="replace").split())
