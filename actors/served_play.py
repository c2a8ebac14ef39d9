"""Self-play by a served agent: the games in halves, so that one grows its trees while the other's leaves are away."""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import NamedTuple

from actors.inference_client import InferenceClient, InferenceStopped
from actors.metrics import ActorMetrics
from actors.outbox import Outbox
from actors.self_play import MoveReport, SelfPlay
from zero.jit import CompilationStopped
from zero.search.tree_search import TreeSearch
from zero.trajectories import Trajectory

HALVES = 2
GAMES = 256
"""Of both halves, where the config leaves it open: leaves in one request are what makes up for the way there."""


class Moved(NamedTuple):
    """What one move of a half was like.

    Attributes:
        ended: the games that ended with it.
        report: of the search.
        weights_version: the oldest that the search was answered by.
        training_step: of the weights that answered last.
    """

    ended: Sequence[Trajectory]
    report: MoveReport
    weights_version: int
    training_step: int


class Half:
    """Some of an actor's games, with a search and a connection of their own.

    Args:
        self_play: the games.
        search: as wide, with `client` as its network.
        client: the served agent.
    """

    def __init__(self, self_play: SelfPlay, search: TreeSearch, client: InferenceClient) -> None:
        self._self_play = self_play
        self._search = search
        self._client = client
        self._version = 0

    def move(self) -> Moved:
        """Play one move in every game.

        Raises:
            InferenceError: the agent cannot be used.
            InferenceStopped: the actor is to end.
        """
        ended, report = self._self_play.play_move(self._search, self._take_version)
        return Moved(ended, report, self._version, self._client.training_step)

    def _take_version(self) -> int:
        self._version = self._client.take_version()
        return self._version


def play_in_halves(halves: Sequence[Half], outbox: Outbox, metrics: ActorMetrics, stop: Event) -> None:
    """Play until `stop`; no half waits for another.

    Raises:
        InferenceError: the agent cannot be used.
    """
    with ThreadPoolExecutor(len(halves), thread_name_prefix="half") as executor:
        moving: dict[Future[Moved], Half] = {executor.submit(half.move): half for half in halves}
        while not stop.is_set():
            for future in wait(moving, return_when=FIRST_COMPLETED).done:
                half = moving.pop(future)
                try:
                    moved = future.result()
                except (InferenceStopped, CompilationStopped):
                    return
                moving[executor.submit(half.move)] = half
                metrics.report_move(moved.report)
                metrics.weights_version.set(moved.weights_version)
                metrics.registry.events.step = moved.training_step
                outbox.send(moved.ended)
