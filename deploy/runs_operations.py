"""What can be done to whole runs: fork, pack, delete, stop."""

import shutil
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.errors import BAD_INPUT, FAILED, DeployError
from deploy.resume import changes_of, saved_checkpoint
from deploy.roles import check_experiment
from deploy.run_folder import RunFolder, create_run_folder, locked
from deploy.run_records import Parent
from zero.config import differences

STOP_POLL_SECONDS = 0.2


def fork_run(folder: RunFolder, to: Path, step: int | None, overrides: Sequence[str]) -> RunFolder:
    """Make a new run of a checkpoint and all data that the run has; what it was played with does not matter to it.

    Args:
        folder: of the other run, in which nobody trains.
        to: of the new one.
        step: training step of the checkpoint; None for the newest.
        overrides: `section.key=value` of the new config.

    Raises:
        DeployError: no such checkpoint, a setting that cannot change, a run at work, or a folder that cannot be made.
    """
    step = folder.newest_step() if step is None else step
    if step is None:
        raise DeployError(f"{folder.path} has no checkpoint yet: there is nothing to fork from", BAD_INPUT)
    config = folder.config(overrides)
    saved = folder.record().config
    # Whatever is overridden is meant; what cannot change is refused all the same.
    changes_of(saved, config, differences(saved, config.model_dump(mode="json")), str(folder.path))
    check_experiment(config)
    with locked(folder):
        path, checkpoint = saved_checkpoint(folder, step)
        record = folder.record()
        if not folder.replay.exists():
            raise DeployError(
                f"{folder.path} keeps its data in a Redis of its own: copy them with `zero replay export` and `import`",
                BAD_INPUT,
            )
        fork = create_run_folder(to)
        try:
            shutil.copytree(folder.replay, fork.replay, ignore=shutil.ignore_patterns("*.lock", "*.pid", "*.sock"))
            shutil.copytree(path, fork.checkpoints / path.name)
            sessions = record.sessions[-1].seeds.session + 1 if record.sessions else 0
            parent = Parent(
                run_id=record.run_id,
                path=str(folder.path),
                training_step=step,
                sessions=sessions,
                replay_id=folder.replay_id(),
            )
            fork.begin(config, record.application, parent)
            fork.begin_statistics(checkpoint.statistics)
        except OSError as error:
            shutil.rmtree(fork.path, ignore_errors=True)
            raise DeployError(f"cannot fork into {fork.path}: {error.strerror or error}") from None
    return fork


def pack_run(folder: RunFolder, to: Path, *, with_data: bool) -> int:
    """Write a run into a new archive; returns its size in bytes.

    Raises:
        DeployError: the file exists or cannot be written, or somebody trains.
    """
    if to.exists():
        raise DeployError(f"{to} exists; name a new file", BAD_INPUT)
    part = to.with_name(f".{to.name}.part")
    with locked(folder):

        def chosen(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            relative = Path(info.name).parts[1:]
            if not relative or info.isdir() or info.isfile():
                is_left_out = bool(relative) and (
                    relative[-1] == folder.lock_file.name or (relative[0] == folder.replay.name and not with_data)
                )
                return None if is_left_out else info
            return None  # sockets

        try:
            with tarfile.open(part, "w:gz") as archive:
                archive.add(folder.path, arcname=folder.path.name, filter=chosen)
            part.replace(to)
        except OSError as error:
            raise DeployError(f"cannot write {to}: {error.strerror or error}", BAD_INPUT) from None
        finally:
            part.unlink(missing_ok=True)
    return to.stat().st_size


def delete_run(folder: RunFolder) -> str:
    """Delete a run in which nobody trains; returns its id.

    Raises:
        DeployError: somebody trains, or a file cannot be deleted.
    """
    with locked(folder):
        run_id = folder.record().run_id
        try:
            shutil.rmtree(folder.path)
        except OSError as error:
            raise DeployError(f"cannot delete {error.filename}: {error.strerror}") from None
    return run_id


def stop_run(folder: RunFolder, timeout: float) -> str:
    """Ask whoever trains a run to save and stop, and wait for it; says in words what came of it.

    Raises:
        DeployError: it goes on after the timeout.
    """
    if not folder.is_in_use():
        return f"nobody trains in {folder.path}"
    folder.stop_file.touch()
    if not timeout:
        return f"{folder.path} was asked to stop"
    deadline = time.monotonic() + timeout
    while folder.is_in_use():
        if time.monotonic() > deadline:
            raise DeployError(f"{folder.path} was asked to stop and still trains after {timeout:g} s", FAILED)
        time.sleep(STOP_POLL_SECONDS)
    return f"{folder.path} has stopped at training step {folder.newest_step() or 0:,}"
