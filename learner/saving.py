"""What is saved of a learner, and when: its own state, where it stands in the table, and what others keep with it."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from pydantic import JsonValue

from learner.checkpoint import Checkpoint
from learner.checkpoint_saver import CheckpointSaver
from learner.metrics import LearnerMetrics
from learner.replay_cursor import ReplayCursor, joined, read_reference
from replay_server.client import ReplayClient, ReplayError
from replay_server.trajectory_buffer import TrajectoryBuffer

logger = logging.getLogger(__name__)

CURSOR_SECONDS = 5.0
"""So long a server is asked for what belongs to a checkpoint."""


class CursorSource:
    """Says where a learner stands in its table.

    Args:
        client: of the replay server.
        table: the table's name.
        batches: from which the learner draws.
    """

    def __init__(self, client: ReplayClient, table: str, batches: TrajectoryBuffer) -> None:
        self._client = client
        self._table = table
        self._batches = batches

    def read(self) -> ReplayCursor | None:
        """The place now; None if the server does not say: what it has by itself is gone on with then."""
        try:
            priorities = self._client.read_priorities(self._table, CURSOR_SECONDS)  # before the state: see StreamState
            state = self._batches.stream_state()
            reference = read_reference(self._client, self._table, CURSOR_SECONDS)
        except ReplayError as error:
            logger.warning("a checkpoint without what was drawn and without priorities: %s", error)
            return None
        # A table that makes no use of priorities tells none.
        return ReplayCursor(reference, state, joined(priorities, state.applied) if len(priorities.keys) else priorities)


class Saving:
    """Takes the state of a learner between two training steps and has it saved beside training.

    Args:
        take: gives the state of a learner, a copy.
        cursor: says where the learner stands in its table.
        statistics: what else is kept, by name.
        saver: writes.
        interval_seconds: between checkpoints.
        metrics: where to show what it costs.
    """

    def __init__(
        self,
        take: Callable[[], Checkpoint],
        cursor: CursorSource,
        statistics: Callable[[], Mapping[str, JsonValue]],
        saver: CheckpointSaver,
        interval_seconds: float,
        metrics: LearnerMetrics,
    ) -> None:
        self._take = take
        self._cursor = cursor
        self._statistics = statistics
        self._saver = saver
        self._interval_seconds = interval_seconds
        self._metrics = metrics
        self._saved_at = time.monotonic()

    def save_if_due(self) -> None:
        """Begin to save if it is time and nothing is being saved."""
        if time.monotonic() - self._saved_at < self._interval_seconds or self._saver.is_busy:
            return
        started = time.perf_counter()
        self._saver.save(self._state())
        self._saved_at = time.monotonic()
        self._metrics.checkpoints.pause_seconds.inc(time.perf_counter() - started)

    def finish(self) -> None:
        """Save the last state, and wait until that is done.

        Raises:
            OSError: the disk refused.
        """
        self._saver.finish(self._state())

    def _state(self) -> Checkpoint:
        return replace(self._take(), replay=self._cursor.read(), statistics=self._statistics())
