"""Podman for tests of the images: storage of its own, a base without a registry, pip's settings handed to a build."""

import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.integration.processes import wait_until

ROOT = Path(__file__).parents[2]
GUARDED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--ulimit=nofile=1024:1024",  # podman asks for more than this machine may allow
    "--ulimit=nproc=4096:4096",
)
"""What compose.yaml asks for, as options of `podman run`."""
BASE = "localhost/python:stand-in"
BUILD_SECONDS = 1200.0
COMMAND_SECONDS = 120.0


def why_not() -> str:
    """What is missing to build and run images; empty where nothing is."""
    missing = [program for program in ("podman", "runc", "mmdebstrap") if shutil.which(program) is None]
    if missing:
        return f"needs {' and '.join(missing)}: apt-get install {' '.join(missing)}"
    return "" if os.geteuid() == 0 else "needs root, for runc and mmdebstrap"


class Podman:
    """Commands of podman in a storage of their own.

    Args:
        folder: where images and containers lie; gigabytes, and with a short path, as sockets have one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options = [
            f"--root={folder}/storage",
            f"--runroot={folder}/run",
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--runtime=runc",
        ]

    def __call__(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> str:
        """Run a command; returns what it writes to stdout.

        Raises:
            AssertionError: it fails.
        """
        result = self.run(*arguments, timeout=timeout)
        assert result.returncode == 0, f"podman {' '.join(arguments)}: {result.returncode}\n{result.stderr[-4000:]}"
        return result.stdout

    def run(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever becomes of it."""
        command = ["podman", *self._options, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)

    def build(self, target: str, python_image: str) -> str:
        """Build a target of our Dockerfile with this machine's settings of pip; returns the name of the image."""
        image = f"localhost/zero-{target}"
        with _pip_settings() as settings:
            options = ["--layers=false", "--isolation=chroot", "--network=host", "--ulimit=nofile=1024:1024", *settings]
            options += [f"--build-arg=PYTHON_IMAGE={python_image}", f"--target={target}", f"--tag={image}"]
            self("build", *options, "--file=deploy/docker/Dockerfile", ".", timeout=BUILD_SECONDS)
        return image

    def compressed_bytes(self, image: str) -> list[int]:
        """Of each layer, as a registry gets and keeps it."""
        folder = self._folder / "pushed"
        self("push", "--quiet", "--compress", image, f"dir:{folder}")
        manifest = json.loads((folder / "manifest.json").read_text())
        shutil.rmtree(folder)
        return [layer["size"] for layer in manifest["layers"]]

    def unpacked_bytes(self, image: str) -> int:
        """Of all layers."""
        return int(self("image", "inspect", "--format={{.Size}}", image))

    def start(self, image: str, *arguments: str, options: Sequence[str] = ()) -> "Container":
        """Run an image guarded and in the network of this machine."""
        return Container(self, self("run", "--detach", "--network=host", *GUARDED, *options, image, *arguments).strip())

    def close(self) -> None:
        """End all containers and remove everything."""
        self.run("rm", "--all", "--force", "--volumes", "--time=0")
        shutil.rmtree(self._folder, ignore_errors=True)


class Container:
    """A container by its id; `Podman.close` ends it."""

    def __init__(self, podman: Podman, identity: str) -> None:
        self._podman = podman
        self._id = identity

    @property
    def output(self) -> str:
        """What it has written, stdout and stderr."""
        result = self._podman.run("logs", self._id)
        return result.stdout + result.stderr

    @property
    def exit_code(self) -> int:
        """Of its process, which has ended."""
        state = json.loads(self._podman("inspect", "--format={{json .State}}", self._id))
        assert not state["Running"], self.output
        return int(state["ExitCode"])

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The last place of its output that matches."""
        try:
            return wait_until(lambda: next(reversed(list(re.finditer(pattern, self.output))), None), pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self._podman.run("exec", self._id, *command)

    def stop(self, grace_seconds: int) -> int:
        """Send SIGTERM, and SIGKILL after the grace period; returns the exit code, which is then 137."""
        self._podman("stop", f"--time={grace_seconds}", self._id)
        return self.exit_code

    def start(self) -> None:
        """Start it again after its end, with the same volumes."""
        self._podman("start", self._id)


@contextmanager
def podman_with_base() -> Iterator[tuple[Podman, str]]:
    """Podman with an image of Python on Debian, by its name: ZERO_TEST_PYTHON_IMAGE, or a stand-in without registry."""
    podman = Podman(Path(tempfile.mkdtemp(prefix="zero-images-", dir="/var/tmp")))
    try:
        named = os.environ.get("ZERO_TEST_PYTHON_IMAGE")
        if named is None:
            podman("import", str(_debian_with_python()), BASE)
        yield podman, named or BASE
    finally:
        podman.close()


def _debian_with_python() -> Path:
    """A file system as slim as that of the official image, made once and kept for later runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zero/debian-bookworm-python.tar"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_name(f"{os.getpid()}.tar")
        excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        packages = "--include=python3,python3-venv,ca-certificates"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", packages, *excluded, "bookworm", str(unfinished)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
            unfinished.rename(cache)
        finally:
            unfinished.unlink(missing_ok=True)
    return cache


@contextmanager
def _pip_settings() -> Iterator[list[str]]:
    """Options of `podman build` by which pip in it reaches the packages that pip reaches here."""
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = dict(re.findall(r"^(?!:env:)\w+\.([\w-]+)=(.*)$", listed, re.MULTILINE))
    found |= dict(re.findall(r"^:env:\.([\w-]+)=(.*)$", listed, re.MULTILINE))  # stronger than files
    values = {name: str(ast.literal_eval(value)) for name, value in found.items()}
    kept = {name: values[name] for name in ("index-url", "find-links", "trusted-host", "timeout") if name in values}
    options: list[str] = []
    if "cert" in values:
        kept["cert"] = "/run/secrets/ca"
        options.append(f"--secret=id=ca,src={values['cert']}")
    folders = [place for place in kept.get("find-links", "").split() if Path(place).is_dir()]
    options += [f"--volume={folder}:{folder}:ro" for folder in folders]
    if any(list(Path(folder).glob("torch-*.whl")) for folder in folders):
        options.append("--build-arg=TORCH_INDEX=https://pypi.org/simple")  # PyTorch is there already
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("\n".join(["[global]", *(f"{name} = {value}" for name, value in kept.items()), ""]))
        file.flush()
        yield [*options, f"--secret=id=pip,src={file.name}"]
