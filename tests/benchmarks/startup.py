"""Measures `zero --help` and the way from `make train` to the first gradient step, on a warm install."""

import argparse
import os
import platform
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELP_TARGET_SECONDS = 1.0
FIRST_STEP_TARGET_SECONDS = 60.0
FIRST_STEP = "learning since"
"""`zero train` says this within half a second of seeing a training step."""


def help_seconds() -> float:
    """Wall-clock of one `zero --help`."""
    started = time.perf_counter()
    subprocess.run([str(ROOT / ".venv/bin/zero"), "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


def first_step_seconds(folder: Path) -> float:
    """From the start of `make train` with its defaults to the first training step; the run is then stopped."""
    started = time.perf_counter()
    process = subprocess.Popen(
        ["make", "--no-print-directory", "train", f"ZERO_FLAGS=--no-live --run-dir={folder / 'run'} --metrics-port=0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seconds = None
    for line in process.stdout or ():
        if seconds is None and FIRST_STEP in line:
            seconds = time.perf_counter() - started
            os.killpg(process.pid, signal.SIGINT)
    process.wait()
    if seconds is None:
        raise RuntimeError("make train ended before its first training step")
    return seconds


def main() -> None:
    """Print medians beside their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, medians of {repeats}")
    print(f"zero --help                  {_median(help_seconds, repeats):6.2f} s  (target {HELP_TARGET_SECONDS:g} s)")
    subprocess.run(["make", "--no-print-directory", "install"], cwd=ROOT, check=True)

    def first_step() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return first_step_seconds(Path(folder))

    print(
        f"make train to gradient step  {_median(first_step, repeats):6.2f} s  (target {FIRST_STEP_TARGET_SECONDS:g} s)"
    )


def _median(measure: Callable[[], float], repeats: int) -> float:
    values = [measure() for _ in range(repeats)]
    print(f"  each: {', '.join(f'{value:.2f}' for value in values)}")
    return statistics.median(values)


if __name__ == "__main__":
    main()
