"""Sample and SampleStream: updates applied, rate limiters passed, positions drawn, columns gathered into the answer."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_server.border import Border, Call, parse, streamed_hold_seconds
from replay_server.errors import Refusal
from replay_server.fresh_bytes import fresh_bytes
from replay_server.limits import Direction
from replay_server.mapped_memory import MappedMemory
from replay_server.metrics import ServerMetrics
from replay_server.served_table import ServedTable
from replay_server.table import Drawn
from zero.trajectories import ColumnSpec, SampleSpec, SequenceBatch, TableShare
from zero.wire import codec, replay_pb2
from zero.wire.codec import CodecError, Reason
from zero.wire.frames import BegunFrame, ColumnPlace, SampleFrame

N_STEP_COLUMNS = ("n_step_return", "n_step_discount")
"""Columns of an answer that come from no column of the table."""

_MOST_FORMS = 64
_ROW_BYTES = 64  # of an answer besides its columns, at most: keys, probabilities, lengths, versions, weights, flags


class _Share(NamedTuple):
    """A table's part in a batch: so many rows of it."""

    served: ServedTable
    rows: int


class _Form(NamedTuple):
    """What requests have in common that ask for the same of the same tables: checked, and ready to be answered."""

    spec: SampleSpec
    tables: Sequence[ServedTable]
    places: Sequence[ColumnPlace]
    frame: SampleFrame
    answer_bytes: int  # of the answer at most


class _Order(NamedTuple):
    """A request that can be answered."""

    form: _Form
    shares: Sequence[_Share]
    is_mix: bool
    rng: np.random.Generator | None  # None for that of the tables


