"""Fetches newer weights beside the playing thread and hands them over between moves."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from replay_server.client import ReplayClient, ReplayTimeout, Weights

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often newer weights are asked for where no acknowledgement has named any: they arrive within a second."""
MAX_POLL_SECONDS = 20.0
POLL_SHARE = 0.01
"""Of its time that an actor asks at most: the longer an answer takes, the less often a thousand of them ask."""
REQUEST_SECONDS = 5.0
MAX_REQUEST_SECONDS = 20.0
"""One request for weights may take so long, twice as long after each that took longer: what an overloaded server works
on is not given up again and again. Closing may take as long."""


def poll_pause(answer_seconds: float) -> float:
    """Seconds until newer weights are asked for again, after an answer that took so long."""
    return min(max(POLL_SECONDS, answer_seconds / POLL_SHARE), MAX_POLL_SECONDS)


class WeightsClient:
    """Keeps at most one request for newer weights in flight.

    Attributes:
        version: the newest version that was handed over; 0 for none.
    """

    def __init__(self, client: ReplayClient) -> None:
        self.version = 0
        self._client = client
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights-client")
        self._pending: Future[Weights | None] | None = None
        self._ask_at = 0.0
        self._request_seconds = REQUEST_SECONDS
        self._away = False

    def poll(self) -> Weights | None:
        """Newer weights if they have arrived, at once; asks for them when an insert was told of them, and now and then.

        Raises:
            ReplayError: the server refused. Its being away is no error: play goes on with what there is.
        """
        newer = None
        if self._pending is not None and self._pending.done():
            newer = self._take(self._pending)
            self._pending = None
        if self._pending is None and (self._client.newest_weights > self.version or time.monotonic() >= self._ask_at):
            self._pending = self._executor.submit(self._ask, self.version)
        return newer

    def _ask(self, version: int) -> Weights | None:
        started = time.monotonic()
        try:
            return self._client.get_weights(version, timeout=self._request_seconds)
        finally:
            ended = time.monotonic()
            self._ask_at = ended + poll_pause(ended - started)

    def wait_for_newer(self, stop: Event) -> Weights | None:
        """Newer weights as soon as there are any; None if `stop` was set first."""
        while not stop.wait(POLL_SECONDS / 10):
            newer = self.poll()
            if newer is not None:
                return newer
        return None

    def close(self) -> None:
        """Wait for what is in flight and stop the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _take(self, pending: Future[Weights | None]) -> Weights | None:
        try:
            newer = pending.result()
        except ReplayTimeout as error:
            if not self._away:
                logger.warning("no newer weights from the replay server at %s: %s", self._client.address, error.message)
            self._away = True
            self._request_seconds = min(2 * self._request_seconds, MAX_REQUEST_SECONDS)
            return None
        self._away = False
        self._request_seconds = REQUEST_SECONDS
        if newer is not None:
            self.version = newer.version
        return newer
