"""Takes the weights that a learner publishes, from the replay server of its run."""

import logging

from deploy.errors import FAILED, DeployError
from deploy.run_weights import RunWeights
from replay_server.client import ReplayClient, ReplayError, ReplayTimeout

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 20.0


class PublishedWeights:
    """Tells when newer weights are published.

    Args:
        client: of the replay server.
        request_seconds: that it may take to answer.
    """

    def __init__(self, client: ReplayClient, request_seconds: float = REQUEST_SECONDS) -> None:
        self._client = client
        self._request_seconds = request_seconds
        self._version = 0
        self._away = False

    def poll(self) -> RunWeights | None:
        """The newest weights if they are newer than before; else None, also while the server is away.

        Raises:
            DeployError: the server refused.
        """
        try:
            newer = self._client.get_weights(self._version, timeout=self._request_seconds)
        except ReplayTimeout as error:
            if not self._away:
                logger.warning("no newer weights from the replay server at %s: %s", self._client.address, error.message)
            self._away = True
            return None
        except ReplayError as error:
            raise DeployError(f"replay server: {error}", FAILED) from error
        self._away = False
        if newer is None:
            return None
        self._version = newer.version
        return RunWeights(newer.payload, newer.training_step, newer.version)
