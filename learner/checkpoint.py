"""Checkpoints of the learner: complete or absent, hashed to the last byte, without pickle, pruned by policy."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor

from learner.generators import GeneratorRecord, GeneratorStates
from learner.replay_cursor import CursorRecord, ReplayCursor
from zero.config import ExperimentConfig, describe_difference

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
MANIFEST = "checkpoint.json"
MANIFEST_HASH = "checkpoint.json.sha256"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.safetensors"
FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
_GENERATOR, _REPLAY = "generator.", "replay."


class CheckpointError(RuntimeError):
    """No checkpoint to go on from, or one that does not fit the config; one line with the remedy."""


class Manifest(BaseModel):
    """The file `checkpoint.json`; the hash of it, in a file of its own, makes a checkpoint complete.

    Attributes:
        schema_version: of this format.
        training_step: optimizer updates made.
        config: the experiment, as JSON data.
        learning_rate: of the next training step: where the schedule stands.
        generators: of the process, what is no array; None where they were not kept.
        replay: where the learner stands in its table, what is no array; None where the server did not say.
        statistics: what others keep with a checkpoint, by name.
        sha256: hex digest of every other file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    training_step: int
    config: dict[str, Any]
    learning_rate: float = 0.0
    generators: GeneratorRecord | None = None
    replay: CursorRecord | None = None
    statistics: dict[str, JsonValue] = {}
    sha256: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """What a learner goes on from.

    Attributes:
        training_step: optimizer updates made.
        model: the weights as a safetensors file.
        optimizer: tensors of the optimizer's state, named `<parameter index>.<name>`, nobody else's.
        learning_rate: of the next training step.
        generators: of the process; None for none.
        replay: where the learner stands in its table; None for anywhere.
        statistics: what others keep with it, as JSON data by name.
    """

    training_step: int
    model: bytes
    optimizer: dict[str, Tensor]
    learning_rate: float = 0.0
    generators: GeneratorStates | None = None
    replay: ReplayCursor | None = None
    statistics: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True)
class KeepPolicy:
    """Which checkpoints stay when another is saved.

    Attributes:
        last: so many of the newest; at least 1.
        every: also one in so many training steps, the first of each stretch; 0 for none.
        best_step: says which training step did best so far, None for none: the first checkpoint from there on stays.
    """

    last: int = 3
    every: int = 0
    best_step: Callable[[], int | None] = lambda: None

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Those of some training steps that stay."""
        ordered = sorted(steps)
        kept = set(ordered[-self.last :])
        if self.every:
            stretches = np.array(ordered) // self.every
            kept |= {ordered[first] for first in np.unique(stretches, return_index=True)[1]}
        best = self.best_step()
        if best is not None:
            kept |= set([step for step in ordered if step >= best][:1])
        return kept


class CheckpointStore:
    """A folder of checkpoints, one subfolder `step-<training_step>` each.

    A checkpoint is written under another name, flushed to disk and renamed, so a crash at any moment leaves either all
    of it or nothing that counts.

    Args:
        folder: where the checkpoints are; created when first saved to.
        keep: which ones stay.
    """

    def __init__(self, folder: Path, keep: KeepPolicy = KeepPolicy()) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: Checkpoint, config: ExperimentConfig) -> Path:
        """Write a checkpoint and prune old ones; returns its folder. An intact one of the same step is left as it is.

        Raises:
            OSError: the disk refused; what was there before still is.
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
        try:
            temporary.mkdir(parents=True)
            _write(temporary, checkpoint, config)
            temporary.rename(target)
            _flush_folder(self._folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # gives back the room that others need
            raise
        self._prune()
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

    def _prune(self) -> None:
        folders = {int(folder.name.removeprefix("step-")): folder for folder in self.folders()}
        for step in folders.keys() - self._keep.kept(list(folders)):
            shutil.rmtree(folders[step])


def read_checkpoint(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint and the config that it was made with, as JSON data.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return _read(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder}: {error}; take another one") from None


def _write(folder: Path, checkpoint: Checkpoint, config: ExperimentConfig) -> None:
    arrays = {}
    if checkpoint.generators is not None:
        arrays |= {f"{_GENERATOR}{name}": array for name, array in checkpoint.generators.arrays.items()}
    if checkpoint.replay is not None:
        arrays |= {f"{_REPLAY}{name}": array for name, array in checkpoint.replay.arrays().items()}
    payloads = {
        MODEL_FILE: checkpoint.model,
        OPTIMIZER_FILE: safetensors.torch.save(checkpoint.optimizer),
        STATE_FILE: safetensors.numpy.save(arrays),
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        training_step=checkpoint.training_step,
        config=config.model_dump(mode="json"),
        learning_rate=checkpoint.learning_rate,
        generators=None if checkpoint.generators is None else checkpoint.generators.record,
        replay=None if checkpoint.replay is None else checkpoint.replay.record(),
        statistics=dict(checkpoint.statistics),
        sha256={name: hashlib.sha256(payload).hexdigest() for name, payload in payloads.items()},
    )
    payloads[MANIFEST] = manifest.model_dump_json(indent=1).encode()
    payloads[MANIFEST_HASH] = hashlib.sha256(payloads[MANIFEST]).hexdigest().encode()
    for name, payload in payloads.items():
        _write_flushed(folder / name, payload)
    _flush_folder(folder)


def _read(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Read and verify one checkpoint; ValueError says what is wrong with it."""
    manifest = _read_manifest(folder)
    payloads: dict[str, bytes] = {}
    for name in FILES:
        payloads[name] = (folder / name).read_bytes()
        if hashlib.sha256(payloads[name]).hexdigest() != manifest.sha256.get(name):
            raise ValueError(f"{name} does not match its sha256")
    try:
        arrays = safetensors.numpy.load(payloads[STATE_FILE])
        optimizer = safetensors.torch.load(payloads[OPTIMIZER_FILE])
    except safetensors.SafetensorError as error:
        raise ValueError(f"no safetensors file: {error}") from None
    generators, replay = manifest.generators, manifest.replay
    checkpoint = Checkpoint(
        manifest.training_step,
        payloads[MODEL_FILE],
        optimizer,
        manifest.learning_rate,
        None if generators is None else GeneratorStates(generators, _named(arrays, _GENERATOR)),
        None if replay is None else ReplayCursor.read(replay, _named(arrays, _REPLAY)),
        manifest.statistics,
    )
    return checkpoint, manifest.config


def _read_manifest(folder: Path) -> Manifest:
    payload = (folder / MANIFEST).read_bytes()
    if hashlib.sha256(payload).hexdigest().encode() != (folder / MANIFEST_HASH).read_bytes():
        raise ValueError(f"{MANIFEST} does not match its sha256")
    try:
        manifest = Manifest.model_validate_json(payload)
    except ValidationError as error:
        raise ValueError(f"{MANIFEST} is of another program ({error.error_count()} problems)") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema version {manifest.schema_version}, this program reads {SCHEMA_VERSION}")
    return manifest


def _named(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


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
