"""A table and its log, kept together: blocks on their way into both, what was removed and replaced, counters."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from replay_server.block import Block, Record
from replay_server.column_log import ColumnLog
from replay_server.log_book import Changes, LogBook
from replay_server.log_entry import EntryHeader, runs_of
from replay_server.recovery import Recovered, counters
from replay_server.redis_log import RedisLog, newest_of
from replay_server.rewriting import plan_rewriting
from replay_server.table import Placement, Table, Updated
from replay_server.write_chain import Command
from zero.trajectories import ColumnUpdates


class LoggedTable(Protocol):
    """A table whose blocks go through the log."""

    @property
    def table(self) -> Table:
        """The table in memory."""
        ...

    def stored(self, block: Block) -> None:
        """A block that was given to `commit` has just been stored."""
        ...

    def abandoned(self, block: Block) -> None:
        """A block that was given to `commit` is not stored and is not going to be."""
        ...


class _Placed(NamedTuple):
    """A block on its way into the log and the table; one entry per record, the same for all that share one."""

    block: Block
    placement: Placement
    entries: Sequence[str]


class TableLog:
    """One table and its log.

    Attributes:
        target: whose.
        table: in memory.
        updating: held while values are being replaced.
    """

    def __init__(self, log: RedisLog, target: LoggedTable, book: LogBook, columns: ColumnLog) -> None:
        """The table must hold what the book and the columns say, or be empty and the book begun anew."""
        self.target = target
        self.table = target.table
        self.updating = asyncio.Lock()
        self._log = log
        self._name = self.table.config.name
        self._book = book
        self._columns = columns
        self._placed: list[_Placed] = []
        # An entry lives as long as anything in it. Trajectories that do not go in the order in which they came get
        # entries of their own, or the log would hold many times what the table does.
        config = self.table.config
        self._share_entries = config.remover == "fifo" and (not config.max_times_sampled or config.selector == "fifo")

    # --- inserting ---------------------------------------------------------------------------------------------------

    def place(self, block: Block) -> list[Command]:
        """Reserve the room of a block that can be placed; returns the commands that put it into the log."""
        placement = self.table.place(block)
        number = len(block.records)
        if self._share_entries:
            entry = self._log.chain.new_entry()
            self._placed.append(_Placed(block, placement, [entry] * number))
            return [self._append_command(entry, block.records, placement.ordinal, placement, block.message)]
        entries = [self._log.chain.new_entry() for _ in range(number)]
        self._placed.append(_Placed(block, placement, entries))
        commands: list[Command] = []
        start = 0
        for i, (record, place) in enumerate(zip(block.records, block.places, strict=True)):
            part = placement._replace(slots=placement.slots[start : start + record.num_steps])
            start += record.num_steps
            commands.append(
                self._append_command(entries[i], [record], placement.ordinal + i, part, block.message[place])
            )
        return commands

    def _append_command(
        self, entry: str, records: Sequence[Record], ordinal: int, placement: Placement, message: bytes
    ) -> Command:
        header = EntryHeader(
            ordinals=range(ordinal, ordinal + len(records)),
            stored_at=[placement.stored_at] * len(records),
            digests=[record.digest for record in records],
            runs=runs_of(placement.slots),
        )
        return self._log.append_command(self._name, entry, header, message)

    def store_placed(self) -> None:
        """The log has what was placed; so has the table now."""
        placed, self._placed = self._placed, []
        for block, placement, entries in placed:
            self.table.store(block, placement, entries)
            for entry, number in Counter(entries).items():
                self._book.add(entry, number)
            self.target.stored(block)

    def abandon_placed(self) -> None:
        """The log has nothing of what was placed."""
        placed, self._placed = self._placed, []
        for block, placement, _ in placed:
            self.table.abandon(placement)
            self.target.abandoned(block)

    def state_command(self) -> Command:
        """Keeps the counters; what is under way counts, since the log has it when the command is executed."""
        records = [record for placed in self._placed for record in placed.block.records]
        state = counters(self.table)
        state["inserted_steps"] += sum(record.num_steps for record in records)
        state["inserted_trajectories"] += sum(record.first_step == 0 for record in records)
        return self._log.state_command(self._name, state)

    @property
    def first_unsettled_ordinal(self) -> int:
        """All chunks before this one are stored, or never will be."""
        return min([placed.placement.ordinal for placed in self._placed], default=self.table.next_ordinal)

    # --- what is removed and replaced --------------------------------------------------------------------------------

    def take_changes(self) -> Changes:
        """What was removed and Redis has not been told."""
        return self._book.take(self.table.take_removed())

    def give_back(self, changes: Changes) -> None:
        """What was taken has not been written."""
        self._book.give_back(changes)

    def change_commands(self, changes: Changes) -> list[Command]:
        """Tell Redis."""
        wiped = self._columns.wipe_commands() if changes.wiped else []
        return [*wiped, *self._book.commands(changes), self.state_command()]

    def wipe_commands(self) -> list[Command]:
        """Delete everything."""
        return [*self._log.wipe_commands(self._name), *self._columns.wipe_commands()]

    def restarted(self, target: LoggedTable) -> "TableLog":
        """The log of an empty table of the same name; what this one holds is deleted with the next write."""
        return TableLog(self._log, target, LogBook(self._log, target.table, wiped=True), self._columns.emptied())

    def plan_update(self, updates: ColumnUpdates) -> Callable[[], list[Command]]:
        """What makes, on any thread, the commands that keep new values of stored steps."""
        slots, wanted, _ = self.table.replaceable(updates)
        slots = slots[wanted]
        chosen = updates.chosen(wanted).columns
        self._columns.expect(slots, chosen)
        return partial(self._columns.commands, slots, self.table.generations(slots), chosen)

    def update(self, updates: ColumnUpdates) -> Updated:
        """Replace the values in memory."""
        slots, wanted, _ = self.table.replaceable(updates)
        self._columns.note(slots[wanted], updates.columns)
        return self.table.replace_values(updates)

    def replaced(self, name: str, slots: NDArray[np.int32]) -> bool:
        """Whether any value of a column in these slots may have been replaced."""
        return self._columns.replaced(name, slots)

    # --- what Redis has lost -----------------------------------------------------------------------------------------

    def plan_rewriting(self, present: Sequence[str]) -> Iterator[list[Command]]:
        """What gives Redis everything again, write by write; can be broken off and planned again.

        The plan is made at once, the commands of a write when they are asked for, also by another thread.

        Args:
            present: the entries that Redis has.
        """
        self._book.give_back(self.take_changes())  # before entries get other ids
        columns = self._columns.rewrite_commands(self.table)
        rewritings = plan_rewriting(self._log, self.table, self._book, newest_of(present))
        last = [*self._book.rewrite_commands(present, self.table.removed_known()), self.state_command()]

        def writes() -> Iterator[list[Command]]:
            for rewriting in rewritings:
                yield [rewriting.command(self._log, self.table)]
            yield from columns
            yield last

        return writes()


def recovered_log(log: RedisLog, target: LoggedTable, recovered: Recovered) -> TableLog:
    """The log of a recovered table."""
    return TableLog(log, target, recovered.book, recovered.columns)


def new_log(log: RedisLog, target: LoggedTable) -> TableLog:
    """The log of a new table."""
    return TableLog(log, target, LogBook(log, target.table), ColumnLog(log, target.table.config))
