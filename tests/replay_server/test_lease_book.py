"""Leases: one holder or several by choice, an end by the clock, tokens that only grow."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from replay_server.embedded_redis import EmbeddedRedis
from replay_server.errors import Refusal
from replay_server.group_commit import GroupCommit
from replay_server.lease_book import LeaseBook
from replay_server.redis_log import RedisLog
from replay_server.redis_store import RedisStore
from zero.trajectories import Lease


class Clock:
    """Stands still until it is moved."""

    now = 0.0


def with_book(folder: Path, clock: Clock, script: Callable[[LeaseBook], Awaitable[None]]) -> None:
    """Run a script with a book on a real Redis."""

    async def run() -> None:
        store = RedisStore(None, EmbeddedRedis(folder), 10.0)
        await store.connect()
        log = RedisLog("zero")
        await store.run(log.chain.begin)
        commit = GroupCommit(store, log, lambda _: None)
        book = LeaseBook(store, commit, "zero", clock=lambda: clock.now)
        await book.load()
        writing = asyncio.create_task(commit.run())
        try:
            await script(book)
        finally:
            writing.cancel()
            await asyncio.wait([writing])
            await store.close()

    asyncio.run(run())


def test_a_lease_is_for_one_until_it_ends(tmp_path: Path) -> None:
    """Renewed by its holder, also late; taken over after its end, with a greater token; the old one is fenced off."""
    clock = Clock()

    async def script(book: LeaseBook) -> None:
        assert await book.acquire("t", "arm", "a", 10, shared=False) == 1
        with pytest.raises(Refusal, match="already acquired"):
            await book.acquire("t", "arm", "b", 10, shared=True)
        assert await book.acquire("t", "leg", "b", 10, shared=False) == 1
        clock.now = 9
        assert await book.acquire("t", "arm", "a", 10, shared=False) == 1
        clock.now = 18.9
        with pytest.raises(Refusal, match="already acquired"):
            await book.acquire("t", "arm", "b", 10, shared=False)
        clock.now = 25  # over, but nobody has come: it may go on
        assert await book.acquire("t", "arm", "a", 10, shared=False) == 1
        book.check("t", Lease("arm", 1))
        clock.now = 36
        assert await book.acquire("t", "arm", "b", 10, shared=False) == 2
        book.check("t", Lease("arm", 2))
        for lost in (Lease("arm", 1), Lease("arm", 3), Lease("nose", 1)):
            with pytest.raises(Refusal, match="taken over"):
                book.check("t", lost)
        with pytest.raises(Refusal, match="already acquired"):
            await book.acquire("t", "arm", "a", 10, shared=False)
        await book.release("t", "arm", "a")  # who has lost it gives nothing back
        book.check("t", Lease("arm", 2))
        await book.release("t", "arm", "b")
        assert await book.acquire("t", "arm", "a", 10, shared=False) == 3

    with_book(tmp_path, clock, script)


def test_several_hold_a_name_by_choice(tmp_path: Path) -> None:
    """They share a token; who wants it alone waits for all of them."""

    async def script(book: LeaseBook) -> None:
        assert [await book.acquire("t", "arm", one, 10, shared=True) for one in "ab"] == [1, 1]
        await book.release("t", "arm", "a")
        with pytest.raises(Refusal, match="already acquired"):
            await book.acquire("t", "arm", "c", 10, shared=False)
        await book.release("t", "arm", "b")
        assert await book.acquire("t", "arm", "c", 10, shared=False) == 2
        for wrong in (0.0, -1.0, float("nan"), 4000.0):
            with pytest.raises(Refusal, match="ttl_seconds"):
                await book.acquire("t", "arm", "c", wrong, shared=False)
        with pytest.raises(Refusal, match="holder"):
            await book.acquire("t", "arm", "", 10, shared=False)

    with_book(tmp_path, Clock(), script)


def test_leases_are_remembered(tmp_path: Path) -> None:
    """After a restart a lease lasts as long again, and tokens go on from where they were."""
    clock = Clock()

    async def before(book: LeaseBook) -> None:
        assert await book.acquire("t", "arm", "a", 10, shared=False) == 1

    async def after(book: LeaseBook) -> None:
        book.check("t", Lease("arm", 1))
        with pytest.raises(Refusal, match="already acquired"):
            await book.acquire("t", "arm", "b", 10, shared=False)
        clock.now += 10.1
        assert await book.acquire("t", "arm", "b", 10, shared=False) == 2

    with_book(tmp_path, clock, before)
    clock.now = 1000
    with_book(tmp_path, clock, after)
