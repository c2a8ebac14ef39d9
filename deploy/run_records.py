"""What a run's folder says about the run: typed, versioned records, each a JSON file that is complete or absent."""

import hashlib
import os
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from deploy.errors import BAD_INPUT, DeployError

_Version = Annotated[int, Field(ge=1, strict=True)]


class Record(BaseModel):
    """Part of a record; refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(Record):
    """A record that is a file of its own.

    Attributes:
        schema_version: of the format; one that this program does not know is refused.
    """

    NEWEST_VERSION: ClassVar[int] = 1

    schema_version: _Version = 1

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            FileNotFoundError: there is none.
            DeployError: it is damaged, or of a newer version.
        """
        payload = path.read_bytes()
        try:
            record = cls.model_validate_json(payload)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise DeployError(
                f"{path} is damaged: {where} {problem['msg']}; restore it from a copy", BAD_INPUT
            ) from None
        if record.schema_version > cls.NEWEST_VERSION:
            raise DeployError(
                f"{path} has schema version {record.schema_version}, this program reads up to {cls.NEWEST_VERSION}: "
                "use a newer one",
                BAD_INPUT,
            )
        return record

    def write(self, path: Path) -> None:
        """Put the record there as a whole, in place of an earlier one.

        Raises:
            DeployError: the disk refused.
        """
        write_whole(path, self.model_dump_json(indent=1).encode())


class RunState(StrEnum):
    """How a run, or one session of it, stands or ended."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class Environment(Record):
    """Where a session ran.

    Attributes:
        host: name of the machine.
        platform: operating system and architecture.
        python: its version.
        cpus: that the process may use.
        packages: versions by name, of what matters to the outcome.
        revision: commit of the source tree; empty where it is installed without one.
    """

    host: str
    platform: str
    python: str
    cpus: int
    packages: dict[str, str]
    revision: str = ""


class Seeds(Record):
    """Where all random numbers of a session come from: one `numpy.random.SeedSequence` with these.

    Attributes:
        entropy: the config's seed.
        session: counts the sessions of the run, so that none plays the games of another.
        streams: the spawn key of each role's sequence, without the index and the incarnation that are added.
    """

    entropy: int
    session: int
    streams: dict[str, int]


class Session(Record):
    """One stretch of training.

    Attributes:
        started_at: when.
        environment: where.
        seeds: what its random numbers come from.
        ended_at: None while it runs, and for ever if it was killed.
        state: how it stands or ended.
        reason: why it ended, in a few words: "max steps", "signal", or the error.
        training_step: of the newest checkpoint in the end; None if there is none or it runs.
    """

    started_at: datetime
    environment: Environment
    seeds: Seeds
    ended_at: datetime | None = None
    state: RunState = RunState.RUNNING
    reason: str = ""
    training_step: int | None = None


class Parent(Record):
    """What a run was forked from.

    Attributes:
        run_id: of the other run.
        path: where it was.
        training_step: of the checkpoint.
        sessions: how many it had had.
        replay_id: of the run that the private Redis names in its keys: a fork has the data of its first ancestor.
    """

    run_id: str
    path: str
    training_step: int
    sessions: int
    replay_id: str


class ConfigChange(Record):
    """A setting that was changed on purpose when the run went on.

    Attributes:
        at: when.
        path: dotted name of the setting.
        before: its value as JSON.
        after: its value as JSON.
    """

    at: datetime
    path: str
    before: str
    after: str


class RunRecord(FileRecord):
    """The file `run.json`: what the run is and what became of it so far.

    Attributes:
        run_id: tells it from all other runs.
        application: whose it is.
        name: of its folder when it began.
        experiment: the config's name.
        config: the effective config, as JSON data: what `config.toml` must say.
        created_at: when it began.
        parent: what it was forked from; None for a run of its own.
        changes: of the config since it began.
        sessions: the stretches of training, oldest first.
    """

    run_id: str
    application: str
    name: str
    experiment: str
    config: dict[str, JsonValue]
    created_at: datetime
    parent: Parent | None = None
    changes: tuple[ConfigChange, ...] = ()
    sessions: tuple[Session, ...] = ()

    @property
    def state(self) -> RunState:
        """Of the newest session; a run that never trained counts as interrupted."""
        return self.sessions[-1].state if self.sessions else RunState.INTERRUPTED


class FileEntry(Record):
    """A file at the time of the manifest.

    Attributes:
        bytes: its size.
        sha256: hex digest.
    """

    bytes: int
    sha256: str


class Manifest(FileRecord):
    """The file `manifest.json`: what a session left in the folder.

    The replay server's data are not listed: it keeps checksums of its own (`zero replay verify`).

    Attributes:
        run_id: of the run.
        written_at: when.
        files: by path relative to the run's folder.
    """

    run_id: str
    written_at: datetime
    files: dict[str, FileEntry]


def write_whole(path: Path, payload: bytes) -> None:
    """Write a file so that a crash leaves the whole of it or what was there.

    Raises:
        DeployError: the disk refused.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DeployError(f"cannot write {path}: {error.strerror}", BAD_INPUT) from None


def hash_file(path: Path) -> FileEntry:
    """The entry of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(bytes=file.tell(), sha256=digest.hexdigest())