class Sampler:
    """The calls that sample; to be used in one event loop."""

    def __init__(
        self,
        find: Callable[[str], ServedTable],
        newest_weights: Callable[[], int],
        border: Border,
        metrics: ServerMetrics,
        rng: np.random.Generator,
    ) -> None:
        """`find` gives the table of a name, or raises Refusal; `newest_weights` the newest version."""
        self._find = find
        self._newest_weights = newest_weights
        self._border = border
        self._in_flight = border.in_flight
        self._metrics = metrics
        self._rng = rng
        self._forms: dict[bytes, _Form] = {}
        self._turn = asyncio.Lock()

    async def sample(self, data: bytes, call: Call) -> bytes:
        """Answer a serialized SampleRequest."""
        request = parse(replay_pb2.SampleRequest, data)
        return await self._answer(request, call, call.hold_seconds(), _write)

    async def sample_stream(self, call: Call) -> None:
        """Answer the SampleStreamRequests of a call, one after the other; gRPC sends one while the next is drawn."""
        before = 0
        with closing(MappedMemory(call.context.peer(), self._in_flight.max_bytes)) as shared:
            while (data := await call.read()) is not None:
                await self._take_turn()
                answer = await self._answer_streamed(data, call, shared)
                await call.write(answer)
                # gRPC holds one answer back; when it takes the next one, it is rid of it.
                call.bytes.count(Direction.ANSWERS, -before)
                before = len(answer)

    async def _take_turn(self) -> None:
        """Let one request of all streams on per round of the event loop.

        gRPC needs some rounds to let a new call in: were every round as long as all learners together keep it busy, new
        calls would hardly come in beside them.
        """
        async with self._turn:
            await asyncio.sleep(0)

    async def _answer_streamed(self, data: bytes, call: Call, shared: MappedMemory) -> bytes:
        try:
            self._border.check_size(len(data))
            request = parse(replay_pb2.SampleStreamRequest, data)
            seconds = streamed_hold_seconds(request.hold_seconds)

            def write(order: _Order, drawn: Sequence[Drawn]) -> bytes:
                return _write_streamed(order, drawn, shared.slot(request))

            return await self._answer(request.sample, call, seconds, write)
        except (Refusal, CodecError) as refusal:
            answer = replay_pb2.SampleStreamResponse(refused=self._border.refused(refusal)).SerializeToString()
            call.bytes.count(Direction.ANSWERS, len(answer))
            return answer

    async def _answer(self, request: replay_pb2.SampleRequest, call: Call, seconds: float, write: "_Write") -> bytes:
        """The serialized answer, whose bytes are counted as in flight.

        Raises:
            CodecError: the request is malformed.
            Refusal: UNKNOWN_TABLE, WRONG_SIGNATURE, BAD_MESSAGE, BAD_LENGTH, MESSAGE_TOO_LARGE, RATE_LIMITED, TOO_BUSY.
        """
        started = time.perf_counter()
        order = self._order(request)
        drawn = await self._draw(order, call, time.monotonic() + seconds)
        answer = write(order, drawn)
        call.bytes.count(Direction.ANSWERS, len(answer) - order.form.answer_bytes)
        if not order.form.spec.peek:
            self._observe(drawn)
        self._metrics.sample_seconds.observe(time.perf_counter() - started)
        return answer

    def _observe(self, drawn: Sequence[Drawn]) -> None:
        for one in drawn:
            self._metrics.sample_age_seconds.observe(one.mean_age_seconds)
            behind = self._newest_weights() - one.weights_versions.astype(np.float64).mean()
            self._metrics.sample_versions_behind.observe(max(behind, 0.0))

    def _order(self, request: replay_pb2.SampleRequest) -> _Order:
        """Check a request, then apply its updates."""
        shares = codec.decode_table_shares(request)
        rng = np.random.default_rng(request.seed) if request.HasField("seed") else None
        form = self._form(request, shares)
        for served, share in zip(form.tables, shares, strict=True):
            if share.updates is not None:
                served.update_priorities(share.updates)
        offset = (rng or self._rng).random() if request.mix else 0.0
        rows = _rows(shares, form.spec.batch_size, offset) if request.mix else [form.spec.batch_size]
        return _Order(form, list(map(_Share, form.tables, rows)), bool(request.mix), rng)

    def _form(self, request: replay_pb2.SampleRequest, shares: Sequence[TableShare]) -> _Form:
        """The form of a request: most are as the one before, but for their updates."""
        tables = [self._find(share.table) for share in shares]
        request.ClearField("updates")
        request.ClearField("seed")
        for share in request.mix:
            share.ClearField("updates")
        key = request.SerializeToString(deterministic=True)
        form = self._forms.get(key)
        if form is None or any(one is not other for one, other in zip(form.tables, tables, strict=True)):
            form = self._make_form(codec.decode_sample_spec(request), tables)
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            self._forms[key] = form
        for served in tables:
            served.check_open()
            if not form.spec.peek:
                served.check_batch(form.spec.batch_size)
        return form

    def _make_form(self, spec: SampleSpec, tables: Sequence[ServedTable]) -> _Form:
        for served in tables:
            served.table.check_sample(spec, self._in_flight.max_message_bytes)
        places = _places(tables, spec)
        around = sum(len(place.name) + 200 for place in places) + spec.batch_size * _ROW_BYTES + 1000
        return _Form(spec, tables, places, SampleFrame(places), sum(place.num_bytes for place in places) + around)

    async def _draw(self, order: _Order, call: Call, deadline: float) -> list[Drawn]:
        """Draw from every table, as soon as all of them allow it; the bytes of the answer are counted then."""
        shares = [share for share in order.shares if share.rows]
        if order.form.spec.peek:
            return await self._peek(order, shares, call, deadline)
        while True:
            await self._pass(shares, deadline)
            if not all(share.served.can_draw(share.rows) for share in shares):
                _give_back(shares)  # something was deleted since
                continue
            wanted = order.form.spec.filter
            lacking = next((share for share in shares if not share.served.table.can_match(wanted, share.rows)), None)
            if lacking is not None:
                _give_back(shares)
                await lacking.served.grown(deadline, self._in_flight)
                continue
            try:
                call.bytes.take(Direction.ANSWERS, order.form.answer_bytes)
            except Refusal:
                _give_back(shares)
                raise
            spec = order.form.spec
            return [share.served.draw(replace(spec, batch_size=share.rows), order.rng) for share in shares]

    async def _peek(self, order: _Order, shares: Sequence[_Share], call: Call, deadline: float) -> list[Drawn]:
        """Look at what there is, in all tables at once, as soon as each has something."""
        while True:
            seen = [
                share.served.table.peek(replace(order.form.spec, batch_size=share.rows), order.rng) for share in shares
            ]
            found = [one for one in seen if one is not None]
            if len(found) == len(shares):
                break
            lacking = shares[seen.index(None)].served
            await lacking.grown(deadline, self._in_flight)
            lacking.check_open()
        call.bytes.take(Direction.ANSWERS, order.form.answer_bytes)
        for share in shares:
            share.served.count_peeked(share.rows)
        return found

    async def _pass(self, shares: Sequence[_Share], deadline: float) -> None:
        """Pass the rate limiters, by name: so that calls which wait for several never wait for each other."""
        passed: list[_Share] = []
        try:
            for share in sorted(shares, key=lambda share: share.served.name):
                await share.served.pass_sample(share.rows, deadline, self._in_flight)
                passed.append(share)
        except BaseException:
            _give_back(passed)
            raise


def _give_back(shares: Sequence[_Share]) -> None:
    for share in shares:
        share.served.give_back_sample(share.rows)


def _rows(shares: Sequence[TableShare], batch_size: int, offset: float) -> list[int]:
    """How many rows each table gives: rounded so that they add up, and on average over offsets 0 to 1 are exact."""
    ends = np.floor(np.cumsum([share.fraction for share in shares]) * batch_size + offset).astype(int)
    ends[-1] = batch_size  # the fractions add up to 1 only nearly
    return np.diff(np.minimum(ends, batch_size), prepend=0).tolist()


