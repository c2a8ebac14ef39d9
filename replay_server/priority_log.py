"""Priorities kept in Redis every few seconds: what a crash loses of them is relearned, so they need no log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import redis

from replay_server.selectors import PrioritizedSelector
from replay_server.table import Table
from replay_server.write_chain import Command


@dataclass(frozen=True)
class PriorityPages:
    """Changed priorities of a table at one moment.

    Attributes:
        pages: numbers of the changed pages.
        data: float32, little-endian, of each page.
        head: the table's head: positions from there on have no saved priority.
        highest: the highest priority seen.
    """

    pages: Sequence[int]
    data: Sequence[bytes]
    head: int
    highest: float


def take_priorities(table: Table) -> PriorityPages | None:
    """What has changed since the last call; None if nothing has or the table has no priorities."""
    selector = table.selector
    if not isinstance(selector, PrioritizedSelector):
        return None
    pages = selector.take_dirty_pages()
    if not pages:
        return None
    size = selector.page_slots
    data = [selector.priorities[page * size : (page + 1) * size].astype("<f4").tobytes() for page in pages]
    return PriorityPages(pages, data, table.head, selector.highest)


def give_back_priorities(table: Table, taken: PriorityPages) -> None:
    """Count pages that could not be saved as changed again."""
    if isinstance(table.selector, PrioritizedSelector):
        table.selector.mark_dirty(list(taken.pages))


def count_all_as_changed(table: Table) -> None:
    """Have the next call take all priorities of a table."""
    if isinstance(table.selector, PrioritizedSelector):
        table.selector.mark_dirty(list(range(-(-table.config.capacity // PrioritizedSelector.page_slots))))


def priority_commands(key: str, taken: PriorityPages) -> list[Command]:
    """Write pages."""
    size = PrioritizedSelector.page_slots * 4
    pages = zip(taken.pages, taken.data, strict=True)
    commands: list[Command] = [("SETRANGE", key, page * size, data) for page, data in pages]
    return [*commands, ("SET", f"{key}:state", json.dumps({"head": taken.head, "highest": taken.highest}))]


def load_priorities(client: redis.Redis, key: str, table: Table) -> None:
    """Give stored positions the priorities saved for them; later ones keep the highest priority.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    state = cast("bytes | None", client.get(f"{key}:state"))
    if state is None or not isinstance(table.selector, PrioritizedSelector):
        return
    values = json.loads(state)
    saved = np.frombuffer(cast("bytes | None", client.get(key)) or b"", "<f4")
    positions = np.arange(table.head - table.num_steps, min(table.head, values["head"]), dtype=np.int64)
    slots = positions % table.config.capacity
    known = slots < len(saved)
    table.selector.restore(positions[known], saved[slots[known]].astype(np.float32), float(values["highest"]))
