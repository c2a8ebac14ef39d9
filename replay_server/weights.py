"""Versioned weights: the newest in memory, the newest few in Redis; versions only grow."""

import asyncio
import hashlib
import time
from dataclasses import dataclass
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
            fields[b"payload"],
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
        async with self._publishing:
            if sha256 != self._newest.sha256:
                weights = StoredWeights(self._newest.version + 1, training_step, sha256, payload, time.time())
                await self._save(weights)
                self._newest = weights
            return self._newest.version

    async def _save(self, weights: StoredWeights) -> None:
        """Bring the bytes first, under a name that stands for their content: a slow transfer holds up no insert."""
        staged = f"{self._prefix}:staged:{weights.sha256.hex()}"
        key = f"{self._prefix}:{weights.version}"
        try:
            await self._store.run(_stage, staged, weights)
        except redis.RedisError as error:
            raise Refusal(Reason.STORE_UNAVAILABLE, f"Redis did not take the weights: {error}") from None
        await self._commit.write([("RENAME", staged, key), ("PERSIST", key), *self._point_to(weights.version)])

    def _point_to(self, version: int) -> list[Command]:
        return [("SET", f"{self._prefix}:newest", version), ("DEL", f"{self._prefix}:{version - KEPT_VERSIONS}")]

    def _keep(self) -> list[Command]:
        newest = self._newest
        if not newest.version:
            return []
        return [("HSET", f"{self._prefix}:{newest.version}", *_fields(newest)), *self._point_to(newest.version)]


def _stage(client: redis.Redis, key: str, weights: StoredWeights) -> None:
    pipeline = client.pipeline(transaction=True)
    pipeline.execute_command("HSET", key, *_fields(weights))
    pipeline.execute_command("EXPIRE", key, _STAGED_SECONDS)
    pipeline.execute()


def _fields(weights: StoredWeights) -> Command:
    return (
        *("training_step", weights.training_step),
        *("sha256", weights.sha256),
        *("payload", weights.payload),
        *("published_at", weights.published_at),
    )
