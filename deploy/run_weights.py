"""Finds the weights that a run keeps: its newest checkpoint, or what its evaluator scored highest."""

from dataclasses import dataclass
from enum import StrEnum

from actors.best_weights import MANIFEST, BestWeightsError, read_best
from deploy.errors import BAD_INPUT, DeployError
from deploy.run_folder import RunFolder
from learner.checkpoint import CheckpointError, CheckpointStore
from zero.config import ExperimentConfig

_NOTHING_YET = ("", 0)
"""The mark of no weights at all; a run that keeps none has the mark None."""


class WhichWeights(StrEnum):
    """Weights that a run keeps."""

    LATEST = "latest"
    BEST = "best"


@dataclass(frozen=True)
class RunWeights:
    """Weights of a run.

    Attributes:
        payload: a safetensors file.
        training_step: optimizer updates that made them.
        version: as the replay server counts, of those that are taken from there; else None.
    """

    payload: bytes
    training_step: int
    version: int | None = None


def read_weights(folder: RunFolder, config: ExperimentConfig, which: WhichWeights) -> RunWeights:
    """The weights in the folder of a run.

    Raises:
        DeployError: there are none, or they are damaged or of another game or network.
    """
    try:
        if which is WhichWeights.BEST:
            best = read_best(folder.best, config)
            if best is None:
                raise DeployError(
                    f"{folder.path} holds no best weights: no evaluator has measured any yet; give --weights latest",
                    BAD_INPUT,
                )
            manifest, payload = best
            return RunWeights(payload, manifest.training_step)
        checkpoint = CheckpointStore(folder.checkpoints).newest(config)
    except (BestWeightsError, CheckpointError) as error:
        raise DeployError(str(error), BAD_INPUT) from error
    if checkpoint is None:
        raise DeployError(f"{folder.path} holds no checkpoint yet; train it first", BAD_INPUT)
    return RunWeights(checkpoint.model, checkpoint.training_step)


class WeightsWatch:
    """Tells when a run keeps other weights than those that were seen last; looks at names and times until it does.

    Args:
        folder: of the run.
        config: of the run.
        which: weights to watch.
    """

    def __init__(self, folder: RunFolder, config: ExperimentConfig, which: WhichWeights) -> None:
        self._folder = folder
        self._config = config
        self._which = which
        self._seen: tuple[str, int] | None = _NOTHING_YET

    def poll(self) -> RunWeights | None:
        """The weights if there are others than before, and the first time; else None.

        Raises:
            DeployError: there are others, and they cannot be used; said once, then there are no others.
        """
        found = self._mark()
        if found == self._seen:
            return None
        self._seen = found  # before they are read: those that come meanwhile are seen next time
        return read_weights(self._folder, self._config, self._which)

    def _mark(self) -> tuple[str, int] | None:
        """What is different as soon as other weights are there."""
        if self._which is WhichWeights.BEST:
            newest = self._folder.best / MANIFEST
        else:
            newest = next(iter(CheckpointStore(self._folder.checkpoints).folders()), self._folder.checkpoints)
        try:
            return (newest.name, newest.stat().st_mtime_ns)
        except FileNotFoundError:
            return None
