"""Checkpoints of the learner: complete or absent, hashed, without pickle, the newest few kept."""

import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from zero.config import ExperimentConfig, describe_difference

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "checkpoint.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


class CheckpointError(RuntimeError):
    """No checkpoint to go on from, or one that does not fit the config; one line with the remedy."""


class Manifest(BaseModel):
    """The file that makes a checkpoint complete.

    Attributes:
        schema_version: of this format.
        training_step: optimizer updates made.
        config: the experiment, as JSON data.
        sha256: hex digest of every other file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    training_step: int
    config: dict[str, Any]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """What a learner goes on from.

    Attributes:
        training_step: optimizer updates made.
        model: the weights as a safetensors file.
        optimizer: tensors of the optimizer's state, named `<parameter index>.<name>`.
    """

    training_step: int
    model: bytes
    optimizer: dict[str, Tensor]


class CheckpointStore:
    """A folder of checkpoints, one subfolder `step-<training_step>` each.

    A checkpoint is written under another name, flushed to disk and renamed, so a crash at any moment leaves either all
    of it or nothing that counts.

    Args:
        folder: where the checkpoints are; created when first saved to.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: Checkpoint, config: ExperimentConfig) -> Path:
        """Write a checkpoint and prune old ones; returns its folder. An intact one of the same step is left as it is.

        Raises:
            OSError: the disk refused.
        """
        target = self._folder / f"step-{checkpoint.training_step:09d}"
        if target.exists():
            try:
                _read(target)
            except (OSError, ValueError):
                shutil.rmtree(target)
            else:
                return target
        for leftover in self._folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        temporary = self._folder / f".{target.name}.tmp"
        temporary.mkdir(parents=True)
        files = {MODEL_FILE: checkpoint.model, OPTIMIZER_FILE: safetensors.torch.save(checkpoint.optimizer)}
        for name, payload in files.items():
            _write_flushed(temporary / name, payload)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            training_step=checkpoint.training_step,
            config=config.model_dump(mode="json"),
            sha256={name: hashlib.sha256(payload).hexdigest() for name, payload in files.items()},
        )
        _write_flushed(temporary / MANIFEST, manifest.model_dump_json(indent=1).encode())
        _flush_folder(temporary)
        temporary.rename(target)
        _flush_folder(self._folder)
        for old in self.folders()[self._keep :]:
            shutil.rmtree(old)
        return target

    def folders(self) -> list[Path]:
        """Folders of saved checkpoints, the newest first."""
        return sorted(self._folder.glob("step-*"), reverse=True)

    def newest(self, config: ExperimentConfig | None = None) -> Checkpoint | None:
        """The newest checkpoint whose files are intact; None if nothing was ever saved.

        Args:
            config: if given, game and network of the checkpoint must be the same.

        Raises:
            CheckpointError: checkpoints exist but none is intact, or the config differs in game or network.
        """
        problems: list[str] = []
        for folder in self.folders():
            try:
                checkpoint, saved_config = _read(folder)
            except (OSError, ValueError) as error:
                problems.append(f"{folder.name}: {error}")
                continue
            if problems:
                logger.warning("going on from %s; passed over: %s", folder.name, "; ".join(problems))
            if config is not None:
                _refuse_other_config(saved_config, config)
            return checkpoint
        if problems:
            raise CheckpointError(
                f"no intact checkpoint in {self._folder} ({'; '.join(problems)}); restore one, or start a new run"
            )
        return None


def _read(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Read and verify one checkpoint; ValueError says what is wrong with it."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{MANIFEST} is damaged ({error.error_count()} problems)") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema version {manifest.schema_version}, this program reads {SCHEMA_VERSION}")
    payloads: dict[str, bytes] = {}
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        payloads[name] = (folder / name).read_bytes()
        if hashlib.sha256(payloads[name]).hexdigest() != manifest.sha256.get(name):
            raise ValueError(f"{name} does not match its sha256")
    optimizer = safetensors.torch.load(payloads[OPTIMIZER_FILE])
    checkpoint = Checkpoint(manifest.training_step, payloads[MODEL_FILE], optimizer)
    return checkpoint, manifest.config


def _refuse_other_config(saved: dict[str, Any], config: ExperimentConfig) -> None:
    sections = ("game", "network")
    kept = {section: saved.get(section, {}) for section in sections}
    difference = describe_difference(
        kept, config.model_dump(mode="json", include=set(sections)), "the checkpoint was made"
    )
    if difference:
        raise CheckpointError(f"{difference}; use the run's own config or start a new run")


def _write_flushed(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
