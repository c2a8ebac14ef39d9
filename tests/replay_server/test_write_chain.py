"""The chain of writes: all or none, one after the other, and in the end it is known what became of each."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis
from redis.connection import Connection

from replay_server import write_chain
from replay_server.embedded_redis import EmbeddedRedis, connect_to_socket
from replay_server.errors import TakenOverError
from replay_server.write_chain import Command, NotLastWrite, WriteChain, WriteInDoubtError


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a Redis."""
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("chain"))
    embedded.ensure_running()
    yield embedded.socket_path
    embedded.stop()


@pytest.fixture
def client(running: Path) -> Iterator[redis.Redis]:
    """Of an empty Redis."""
    with connect_to_socket(running, 5.0) as client:
        client.flushall()
        yield client


@pytest.fixture
def chain(client: redis.Redis) -> WriteChain:
    """Begun."""
    chain = WriteChain("p")
    chain.begin(client)
    return chain


def break_off(monkeypatch: pytest.MonkeyPatch, *executed: bool) -> None:
    """The connection breaks in the next exchanges, after or before Redis has executed them."""
    send = write_chain._send
    left = list(executed)

    def send_and_break(connection: Connection, commands: Sequence[Command]) -> list[object]:
        if not left:
            return send(connection, commands)
        if left.pop(0):
            send(connection, commands)
        connection.disconnect()
        raise WriteInDoubtError("broken")

    monkeypatch.setattr(write_chain, "_send", send_and_break)


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("begins", [(), (True,), (False,), (False, True), (True, False, True)])
def test_a_write_in_doubt_is_settled_by_resuming(
    client: redis.Redis, chain: WriteChain, monkeypatch: pytest.MonkeyPatch, executed: bool, begins: tuple[bool, ...]
) -> None:
    """However often beginning again is itself broken off, before or after it has taken effect."""
    chain.write([("SET", "a", 1)])
    break_off(monkeypatch, executed, *begins)
    with pytest.raises(WriteInDoubtError):
        chain.write([("SET", "a", 2)])
    with pytest.raises(redis.ConnectionError):
        chain.write([("SET", "a", 3)])
    for _ in begins:
        with pytest.raises(redis.RedisError):
            chain.resume(client)
    chain.resume(client)
    assert chain.was_executed is executed
    assert not chain.has_lost
    assert client.get("a") == (b"2" if executed else b"1")
    chain.write([("SET", "a", 4)])
    break_off(monkeypatch, False)
    with pytest.raises(WriteInDoubtError):
        chain.write([("SET", "a", 5)])
    chain.resume(client)
    assert not chain.was_executed, "of this write, not of the earlier one"


def test_a_write_in_doubt_that_redis_forgets_was_not_executed(
    client: redis.Redis, chain: WriteChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it was there when beginning again was first tried."""
    chain.write([("SET", "a", 1)])
    before = client.get("p:last_write")
    break_off(monkeypatch, True, False)
    with pytest.raises(WriteInDoubtError):
        chain.write([("SET", "a", 2)])
    with pytest.raises(redis.RedisError):
        chain.resume(client)
    client.set("p:last_write", before)
    chain.resume(client)
    assert not chain.was_executed
    assert not chain.has_lost, "it was never acknowledged"


def test_a_delayed_write_has_no_effect_after_a_new_beginning(client: redis.Redis, chain: WriteChain) -> None:
    """The old connection may still deliver what was under way: Redis refuses it."""
    old = chain._watching
    chain._watching = None  # as if it were forgotten without being closed
    chain.resume(client)
    delayed = [("MULTI",), ("SET", "a", "late"), ("SET", "p:last_write", "9-9"), ("EXEC",)]
    old.send_packed_command(old.pack_commands(delayed))
    assert [old.read_response() for _ in delayed][-1] is None
    assert client.get("a") is None
    chain.write([("SET", "a", "new")])
    assert client.get("a") == b"new"


def test_what_redis_refuses_is_not_executed_in_part(client: redis.Redis, chain: WriteChain) -> None:
    """Out of memory in the middle: none of it is there, and nothing can be written before the chain resumes."""
    chain.write([("SET", "a", 1)])
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            chain.write([("DEL", "a"), ("SET", "b", 2)])
    finally:
        client.config_set("maxmemory", 0)
    assert (client.get("a"), client.get("b")) == (b"1", None)
    with pytest.raises(redis.ConnectionError):
        chain.write([("SET", "a", 3)])
    chain.resume(client)
    assert not chain.was_executed
    chain.write([("SET", "a", 3)])


def test_a_connection_that_comes_back_by_itself_is_not_trusted(client: redis.Redis, chain: WriteChain) -> None:
    """Without the watch a write would not depend on the one before it."""
    chain._watching.disconnect()
    WriteChain("p").begin(client)
    with pytest.raises(redis.RedisError):
        chain.write([("SET", "a", 1)])
    assert client.get("a") is None


def test_a_flushed_redis_refuses_the_next_write(client: redis.Redis, chain: WriteChain) -> None:
    """Also over a connection that lived on."""
    chain.write([("SET", "a", 1)])
    client.flushall()
    with pytest.raises(NotLastWrite):
        chain.write([("SET", "a", 2)])
    assert client.get("a") is None
    chain.resume(client)
    assert chain.has_lost


def test_a_write_that_fails_in_part_ends_the_server(client: redis.Redis, chain: WriteChain) -> None:
    """Only somebody else's keys can bring that about; the line says what to do."""
    client.set("p:log:games", "a string")
    with pytest.raises(TakenOverError, match="somebody else writes") as caught:
        chain.write([("XADD", "p:log:games", "1-1", "m", "x"), ("SET", "a", 1)])
    assert "\n" not in str(caught.value)


def test_what_cannot_be_flushed_is_in_doubt(client: redis.Redis, chain: WriteChain) -> None:
    """A Redis without WAITAOF: it has the write, but the promise was not kept."""
    if int(client.info("server")["redis_version"].split(".")[0]) >= 7:
        pytest.skip("this Redis may have WAITAOF")
    with pytest.raises(WriteInDoubtError):
        chain.write([("SET", "a", 1)], flushed=True)
    chain.resume(client)
    assert chain.was_executed
