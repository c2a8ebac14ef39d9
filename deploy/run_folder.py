"""The folder of a run: what lies where, and that one command at a time uses it."""

import fcntl
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import config_to_toml, read_config
from zero.config import ExperimentConfig, describe_difference


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

    def run_id(self) -> str:
        """16 hex digits that no other run has, whatever the folders are called; drawn when first asked for.

        Raises:
            DeployError: the folder cannot be written.
        """
        if not self.run_id_file.exists():
            self._write(self.run_id_file, secrets.token_hex(8))
        return self.run_id_file.read_text(encoding="ascii")

    def begin(self, config: ExperimentConfig) -> None:
        """Let the folder hold a run of this config from now on, unless it holds one.

        Raises:
            DeployError: the folder cannot be written.
        """
        if not self.config_file.exists():
            self._write(self.config_file, config_to_toml(config))

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

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
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


def open_or_create_run_folder(path: Path, config: ExperimentConfig) -> RunFolder:
    """The folder of a run that may exist, if it is of the same experiment or has nothing to lose.

    Raises:
        DeployError: the run there has another config, or the folder cannot be made.
    """
    folder = RunFolder(path.absolute())
    folder.make()
    # A learner started by hand draws no run id: without a checkpoint it has left nothing here but its config.
    if not folder.run_id_file.exists() and not any(folder.checkpoints.glob("step-*")):
        folder.config_file.unlink(missing_ok=True)
    folder.begin(config)
    difference = describe_difference(
        folder.config().model_dump(mode="json"), config.model_dump(mode="json"), f"the run in {path} was begun"
    )
    if difference:
        raise DeployError(f"{difference}: give --experiment {folder.config_file}, or name another folder", BAD_INPUT)
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
            raise DeployError(
                f"{folder.path} is in use by another learner or `zero train`; stop that one first"
            ) from None
        yield
