"""Which run a process belongs to: application, run and root together, from the command line to every role."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

DEFAULT_APPLICATION = "zero"
DEFAULT_ROOT = Path("runs")


@dataclass(frozen=True)
class RunContext:
    """Names a run; plain values, so that it travels to other machines.

    Attributes:
        application: whose runs these are, for whoever follows runs of several applications in one place.
        root: the folder that holds the runs, absolute; on a cluster it may lie on a volume that its machines share.
        run: the run's name, that of its folder.
    """

    application: str
    root: Path
    run: str

    @classmethod
    def of(cls, run_dir: Path, application: str = DEFAULT_APPLICATION) -> Self:
        """The context of the run in a folder."""
        path = run_dir.absolute()
        return cls(application, path.parent, path.name)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.root / self.run
