"""Says where a session runs: machine, Python, and the versions of what matters to its outcome."""

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

from deploy.run_records import Environment

PACKAGES = (
    "zero-selfplay",
    "torch",
    "numpy",
    "numba",
    "ray",
    "grpcio",
    "protobuf",
    "redis",
    "safetensors",
    "pydantic",
    "prometheus-client",
)
_GIT_SECONDS = 5.0


def environment() -> Environment:
    """Of this process."""
    return Environment(
        host=socket.gethostname(),
        platform=platform.platform(),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        revision=_revision(Path(__file__).parent),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _revision(folder: Path) -> str:
    """The commit of the source tree, with a mark if it was changed since; empty without git or a tree."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)  # noqa: S603
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
