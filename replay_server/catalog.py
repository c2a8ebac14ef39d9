"""The tables of a server: created once, found by name, brought back at the start, their priorities saved."""

import asyncio
import logging
from dataclasses import dataclass, fields

import numpy as np

from replay_server.errors import Refusal
from replay_server.group_commit import GroupCommit
from replay_server.metrics import ServerMetrics
from replay_server.priority_log import (
    count_all_as_changed,
    give_back_priorities,
    priority_commands,
    take_priorities,
)
from replay_server.recovery import Recovered, recover_table
from replay_server.redis_log import RedisLog
from replay_server.redis_store import RedisStore
from replay_server.served_table import ServedTable
from replay_server.table import Table
from replay_server.write_chain import Command
from zero.tables import Durability, TableConfig
from zero.wire.codec import Reason, row_bytes

logger = logging.getLogger(__name__)

_BYTES_PER_SLOT = 16 + 4 + 32  # whose it is, its priority, its share of the sum tree


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        message_bytes: the largest message.
        table_bytes: the most memory that the preallocated columns of a table may take.
        weights_bytes: the largest weights.
    """

    message_bytes: int
    table_bytes: int
    weights_bytes: int


class Catalog:
    """All tables."""

    def __init__(
        self, store: RedisStore, log: RedisLog, commit: GroupCommit, limits: Limits, rng: np.random.Generator
    ) -> None:
        """The metrics come with `recover`, which must be called first."""
        self._store = store
        self._log = log
        self._commit = commit
        self._limits = limits
        self._rng = rng
        self._tables: dict[str, ServedTable] = {}
        self._creating = asyncio.Lock()
        self._metrics: ServerMetrics | None = None
        commit.keep(self._keep)

    def tables(self) -> list[ServedTable]:
        """All tables, in the order in which they came."""
        return list(self._tables.values())

    def find(self, name: str) -> ServedTable:
        """The table of that name.

        Raises:
            Refusal: UNKNOWN_TABLE.
        """
        table = self._tables.get(name)
        if table is None:
            raise Refusal(Reason.UNKNOWN_TABLE, f"no table {name[:64]!r}; there are {sorted(self._tables) or 'none'}")
        return table

    async def recover(self, metrics: ServerMetrics) -> None:
        """Bring back all tables.

        Raises:
            redis.RedisError: Redis does not answer.
            LogError: the log is damaged.
        """
        self._metrics = metrics
        await self._store.run(self._log.chain.begin)
        configs = await self._store.run(self._log.load_tables)
        for config in configs:
            if config.durability is Durability.REDIS:
                recovered = await self._store.run(recover_table, self._log, config, self._rng)
            else:
                recovered = self._empty(config)
            self._serve(recovered, metrics)
            logger.info("table %s holds %d steps", config.name, recovered.table.num_steps)

    def _empty(self, config: TableConfig) -> Recovered:
        if config.durability is Durability.REDIS:
            return Recovered(Table(config, self._rng), ())
        # Nothing tells which keys an earlier life of the table gave out: begin at a generation that it hardly had.
        generation = int(self._rng.integers(1 << 30))
        return Recovered(Table(config, self._rng, generation * config.capacity), ())

    def _serve(self, recovered: Recovered, metrics: ServerMetrics) -> None:
        config = recovered.table.config
        served = ServedTable(recovered.table, self._commit, metrics.of_table(config.name), self._limits.message_bytes)
        if config.durability is Durability.REDIS:
            self._commit.add_table(served, recovered.evicted)
        self._tables[config.name] = served

    async def create(self, config: TableConfig) -> bool:
        """Create a table, or confirm that it exists as given; whether it is new.

        Raises:
            Refusal: TABLE_CONFLICT, BAD_CONFIG for one too large, STORE_UNAVAILABLE.
        """
        async with self._creating:
            existing = self._tables.get(config.name)
            if existing is not None:
                _check_same(existing.table.config, config)
                return False
            self._check_size(config)
            await self._commit.write([self._log.table_command(config)])
            assert self._metrics is not None, "recover() comes first"
            self._serve(self._empty(config), self._metrics)
            logger.info("created table %s with capacity %d steps", config.name, config.capacity)
            return True

    def _keep(self) -> list[Command]:
        """What Redis must hold of the tables besides their logs."""
        for served in self.tables():
            count_all_as_changed(served.table)
        return [self._log.table_command(served.table.config) for served in self.tables()]

    def _check_size(self, config: TableConfig) -> None:
        size = config.capacity * (sum(row_bytes(spec) for spec in config.signature) + _BYTES_PER_SLOT)
        if size > self._limits.table_bytes:
            raise Refusal(
                Reason.BAD_CONFIG,
                f"capacity {config.capacity} takes {size / 2**30:.1f} GiB; at most "
                f"{self._limits.table_bytes / 2**30:.1f} GiB are allowed here",
            )

    async def save_priorities(self) -> None:
        """Save the priorities that have changed; what cannot be saved now is saved the next time."""
        for served in self.tables():
            if served.table.config.durability is not Durability.REDIS:
                continue
            taken = take_priorities(served.table)
            if taken is None:
                continue
            key = self._log.priorities_key(served.table.config.name)
            try:
                await self._commit.write(priority_commands(key, taken))
            except Refusal as refusal:
                give_back_priorities(served.table, taken)
                logger.warning("priorities of table %s were not saved: %s", served.table.config.name, refusal)


def _check_same(existing: TableConfig, given: TableConfig) -> None:
    for field in fields(TableConfig):
        old, new = getattr(existing, field.name), getattr(given, field.name)
        if old != new:
            raise Refusal(
                Reason.TABLE_CONFLICT, f"table {given.name!r} exists with {field.name} {old!r}, asked for {new!r}"[:500]
            )
