"""Where finished games leave an actor: sends them to the replay server and counts them."""

import time
from collections import deque
from collections.abc import Iterable

import numpy as np

from actors.data_collector import DataCollector
from actors.metrics import ActorMetrics
from zero.trajectories import Trajectory

RECENT_GAMES = 100


class Outbox:
    """Finished games on their way; waits where the replay server holds them back.

    Args:
        collector: takes them.
        metrics: to count in.
    """

    def __init__(self, collector: DataCollector[Trajectory], metrics: ActorMetrics) -> None:
        self._collector = collector
        self._metrics = metrics
        self._recent_scores: deque[float] = deque(maxlen=RECENT_GAMES)

    def send(self, trajectories: Iterable[Trajectory]) -> None:
        """Send games."""
        for trajectory in trajectories:
            self._recent_scores.append(trajectory.stats["score"])
            self._metrics.report_game(trajectory)
            self._metrics.recent_score.set(float(np.mean(self._recent_scores)))
            started = time.perf_counter()
            self._collector.collect(trajectory)
            self._metrics.insert_wait.inc(time.perf_counter() - started)
            self._metrics.inserts_in_flight.set(self._collector.counts().waiting)
