"""The private redis-server: patience while it loads, not while it is silent or gone; care for its file."""

import ctypes
import mmap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from replay_server import embedded_redis
from replay_server.embedded_redis import EmbeddedRedis, connect_to_socket, wait_until_ready
from replay_server.errors import ReplayServerError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock that only sleeping moves on, ten seconds at a time."""
    now = 0.0

    def sleep(_: float) -> None:
        nonlocal now
        now += 10.0

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    return lambda: now


def test_loading_may_take_minutes(clock: Callable[[], float]) -> None:
    """An append-only file of any size can be resumed from."""
    answers = iter([redis.ConnectionError(), *[redis.BusyLoadingError()] * 60, redis.ConnectionError(), None])

    def ping() -> None:
        if answer := next(answers):
            raise answer

    wait_until_ready(ping, lambda: None)
    assert clock() == 620


def test_silence_ends_the_waiting(clock: Callable[[], float]) -> None:
    """A server that never answers, or no longer, is given up after twenty seconds."""
    answers = iter([redis.BusyLoadingError()] * 3)

    def ping() -> None:
        raise next(answers, redis.TimeoutError())

    with pytest.raises(redis.ConnectionError, match="has not answered"):
        wait_until_ready(ping, lambda: None)
    assert clock() <= 60


def test_the_end_of_the_process_ends_the_waiting(clock: Callable[[], float]) -> None:
    """Also in the middle of loading."""

    def ping() -> None:
        raise redis.BusyLoadingError

    def check_alive() -> None:
        if clock() > 100:
            raise ReplayServerError("it ended")

    with pytest.raises(ReplayServerError, match="it ended"):
        wait_until_ready(ping, check_alive)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """Running."""
    embedded = EmbeddedRedis(tmp_path)
    embedded.ensure_running()
    yield embedded
    embedded.stop()


@pytest.fixture
def client(embedded: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client of it."""
    with connect_to_socket(embedded.socket_path, 5.0) as client:
        yield client


def fill(client: redis.Redis, megabytes: int) -> None:
    """Write as much, keep one of them."""
    for _ in range(megabytes):
        client.set("key", bytes(1 << 20))


@pytest.mark.parametrize(
    ("calm", "most_waste", "rewritten"), [(1 << 40, 1 << 40, True), (0, 1 << 40, False), (0, 1 << 20, True)]
)
def test_the_file_is_rewritten_when_that_pays(
    embedded: EmbeddedRedis,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    calm: int,
    most_waste: int,
    rewritten: bool,
) -> None:
    """Half of it waste and little being written, or far too much waste; not while much is written, not for nothing."""
    monkeypatch.setattr(embedded_redis, "_LEAST_WASTE_BYTES", 1 << 20)
    monkeypatch.setattr(embedded_redis, "_MOST_WASTE_BYTES", most_waste)
    monkeypatch.setattr(embedded_redis, "_CALM_BYTES_PER_SECOND", calm)
    fill(client, 40)
    embedded.tend(client)
    fill(client, 1)
    before = client.info("persistence")["aof_current_size"]
    embedded.tend(client)
    deadline = time.monotonic() + 10
    while (state := client.info("persistence"))["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (state["aof_current_size"] < before / 2) is rewritten
    if rewritten:
        embedded.tend(client)
        assert not client.info("persistence")["aof_rewrite_in_progress"], "there is nothing to gain any more"


def resident_bytes(path: Path) -> int:
    """How much of a file is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = (ctypes.c_ubyte * 0).from_buffer(mapped)
        address = ctypes.addressof(start)
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), pages) == 0
        del start
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_a_large_file_does_not_fill_the_page_cache(
    embedded: EmbeddedRedis, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning stays there for a quick start, what comes after is given back from time to time."""
    monkeypatch.setattr(embedded_redis, "_CACHED_BYTES", 4 << 20)
    file = next((tmp_path / "redis").rglob("*.aof"))
    fill(client, 40)
    embedded.note_written(31 << 20)
    assert resident_bytes(file) > 30 << 20
    embedded.note_written(1 << 20)
    assert 3 << 20 < resident_bytes(file) < 8 << 20


def test_a_file_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    """The data folder may be taken away while Redis still writes."""
    EmbeddedRedis(tmp_path).note_written(64 << 20)


def test_a_stop_ends_the_waiting(embedded: EmbeddedRedis) -> None:
    """Whoever waits for the data to be loaded is told so."""
    embedded.give_up_loading()
    with pytest.raises(ReplayServerError, match="stopped before"):
        embedded.ensure_running()
