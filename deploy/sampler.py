"""Says where the time of a role goes while it works, by a look at its thread a hundred times a second."""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import CodeType, FrameType

from deploy.run_folder import RunFolder
from deploy.side_file import SideFile

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.01
WRITE_SECONDS = 30.0
"""A role that is killed leaves what was seen up to so long before."""
SUFFIX = ".folded"


class Sampler:
    """Counts in which functions one thread is; a context manager, entered in that thread.

    What it holds grows with the number of different stacks, not with time.

    Args:
        write: takes what was seen so far, one stack a line, "outermost;...;innermost count": the folded stacks of
            Brendan Gregg's flame graphs, which speedscope reads too.

    Attributes:
        looks: that were taken.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.looks = 0
        self._write = write
        self._thread_id = threading.get_ident()
        self._stacks: Counter[tuple[str, ...]] = Counter()
        self._names: dict[CodeType, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write(self._folded())

    def _run(self) -> None:
        next_write = time.monotonic() + WRITE_SECONDS
        while not self._stop.wait(INTERVAL_SECONDS):
            # Documented, and made for this, whatever its name begins with.
            frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
            self._stacks[self._stack(frames[self._thread_id])] += 1
            self.looks += 1
            if time.monotonic() >= next_write:
                next_write = time.monotonic() + WRITE_SECONDS
                self._write(self._folded())

    def _stack(self, frame: FrameType | None) -> tuple[str, ...]:
        found: list[str] = []
        while frame is not None:
            name = self._names.get(frame.f_code)
            if name is None:
                name = f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}"
                self._names[frame.f_code] = name
            found.append(name)
            frame = frame.f_back
        return tuple(reversed(found))

    def _folded(self) -> str:
        return "".join(f"{';'.join(stack)} {count}\n" for stack, count in self._stacks.most_common())


@contextmanager
def sampled(folder: RunFolder, name: str) -> Generator[None]:
    """Keep in the run's folder, if that is on this machine, where the time of this thread goes meanwhile."""
    if not folder.logs.is_dir():
        logger.warning("%s leaves no profile: the run's folder is on another machine", name)
        yield
        return
    folder.profiles.mkdir(exist_ok=True)
    path = folder.profiles / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}{SUFFIX}"
    with Sampler(SideFile(path, lambda text: logger.warning("%s", text.strip())).replace):
        yield
