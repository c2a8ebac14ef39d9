"""How `zero replay` shows what a replay server holds: values in, tables of text out."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from replay_server.answers import RateLimiterInfo, RecoveryProgress, ServerInfo, TableInfo
from zero.tables import EpisodeEnd, RateLimiterConfig, SequenceRule, TableConfig
from zero.trajectories import ColumnSpec, Trajectory

FIRST_STEPS = 5
"""Steps of a trajectory that are shown."""

_FLUSHES = {
    "always": "at once: an acknowledged insert survives a power cut",
    "everysec": "every second: a power cut may cost the last one",
    "no": "when the system likes: a power cut may cost what it held back",
}
_MAX_VALUE_CHARACTERS = 40


def server_view(address: str, info: ServerInfo) -> RenderableType:
    """The server, its tables in sizes and limits, and why calls wait."""
    facts = _facts()
    facts.add_row("replay server", address)
    if info.recovery is not None:
        facts.add_row("recovery", _progress(info.recovery))
    if info.store_away_because:
        facts.add_row("Redis", f"is away, durable inserts wait or fail: {plain(info.store_away_because)}")
    else:
        facts.add_row("Redis flushes", _FLUSHES.get(info.appendfsync, info.appendfsync))
    facts.add_row("weights", f"version {info.weights_version}" if info.weights_version else "none yet")
    facts.add_row("in flight", f"{_size(info.in_flight_bytes)} of {_size(info.max_in_flight_bytes)}")
    return Group(facts, _states(info.tables) if info.tables else "no tables yet")


def _progress(recovery: RecoveryProgress) -> str:
    loaded, total = recovery.entries_loaded, recovery.entries_total
    if not total:
        return "waiting for Redis"
    return f"{loaded / total:.0%}: {loaded:,} of {total:,} entries, table {recovery.table}"


def _states(tables: Mapping[str, TableInfo]) -> Table:
    view = Table(show_lines=True)
    for heading in ("table", "holds", "went through", "waits"):
        view.add_column(heading, overflow="fold")
    for name, table in tables.items():
        config = table.config
        view.add_row(
            name,
            f"{table.num_steps:,} of {config.capacity:,} steps\n{_trajectories(table.num_trajectories)}\n"
            f"{table.num_items:,} items\n{_size(table.memory_bytes)}, durability {config.durability.value}",
            f"{table.inserted_steps:,} steps in\n{table.sampled_positions:,} drawn{_ratio(table.rate_limiter)}\n"
            f"{table.removed_trajectories:,} removed",
            "\n".join(_waiting(table)),
        )
    return view


def _trajectories(number: int) -> str:
    return "1 trajectory" if number == 1 else f"{number:,} trajectories"


def _ratio(limiter: RateLimiterInfo) -> str:
    aim = limiter.config.samples_per_insert
    return f"\n{limiter.sampled / max(limiter.inserted, 1):.3g} of {aim:g} per insert" if aim else ""


def _waiting(table: TableInfo) -> Iterator[str]:
    limiter = table.rate_limiter
    for number, kind, reason in (
        (limiter.waiting_inserts, "inserts", table.insert_blocked_because),
        (limiter.waiting_samples, "samples", table.sample_blocked_because),
    ):
        if number:
            yield f"{number} {kind}: {reason or 'they ask for more than may pass now'}"
        elif reason:
            yield f"{kind} would wait: {reason}"


def config_view(table: TableInfo) -> RenderableType:
    """What a table is."""
    config, limits = table.config, table.rate_limiter.config
    facts = _facts()
    facts.add_row("table", config.name)
    facts.add_row("capacity", f"{config.capacity:,} steps, {_size(table.memory_bytes)}")
    facts.add_row("durability", config.durability.value)
    facts.add_row("drawn", _selector(config))
    facts.add_row("removed", f"{config.remover} makes room{_drawn_out(config)}")
    facts.add_row("items", _sequences(config.sequences))
    facts.add_row("limits", limits_text(limits))
    if limits != config.rate_limiter:
        facts.add_row("", f"created with: {limits_text(config.rate_limiter)}")
    columns = Table()
    for heading in ("column", "dtype", "shape of a step", "bounds"):
        columns.add_column(heading)
    for spec in config.signature:
        columns.add_row(plain(spec.name), spec.dtype, _shape(spec.shape), _bounds(spec))
    return Group(facts, columns)


def limits_text(limits: RateLimiterConfig) -> str:
    """When calls wait, in words."""
    parts = [f"samples from {limits.min_size_to_sample:,} items on"]
    if limits.samples_per_insert:
        parts.append(f"{limits.samples_per_insert:g} samples per insert, {limits.error_buffer:g} more or fewer")
    if limits.queue_size:
        parts.append(f"inserts wait at {limits.queue_size:,} items")
    return "; ".join(parts)


def trajectory_view(trajectory: Trajectory) -> RenderableType:
    """What was played: its facts, the ranges of its columns, its first steps."""
    facts = _facts()
    facts.add_row("trajectory", plain(trajectory.trajectory_id))
    facts.add_row("actor", plain(trajectory.actor_id) or "not named")
    facts.add_row("weights", str(trajectory.weights_version))
    facts.add_row("episode seed", str(trajectory.episode_seed))
    facts.add_row("steps", f"{trajectory.num_steps:,}{_beginning(trajectory)}, {_end(trajectory)}")
    for name, value in sorted(trajectory.stats.items()):
        facts.add_row(plain(name), f"{value:g}")
    columns = {plain(name): array for name, array in trajectory.columns.items()}
    if trajectory.priorities is not None:
        columns["(priority)"] = trajectory.priorities
    return Group(facts, _ranges(columns), _first_steps(columns, trajectory.first_step))


def _ranges(columns: Mapping[str, NDArray[np.generic]]) -> Table:
    view = Table()
    view.add_column("column")
    view.add_column("dtype")
    view.add_column("shape")
    for heading in ("least", "mean", "most"):
        view.add_column(heading, justify="right")
    for name, array in columns.items():
        numbers = array.astype(np.float64)
        extremes = (_number(value) for value in (numbers.min(), numbers.mean(), numbers.max()))
        view.add_row(name, array.dtype.name, _shape(array.shape), *extremes)
    return view


def _first_steps(columns: Mapping[str, NDArray[np.generic]], first_step: int) -> Table:
    view = Table()
    view.add_column("step", justify="right")
    for name in columns:
        view.add_column(name, overflow="fold")
    for t in range(min(FIRST_STEPS, len(next(iter(columns.values()))))):
        view.add_row(str(first_step + t), *(_value(array[t]) for array in columns.values()))
    return view


def _value(value: NDArray[np.generic] | np.generic) -> str:
    shown = np.array2string(np.asarray(value), threshold=8, edgeitems=2, formatter={"float_kind": _number})
    text = " ".join(shown.split()).replace("[ ", "[")
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[: _MAX_VALUE_CHARACTERS - 1]}…"


def plain(text: str) -> str:
    """What others have named, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _number(value: "float | np.floating[Any]") -> str:
    return f"{value:.6g}"


