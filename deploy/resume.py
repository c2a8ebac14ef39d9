"""Which run `zero train` trains, from which checkpoint and with which config; asks where that is not clear."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import load_experiment
from deploy.run_folder import RunFolder, create_run_folder, locked
from deploy.run_records import ConfigChange, RunRecord, RunState
from zero.config import ExperimentConfig, differences

if TYPE_CHECKING:
    from learner.checkpoint import Checkpoint

LATEST = "latest"
_STEP = "step-"
_FIXED = {
    "game": "the weights are made for it; begin a new run",
    "network": "the weights are made for it; begin a new run",
    "replay": "the table keeps what it was made with; `zero replay limit` changes when calls wait",
}
"""Sections that a run cannot change, and why."""


@dataclass(frozen=True)
class RunRequest:
    """What the command line says about the run to be trained.

    Attributes:
        experiment: name or file; of a run that goes on only if it is given.
        overrides: `section.key=value`.
        experiment_is_given: whether the experiment stands on the command line.
        new_run: the folder of the run, new or not, unless `resume` names one.
        root: the folder that holds the runs.
        resume: a run's folder or name, the folder of a checkpoint, or "latest"; None for none.
        step: the training step of the checkpoint to go on from; None for the newest.
        allowed: settings that may differ from the run's, by their dotted names.
        max_steps: at which the run is finished; None for any number.
        allow_fresh: begin at training step 0, with the data that the run has, if none of its checkpoints is intact.
    """

    experiment: str
    overrides: Sequence[str]
    experiment_is_given: bool
    new_run: Path | None
    root: Path
    resume: str | None = None
    step: int | None = None
    allowed: Collection[str] = ()
    max_steps: int | None = None
    allow_fresh: bool = False


@dataclass(frozen=True)
class ChosenRun:
    """The run to be trained.

    Attributes:
        folder: its.
        config: what it is trained with.
        notes: what its owner should know, one line each.
    """

    folder: RunFolder
    config: ExperimentConfig
    notes: tuple[str, ...] = ()


def choose_run(request: RunRequest, check: Callable[[ExperimentConfig], None]) -> ChosenRun:
    """An explicit checkpoint; else the same run; else, only if `latest` asks for it, the newest other; else a new one.

    Args:
        request: what is wanted.
        check: raises DeployError for a config that cannot be trained; called before anything is written.

    Raises:
        DeployError: no such run or checkpoint, a config that differs in what was not allowed, a finished run.
    """
    if request.resume is not None:
        folder, step = find_checkpoint(request.resume, request.root)
        return _go_on(folder, step if step is not None else request.step, request, check)
    if request.step is not None or request.allowed:
        option = "--step" if request.step is not None else "--allow-change"
        raise DeployError(f"{option}: belongs to a run that goes on; name it by --resume", BAD_INPUT)
    config = load_experiment(request.experiment, request.overrides)
    path = request.new_run or request.root / f"{config.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = RunFolder(path.absolute())
    if not folder.config_file.exists():
        check(config)
        return ChosenRun(create_run_folder(path), config)
    record = folder.record()
    if record.state is RunState.FINISHED:
        raise DeployError(
            f"{path} holds a finished run ({_last(record)}): go on with it by --resume {path}, or name another folder",
            BAD_INPUT,
        )
    return _go_on(folder, None, request, check, config)


def find_run(text: str, root: Path) -> RunFolder:
    """The run that a user means: its folder, its name below the root, or "latest".

    Raises:
        DeployError: there is no such run.
    """
    if text == LATEST:
        runs = runs_in(root)
        if not runs:
            raise DeployError(f"latest: there is no run in {root}; name its folder by --root", BAD_INPUT)
        return runs[0][0]
    for path in (Path(text), root / text):
        if RunFolder(path.absolute()).config_file.exists():
            return RunFolder(path.absolute())
    folder = RunFolder(Path(text).absolute())
    folder.config()  # says what is wrong with it
    return folder


def runs_in(root: Path) -> list[tuple[RunFolder, RunRecord]]:
    """All runs in a folder, the one that was used last first; damaged ones are left out."""
    found: list[tuple[RunFolder, RunRecord]] = []
    for config_file in root.absolute().glob("*/config.toml"):
        folder = RunFolder(config_file.parent)
        try:
            found.append((folder, folder.record()))
        except DeployError:
            continue
    return sorted(found, key=lambda pair: _last_used(pair[1]), reverse=True)


def copies_of(folder: RunFolder, record: RunRecord) -> list[str]:
    """Names of the runs beside one that have its id: folders that were copied, of which only one should go on.

    All of them would name their data in a Redis of yours, and their run in MLflow, alike.
    """
    beside = runs_in(folder.path.parent)
    return sorted(other.path.name for other, its in beside if its.run_id == record.run_id and other.path != folder.path)


def find_checkpoint(text: str, root: Path) -> tuple[RunFolder, int | None]:
    """A run and, if the text names one of its checkpoints, that checkpoint's training step.

    Raises:
        DeployError: there is no such run.
    """
    path = Path(text).absolute()
    number = path.name.removeprefix(_STEP)
    if path.name.startswith(_STEP) and number.isdecimal() and path.parent.name == RunFolder(path).checkpoints.name:
        return find_run(str(path.parent.parent), root), int(number)
    return find_run(text, root), None


def saved_checkpoint(folder: RunFolder, step: int) -> "tuple[Path, Checkpoint]":
    """A checkpoint, and the folder that it is in.

    Raises:
        DeployError: there is none of that step, or it is damaged.
    """
    from learner.checkpoint import CheckpointError, read_checkpoint  # noqa: PLC0415 - imports torch

    path = folder.checkpoints / f"{_STEP}{step:09d}"
    if not path.exists():
        there = ", ".join(str(one) for one in folder.steps()) or "none"
        raise DeployError(f"{folder.path} has no checkpoint of step {step}; there are: {there}", BAD_INPUT)
    try:
        checkpoint, _ = read_checkpoint(path)
    except CheckpointError as error:
        raise DeployError(str(error), BAD_INPUT) from None
    return path, checkpoint


def changes_of(
    saved: Mapping[str, JsonValue], wanted: ExperimentConfig, allowed: Collection[str], what: str
) -> tuple[ConfigChange, ...]:
    """What differs between a run's config and the wanted one.

    Raises:
        DeployError: something differs that was not allowed, or cannot be changed; names all of it.
    """
    found = differences(saved, wanted.model_dump(mode="json"))
    for path in found:
        reason = _FIXED.get(path.partition(".")[0])
        if reason is not None:
            raise DeployError(f"{path} of {what} cannot be changed: {reason}", BAD_INPUT)
    refused = [path for path in found if path not in allowed]
    if refused:
        named = "; ".join(f"{path} was {found[path][0]}, now {found[path][1]}" for path in refused)
        remedy = " ".join(f"--allow-change {path}" for path in refused)
        raise DeployError(f"the config of {what} differs: {named}. If that is meant, add {remedy}", BAD_INPUT)
    now = datetime.now(UTC)
    return tuple(ConfigChange(at=now, path=path, before=one, after=other) for path, (one, other) in found.items())


def _go_on(
    folder: RunFolder,
    step: int | None,
    request: RunRequest,
    check: Callable[[ExperimentConfig], None],
    wanted: ExperimentConfig | None = None,
) -> ChosenRun:
    if wanted is None:
        wanted = (
            load_experiment(request.experiment, request.overrides)
            if request.experiment_is_given
            else folder.config(request.overrides)
        )
    newest = folder.newest_step()
    intact, damage = _start(folder, step, request)
    if step is not None:
        saved_checkpoint(folder, step)
    changes = changes_of(folder.record().config, wanted, request.allowed, str(folder.path))
    check(wanted)
    notes = [f"goes on from training step {intact:,}" if intact is not None else "begins: it has no checkpoint"]
    record = folder.record()
    if record.state is RunState.FINISHED:
        notes.append(f"had finished: {_last(record)}")
    copies = copies_of(folder, record)
    if copies:
        notes.append(f"has one id with {', '.join(copies)}: go on with one of them, `zero runs fork` others first")
    notes += [f"changed {change.path} from {change.before} to {change.after}" for change in changes]
    with locked(folder):
        if damage:
            notes.append(f"lost its checkpoints: {damage}; they are in {_set_aside(folder, -1)} now")
        if step is not None and newest is not None and step < newest:
            notes.append(f"newer checkpoints are in {_set_aside(folder, step)} now")
        if changes:
            folder.change_config(wanted, changes)
    return ChosenRun(folder, wanted, tuple(notes))


def _start(folder: RunFolder, step: int | None, request: RunRequest) -> tuple[int | None, str]:
    """The training step that is gone on from, None without checkpoints; and why there is none although there are.

    Raises:
        DeployError: none is intact and that was not allowed, or the run has made its steps.
    """
    intact, damage = _newest_intact(folder) if step is None else (step, "")
    if damage and not request.allow_fresh:
        raise DeployError(f"{damage}; or add --allow-fresh to begin at step 0 with the data of the run", BAD_INPUT)
    if request.max_steps is not None and intact is not None and intact >= request.max_steps:
        raise DeployError(
            f"{folder.path} has {intact:,} training steps already: give more than that as --max-steps", BAD_INPUT
        )
    return intact, damage


def _newest_intact(folder: RunFolder) -> tuple[int | None, str]:
    """The training step that is gone on from, None without checkpoints; and why there is none although there are."""
    from learner.checkpoint import CheckpointError, CheckpointStore  # noqa: PLC0415 - imports torch

    try:
        checkpoint = CheckpointStore(folder.checkpoints).newest()
    except CheckpointError as error:
        return None, str(error)
    return (None if checkpoint is None else checkpoint.training_step), ""


def _set_aside(folder: RunFolder, step: int) -> Path:
    """Keep the checkpoints beyond a step where nothing goes on from them."""
    aside = folder.checkpoints / f"aside-{time.time_ns()}"
    aside.mkdir()
    for newer in folder.steps():
        if newer > step:
            name = f"{_STEP}{newer:09d}"
            (folder.checkpoints / name).rename(aside / name)
    return aside


def _last(record: RunRecord) -> str:
    last = record.sessions[-1]
    return f"{last.reason}, training step {last.training_step or 0:,}"


def _last_used(record: RunRecord) -> datetime:
    return record.sessions[-1].started_at if record.sessions else record.created_at
