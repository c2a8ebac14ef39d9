"""Insert and InsertStream: what is new passes the rate limiters, then goes into all its tables or none."""

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from replay_server.block import Block, BlockReader
from replay_server.border import Border, Call, streamed_hold_seconds
from replay_server.errors import Refusal
from replay_server.group_commit import GroupCommit, Part
from replay_server.lease_book import LeaseBook
from replay_server.limits import Direction
from replay_server.metrics import ServerMetrics
from replay_server.served_table import ServedTable
from zero.trajectories import Lease, Signature
from zero.wire import replay_pb2
from zero.wire.codec import CodecError, Reason
from zero.wire.insert_parts import InsertParts, take_apart
from zero.wire.wire_format import BYTES, FIXED64, read_fields

_MOST_READERS = 64
_AHEAD = 8  # inserts of one stream that are under way at once


class Inserted(NamedTuple):
    """What became of an insert, in trajectories and chunks, over all tables."""

    stored: int
    duplicates: int


class _Target(NamedTuple):
    """A table that an insert goes to, and everything that the call brings for it."""

    served: ServedTable
    block: Block


class _Admission(NamedTuple):
    """What of it is new and was let in: all of the block's records."""

    served: ServedTable
    block: Block
    num_items: int


class Inserter:
    """The calls that insert; to be used in one event loop."""

    def __init__(
        self,
        find: Callable[[str], ServedTable],
        commit: GroupCommit,
        leases: LeaseBook,
        border: Border,
        metrics: ServerMetrics,
        newest_weights: Callable[[], int],
    ) -> None:
        """`find` gives the table of a name, or raises Refusal; `newest_weights` their version."""
        self._find = find
        self._commit = commit
        self._leases = leases
        self._border = border
        self._in_flight = border.in_flight
        self._metrics = metrics
        self._newest_weights = newest_weights
        self._readers: dict[Signature, BlockReader] = {}

    async def insert(self, data: bytes, call: Call) -> bytes:
        """Answer a serialized InsertRequest."""
        started = time.perf_counter()
        outcome = await self._begin(data, call.hold_seconds())
        # The log may have it even if the caller goes away now.
        inserted = await asyncio.shield(outcome)
        self._metrics.insert_seconds.observe(time.perf_counter() - started)
        return self._response(inserted).SerializeToString()

    async def _begin(self, message: bytes, seconds: float) -> "asyncio.Future[Inserted]":
        try:
            outcome = await self._admit(message, seconds)
        except (Refusal, CodecError):
            self._metrics.inserts.labels("refused").inc()
            raise
        outcome.add_done_callback(self._count)
        return outcome

    def _count(self, outcome: "asyncio.Future[Inserted]") -> None:
        failure = outcome.exception()
        inserted = outcome.result() if failure is None else None
        result = "refused" if inserted is None else "stored" if inserted.stored else "duplicate"
        self._metrics.inserts.labels(result).inc()

    async def _admit(self, message: bytes, seconds: float) -> "asyncio.Future[Inserted]":
        """Let an insert in; the future is done when it is as durable as the tables promise.

        Raises:
            CodecError: a trajectory that a table does not take.
            Refusal: UNKNOWN_TABLE, BAD_MESSAGE, CONTENT_CONFLICT, MISSING_CHUNK, BAD_LENGTH, RATE_LIMITED, TOO_BUSY,
                LEASE_LOST, STORE_UNAVAILABLE, NOT_DURABLE, the last two also through the future.
        """
        deadline = time.monotonic() + seconds
        parts = take_apart(message)
        targets = self._targets(parts, message)
        while True:
            await _settled(targets)
            tables = [target.served for target in targets]
            if not self._commit.is_durable(tables):  # what is known already is acknowledged, too
                await self._commit.make_durable(tables)
                continue
            self._check_lease(parts)
            admissions = self._admissions(targets)
            waited = await self._pass(admissions, deadline)
            if not waited or (self._holds_lease(parts) and _still_new(targets, admissions)):
                return self._store(targets, admissions)
            for admission in admissions:  # another call has brought some of it meanwhile
                admission.served.withdraw(admission.num_items)

    def _check_lease(self, parts: InsertParts) -> None:
        if parts.request.HasField("lease"):
            self._leases.check(parts.request.table, _lease_of(parts))

    def _holds_lease(self, parts: InsertParts) -> bool:
        return not parts.request.HasField("lease") or self._leases.holds(parts.request.table, _lease_of(parts))

    def _targets(self, parts: InsertParts, message: bytes) -> list[_Target]:
        """The tables, by name: so that calls which wait for several tables never wait for each other."""
        names = [parts.request.table, *parts.request.more_tables]
        if len(set(names)) != len(names):
            raise Refusal(Reason.BAD_MESSAGE, "a table is named twice")
        tables = [self._find(name) for name in sorted(names)]
        capacities: dict[Signature, int] = {}
        for served in tables:
            config = served.table.config
            capacities[config.signature] = min(config.capacity, capacities.get(config.signature, config.capacity))
        blocks = {
            signature: self._read(signature, message, parts, capacity) for signature, capacity in capacities.items()
        }
        return [_Target(served, blocks[served.table.config.signature]) for served in tables]

    def _read(self, signature: Signature, message: bytes, parts: InsertParts, capacity: int) -> Block:
        reader = self._readers.get(signature)
        if reader is None:
            if len(self._readers) >= _MOST_READERS:
                self._readers.clear()
            reader = self._readers[signature] = BlockReader(signature)
        return reader.read(message, parts.trajectories, capacity, self._in_flight.max_message_bytes)

    def _admissions(self, targets: Sequence[_Target]) -> list[_Admission]:
        """What of an insert is new, per table."""
        admissions: list[_Admission] = []
        for served, block in targets:
            fresh = served.table.check_new(block)
            if not fresh:
                continue
            chosen = block if len(fresh) == len(block.records) else self._part(served, block, fresh)
            admissions.append(_Admission(served, chosen, served.table.items_of(chosen)))
        return admissions

    def _part(self, served: ServedTable, block: Block, chosen: Sequence[int]) -> Block:
        """Some records of a block, with a message of their own."""
        pieces = (block.message[block.places[i]] for i in chosen)
        request = replay_pb2.InsertRequest(table=served.name)
        message = request.SerializeToString() + b"".join(pieces)
        config = served.table.config
        return self._read(config.signature, message, take_apart(message), config.capacity)

    async def _pass(self, admissions: Sequence[_Admission], deadline: float) -> bool:
        """Pass the rate limiters one after the other; whether it took time."""
        waited = False
        passed: list[_Admission] = []
        try:
            for admission in admissions:
                waited |= await admission.served.pass_insert(admission.num_items, deadline, self._in_flight)
                passed.append(admission)
        except BaseException:
            for admission in passed:
                admission.served.withdraw(admission.num_items)
            raise
        return waited

    def _store(self, targets: Sequence[_Target], admissions: Sequence[_Admission]) -> "asyncio.Future[Inserted]":
        """Store what was let in: first in the log, then in the tables that have none."""
        outcome: asyncio.Future[Inserted] = asyncio.get_running_loop().create_future()
        stored = sum(len(admission.block.records) for admission in admissions)
        inserted = Inserted(stored, sum(len(target.block.records) for target in targets) - stored)
        _count_duplicates(targets, admissions)
        if not any(admission.served.logged for admission in admissions):
            for admission in admissions:
                _end(admission, stored=True)
            outcome.set_result(inserted)
            return outcome
        committed = self._commit_parts(admissions)
        started = time.perf_counter()

        def settle(committed: "asyncio.Future[None]") -> None:
            failure = committed.exception()
            for admission in admissions:
                admission.served.clear_pending(_ids(admission))
                if not admission.served.logged:
                    _end(admission, stored=failure is None)
            if failure is None:
                self._metrics.acknowledge_seconds.observe(time.perf_counter() - started)
                outcome.set_result(inserted)
            else:
                outcome.set_exception(failure)

        for admission in admissions:
            admission.served.set_pending(_ids(admission), outcome)
        committed.add_done_callback(settle)
        return outcome

    def _commit_parts(self, admissions: Sequence[_Admission]) -> "asyncio.Future[None]":
        logged = [admission for admission in admissions if admission.served.logged]
        for served, block, num_items in logged:
            served.expect(block, num_items)
        try:
            return self._commit.commit([Part(served, block) for served, block, _ in logged])
        except Refusal:
            for served, block, _ in logged:
                served.abandoned(block)
            for admission in admissions:
                if not admission.served.logged:
                    _end(admission, stored=False)
            raise

    # --- over a stream -----------------------------------------------------------------------------------------------

    async def insert_stream(self, call: Call) -> None:
        """Answer the InsertStreamRequests of a call: let in one after the other, under way several at once."""
        answers: asyncio.Queue[_Streamed | None] = asyncio.Queue(_AHEAD)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._answer(call, answers))
            while (data := await call.read()) is not None:
                await answers.put(await self._begin_streamed(data, call))
            await answers.put(None)

    async def _begin_streamed(self, data: bytes, call: Call) -> "_Streamed":
        started = time.perf_counter()
        taken = 0
        try:
            self._border.check_size(len(data))
            message, seconds = _split(data)
            await call.bytes.take_when_they_fit(Direction.REQUESTS, len(data), seconds)
            taken = len(data)
            return _Streamed(await self._begin(message, seconds), taken, started)
        except (Refusal, CodecError) as refusal:
            call.bytes.count(Direction.REQUESTS, -taken)
            return _Streamed(refusal, 0, started)

    async def _answer(self, call: Call, answers: "asyncio.Queue[_Streamed | None]") -> None:
        while (streamed := await answers.get()) is not None:
            outcome = streamed.outcome
            try:
                if not isinstance(outcome, asyncio.Future):
                    raise outcome
                inserted = await asyncio.shield(outcome)
            except (Refusal, CodecError) as refusal:
                response = replay_pb2.InsertStreamResponse(refused=self._border.refused(refusal))
            else:
                response = replay_pb2.InsertStreamResponse(inserted=self._response(inserted))
                self._metrics.insert_seconds.observe(time.perf_counter() - streamed.started)
            call.bytes.count(Direction.REQUESTS, -streamed.num_bytes)
            await call.write(response.SerializeToString())

    def _response(self, inserted: Inserted) -> replay_pb2.InsertResponse:
        return replay_pb2.InsertResponse(
            stored=inserted.stored, duplicates=inserted.duplicates, weights_version=self._newest_weights()
        )


