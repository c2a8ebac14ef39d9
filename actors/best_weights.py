"""Keeps the weights of a run whose search scored highest: complete or absent, and over restarts too."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from actors.evaluation import EvaluationScore
from zero.config import ExperimentConfig, describe_difference

SCHEMA_VERSION = 1
MANIFEST = "best.json"
REMEDY = "restore the folder, or remove it: the next evaluation makes a new one"


class BestWeightsError(RuntimeError):
    """Weights that are damaged, or of another game or network; one line with the remedy."""


class BestManifest(BaseModel):
    """The file that makes weights the best ones.

    Attributes:
        schema_version: of this format.
        training_step: optimizer updates they had.
        weights_version: under which they were published.
        score: mean score of the search; in games for two over all games against baselines.
        standard_error: of the score.
        file: name of the safetensors file beside this one.
        sha256: its hex digest.
        measured: what the score depends on, as JSON data of the config: only scores that have it all alike compare.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    training_step: int
    weights_version: int
    score: float
    standard_error: float
    file: str
    sha256: str
    measured: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Weights that were measured.

    Attributes:
        payload: as published, a safetensors file.
        training_step: optimizer updates they had.
        weights_version: under which they were published.
    """

    payload: bytes
    training_step: int
    weights_version: int


def measured_by(config: ExperimentConfig, opponents: Sequence[str]) -> dict[str, Any]:
    """What a score depends on besides the weights, as JSON data.

    Args:
        config: the experiment.
        opponents: baselines that a game for two is played against.
    """
    sections = config.model_dump(
        mode="json",
        include={
            "game": True,
            "network": True,
            "discount": True,
            "search": True,
            "self_play": {"max_moves"},
            "evaluation": {"num_games", "seed"},
        },
    )
    sections["evaluation"]["opponents"] = list(opponents)
    return sections


def _read_manifest(folder: Path) -> BestManifest | None:
    try:
        return BestManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BestWeightsError(f"{folder / MANIFEST} is damaged ({error.error_count()} problems); {REMEDY}") from None


def best_training_step(folder: Path) -> int | None:
    """Of the best weights in a folder; None if none were ever kept there.

    Raises:
        BestWeightsError: their manifest is damaged.
    """
    manifest = _read_manifest(folder)
    return None if manifest is None else manifest.training_step


def read_best(folder: Path, config: ExperimentConfig) -> tuple[BestManifest, bytes] | None:
    """The best weights in a folder; None if none were ever kept there.

    Raises:
        BestWeightsError: they are damaged, or of another game or network.
    """
    manifest = _read_manifest(folder)
    payload = None
    while manifest is not None and payload is None:
        try:
            payload = (folder / manifest.file).read_bytes()
        except FileNotFoundError as error:
            read, manifest = manifest, _read_manifest(folder)
            if manifest == read:  # else an evaluator has just put better ones there
                raise BestWeightsError(f"{error.filename} is missing; {REMEDY}") from None
    if manifest is None or payload is None:
        return None
    if manifest.schema_version != SCHEMA_VERSION:
        raise BestWeightsError(
            f"{folder / MANIFEST} has schema version {manifest.schema_version}, this program reads {SCHEMA_VERSION}"
        )
    if hashlib.sha256(payload).hexdigest() != manifest.sha256:
        raise BestWeightsError(f"{folder / manifest.file} does not match its sha256; {REMEDY}")
    sections = {"game", "network"}
    kept = {name: manifest.measured.get(name, {}) for name in sections}
    difference = describe_difference(
        kept, config.model_dump(mode="json", include=sections), "the best weights were made"
    )
    if difference:
        raise BestWeightsError(f"{difference}; use the run's own config or another run folder")
    return manifest, payload


class BestWeights:
    """The best weights of one run; one process at a time writes them.

    The highest of many scores owes something to luck: on other games expect a little less.

    Args:
        folder: where they are, made with the first.
        config: the experiment.
        opponents: baselines that a game for two is played against.

    Attributes:
        manifest: of the best ones so far; None before any.
        outdated: weights that are kept and were measured otherwise than now; None once a score of today is known.

    Raises:
        BestWeightsError: what is kept there is damaged, or of another game or network.
    """

    def __init__(self, folder: Path, config: ExperimentConfig, opponents: Sequence[str]) -> None:
        self._folder = folder
        self._measured = measured_by(config, opponents)
        self.manifest: BestManifest | None = None
        self.outdated: Candidate | None = None
        kept = read_best(folder, config)
        if kept is None:
            return
        manifest, payload = kept
        if manifest.measured == self._measured:
            self.manifest = manifest
        else:
            self.outdated = Candidate(payload, manifest.training_step, manifest.weights_version)

    def offer(self, candidate: Candidate, score: EvaluationScore) -> bool:
        """Keep weights if they scored higher than all before; says whether.

        Raises:
            OSError: the disk refused.
        """
        if self.manifest is not None and score.mean <= self.manifest.score:
            return False
        digest = hashlib.sha256(candidate.payload).hexdigest()
        manifest = BestManifest(
            schema_version=SCHEMA_VERSION,
            training_step=candidate.training_step,
            weights_version=candidate.weights_version,
            score=score.mean,
            standard_error=score.standard_error,
            file=f"{digest[:16]}.safetensors",
            sha256=digest,
            measured=self._measured,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        # Under a name of their own first: until the manifest names them, the earlier ones are the best.
        self._replace(manifest.file, candidate.payload)
        self._replace(MANIFEST, manifest.model_dump_json(indent=1).encode())
        for old in self._folder.glob("*.safetensors"):
            if old.name != manifest.file:
                old.unlink()
        self.manifest, self.outdated = manifest, None
        return True

    def _replace(self, name: str, payload: bytes) -> None:
        """Write a file so that a crash leaves the whole of it or what was there."""
        temporary = self._folder / ".new"  # one name, so that a crash leaves one file behind and not many
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / name)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