def _places(tables: Sequence[ServedTable], spec: SampleSpec) -> list[ColumnPlace]:
    """The columns of the answer; all tables must have them alike."""
    first, *others = (_columns(served, spec) for served in tables)
    for served, columns in zip(tables[1:], others, strict=True):
        for name, column in columns.items():
            if (column.dtype, column.shape) != (first[name].dtype, first[name].shape):
                raise Refusal(
                    Reason.WRONG_SIGNATURE,
                    f"column {column.name!r} of table {served.name!r} is {column.dtype} {list(column.shape)}, of table "
                    f"{tables[0].name!r} it is {first[name].dtype} {list(first[name].shape)}",
                )
    rows = spec.batch_size
    places = [
        ColumnPlace(name, column.dtype, (rows, spec.window(name).length, *column.shape))
        for name, column in first.items()
    ]
    if spec.n_step is None:
        return places
    taken = [name for name in N_STEP_COLUMNS if name in first]
    if taken:
        raise Refusal(Reason.BAD_MESSAGE, f"{taken[0]!r} is what the n-step returns are called; give another alias")
    return [*places, *(ColumnPlace(name, "float32", (rows,)) for name in N_STEP_COLUMNS)]


def _columns(served: ServedTable, spec: SampleSpec) -> Mapping[str, ColumnSpec]:
    """The column behind every window."""
    signature = {column.name: column for column in served.table.config.signature}
    return {name: signature[spec.window(name).column] for name in spec.windows}


_Write = Callable[[_Order, Sequence[Drawn]], bytes]
"""Writes an answer, and gives the message to be sent."""


def _write(order: _Order, drawn: Sequence[Drawn]) -> bytes:
    """The serialized SampleResponse."""
    return _in_message(order, drawn, order.form.frame.begin(_without_columns(order, drawn), on_stream=False))


def _write_streamed(order: _Order, drawn: Sequence[Drawn], slot: NDArray[np.uint8] | None) -> bytes:
    """The serialized SampleStreamResponse; what was drawn goes into the slot if there is one that takes it."""
    rest = _without_columns(order, drawn)
    if slot is not None:
        frame = order.form.frame.begin(rest, on_stream=False)
        if frame.size <= len(slot):
            _fill(order, drawn, frame, slot[: frame.size].data)
            return replay_pb2.SampleStreamResponse(shared_bytes=frame.size).SerializeToString()
    return _in_message(order, drawn, order.form.frame.begin(rest, on_stream=True))


def _in_message(order: _Order, drawn: Sequence[Drawn], frame: BegunFrame) -> bytes:
    message, memory = fresh_bytes(frame.size)
    _fill(order, drawn, frame, memory.data)
    return message


def _fill(order: _Order, drawn: Sequence[Drawn], frame: BegunFrame, memory: memoryview) -> None:
    form = order.form
    views = frame.lay_out(memory)
    start = 0
    for share, one in zip((share for share in order.shares if share.rows), drawn, strict=True):
        parts = {
            place.name: _rows_of(view, place, start, share.rows) for place, view in zip(form.places, views, strict=True)
        }
        _gather(share.served, one, form.spec, parts)
        start += share.rows


def _rows_of(view: memoryview, place: ColumnPlace, start: int, rows: int) -> NDArray[np.uint8]:
    row_bytes = len(view) // place.shape[0]
    return np.frombuffer(view, np.uint8, rows * row_bytes, start * row_bytes)


def _gather(served: ServedTable, drawn: Drawn, spec: SampleSpec, parts: Mapping[str, NDArray[np.uint8]]) -> None:
    """Fill the rows of one table."""
    table = served.table
    for name in spec.windows:
        window = spec.window(name)
        rows = drawn.walk.rows[:, window.offset : window.offset + window.length]
        table.rings.take(window.column, rows, parts[name])
    if spec.n_step is not None:
        for name, values in zip(N_STEP_COLUMNS, table.n_step(drawn, spec.n_step), strict=True):
            parts[name][:] = values.view(np.uint8)


def _without_columns(order: _Order, drawn: Sequence[Drawn]) -> SequenceBatch:
    spec = order.form.spec
    reach = max(window.offset + window.length for window in map(spec.window, spec.windows))
    ended = [one.walk.terminated & (one.walk.bounds <= reach) for one in drawn]
    return SequenceBatch(
        columns={},
        keys=np.concatenate([one.keys for one in drawn]),
        probabilities=np.concatenate([one.probabilities for one in drawn]),
        lengths=np.minimum(np.concatenate([one.walk.lengths for one in drawn]), reach),
        weights_versions=np.concatenate([one.weights_versions for one in drawn]),
        terminated=np.concatenate(ended),
        table_size=sum(one.table_size for one in drawn),
        importance_weights=_importance_weights(drawn, spec.importance_sampling_exponent),
        rows_per_table=tuple(share.rows for share in order.shares) if order.is_mix else (),
    )


def _importance_weights(drawn: Sequence[Drawn], exponent: float) -> NDArray[np.float32] | None:
    """(N x probability) ^ -exponent by each row's own table, over the largest: Schaul et al. 2016, section 3.4."""
    if not exponent:
        return None
    logarithms = -exponent * np.concatenate([np.log(one.table_size * one.probabilities) for one in drawn])
    return np.exp(logarithms - logarithms.max()).astype(np.float32)
