"""Shows how the fleet of a run stands: its roles and machines, weights and rates, as tables or as JSON."""

from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.errors import DeployError
from deploy.fleet_operations import fleet_of
from deploy.fleet_record import FleetRecord, RoleState
from deploy.json_text import json_text
from deploy.run_folder import RunFolder
from deploy.runs_views import state_of

UNKNOWN = "–"
_FIGURES = (
    ("games/s", "games_per_second"),
    ("moves/s", "moves_per_second"),
    ("training steps/s", "training_steps_per_second"),
    ("training step", "training_step"),
    ("samples per insert", "samples_per_insert"),
    ("weights version", "weights_version"),
    ("replay steps", "replay_steps"),
)


def print_status(folder: RunFolder, console: Console, *, as_json: bool) -> None:
    """How a run stands now; of one that does not go on, how it ended.

    Raises:
        DeployError: nobody supervises it although it goes on.
    """
    record = folder.record()
    try:
        fleet = fleet_of(folder)
    except DeployError:
        if folder.is_in_use():
            raise
        fleet = None
    state = "running" if fleet is not None else state_of(folder, record)
    reason = record.sessions[-1].reason if fleet is None and record.sessions else ""
    if as_json:
        data = {
            "path": str(folder.path),
            "run_id": record.run_id,
            "state": state,
            "reason": reason,
            "checkpoint_step": folder.newest_step(),
            "fleet": fleet,
        }
        _line(console, json_text(data))
        return
    because = f": {reason}" if reason else ""
    _line(console, f"{folder.path} ({record.run_id}) is {state}{because}")
    if fleet is None:
        _line(console, f"newest checkpoint at training step {folder.newest_step() or 0:,}")
    else:
        _print_fleet(fleet, console)


def _print_fleet(fleet: FleetRecord, console: Console) -> None:
    running = sum(role.state is RoleState.RUNS for role in fleet.actors)
    minutes = fleet.elapsed_seconds / 60
    _line(console, f"for {minutes:.1f} minutes; {running} of {fleet.actors_wanted} wanted actors run")
    _line(console, f"replay {fleet.replay_address}, metrics http://{fleet.metrics_address}/metrics and …/sd")
    table = Table(box=None, header_style="dim")
    table.add_column("role")
    table.add_column("state")
    for name in ("machine", "process", "restarts", "weights", "per second"):
        table.add_column(name, justify="right")
    for role in fleet.roles:
        table.add_row(
            role.name,
            role.state.value,
            _text(role.node),
            _text(role.pid),
            str(role.restarts),
            _number(role.weights_version, 0),
            _number(role.rate, 1),
        )
    console.print(table)
    if fleet.figures is not None:
        figures = fleet.figures
        _line(console, "  ".join(f"{title} {_number(figures.get(name), 1)}" for title, name in _FIGURES))


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _text(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _number(value: Any, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:,.{0 if value == int(value) else digits}f}"
