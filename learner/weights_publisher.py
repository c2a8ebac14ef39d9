"""Publishes weights beside the training loop, at most one publication in flight."""

from concurrent.futures import Future, ThreadPoolExecutor

from replay_server.client import ReplayClient
from zero.networks.residual import ResidualNetwork
from zero.networks.weights import weights_to_bytes


class WeightsPublisher:
    """Takes a copy of the weights at once and sends it in the background.

    Attributes:
        version: the newest published version; 0 before any.
    """

    def __init__(self, client: ReplayClient) -> None:
        self.version = 0
        self._client = client
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights-publisher")
        self._pending: Future[int] | None = None

    def publish(self, network: ResidualNetwork, training_step: int) -> bool:
        """Start publishing unless the last publication is still under way; says whether it did.

        Raises:
            ReplayError: the last publication was refused.
        """
        if self._pending is not None and not self._pending.done():
            return False
        self.wait()
        self._pending = self._executor.submit(self._client.publish_weights, weights_to_bytes(network), training_step)
        return True

    def wait(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            ReplayError: the publication was refused.
        """
        if self._pending is not None:
            self.version = self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Wait for what is in flight and stop the thread."""
        self._executor.shutdown(wait=True)
