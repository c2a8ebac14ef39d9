"""The folder of a run: what lies where, and that one command at a time uses it."""

import fcntl
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import config_to_toml, read_config
from zero.config import ExperimentConfig


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The effective config, complete."""
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        """What the learner goes on from."""
        return self.path / "checkpoints"

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


def create_run_folder(path: Path, config: ExperimentConfig) -> RunFolder:
    """Make the folder of a new run.

    Raises:
        DeployError: there is a run already, or the folder cannot be made.
    """
    folder = RunFolder(path.absolute())
    if folder.config_file.exists():
        raise DeployError(
            f"{path} holds a run already: go on with it by --resume {path}, or name another folder", BAD_INPUT
        )
    _write_config(folder, config)
    return folder


def open_or_create_run_folder(path: Path, config: ExperimentConfig) -> RunFolder:
    """The folder of a run that may exist, if it is of the same experiment.

    Raises:
        DeployError: the run there has another config, or the folder cannot be made.
    """
    folder = RunFolder(path.absolute())
    if not folder.config_file.exists():
        _write_config(folder, config)
    elif folder.config() != config:
        raise DeployError(
            f"{path} holds a run of another config: give --experiment {folder.config_file}, or name another folder",
            BAD_INPUT,
        )
    return folder


@contextmanager
def locked(folder: RunFolder) -> Generator[None]:
    """Keep other commands from training in the same folder; the lock dies with the process.

    Raises:
        DeployError: another one is at it.
    """
    with (folder.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeployError(f"{folder.path} is in use by another `zero train`; stop that one first") from None
        yield


def _write_config(folder: RunFolder, config: ExperimentConfig) -> None:
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        temporary = folder.config_file.with_suffix(".tmp")
        temporary.write_text(config_to_toml(config), encoding="utf-8")
        temporary.replace(folder.config_file)
    except OSError as error:
        raise DeployError(f"run folder {folder.path}: {error.strerror}", BAD_INPUT) from None
