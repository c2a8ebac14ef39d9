"""Priorities kept in Redis every few seconds: what a crash loses of them is relearned, so they need no log.

Under `priorities:<table>:pages` is a hash of pages, little-endian, by their numbers. They go out some at a time; with
the last ones goes `priorities:<table>:state`, which says of which chunks on the pages hold nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import redis
from numpy.typing import NDArray

from replay_server.priorities import PAGE_SLOTS
from replay_server.redis_log import RedisLog
from replay_server.table import Table
from replay_server.write_chain import Command

_PAGES_PER_WRITE = 256  # 4 MiB: a write has to be done within the timeout, and inserts wait for it


@dataclass(frozen=True)
class PriorityPages:
    """Changed priorities of a table.

    Attributes:
        pages: numbers of the changed pages.
        next_ordinal: steps of chunks from there on have no saved priority.
        highest: the highest priority seen.
    """

    pages: Sequence[int]
    next_ordinal: int
    highest: float


def take_priorities(table: Table, next_ordinal: int) -> PriorityPages | None:
    """What has changed since the last call; None if nothing has or the table makes no use of priorities.

    Args:
        table: whose.
        next_ordinal: of the first chunk that is not stored yet.
    """
    pages = table.priorities.take_changed_pages() if table.has_priorities else []
    if not pages:
        return None
    return PriorityPages(pages, next_ordinal, table.priorities.highest)


def give_back_priorities(table: Table, taken: PriorityPages) -> None:
    """Count pages that could not be saved as changed again."""
    table.priorities.mark_changed(list(taken.pages))


def page_commands(log: RedisLog, table: Table, taken: PriorityPages) -> Iterator[list[Command]]:
    """Write pages as they are when their commands are asked for; one list per write, the last one makes them count."""
    name = table.config.name
    for i in range(0, len(taken.pages), _PAGES_PER_WRITE):
        part = taken.pages[i : i + _PAGES_PER_WRITE]
        words = [word for page in part for word in (page, _page_of(table, page))]
        commands: list[Command] = [("HSET", log.key("priorities", name, "pages"), *words)]
        if i + len(part) == len(taken.pages):
            state = json.dumps({"next_ordinal": taken.next_ordinal, "highest": taken.highest})
            commands.append(("SET", log.key("priorities", name, "state"), state))
        yield commands


def _page_of(table: Table, page: int) -> bytes:
    return table.priorities.values[page * PAGE_SLOTS : (page + 1) * PAGE_SLOTS].astype("<f4").tobytes()


def load_priorities(client: redis.Redis, log: RedisLog, table: Table, ordinals: NDArray[np.int64]) -> None:
    """Give restored steps the priorities saved for them; later ones get the highest priority seen.

    Args:
        client: of Redis.
        log: where they are.
        table: whose.
        ordinals: int64 [capacity], by slot: of the chunk that is there, -1 without one.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    name = table.config.name
    state = cast("bytes | None", client.get(log.key("priorities", name, "state")))
    saved = json.loads(state) if state is not None and table.has_priorities else {"next_ordinal": 0, "highest": 0.0}
    values = np.zeros(len(ordinals), np.float32)
    valid = np.zeros(len(ordinals), np.bool_)
    numbers = range(-(-len(ordinals) // PAGE_SLOTS) if saved["next_ordinal"] else 0)
    for part in (numbers[i : i + _PAGES_PER_WRITE] for i in range(0, len(numbers), _PAGES_PER_WRITE)):
        pages = cast("list[bytes | None]", client.hmget(log.key("priorities", name, "pages"), [str(i) for i in part]))
        for number, page in zip(part, pages, strict=True):
            slots = slice(number * PAGE_SLOTS, (number + 1) * PAGE_SLOTS)
            if page is not None:
                values[slots] = np.frombuffer(page, "<f4")
                valid[slots] = True
    valid &= (ordinals >= 0) & (ordinals < saved["next_ordinal"])
    table.restore_priorities(values, valid, float(saved["highest"]))
