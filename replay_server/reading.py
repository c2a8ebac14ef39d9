"""ReadTrajectories and ReadPriorities: what a table stores, streamed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from replay_server.border import Border, Call, parse
from replay_server.catalog import Catalog
from replay_server.errors import Refusal
from replay_server.limits import Direction
from replay_server.stored import Stored
from replay_server.table import Table
from zero.trajectories import PriorityUpdates, Trajectory
from zero.wire import codec, frames, replay_pb2
from zero.wire.codec import Reason

_MESSAGE_BYTES = 1 << 20
_PATIENCE_SECONDS = 20.0
_KEYS_PER_MESSAGE = 1 << 16


class Reader:
    """The calls that read all of a table."""

    def __init__(self, catalog: Catalog, border: Border) -> None:
        """All collaborators are the server's own."""
        self._catalog = catalog
        self._border = border

    async def read_trajectories(self, call: Call) -> None:
        """Answer a ReadTrajectoriesRequest."""
        request = parse(replay_pb2.ReadTrajectoriesRequest, await self._border.receive(call))
        table = self._catalog.find(request.table).table
        if request.limit < 0:
            raise Refusal(Reason.BAD_MESSAGE, f"limit is {request.limit}, must not be negative")
        if request.HasField("since"):
            await self._read_since(call, table, request)
            return
        if request.HasField("filter"):
            chosen = table.matching(codec.decode_trajectory_filter(request.filter))
        else:
            chosen = table.trajectories()
        if request.newest_first:
            chosen.reverse()
        columns = _checked_columns(table, request.columns)
        most = self._border.in_flight.max_message_bytes
        await self._write(call, _messages(table, chosen[: request.limit or None], most, columns))

    async def _read_since(self, call: Call, table: Table, request: replay_pb2.ReadTrajectoriesRequest) -> None:
        if request.HasField("filter") or request.newest_first:
            raise Refusal(Reason.BAD_MESSAGE, "since is given without filter and newest_first")
        if request.since and not table.first_ordinal <= request.since <= table.next_ordinal:
            raise Refusal(
                Reason.UNKNOWN_CURSOR, f"since {request.since} is of an earlier table {request.table!r}: begin at 0"
            )
        columns = _checked_columns(table, request.columns)
        news = _news(table, request.since)[: request.limit or None]
        await self._write(call, _news_messages(table, news, columns))

    async def read_priorities(self, call: Call) -> None:
        """Answer a ReadPrioritiesRequest."""
        request = parse(replay_pb2.ReadPrioritiesRequest, await self._border.receive(call))
        await self._write(call, _priority_messages(self._catalog.find(request.table).table.all_priorities()))

    async def _write(self, call: Call, messages: Iterator[bytes]) -> None:
        before = 0
        for message in messages:
            await call.bytes.take_when_they_fit(Direction.ANSWERS, len(message), _PATIENCE_SECONDS)
            await call.write(message)
            # gRPC holds one answer back; when it takes the next one, it is rid of it.
            call.bytes.count(Direction.ANSWERS, -before)
            before = len(message)


class _News(NamedTuple):
    """A chunk: steps `start` to `stop` of a stored trajectory."""

    ordinal: int
    stored: Stored
    start: int
    stop: int


def _news(table: Table, since: int) -> list[_News]:
    """What was inserted from a chunk on, in that order."""
    if table.next_ordinal <= since:
        return []
    news: list[_News] = []
    for stored in table.trajectories():
        if stored.chunks[-1].ordinal >= since:
            first = stored.chunks[0].first_step
            news += [
                _News(chunk.ordinal, stored, chunk.first_step - first, chunk.stop - first)
                for chunk in stored.chunks
                if chunk.ordinal >= since
            ]
    news.sort()
    return news


def _news_messages(table: Table, news: list[_News], columns: frozenset[str]) -> Iterator[bytes]:
    """Serialized answers of about a MiB each, or of one chunk; what is removed meanwhile is left out."""
    parts: list[Trajectory] = []
    size = cursor = 0
    for ordinal, stored, start, stop in news:
        if table.find_trajectory(stored.trajectory_id) is not stored:
            continue
        parts.append(_part(table, stored, start, stop, columns))
        size += (stop - start) * table.step_bytes
        cursor = ordinal + 1
        if size > _MESSAGE_BYTES:
            yield frames.encode_read_response(parts, cursor)
            parts, size = [], 0
    if parts:
        yield frames.encode_read_response(parts, cursor)


def _checked_columns(table: Table, names: Sequence[str]) -> frozenset[str]:
    """The columns to be read; none stands for all."""
    unknown = set(names) - table.rings.row_bytes.keys()
    if unknown:
        raise Refusal(
            Reason.WRONG_SIGNATURE,
            f"no column {min(unknown)[:40]!r}; the table has [{', '.join(table.rings.row_bytes)}]",
        )
    return frozenset(names)


def _priority_messages(priorities: PriorityUpdates) -> Iterator[bytes]:
    for start in range(0, len(priorities.keys), _KEYS_PER_MESSAGE):
        part = slice(start, start + _KEYS_PER_MESSAGE)
        updates = codec.encode_priority_updates(PriorityUpdates(priorities.keys[part], priorities.priorities[part]))
        yield replay_pb2.ReadPrioritiesResponse(priorities=updates).SerializeToString()


def _messages(table: Table, chosen: list[Stored], max_bytes: int, columns: frozenset[str]) -> Iterator[bytes]:
    """Serialized answers of about a MiB each, or of one trajectory; what is removed meanwhile is left out.

    A trajectory that was inserted in chunks may be larger than a message: it is sent in chunks then.
    """
    step_bytes = table.step_bytes
    most = max_bytes // 2  # of the columns; the rest is for what is around them
    parts: list[Trajectory] = []
    size = 0
    for stored in chosen:
        for part in _parts(table, stored, max(most // step_bytes, 1), columns):
            if parts and size + part.num_steps * step_bytes > min(_MESSAGE_BYTES, most):
                yield frames.encode_read_response(parts)
                parts, size = [], 0
            parts.append(part)
            size += part.num_steps * step_bytes
    if parts:
        yield frames.encode_read_response(parts)


def _parts(table: Table, stored: Stored, longest: int, columns: frozenset[str]) -> Iterator[Trajectory]:
    steps = len(stored.slots)
    for start in range(0, steps, longest):
        if table.find_trajectory(stored.trajectory_id) is not stored:
            return  # removed while an earlier message was being sent
        yield _part(table, stored, start, min(start + longest, steps), columns)


def _part(table: Table, stored: Stored, start: int, stop: int, columns: frozenset[str]) -> Trajectory:
    """A stored trajectory, or some steps of a long one as a chunk."""
    slots = stored.slots[start:stop]
    is_last = stop == len(stored.slots)
    rows = table.read(slots)
    shown = {name: column for name, column in rows.items() if name in columns} if columns else rows
    part = stored.as_chunk(stored.chunks[0].first_step + start, shown, is_last=is_last)
    return replace(part, priorities=table.priorities.values[slots]) if table.has_priorities else part
