"""The folder of a run: what lies where, its records, and that one command at a time uses it."""

import fcntl
import json
import secrets
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from deploy.environment import environment
from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import config_to_toml, read_config
from deploy.run_context import DEFAULT_APPLICATION, RunContext
from deploy.run_records import (
    ConfigChange,
    FileEntry,
    Manifest,
    Parent,
    RunRecord,
    RunState,
    Seeds,
    Session,
    hash_file,
    write_whole,
)
from zero.config import ExperimentConfig, describe_difference
from zero.seeds import STREAMS

_STATISTICS = "run"
LOCK_RETRY_SECONDS = 0.5
"""Somebody who looks whether a run is going on holds its lock for a moment."""


@dataclass(frozen=True)
class RunFolder:
    """A run on disk; a folder holds one as soon as there is its config.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The effective config, complete."""
        return self.path / "config.toml"

    @property
    def run_id_file(self) -> Path:
        """What tells this run from all others."""
        return self.path / "run_id"

    @property
    def checkpoints(self) -> Path:
        """What the learner goes on from."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights that the evaluator scored highest."""
        return self.path / "best"

    @property
    def record_file(self) -> Path:
        """What the run is and what became of it: a RunRecord."""
        return self.path / "run.json"

    @property
    def manifest_file(self) -> Path:
        """What the last session left here, with hashes: a Manifest."""
        return self.path / "manifest.json"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def profiles(self) -> Path:
        """What profilers of roles wrote."""
        return self.path / "profiles"

    @property
    def stop_file(self) -> Path:
        """As soon as it is there, whoever trains in this folder saves and stops."""
        return self.path / "stop"

    @property
    def scale_file(self) -> Path:
        """What `zero scale` wants of whoever trains in this folder: a ScaleRequest."""
        return self.path / "scale.json"

    @property
    def fleet_file(self) -> Path:
        """How the roles of whoever trains in this folder stand: a FleetRecord."""
        return self.path / "fleet.json"

    @property
    def lock_file(self) -> Path:
        """Locked by whoever trains in this folder."""
        return self.path / ".lock"

    @property
    def replay(self) -> Path:
        """The replay server's data."""
        return self.path / "replay"

    @property
    def logs(self) -> Path:
        """One log file per role."""
        return self.path / "logs"

    @property
    def metrics_file(self) -> Path:
        """Figures of the run over time, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def statistics(self) -> Path:
        """Points of all statistics, and what goes on with them."""
        return self.path / "statistics"

    @property
    def statistics_state(self) -> Path:
        """How the statistics stand: what goes on with them."""
        return self.statistics / "state.json"

    def kept_statistics(self) -> dict[str, JsonValue]:
        """What a checkpoint keeps of the statistics: how they stand. Nothing before that was saved first."""
        try:
            return {_STATISTICS: json.loads(self.statistics_state.read_bytes())}
        except FileNotFoundError:
            return {}

    def begin_statistics(self, kept: Mapping[str, JsonValue]) -> None:
        """Let the statistics of a new run go on from what a checkpoint has kept."""
        if _STATISTICS in kept:
            self.statistics.mkdir()
            self.statistics_state.write_text(json.dumps(kept[_STATISTICS]), encoding="utf-8")

    @property
    def points_file(self) -> Path:
        """Points of all statistics, one JSON object per line: name, value, step, time."""
        return self.statistics / "points.jsonl"

    def run_id(self) -> str:
        """16 hex digits that no other run has, whatever the folders are called; drawn when first asked for.

        Raises:
            DeployError: the folder cannot be written.
        """
        if not self.run_id_file.exists():
            write_whole(self.run_id_file, secrets.token_hex(8).encode())
        return self.run_id_file.read_text(encoding="ascii")

    def begin(
        self, config: ExperimentConfig, application: str = DEFAULT_APPLICATION, parent: Parent | None = None
    ) -> None:
        """Let the folder hold a run of this config from now on, unless it holds one.

        Args:
            config: the effective one.
            application: whose run it is.
            parent: what the run was forked from.

        Raises:
            DeployError: the folder cannot be written.
        """
        if self.config_file.exists():
            return
        RunRecord(
            run_id=self.run_id(),
            application=application,
            name=self.path.name,
            experiment=config.name,
            config=config.model_dump(mode="json"),
            created_at=datetime.now(UTC),
            parent=parent,
        ).write(self.record_file)
        write_whole(self.config_file, config_to_toml(config).encode())

    def change_config(self, config: ExperimentConfig, changes: Sequence[ConfigChange]) -> None:
        """Let this be the run's config from now on, and note in what it differs.

        Raises:
            DeployError: the folder cannot be written.
        """
        record = self.record()
        write_whole(self.config_file, config_to_toml(config).encode())
        record.model_copy(
            update={"config": config.model_dump(mode="json"), "changes": (*record.changes, *changes)}
        ).write(self.record_file)

    def replay_id(self) -> str:
        """What names the run's keys in its private Redis; in one that it may share it is the run id.

        Raises:
            DeployError: the record is damaged, or the folder cannot be written.
        """
        parent = self.record().parent if self.record_file.exists() else None
        return self.run_id() if parent is None else parent.replay_id

    def record(self) -> RunRecord:
        """What the run is; of a run from before there were records, as far as its config tells.

        Raises:
            DeployError: the folder holds no run, or a damaged record.
        """
        try:
            return RunRecord.read(self.record_file)
        except FileNotFoundError:
            config = self.config()
            return RunRecord(
                run_id=self.run_id(),
                application=DEFAULT_APPLICATION,
                name=self.path.name,
                experiment=config.name,
                config=config.model_dump(mode="json"),
                created_at=datetime.fromtimestamp(self.config_file.stat().st_mtime, UTC),
            )

    def context(self) -> RunContext:
        """The context of the run here."""
        return RunContext.of(self.path, self.record().application)

    def forget_requests(self) -> None:
        """Whoever begins to train here does not heed what was asked of somebody before."""
        for file in (self.stop_file, self.scale_file, self.fleet_file):
            file.unlink(missing_ok=True)

    def begin_session(self, config: ExperimentConfig) -> Session:
        """Note that training begins now; returns what was noted."""
        record = self.record()
        seeds = Seeds(entropy=config.seed, session=self.next_session(), streams=dict(STREAMS))
        session = Session(started_at=datetime.now(UTC), environment=environment(), seeds=seeds)
        record.model_copy(update={"sessions": (*record.sessions, session)}).write(self.record_file)
        return session

    def next_session(self) -> int:
        """The number of the session that begins next: one above the last, which may be of the run's parent."""
        record = self.record()
        if record.sessions:
            return record.sessions[-1].seeds.session + 1
        return record.parent.sessions if record.parent else 0

    def end_session(self, state: RunState, reason: str) -> None:
        """Note how the session that was begun last has ended, and what it left here."""
        record = self.record()
        ended = record.sessions[-1].model_copy(
            update={
                "ended_at": datetime.now(UTC),
                "state": state,
                "reason": reason,
                "training_step": self.newest_step(),
            }
        )
        record.model_copy(update={"sessions": (*record.sessions[:-1], ended)}).write(self.record_file)
        self.write_manifest()

    def steps(self) -> list[int]:
        """Training steps of the checkpoints, the newest first; also of damaged ones."""
        names = (path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def newest_step(self) -> int | None:
        """Of the newest checkpoint; None without one."""
        return next(iter(self.steps()), None)

    def files(self) -> dict[str, FileEntry]:
        """What is here now, by relative path: all but the replay server's data, what is hidden, and the manifest."""
        found: dict[str, FileEntry] = {}
        for path in sorted(self.path.rglob("*")):
            relative = path.relative_to(self.path)
            is_hidden = any(part.startswith(".") for part in relative.parts)
            if (
                path.is_file()
                and not is_hidden
                and relative.parts[0] != self.replay.name
                and path != self.manifest_file
            ):
                found[relative.as_posix()] = hash_file(path)
        return found

    def write_manifest(self) -> None:
        """Note what is here now.

        Raises:
            DeployError: the folder cannot be written.
        """
        manifest = Manifest(run_id=self.run_id(), written_at=datetime.now(UTC), files=self.files())
        manifest.write(self.manifest_file)

    def list_in_manifest(self, path: Path) -> None:
        """Note a file that was added after the last session; the end of a session notes all there are.

        Raises:
            DeployError: the manifest is damaged, or the folder cannot be written.
        """
        try:
            manifest = Manifest.read(self.manifest_file)
        except FileNotFoundError:
            return
        files = {**manifest.files, path.relative_to(self.path).as_posix(): hash_file(path)}
        manifest.model_copy(update={"files": files}).write(self.manifest_file)

    def differences_from_manifest(self) -> list[str]:
        """What is not as the last session left it, one line per file.

        Raises:
            DeployError: there is no manifest, or it is damaged.
        """
        try:
            noted = Manifest.read(self.manifest_file).files
        except FileNotFoundError:
            raise DeployError(f"{self.path} has no manifest: no session has ended here yet", BAD_INPUT) from None
        found = self.files()
        return [
            *(f"{path} is missing" for path in sorted(noted.keys() - found.keys())),
            *(f"{path} is new" for path in sorted(found.keys() - noted.keys())),
            *(f"{path} was changed" for path in sorted(noted) if path in found and found[path] != noted[path]),
        ]

    def is_in_use(self) -> bool:
        """Whether somebody trains here now, on this machine or another that shares the folder."""
        try:
            file = self.lock_file.open()
        except FileNotFoundError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def config(self, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """The config that the run started with.

        Args:
            overrides: `section.key=value`, later ones win.

        Raises:
            DeployError: the folder holds no run, its config is damaged, or an override is not allowed.
        """
        remedy = "name the folder of a run, as `zero train` printed it"
        config = read_config(self.config_file, [], f"run folder {str(self.path)!r}", remedy)
        # It was written complete: what is missing was lost, and its default need not be what the run has.
        missing = ExperimentConfig.model_fields.keys() - config.model_fields_set
        if missing:
            raise DeployError(f"{self.config_file} is damaged: it lacks {', '.join(sorted(missing))}", BAD_INPUT)
        return read_config(self.config_file, overrides, f"run folder {str(self.path)!r}", remedy)

    def make(self) -> None:
        """Make the folder, without a run in it.

        Raises:
            DeployError: it cannot be made.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeployError(f"run folder {self.path}: {error.strerror}", BAD_INPUT) from None


def create_run_folder(path: Path) -> RunFolder:
    """Make the folder of a new run, which `RunFolder.begin` puts there; until then another one can have it.

    Raises:
        DeployError: there is a run already, or the folder cannot be made.
    """
    folder = RunFolder(path.absolute())
    if folder.config_file.exists():
        raise DeployError(
            f"{path} holds a run already: go on with it by --resume {path}, or name another folder", BAD_INPUT
        )
    folder.make()
    return folder


def open_or_create_run_folder(
    path: Path, config: ExperimentConfig, application: str = DEFAULT_APPLICATION
) -> RunFolder:
    """The folder of a run that may exist, if it is of the same experiment or has nothing to lose.

    Args:
        path: of the folder.
        config: the experiment.
        application: whose run it is, if it begins now.

    Raises:
        DeployError: the run there has another config, or the folder cannot be made.
    """
    folder = RunFolder(path.absolute())
    folder.make()
    # A learner started by hand notes no session: without a checkpoint it has left nothing here but its config.
    if folder.config_file.exists() and not folder.steps() and not folder.record().sessions:
        folder.config_file.unlink()
    folder.begin(config, application)
    difference = describe_difference(
        folder.config().model_dump(mode="json"), config.model_dump(mode="json"), f"the run in {path} was begun"
    )
    if difference:
        raise DeployError(f"{difference}: give --experiment {folder.config_file}, or name another folder", BAD_INPUT)
    return folder


@contextmanager
def locked(folder: RunFolder, patience_seconds: float = LOCK_RETRY_SECONDS) -> Generator[None]:
    """Keep other commands from training in the same folder; the lock dies with the process.

    Raises:
        DeployError: another one is at it for longer than `patience_seconds`.
    """
    with folder.lock_file.open("w") as file:
        deadline = time.monotonic() + patience_seconds
        while not _take(file.fileno()):
            if time.monotonic() > deadline:
                raise DeployError(f"{folder.path} is in use by another learner or `zero train`; stop that one first")
            time.sleep(LOCK_RETRY_SECONDS / 10)
        yield


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
