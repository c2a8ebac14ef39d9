"""What every Ray process of a run does beside its work: write a log into the run's folder, end when Ray has died."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from deploy.run_folder import RunFolder

logger = logging.getLogger(__name__)

PARENT_POLL_SECONDS = 1.0


def log_to_run_folder(run_dir: Path, name: str, log_level: str) -> None:
    """Send the log of this process to the run's folder, if that is on this machine; else Ray keeps it."""
    logs = RunFolder(run_dir).logs
    if not logs.is_dir():
        logging.basicConfig(level=log_level.upper())
        return
    path = logs / f"{name}.log"
    logging.basicConfig(
        filename=path,
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    # Kept open for the life of the process: a crash in compiled code writes its stack there.
    faulthandler.enable(path.open("a"))


def end_with_ray(name: str, before: Callable[[], None]) -> None:
    """End this process, after a call of `before`, once Ray is gone from this machine: Ray does not always see to it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        logger.warning("%s ends because Ray has died", name)
        before()
        os._exit(1)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()
