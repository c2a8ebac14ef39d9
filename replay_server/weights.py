"""Versioned weights: the newest in memory, the newest few in Redis; versions only grow.

Under `weights:<version>` is a hash with the payload in parts, `payload`, `payload:1`, `payload:2`, ...; the key
`weights:newest` names the newest version.
"""

import asyncio
import hashlib
import itertools
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import redis

from replay_server.errors import Refusal
from replay_server.group_commit import GroupCommit
from replay_server.redis_store import RedisStore
from replay_server.write_chain import Command
from zero.wire.codec import Reason

KEPT_VERSIONS = 3
"""How many versions Redis keeps."""

_STAGED_SECONDS = 600
_PART_BYTES = 4 << 20  # for as long as Redis takes one, every other write waits


@dataclass(frozen=True)
class StoredWeights:
    """Weights with their version.

    Attributes:
        version: 1, 2, 3, ...; 0 for none.
        training_step: optimizer updates made so far.
        sha256: of the payload.
        payload: as published.
        published_at: Unix time at which the server took it.
    """

    version: int
    training_step: int
    sha256: bytes
    payload: bytes
    published_at: float


_NONE = StoredWeights(0, 0, hashlib.sha256(b"").digest(), b"", 0.0)


class WeightsKeeper:
    """Keeps the newest weights."""

    def __init__(self, store: RedisStore, commit: GroupCommit, prefix: str) -> None:
        """Keys begin with the prefix, a colon and `weights`."""
        self._store = store
        self._commit = commit
        commit.keep(self._keep)
        self._prefix = f"{prefix}:weights"
        self._newest = _NONE
        self._publishing = asyncio.Lock()
        self._namings: set[asyncio.Task[None]] = set()

    @property
    def newest(self) -> StoredWeights:
        """The newest weights; version 0 before any."""
        return self._newest

    async def load(self) -> None:
        """Take over what Redis has.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        self._newest = await self._store.run(self._load)

    def _load(self, client: redis.Redis) -> StoredWeights:
        version = int(cast("bytes | None", client.get(f"{self._prefix}:newest")) or 0)
        if not version:
            return _NONE
        fields = cast("dict[bytes, bytes]", client.hgetall(f"{self._prefix}:{version}"))
        return StoredWeights(
            version,
            int(fields[b"training_step"]),
            fields[b"sha256"],
            _payload_of(fields),
            float(fields[b"published_at"]),
        )

    async def publish(self, training_step: int, sha256: bytes, payload: bytes) -> int:
        """Keep weights and return their version; the newest payload again keeps its version.

        Raises:
            Refusal: BAD_WEIGHTS, or STORE_UNAVAILABLE.
        """
        if not payload:
            raise Refusal(Reason.BAD_WEIGHTS, "weights without a single byte")
        if hashlib.sha256(payload).digest() != sha256:
            raise Refusal(Reason.BAD_WEIGHTS, "the chunks do not have the declared sha256")
        if sha256 != self._newest.sha256:
            weights = StoredWeights(0, training_step, sha256, payload, time.time())
            times_away = self._commit.times_away
            staged = f"{self._prefix}:staged:{secrets.token_hex(16)}"
            await self._stage(staged, weights)
            # To its end although the caller may go away: memory and Redis name the same bytes.
            naming = asyncio.create_task(self._name(staged, weights, times_away))
            self._namings.add(naming)
            naming.add_done_callback(self._namings.discard)
            await asyncio.shield(naming)
        return self._newest.version

    async def _stage(self, key: str, weights: StoredWeights) -> None:
        """Bring the bytes first, under a name that nothing knows: a slow transfer holds up no insert."""
        try:
            for words in _parts(weights):
                await self._store.run_aside(_stage, key, words)
        except redis.RedisError as error:
            raise Refusal(Reason.STORE_UNAVAILABLE, f"Redis did not take the weights: {error}") from None

    async def _name(self, staged: str, weights: StoredWeights, times_away: int) -> None:
        async with self._publishing:
            if weights.sha256 == self._newest.sha256:
                return
            if times_away != self._commit.times_away:
                raise Refusal(Reason.STORE_UNAVAILABLE, "Redis was away meanwhile and may have lost a part; try again")
            version = self._newest.version + 1
            key = f"{self._prefix}:{version}"
            await self._commit.write([("RENAME", staged, key), ("PERSIST", key), *self._point_to(version)])
            self._newest = replace(weights, version=version)

    def _point_to(self, version: int) -> list[Command]:
        return [("SET", f"{self._prefix}:newest", version), ("DEL", f"{self._prefix}:{version - KEPT_VERSIONS}")]

    def _keep(self) -> list[Command]:
        newest = self._newest
        if not newest.version:
            return []
        key = f"{self._prefix}:{newest.version}"
        return [("UNLINK", key), *(("HSET", key, *words) for words in _parts(newest)), *self._point_to(newest.version)]


def _stage(client: redis.Redis, key: str, words: Command) -> None:
    pipeline = client.pipeline(transaction=True)
    pipeline.execute_command("HSET", key, *words)
    pipeline.execute_command("EXPIRE", key, _STAGED_SECONDS)
    pipeline.execute()


def _parts(weights: StoredWeights) -> Iterator[Command]:
    """Fields and values, some MiB at a time."""
    yield (
        *("training_step", weights.training_step),
        *("sha256", weights.sha256),
        *("published_at", weights.published_at),
    )
    for number, start in enumerate(range(0, len(weights.payload), _PART_BYTES)):
        yield _part_name(number), weights.payload[start : start + _PART_BYTES]


def _payload_of(fields: Mapping[bytes, bytes]) -> bytes:
    names = (_part_name(number).encode() for number in itertools.count())
    return b"".join(fields[name] for name in itertools.takewhile(fields.__contains__, names))


def _part_name(number: int) -> str:
    return f"payload:{number}" if number else "payload"
