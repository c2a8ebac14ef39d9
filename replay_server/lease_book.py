"""Who holds which name of a table: leases that expire, with tokens that fence off whoever has lost one."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import redis

from replay_server.errors import Refusal
from replay_server.group_commit import GroupCommit
from replay_server.redis_store import RedisStore
from replay_server.write_chain import Command
from zero.trajectories import Lease
from zero.wire.codec import Reason

_MOST_LEASES = 10_000
_MOST_HOLDERS = 1_000
_LONGEST_SECONDS = 3600.0
_LONGEST_NAME = 128


@dataclass
class _Held:
    """One name.

    Attributes:
        token: of those who hold it, or held it last.
        shared: several may.
        holders: who, with when each lease expires by the clock, and how long it lasts.
    """

    token: int = 0
    shared: bool = False
    holders: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])


class LeaseBook:
    """All leases; to be used in one event loop.

    Who holds what is in Redis before it is granted, so tokens never go back. When a lease expires is not: after a
    restart every lease lasts as long again as when it was granted.
    """

    def __init__(
        self, store: RedisStore, commit: GroupCommit, prefix: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Every key begins with the prefix and a colon; `load` must be called first."""
        self._store = store
        self._commit = commit
        self._key = f"{prefix}:leases"
        self._clock = clock
        self._held: dict[tuple[str, str], _Held] = {}
        self._changing = asyncio.Lock()
        commit.keep(self._keep)

    async def load(self) -> None:
        """Take over what Redis has.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        now = self._clock()
        for key, value in (await self._store.run(self._load)).items():
            table, name = json.loads(key)
            token, shared, lasting = json.loads(value)
            holders = {holder: (now + seconds, seconds) for holder, seconds in lasting.items()}
            self._held[table, name] = _Held(token, shared, holders)

    def _load(self, client: redis.Redis) -> dict[bytes, bytes]:
        return cast("dict[bytes, bytes]", client.hgetall(self._key))

    async def acquire(self, table: str, name: str, holder: str, seconds: float, *, shared: bool) -> int:
        """Grant a name, or let it last longer for its holder; returns the token.

        Raises:
            Refusal: LEASE_HELD, BAD_MESSAGE, STORE_UNAVAILABLE.
        """
        for what, text in (("name", name), ("holder", holder)):
            if not 1 <= len(text) <= _LONGEST_NAME:
                raise Refusal(Reason.BAD_MESSAGE, f"{what} must have 1 to {_LONGEST_NAME} characters")
        if not 0 < seconds <= _LONGEST_SECONDS:
            raise Refusal(Reason.BAD_MESSAGE, f"ttl_seconds is {seconds}, must be above 0, at most {_LONGEST_SECONDS}")
        async with self._changing:
            held = self._held.get((table, name), _Held())
            now = self._clock()
            if holder in held.holders:  # also late, as long as nobody else has come
                held.holders[holder] = (now + seconds, seconds)
                return held.token
            live = {one: lease for one, lease in held.holders.items() if lease[0] > now}
            joins = bool(live) and shared and held.shared
            if live and not joins:
                longest = max(expiry for expiry, _ in live.values()) - now
                raise Refusal(
                    Reason.LEASE_HELD,
                    f"{name!r} of table {table!r} is already acquired; release it, or wait {longest:.0f} s at most",
                )
            holders = held.holders if joins else {}
            granted = _Held(held.token + (not joins), shared, {**holders, holder: (now + seconds, seconds)})
            if len(self._held) >= _MOST_LEASES or len(granted.holders) > _MOST_HOLDERS:
                raise Refusal(Reason.BAD_MESSAGE, f"{len(self._held)} names, {len(holders)} holders of it: too many")
            await self._set(table, name, granted)
            return granted.token

    async def release(self, table: str, name: str, holder: str) -> None:
        """Let others have a name; nothing if the holder does not have it.

        Raises:
            Refusal: STORE_UNAVAILABLE; it may be released all the same.
        """
        async with self._changing:
            held = self._held.get((table, name))
            if held is not None and holder in held.holders:
                rest = {one: lease for one, lease in held.holders.items() if one != holder}
                await self._set(table, name, _Held(held.token, held.shared, rest))

    def holds(self, table: str, lease: Lease) -> bool:
        """Whether nobody has taken the name over."""
        held = self._held.get((table, lease.name))
        return held is not None and lease.token == held.token

    def check(self, table: str, lease: Lease) -> None:
        """Refuse who has lost a name.

        Raises:
            Refusal: LEASE_LOST.
        """
        if not self.holds(table, lease):
            raise Refusal(
                Reason.LEASE_LOST,
                f"{lease.name!r} of table {table!r} was taken over by another producer: acquire it again",
            )

    async def _set(self, table: str, name: str, held: _Held) -> None:
        await self._commit.write([self._command(table, name, held)])
        self._held[table, name] = held

    def _command(self, table: str, name: str, held: _Held) -> Command:
        lasting = {holder: seconds for holder, (_, seconds) in held.holders.items()}
        return "HSET", self._key, json.dumps([table, name]), json.dumps([held.token, held.shared, lasting])

    def _keep(self) -> list[Command]:
        return [self._command(table, name, held) for (table, name), held in self._held.items()]
