"""Values of stored steps that were replaced since they were inserted: the newest ones, by slot, in strings of Redis.

A row is a generation (uint32, little-endian) and the value. It counts as long as its generation is that of the step in
its slot, so rows of steps that are gone need not be deleted, and there are never more rows than slots. A page of rows
is one string; the set `updated:<table>` names the pages.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import numpy as np
import redis
from numpy.typing import NDArray

from replay_server.redis_log import RedisLog
from replay_server.table import Table
from replay_server.write_chain import Command
from zero.tables import TableConfig
from zero.wire.codec import row_bytes

_GENERATION = np.dtype("<u4")
_PAGE_BYTES = 64 << 10
_ROWS_AT_ONCE = 4096
_KEYS_PER_COMMAND = 1000


class ColumnLog:
    """The replaced values of one table."""

    def __init__(self, log: RedisLog, config: TableConfig) -> None:
        """None are known yet."""
        self._log = log
        self._config = config
        self._name = config.name
        self._capacity = config.capacity
        self._dtypes = {spec.name: np.dtype(spec.dtype).newbyteorder("<") for spec in config.signature}
        self._shapes = {spec.name: spec.shape for spec in config.signature}
        self._row_bytes = {spec.name: _GENERATION.itemsize + row_bytes(spec) for spec in config.signature}
        self._replaced: dict[str, NDArray[np.bool_]] = {}  # by column and slot
        self._pages: set[str] = set()  # all that Redis may have

    def expect(self, slots: NDArray[np.int64], names: Iterable[str]) -> None:
        """Rows of some columns of the steps in these slots [N] are going to be written."""
        for name in names:
            self._pages.update(self._pages_of(name, slots))

    def note(self, slots: NDArray[np.int64], names: Iterable[str]) -> None:
        """They were written."""
        for name in names:
            self._replaced.setdefault(name, np.zeros(self._capacity, np.bool_))[slots] = True

    def commands(
        self, slots: NDArray[np.int64], generations: NDArray[np.uint32], columns: Mapping[str, NDArray[np.generic]]
    ) -> list[Command]:
        """Keep new values [N, *shape] of some columns of the steps in slots [N], none twice; for any thread."""
        if not len(slots):
            return []
        order = np.argsort(slots)
        slots, generations = slots[order], generations[order]
        commands: list[Command] = []
        for name, values in columns.items():
            data = np.ascontiguousarray(values[order].astype(self._dtypes[name], copy=False))
            prefix = generations.astype(_GENERATION).view(np.uint8).reshape(len(slots), -1)
            rows = np.concatenate((prefix, data.reshape(len(slots), -1).view(np.uint8)), axis=1)
            commands += self._row_commands(name, slots, rows)
        return commands

    def _row_commands(self, name: str, slots: NDArray[np.int64], rows: NDArray[np.uint8]) -> list[Command]:
        """One command per run of neighbours in a page; slots ascend."""
        numbers, places = np.divmod(slots, self._page_slots(name))
        pages = self._pages_of(name, slots)
        commands: list[Command] = [("SADD", self._log.key("updated", self._name), *pages)]
        ends = np.flatnonzero((np.diff(slots) != 1) | (np.diff(numbers) != 0)) + 1
        for run in np.split(np.arange(len(slots)), ends):
            first = int(run[0])
            offset = int(places[first]) * rows.shape[1]
            key = self._key(f"{numbers[first]}:{name}")
            commands.append(("SETRANGE", key, offset, rows[first : first + len(run)].tobytes()))
        return commands

    def _pages_of(self, name: str, slots: NDArray[np.int64]) -> list[str]:
        return [f"{number}:{name}" for number in np.unique(slots // self._page_slots(name)).tolist()]

    def _page_slots(self, name: str) -> int:
        return max(1, _PAGE_BYTES // self._row_bytes[name])

    def _key(self, page: str) -> str:
        return self._log.key("column", self._name, page)

    def replaced(self, name: str, slots: NDArray[np.int32]) -> bool:
        """Whether any value of a column in these slots was replaced, maybe before their steps came."""
        return name in self._replaced and bool(self._replaced[name][slots].any())

    def emptied(self) -> "ColumnLog":
        """That of an empty table which takes the place of this one: nothing that was replaced counts any more."""
        new = ColumnLog(self._log, self._config)
        new._pages = self._pages
        return new

    def wipe_commands(self) -> list[Command]:
        """Delete all pages."""
        keys = [self._key(page) for page in self._pages]
        return [("UNLINK", *keys[i : i + _KEYS_PER_COMMAND]) for i in range(0, len(keys), _KEYS_PER_COMMAND)]

    def rewrite_commands(self, table: Table) -> Iterator[list[Command]]:
        """Keep all replaced values again, as memory has them; one list per write, made when it is asked for."""
        planned = [(name, np.flatnonzero(replaced)) for name, replaced in self._replaced.items()]
        for name, slots in planned:
            self.expect(slots, (name,))

        def rows() -> Iterator[list[Command]]:
            for name, slots in planned:
                for part in (slots[i : i + _ROWS_AT_ONCE] for i in range(0, len(slots), _ROWS_AT_ONCE)):
                    stored = part[table.generations(part) != 0]
                    yield self.commands(stored, table.generations(stored), {name: table.rings.take(name, stored)})

        return rows()

    def load(self, client: redis.Redis, table: Table) -> None:
        """Replace values of a recovered table.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        self._pages = {
            page.decode() for page in cast("set[bytes]", client.smembers(self._log.key("updated", self._name)))
        }
        for page in self._pages:
            number, _, name = page.partition(":")
            if name not in self._dtypes:
                continue
            rows = np.frombuffer(cast("bytes | None", client.get(self._key(page))) or b"", np.uint8)
            rows = rows[: len(rows) // self._row_bytes[name] * self._row_bytes[name]].reshape(-1, self._row_bytes[name])
            self._load_page(table, name, int(number) * self._page_slots(name), rows)

    def _load_page(self, table: Table, name: str, first: int, rows: NDArray[np.uint8]) -> None:
        slots = np.arange(first, min(first + len(rows), self._capacity))
        generations = rows[: len(slots), : _GENERATION.itemsize].copy().view(_GENERATION)[:, 0]
        valid = (generations != 0) & (generations == table.generations(slots))
        data = rows[: len(slots)][valid, _GENERATION.itemsize :].copy().view(self._dtypes[name])
        values = data.reshape(-1, *self._shapes[name]).astype(self._dtypes[name].newbyteorder("="))
        table.write_rows(slots[valid], {name: values})
        self._replaced.setdefault(name, np.zeros(self._capacity, np.bool_))[slots[valid]] = True
