"""Saves checkpoints beside the training loop, at most one at a time; a save that fails costs no training."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from learner.checkpoint import Checkpoint, CheckpointStore
from learner.metrics import LearnerMetrics
from zero.config import ExperimentConfig

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Writes, flushes and prunes in a thread of its own.

    Args:
        store: where to.
        config: of the experiment, kept with every checkpoint.
        metrics: where to show what came of it.
    """

    def __init__(self, store: CheckpointStore, config: ExperimentConfig, metrics: LearnerMetrics) -> None:
        self._store = store
        self._config = config
        self._metrics = metrics
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-saver")
        self._pending: Future[Path] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an earlier checkpoint is still being written; notes what became of it if not."""
        if self._pending is None or not self._pending.done():
            return self._pending is not None
        self._note()
        return False

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to save a checkpoint, which nobody changes any more; waits for an earlier one."""
        self._note()
        self._pending = self._executor.submit(self._write, checkpoint)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Save the last checkpoint and wait until it is there.

        Raises:
            OSError: the disk refused.
        """
        self._note()
        try:
            self._write(checkpoint)
        except OSError:
            self._metrics.checkpoints.failed.inc()
            raise

    def close(self) -> None:
        """Wait for what is being written and stop the thread."""
        self._note()
        self._executor.shutdown(wait=True)

    def _note(self) -> None:
        """Wait for the earlier checkpoint; one that the disk refused is counted, and the next one tried."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except OSError as error:
            self._metrics.checkpoints.failed.inc()
            logger.error("the checkpoint was not saved, the one before it stays: %s", error)  # noqa: TRY400 -- says all

    def _write(self, checkpoint: Checkpoint) -> Path:
        started = time.monotonic()
        folder = self._store.save(checkpoint, self._config)
        self._metrics.checkpoints.write_seconds.set(time.monotonic() - started)
        self._metrics.checkpoints.timestamp.set_to_current_time()
        self._metrics.checkpoints.saved.inc()
        logger.info("saved %s", folder)
        return folder
