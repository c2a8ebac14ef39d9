"""What the log of a table still holds, entry by entry, and what Redis has not yet been told of it."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from replay_server.redis_log import RedisLog
from replay_server.stored import Removed
from replay_server.table import Table
from replay_server.write_chain import Command, order_of


@dataclass(frozen=True)
class Changes:
    """What is to be written besides new entries.

    Attributes:
        wiped: everything that was there before is to be deleted first.
        dead: entries of which nothing is stored any more.
        removed: ordinals of chunks that are no longer stored, though their entry holds others.
        forgotten: ordinals of such chunks whose entry has died since.
        evicted: trajectories to be known as removed.
    """

    wiped: bool = False
    dead: list[str] = field(default_factory=list[str])
    removed: list[int] = field(default_factory=list[int])
    forgotten: list[int] = field(default_factory=list[int])
    evicted: list[Removed] = field(default_factory=list[Removed])

    def __bool__(self) -> bool:
        return bool(self.wiped or self.dead or self.removed or self.evicted)

    def then(self, later: "Changes") -> "Changes":
        """These, then later ones."""
        if later.wiped:
            return later
        return Changes(
            self.wiped,
            self.dead + later.dead,
            self.removed + later.removed,
            self.forgotten + later.forgotten,
            self.evicted + later.evicted,
        )


class LogBook:
    """The entries of one table's log."""

    def __init__(self, log: RedisLog, table: Table, *, wiped: bool = False) -> None:
        """With `wiped`, everything that the log holds is to be deleted."""
        self._log = log
        self._name = table.config.name
        # Entry to the number of its chunks that are stored, oldest first. Not a dict: finding the first one gets slower
        # with every first one that was deleted.
        self._stored: OrderedDict[str, int] = OrderedDict()
        self._removed: dict[str, list[int]] = {}  # entry to the ordinals of its chunks that are no longer
        self._unwritten = Changes(wiped)

    def add(self, entry: str, num_stored: int, removed: Collection[int] = ()) -> None:
        """The log has an entry behind all others; `removed` are ordinals of chunks in it that are not stored."""
        if not num_stored:
            self._unwritten.dead.append(entry)
            self._unwritten.forgotten.extend(removed)
            return
        self._stored[entry] = num_stored
        if removed:
            self._removed[entry] = list(removed)

    def drop_after(self, order: tuple[int, int]) -> None:
        """Forget the entries after a place in the log, which Redis has lost."""
        for entry in [entry for entry in reversed(self._stored) if order_of(entry) > order]:
            del self._stored[entry]
            self._removed.pop(entry, None)

    def take(self, removed: Sequence[Removed]) -> Changes:
        """What is to be written now, with what the table has removed since the last call."""
        changes, self._unwritten = self._unwritten, Changes()
        for one in removed:
            changes.evicted.append(one)
            for chunk in one.chunks:
                if chunk.entry:
                    self._remove(chunk.entry, chunk.ordinal, changes)
        return changes

    def _remove(self, entry: str, ordinal: int, changes: Changes) -> None:
        self._stored[entry] -= 1
        if self._stored[entry]:
            self._removed.setdefault(entry, []).append(ordinal)
            changes.removed.append(ordinal)
            return
        del self._stored[entry]
        changes.dead.append(entry)
        changes.forgotten.extend(self._removed.pop(entry, ()))

    def give_back(self, changes: Changes) -> None:
        """What was taken has not been written."""
        self._unwritten = changes.then(self._unwritten)

    def commands(self, changes: Changes) -> list[Command]:
        """Write changes."""
        log, name = self._log, self._name
        commands = log.wipe_commands(name) if changes.wiped else []
        first = next(iter(self._stored), "")
        if first:
            dead = [entry for entry in changes.dead if order_of(entry) > order_of(first)]
            if len(dead) < len(changes.dead):
                commands.append(log.trim_command(name, first))
        else:
            dead = changes.dead
        commands += log.delete_commands(name, dead)
        commands += log.removed_commands(name, changes.removed, changes.forgotten)
        return [*commands, *log.evicted_commands(name, changes.evicted)]

    def rewrite_commands(self, present: Sequence[str], evicted: Sequence[Removed]) -> list[Command]:
        """Set right what Redis has besides the entries that are stored.

        Args:
            present: the entries that it has.
            evicted: all trajectories to be known as removed.
        """
        log, name = self._log, self._name
        dead = [entry for entry in present if entry not in self._stored]
        removed = [ordinal for ordinals in self._removed.values() for ordinal in ordinals]
        return [
            ("UNLINK", log.key("removed", name), log.key("evicted", name)),
            *log.delete_commands(name, dead),
            *log.removed_commands(name, removed, ()),
            *log.evicted_commands(name, evicted),
        ]
