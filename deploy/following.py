"""Follows a run: scrapes it in the background and notes its figures in the run's folder."""

import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from deploy.figures import Figures, ProcessFigures, RunFigures
from deploy.roles import Addresses
from deploy.run_folder import RunFolder
from deploy.scrape import Scrape, Scraper
from deploy.side_file import SideFile

SCRAPE_INTERVAL_SECONDS = 1.0
METRICS_LINE_INTERVAL_SECONDS = 5.0


class Following:
    """Scrapes a run in the background and notes its figures in the run's folder.

    Args:
        addresses: of the replay server.
        folder: the run's.
        tell: told in one line if the figures cannot be noted.
        clock: monotonic seconds.

    Attributes:
        run_figures: all that was seen.
        process_figures: of late, by process.
        figures: the newest; None before the first scrape.
    """

    def __init__(
        self,
        addresses: Addresses,
        folder: RunFolder,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_figures = RunFigures()
        self.process_figures = ProcessFigures()
        self.figures: Figures | None = None
        self._clock = clock
        self._file = SideFile(folder.metrics_file, tell)
        self._scraper = Scraper(addresses.metrics)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="following")
        self._pending: Future[Scrape] | None = None
        self._next_scrape = clock()
        self._next_line = clock()

    def poll(self) -> None:
        """Take in a scrape that has arrived, and ask for the next one when it is time; returns at once."""
        now = self._clock()
        if self._pending is None and now >= self._next_scrape:
            self._next_scrape = now + SCRAPE_INTERVAL_SECONDS
            self._pending = self._executor.submit(self._scraper.scrape)
        if self._pending is not None and self._pending.done():
            scrape = self._pending.result()
            self.figures = self.run_figures.update(scrape)
            self.process_figures.update(scrape)
            self._pending = None
            if now >= self._next_line:
                self._next_line = now + METRICS_LINE_INTERVAL_SECONDS
                self._note(self.figures)

    def _note(self, figures: Figures) -> None:
        """Add a JSON line: unix time and all figures, null for what is not known."""
        self._file.append(json.dumps(known_values({"time": time.time(), **asdict(figures)})) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)
        self._scraper.close()
        if self.figures is not None:
            self._note(self.figures)


def known_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for NaN, which JSON does not have."""
    return {name: _known(value) for name, value in values.items()}


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        return known_values(value)
    return None if isinstance(value, float) and math.isnan(value) else value