class _Streamed(NamedTuple):
    """A request of a stream: its outcome, or that it was not let in, and its bytes in flight."""

    outcome: "asyncio.Future[Inserted] | Refusal | CodecError"
    num_bytes: int
    started: float


def _split(data: bytes) -> tuple[bytes, float]:
    """The InsertRequest of an InsertStreamRequest as it came, and how long it may be held."""
    parts: list[bytes] = []
    seconds = 0.0
    for field in read_fields(data, 0, len(data)):
        if field.number == 1:
            field.of_kind(BYTES)
            parts.append(data[field.start : field.stop])
        elif field.number == 2:
            (seconds,) = struct.unpack_from("<d", data, field.of_kind(FIXED64).start)
    return parts[0] if len(parts) == 1 else b"".join(parts), streamed_hold_seconds(seconds)


def _lease_of(parts: InsertParts) -> Lease:
    return Lease(parts.request.lease.name, parts.request.lease.token)


def _ids(admission: _Admission) -> list[str]:
    return [record.trajectory_id for record in admission.block.records]


async def _settled(targets: Sequence[_Target]) -> None:
    """Return when nothing is under way that could make a trajectory known."""
    while True:
        pending = {
            future
            for served, block in targets
            for future in served.pending(record.trajectory_id for record in block.records)
        }
        if not pending:
            return
        await asyncio.wait(pending)


def _still_new(targets: Sequence[_Target], admissions: Sequence[_Admission]) -> bool:
    """Whether what was new before a wait is so still, and nothing is under way that could change it."""
    expected = {id(served): len(block.records) for served, block, _ in admissions}
    return all(
        not served.pending(record.trajectory_id for record in block.records)
        and len(served.table.check_new(block)) == expected.get(id(served), 0)
        for served, block in targets
    )


def _count_duplicates(targets: Sequence[_Target], admissions: Sequence[_Admission]) -> None:
    new = {id(served): len(block.records) for served, block, _ in admissions}
    for served, block in targets:
        served.count_duplicates(len(block.records) - new.get(id(served), 0))


def _end(admission: _Admission, *, stored: bool) -> None:
    """Store, or give up, what was let into a table without a log."""
    if stored:
        admission.served.store(admission.block, admission.num_items)
    else:
        admission.served.withdraw(admission.num_items)
