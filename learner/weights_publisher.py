"""Publishes weights beside the training loop, at most one publication in flight."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from replay_server.client import ReplayClient, ReplayTimeout
from zero.networks.residual import ResidualNetwork
from zero.networks.weights import weights_to_bytes

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""One publication may take this long; a server that is away longer gets the next one."""


class WeightsPublisher:
    """Takes a copy of the weights at once and sends it in the background.

    A publication that does not reach the server in time is dropped: a newer one follows.
    """

    def __init__(self, client: ReplayClient) -> None:
        self._version = 0
        self._client = client
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights-publisher")
        self._pending: Future[int] | None = None

    @property
    def version(self) -> int:
        """The newest published version; 0 before any.

        Raises:
            ReplayError: the last publication was refused.
        """
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._version

    def publish(self, network: ResidualNetwork, training_step: int) -> bool:
        """Start publishing unless the last publication is still under way; says whether it did.

        Raises:
            ReplayError: the last publication was refused.
        """
        if self._pending is not None and not self._pending.done():
            return False
        self.wait()
        payload = weights_to_bytes(network)
        self._pending = self._executor.submit(
            self._client.publish_weights, payload, training_step, timeout=REQUEST_SECONDS
        )
        return True

    def wait(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            ReplayError: the publication was refused.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._version = pending.result()
        except ReplayTimeout as error:
            logger.warning("weights were not published: %s", error)

    def close(self) -> None:
        """Wait for what is in flight and stop the thread."""
        self._executor.shutdown(wait=True)
