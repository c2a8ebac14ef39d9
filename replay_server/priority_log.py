"""Priorities kept in Redis every few seconds: what a crash loses of them is relearned, so they need no log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import redis
from numpy.typing import NDArray

from replay_server.priorities import PAGE_SLOTS
from replay_server.redis_log import RedisLog
from replay_server.table import Table
from replay_server.write_chain import Command


@dataclass(frozen=True)
class PriorityPages:
    """Changed priorities of a table at one moment.

    Attributes:
        pages: numbers of the changed pages.
        data: float32, little-endian, of each page.
        next_ordinal: steps of chunks from there on have no saved priority.
        highest: the highest priority seen.
    """

    pages: Sequence[int]
    data: Sequence[bytes]
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
    values = table.priorities.values
    data = [values[page * PAGE_SLOTS : (page + 1) * PAGE_SLOTS].astype("<f4").tobytes() for page in pages]
    return PriorityPages(pages, data, next_ordinal, table.priorities.highest)


def give_back_priorities(table: Table, taken: PriorityPages) -> None:
    """Count pages that could not be saved as changed again."""
    table.priorities.mark_changed(list(taken.pages))


def priority_commands(log: RedisLog, table: str, taken: PriorityPages) -> list[Command]:
    """Write pages."""
    key = log.key("priorities", table)
    pages = zip(taken.pages, taken.data, strict=True)
    commands: list[Command] = [("SETRANGE", key, page * PAGE_SLOTS * 4, data) for page, data in pages]
    state = json.dumps({"next_ordinal": taken.next_ordinal, "highest": taken.highest})
    return [*commands, ("SET", log.key("priorities", table, "state"), state)]


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
    stored = cast("bytes | None", client.get(log.key("priorities", name))) if saved["next_ordinal"] else None
    values = np.frombuffer(stored or b"", "<f4")[: len(ordinals)].astype(np.float32)
    known = ordinals[: len(values)]
    table.restore_priorities(values, (known >= 0) & (known < saved["next_ordinal"]), float(saved["highest"]))
