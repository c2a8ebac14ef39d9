"""What the commands of `zero replay` do with a replay server."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console

from deploy.errors import BAD_INPUT, FAILED, DeployError
from deploy.json_text import json_text
from deploy.replay_views import config_view, limits_text, plain, server_view, trajectory_view
from replay_server.answers import ReplayError, ServerInfo, TableInfo, Verification
from replay_server.client import ReplayClient
from replay_server.credentials import Credentials, CredentialsError
from replay_server.trajectory_file import TrajectoryFile, TrajectoryFileError, write_trajectory_file
from zero.tables import Durability, TableConfig
from zero.trajectories import Trajectory, TrajectoryFilter
from zero.wire.codec import CodecError, Reason

_CONTACT_SECONDS = 3.0
_PATIENCE_SECONDS = 60.0
_READING_SECONDS = 24 * 3600.0
_BATCH_BYTES = 1 << 20
_MISTAKES = (
    Reason.UNKNOWN_TABLE,
    Reason.TABLE_CONFLICT,
    Reason.BAD_CONFIG,
    Reason.WRONG_SIGNATURE,
    Reason.BAD_LENGTH,
    Reason.OUT_OF_RANGE,
    Reason.CONTENT_CONFLICT,
    Reason.MISSING_CHUNK,
    Reason.UNAUTHENTICATED,
)
"""Reasons that mean that what was given cannot be used; for all others trying again may help."""
_LIMIT_OPTIONS = {
    "min_size_to_sample": "--min-size",
    "samples_per_insert": "--samples-per-insert",
    "error_buffer": "--error-buffer",
    "queue_size": "--queue-size",
}
"""By the field of a RateLimiterConfig."""


class ReplayOperations:
    """A connection to a server for one command; what goes wrong within it leaves as a DeployError."""

    def __init__(self, address: str, credentials: Credentials, console: Console) -> None:
        """What is to be shown goes to the console."""
        try:
            self._client = ReplayClient(address, client_name="zero replay", credentials=credentials)
        except CredentialsError as error:
            raise DeployError(str(error), BAD_INPUT) from error
        self._console = console

    def info(self, *, as_json: bool) -> None:
        """Show the server."""
        info = self._server()
        if as_json:
            self._say(json_text({"address": self._client.address, "server": info}))
        else:
            self._console.print(server_view(self._client.address, info))

    def tables(self, *, as_json: bool) -> None:
        """Show what the tables are."""
        tables = self._tables()
        if as_json:
            self._say(json_text([table.config for table in tables.values()]))
            return
        if not tables:
            self._console.print("no tables yet")
        for table in tables.values():
            self._console.print(config_view(table))

    def peek(self, table: str, trajectory_id: str | None, *, as_json: bool) -> None:
        """Show a trajectory."""
        self._table(table)
        wanted = None if trajectory_id is None else TrajectoryFilter(trajectory_ids=(trajectory_id,))
        trajectory = _joined(list(self._client.read_trajectories(table, wanted, limit=1, newest_first=True)))
        if trajectory is None:
            what = "is empty" if trajectory_id is None else f"holds no trajectory {trajectory_id!r}"
            raise DeployError(f"table {table!r} {what}", BAD_INPUT)
        if as_json:
            self._say(json_text(trajectory))
        else:
            self._console.print(trajectory_view(trajectory))

    def export(self, table: str, path: Path) -> None:
        """Write what a table holds to a file."""
        config = self._table(table).config
        left_out: list[str] = []

        def whole() -> Iterator[Trajectory]:
            """All but those that have lost their beginning, which no table would take."""
            begun: set[str] = set()
            for trajectory in self._client.read_trajectories(table, timeout=_READING_SECONDS):
                if trajectory.first_step == 0:
                    begun = {trajectory.trajectory_id}  # chunks of one come one after the other
                if trajectory.trajectory_id in begun:
                    yield trajectory
                else:
                    left_out.append(trajectory.trajectory_id)

        count = write_trajectory_file(path, config, whole())
        self._say(f"{path}: {count:,} trajectories of table {table}, {path.stat().st_size:,} bytes")
        if left_out:
            self._say(
                f"left out, since their first steps are no longer stored: {plain(', '.join(sorted(set(left_out))))}"
            )

    def import_file(self, path: Path, table: str | None) -> None:
        """Insert what a file holds; what is there already is not stored again."""
        file = TrajectoryFile(path)
        config = file.config if table is None else _renamed(file.config, table)
        existing = self._tables().get(config.name)
        if existing is None:
            self._client.create_table(config)
        else:
            _check_signature(existing.config, config)
        limits = config.rate_limiter if existing is None else existing.rate_limiter.config
        is_limited = bool(limits.samples_per_insert or limits.queue_size)  # large inserts might never pass
        with self._client.insert_stream(config.name, timeout=_PATIENCE_SECONDS) as stream:
            outcomes = [stream.insert(batch) for batch in _batches(file, one_by_one=is_limited)]
        stored = sum(outcome.result().stored for outcome in outcomes)
        known = sum(outcome.result().duplicates for outcome in outcomes)
        self._say(f"table {config.name}: {stored:,} trajectories stored, {known:,} were known already")

    def verify(self, table: str, *, as_json: bool) -> None:
        """Let the server check a table's log."""
        if self._table(table).config.durability is Durability.MEMORY:
            nothing = Verification(0, 0, 0, ())
            self._say(json_text(nothing) if as_json else f"table {table} is in memory alone: there is no log to check")
            return
        found = self._client.verify_table(table, timeout=_READING_SECONDS)
        if as_json:
            self._say(json_text(found))
        else:
            read = f"{found.entries:,} entries with {found.chunks:,} trajectories and chunks, {found.num_bytes:,} bytes"
            for line in (read, *(found.problems or ("no problems",))):
                self._say(line)
        if found.problems:
            raise DeployError(f"table {table!r} has {len(found.problems)} problems", FAILED)

    def reset(self, table: str) -> None:
        """Empty a table."""
        deleted = self._client.reset_table(table)
        self._say(f"table {table} is empty; {deleted:,} trajectories were deleted")

    def delete(self, table: str) -> None:
        """Delete a table."""
        self._client.delete_table(table)
        self._say(f"table {table} is deleted")

    def what_would_go(self, table: str) -> str:
        """What a table holds, in words."""
        info = self._table(table)
        return f"{info.num_trajectories:,} trajectories with {info.num_steps:,} steps of table {table}"

    def limit(self, table: str, changes: dict[str, float | int]) -> None:
        """Change the limits that are given, for good, and show all."""
        info = self._table(table)
        try:
            limits = replace(info.rate_limiter.config, **changes)
            info.config.check_limits(limits)
        except ValueError as error:
            raise DeployError(_by_option(str(error)), BAD_INPUT) from None
        self._client.set_rate_limiter(table, limits)
        self._say(f"table {table}: {limits_text(limits)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()
        if isinstance(error, TrajectoryFileError):
            raise DeployError(str(error), BAD_INPUT) from error
        if isinstance(error, ReplayError | CodecError):
            code = BAD_INPUT if error.reason in _MISTAKES else FAILED
            raise DeployError(f"replay server {self._client.address}: {error.reason}: {error.message}", code) from error

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _server(self) -> ServerInfo:
        return self._client.server_info(timeout=_CONTACT_SECONDS)

    def _tables(self) -> Mapping[str, TableInfo]:
        info = self._server()
        if info.recovery is not None:
            raise DeployError("the server is still loading its log, `zero replay info` shows how far; try again")
        return info.tables

    def _table(self, name: str) -> TableInfo:
        tables = self._tables()
        if name not in tables:
            raise DeployError(f"no table {name!r}; there are: {', '.join(tables) or 'none'}", BAD_INPUT)
        return tables[name]


def _joined(chunks: list[Trajectory]) -> Trajectory | None:
    """The chunks of a trajectory as one; None of none."""
    if len(chunks) < 2:
        return chunks[0] if chunks else None
    columns = {name: np.concatenate([chunk.columns[name] for chunk in chunks]) for name in chunks[0].columns}
    priorities = [chunk.priorities for chunk in chunks if chunk.priorities is not None]
    return replace(
        chunks[-1],
        columns=columns,
        first_step=chunks[0].first_step,
        priorities=np.concatenate(priorities) if priorities else None,
    )


def _renamed(config: TableConfig, name: str) -> TableConfig:
    try:
        return replace(config, name=name)
    except ValueError as error:
        raise DeployError(str(error), BAD_INPUT) from None


def _check_signature(existing: TableConfig, given: TableConfig) -> None:
    if existing.signature != given.signature:
        ours, theirs = set(existing.signature), set(given.signature)
        differing = sorted({spec.name for spec in ours ^ theirs}) or ["their order"]
        raise DeployError(
            f"table {existing.name!r} has other columns than the file: {', '.join(differing)}; import it as a table of "
            "another name",
            BAD_INPUT,
        )


def _batches(trajectories: Iterable[Trajectory], *, one_by_one: bool) -> Iterator[list[Trajectory]]:
    """About a MiB each, or one trajectory."""
    batch: list[Trajectory] = []
    size = 0
    for trajectory in trajectories:
        batch.append(trajectory)
        size += sum(array.nbytes for array in trajectory.columns.values())
        if one_by_one or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _by_option(text: str) -> str:
    """What a RateLimiterConfig refuses, in the words of who gave options."""
    for field, option in _LIMIT_OPTIONS.items():
        text = text.replace(field, option)
    return text
