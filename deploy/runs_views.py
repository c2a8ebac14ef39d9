"""Shows runs: a list of them, one in full, or in what several differ; as tables or as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.errors import BAD_INPUT, FAILED, DeployError
from deploy.json_text import json_text
from deploy.resume import runs_in
from deploy.run_folder import RunFolder
from deploy.run_records import RunRecord, RunState
from zero.config import differences

FIGURES = ("games", "training_step", "weights_version", "recent_score", "policy_loss", "value_loss")
"""What is shown of the last line of the figures of a run."""


def summary(folder: RunFolder, record: RunRecord) -> dict[str, Any]:
    """What a list says of a run, as JSON data."""
    figures = last_figures(folder)
    scores = figures.get("evaluation_scores") or {}
    return {
        "name": folder.path.name,
        "path": str(folder.path),
        "run_id": record.run_id,
        "application": record.application,
        "experiment": record.experiment,
        "state": state_of(folder, record),
        "reason": record.sessions[-1].reason if record.sessions else "",
        "training_step": folder.newest_step(),
        "score": scores.get("search"),
        "used_at": (record.sessions[-1].started_at if record.sessions else record.created_at).isoformat(),
    }


def state_of(folder: RunFolder, record: RunRecord) -> str:
    """How a run stands: a session that never ended and that nobody runs was killed."""
    if record.state is RunState.RUNNING and not folder.is_in_use():
        return "killed"
    return record.state.value


def last_figures(folder: RunFolder) -> dict[str, Any]:
    """The newest line of the run's figures; nothing before any, or if a crash cut it off."""
    try:
        lines = folder.metrics_file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}


def print_list(root: Path, console: Console, *, as_json: bool) -> None:
    """All runs in a folder, the one that was used last first."""
    found = [summary(folder, record) for folder, record in runs_in(root)]
    if as_json:
        _print_json(console, found)
        return
    table = Table(box=None, header_style="dim")
    for column in ("run", "experiment", "state", "training step", "score", "used"):
        table.add_column(column, justify="right" if column in ("training step", "score") else "left", no_wrap=True)
    for run in found:
        score = run["score"]
        table.add_row(
            run["name"],
            run["experiment"],
            run["state"],
            "–" if run["training_step"] is None else f"{run['training_step']:,}",
            "–" if score is None else f"{score:.1f}",
            _ago(datetime.fromisoformat(run["used_at"])),
        )
    console.print(table if found else f"no runs in {root}")
    for run_id, number in Counter(run["run_id"] for run in found).items():
        if number > 1:
            names = ", ".join(run["name"] for run in found if run["run_id"] == run_id)
            console.print(
                f"{names} have one id, as copies do: go on with one of them, make others their own by `zero runs fork`",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def print_run(folder: RunFolder, console: Console, *, verify: bool, as_json: bool) -> None:
    """Everything about a run.

    Raises:
        DeployError: a file is not as the last session left it.
    """
    record = folder.record()
    data = {
        **summary(folder, record),
        "record": record.model_dump(mode="json"),
        "checkpoints": _checkpoints(folder),
        "figures": last_figures(folder),
    }
    problems = folder.differences_from_manifest() if verify else []
    if as_json:
        _print_json(console, data | ({"problems": problems} if verify else {}))
    else:
        _print_run(folder, record, data, console)
    if problems:
        raise DeployError(f"{folder.path} is not as its last session left it: {'; '.join(problems)}", FAILED)
    if verify and not as_json:
        console.print("every file is as the last session left it")


def print_comparison(folders: Sequence[RunFolder], console: Console, *, as_json: bool) -> None:
    """In what runs differ: settings and figures.

    Raises:
        DeployError: fewer than two.
    """
    if len(folders) < 2:
        raise DeployError("name two runs or more", BAD_INPUT)
    configs = [folder.config().model_dump(mode="json") for folder in folders]
    paths = sorted({path for other in configs[1:] for path in differences(configs[0], other)})
    rows = {path: [_setting(config, path) for config in configs] for path in paths}
    figures = [last_figures(folder) for folder in folders]
    shown = {name: [figure.get(name) for figure in figures] for name in FIGURES}
    players = sorted({player for figure in figures for player in figure.get("evaluation_scores") or {}})
    shown |= {
        f"score of {player}": [(figure.get("evaluation_scores") or {}).get(player) for figure in figures]
        for player in players
    }
    if as_json:
        _print_json(console, {"runs": [str(folder.path) for folder in folders], "config": rows, "figures": shown})
        return
    table = Table(box=None, header_style="dim")
    table.add_column("")
    for folder in folders:
        table.add_column(folder.path.name, justify="right")
    for name, values in (rows | shown).items():
        table.add_row(name, *(_text(value) for value in values))
    console.print(table)


def _print_run(folder: RunFolder, record: RunRecord, data: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("run", str(folder.path))
    table.add_row("id", f"{record.run_id} of {record.application}")
    table.add_row("experiment", record.experiment)
    table.add_row("state", f"{data['state']}{': ' if data['reason'] else ''}{data['reason']}")
    if record.parent is not None:
        table.add_row("forked from", f"{record.parent.path}, training step {record.parent.training_step:,}")
    for session in record.sessions:
        reached = "" if session.training_step is None else f", training step {session.training_step:,}"
        versions = session.environment.packages
        where = f"{session.environment.host}, torch {versions.get('torch', '?')}"
        text = f"{session.started_at:%Y-%m-%d %H:%M} on {where}: {session.state}{reached}"
        table.add_row(f"session {session.seeds.session}", text)
    for change in record.changes:
        table.add_row("changed", f"{change.path} from {change.before} to {change.after}")
    for checkpoint in data["checkpoints"]:
        marks = f" ({', '.join(checkpoint['marks'])})" if checkpoint["marks"] else ""
        table.add_row("checkpoint", f"{checkpoint['path']}{marks}")
    for name in FIGURES:
        if data["figures"].get(name) is not None:
            table.add_row(name.replace("_", " "), _text(data["figures"][name]))
    console.print(table)


def _checkpoints(folder: RunFolder) -> list[dict[str, Any]]:
    """All checkpoints, newest first, with what they are: latest, best, final."""
    steps = folder.steps()
    marks: dict[int, list[str]] = {step: [] for step in steps}
    if steps:
        marks[steps[0]].append("latest")
    best = _best_step(folder)
    if best is not None:
        holder = min((step for step in steps if step >= best), default=None)
        if holder is not None:
            marks[holder].append("best" if holder == best else f"first after the best, which is step {best:,}")
    record = folder.record()
    if record.state is RunState.FINISHED and record.sessions[-1].training_step in marks:
        marks[record.sessions[-1].training_step].append("final")
    return [
        {"training_step": step, "path": str(folder.checkpoints / f"step-{step:09d}"), "marks": marks[step]}
        for step in steps
    ]


def _best_step(folder: RunFolder) -> int | None:
    try:
        return json.loads((folder.best / "best.json").read_bytes())["training_step"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _setting(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.3g}"


def _ago(then: datetime) -> str:
    seconds = (datetime.now(UTC) - then).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def _print_json(console: Console, data: Any) -> None:
    console.print(json_text(data), markup=False, highlight=False, soft_wrap=True)