def _beginning(trajectory: Trajectory) -> str:
    return f" from step {trajectory.first_step:,} on" if trajectory.first_step else ""


def _end(trajectory: Trajectory) -> str:
    if trajectory.open:
        return "still being played"
    return "terminated" if trajectory.terminated else "truncated" if trajectory.truncated else "without an end"


def _selector(config: TableConfig) -> str:
    return f"prioritized ^ {config.priority_exponent:g}" if config.selector == "prioritized" else config.selector


def _drawn_out(config: TableConfig) -> str:
    times = config.max_times_sampled
    return f"; an item goes after {times:,} draw{'s' if times > 1 else ''}" if times else ""


def _sequences(rule: SequenceRule) -> str:
    which = {0: "complete trajectories", 1: "every step"}.get(rule.period, f"every {rule.period}th step")
    match rule.episode_end:
        case EpisodeEnd.PAD:
            end = "sequences are zero beyond the end"
        case EpisodeEnd.TRUNCATE:
            end = f"only where {rule.length} steps begin"
        case EpisodeEnd.CONTINUE:
            end = "sequences go on in the actor's next trajectory"
    return f"{which}; {end}"


def _bounds(spec: ColumnSpec) -> str:
    least = "" if spec.minimum is None else f"{spec.minimum:g} to"
    most = "" if spec.maximum is None else f"{spec.maximum:g}" if least else f"to {spec.maximum:g}"
    return f"{least} {most}".strip()


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"


def _facts() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    return grid
