"""How Redis is doing, as it says itself: what its operator has to act on before something is refused or lost."""

from typing import NamedTuple, cast

import redis


class RedisState(NamedTuple):
    """Read from INFO; all 0 before Redis was asked.

    Attributes:
        write_failed: whether the last write to the append-only file went wrong.
        delayed_fsyncs: how often a write had to wait for a flush in the background, since Redis started.
        used_memory_bytes: of Redis.
        max_memory_bytes: its limit; 0 for none.
        file_bytes: of the append-only file.
    """

    write_failed: bool = False
    delayed_fsyncs: int = 0
    used_memory_bytes: int = 0
    max_memory_bytes: int = 0
    file_bytes: int = 0


def read_redis_state(client: redis.Redis) -> RedisState:
    """Ask Redis.

    Raises:
        redis.RedisError: it does not answer.
    """
    file = cast("dict[str, int | str]", client.info("persistence"))
    memory = cast("dict[str, int]", client.info("memory"))
    return RedisState(
        file.get("aof_last_write_status", "ok") != "ok",
        int(file.get("aof_delayed_fsync", 0)),
        memory.get("used_memory", 0),
        memory.get("maxmemory", 0),
        int(file.get("aof_current_size", 0)),
    )
