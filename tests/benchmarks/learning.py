"""Trains from nothing with `zero train`, once per seed, and measures how well the agent plays afterwards."""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from deploy.evaluate import Measurement, evaluate_run

ROOT = Path(__file__).parents[2]
EARLY_SECONDS = 60.0
TARGETS = "targets after 5 minutes: self-play at 60 s >= 10, search >= 45, search / policy >= 1.4"


def train(run_dir: Path, seed: int, minutes: float, overrides: list[str]) -> None:
    """One run, everything included, on this machine."""
    settings = [f"--set={override}" for override in (f"seed={seed}", *overrides)]
    command = [ROOT / ".venv/bin/zero", "train", "--no-live", f"--minutes={minutes}", f"--run-dir={run_dir}"]
    subprocess.run([*command, *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def figures(run_dir: Path, until_seconds: float) -> dict[str, float]:
    """The last figures that the run noted within some seconds of its start."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["elapsed_seconds"] <= until_seconds][-1]


def main() -> None:
    """Print one line per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--games", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, {options.overrides}")
    print(TARGETS)
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            train(run_dir, seed, options.minutes, options.overrides)
            early, last = figures(run_dir, EARLY_SECONDS), figures(run_dir, float("inf"))
            scores = evaluate_run(run_dir, [], Measurement(options.games), Console(quiet=True))
        policy, search = scores["policy"], scores["search"]
        print(
            f"seed {seed}: self-play at 60 s {early['recent_score']:.1f}, at the end {last['recent_score']:.1f}; "
            f"policy {policy.mean:.1f} ± {policy.standard_error:.1f}, "
            f"search {search.mean:.1f} ± {search.standard_error:.1f}, ratio {search.mean / policy.mean:.2f}; "
            f"{last['training_step']:.0f} steps, {last['games']:.0f} games, "
            f"{last['samples_per_insert']:.1f} samples per insert",
            flush=True,
        )


if __name__ == "__main__":
    main()
