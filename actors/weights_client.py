"""Fetches newer weights beside the playing thread and hands them over between moves."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from replay_server.client import ReplayClient, ReplayTimeout, Weights

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often newer weights are asked for: new weights reach every actor within a second."""
REQUEST_SECONDS = 5.0
"""One request for weights may take this long, and so may closing."""


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
        self._asked_at = -POLL_SECONDS
        self._away = False

    def poll(self) -> Weights | None:
        """Newer weights if they have arrived, at once; asks for them every POLL_SECONDS.

        Raises:
            ReplayError: the server refused. Its being away is no error: play goes on with what there is.
        """
        newer = None
        if self._pending is not None and self._pending.done():
            newer = self._take(self._pending)
            self._pending = None
        if self._pending is None and time.monotonic() - self._asked_at >= POLL_SECONDS:
            self._asked_at = time.monotonic()
            self._pending = self._executor.submit(self._client.get_weights, self.version, timeout=REQUEST_SECONDS)
        return newer

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
            return None
        self._away = False
        if newer is not None:
            self.version = newer.version
        return newer
