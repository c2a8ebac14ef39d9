"""Batches through shared memory: the same, unchanged while anybody has them, only where asked for, and no leaks."""

import gc
import mmap
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
import pytest

from replay_server import mapped_memory, ordered_stream
from replay_server.client import ReplayClient
from replay_server.mapped_memory import MappedMemory
from replay_server.offered_memory import FOLDER, AnswerSlots, OfferedMemory
from replay_server.sample_stream import SampleStream
from replay_server.server import BoundAddresses
from tests.replay_server.killable import killable_server
from tests.replay_server.messages import SERVICE, streamed_sample
from tests.replay_server.played import SIGNATURE, played, table_config
from tests.roles import wait_until
from zero.tables import TableConfig
from zero.trajectories import NStep, SampleSpec, SequenceBatch
from zero.wire import replay_pb2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is for Linux")

MakeTable = Callable[..., TableConfig]

SPEC = SampleSpec(16, {"reward": 2, "observation": 3}, importance_sampling_exponent=0.5, n_step=NStep("reward", 0.5, 2))
SLOTS = 2 + 6
"""Of a stream with two answers in flight."""


def arrays(batch: SequenceBatch) -> Mapping[str, np.ndarray]:
    parts = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    return {**parts, **batch.columns}


def copied(batch: SequenceBatch) -> Mapping[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays(batch).items()}


def assert_same(batch: SequenceBatch, expected: Mapping[str, np.ndarray]) -> None:
    assert arrays(batch).keys() == expected.keys()
    for name, array in arrays(batch).items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def is_shared(batch: SequenceBatch) -> bool:
    """Whether it lies in mapped memory."""
    owner: object = batch.columns["reward"]
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)


def mapped(pid: int | str = "self") -> set[str]:
    """The names of the files of ours that a process has mapped or open."""
    folder = Path("/proc") / str(pid)
    links: list[str] = []
    for file in (folder / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, by any thread of the process
            links.append(str(file.readlink()))
    return set(re.findall(r"zero-[0-9a-f]{32}", "\n".join([(folder / "maps").read_text(), *links])))


@pytest.fixture
def table(client: ReplayClient, make_table: MakeTable) -> str:
    """A table with steps to draw."""
    name = make_table(selector="prioritized").name
    client.insert(name, [played(n, 20) for n in range(8)])
    return name


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_new_is_looked_through() -> Iterator[None]:
    """Whatever other tests have imported is left out of the collections below, which would take half a second each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Client and server are in this process: neither keeps a mapping or a descriptor, and no file is left."""
    before = set(FOLDER.glob("zero-*"))
    yield
    request.node.funcargs.clear()  # pytest holds what fixtures gave
    gc.collect()
    wait_until(lambda: not mapped(), 3)
    wait_until(lambda: set(FOLDER.glob("zero-*")) <= before, 3)  # other processes make files for a moment


def test_both_ways_bring_the_same(client: ReplayClient, make_table: MakeTable) -> None:
    """Every array of every batch, bit by bit, and as writable."""
    taken: list[list[SequenceBatch]] = []
    for shared in (True, False):
        name = f"{make_table().name}-queue"
        client.create_table(TableConfig.queue(name, SIGNATURE, 200, 1000))
        client.insert(name, [played(n) for n in range(200)])
        spec = SampleSpec(4, {"reward": 3, "policy": 5}, n_step=NStep("reward", 0.5, 2))
        with client.sample_stream(name, spec, shared_memory=shared) as batches:
            taken.append(list(islice(batches, 12)))
    assert [is_shared(batch) for batch in taken[0]].count(True) == SLOTS
    assert not any(map(is_shared, taken[1]))
    for over_memory, over_grpc in zip(*taken, strict=True):
        over_memory.keys[:] -= over_memory.keys[0]  # which say when the table was made
        over_grpc.keys[:] -= over_grpc.keys[0]
        assert_same(over_memory, arrays(over_grpc))
        assert over_memory.table_size == over_grpc.table_size
        assert all(array.flags.writeable for array in arrays(over_memory).values())


def test_what_is_kept_never_changes(client: ReplayClient, table: str) -> None:
    """While the stream goes on and after it has ended; also if only one array of a batch is left."""
    rng = np.random.default_rng(0)
    kept: list[tuple[SequenceBatch, Mapping[str, np.ndarray]]] = []
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    num_shared = 0
    with client.sample_stream(table, SPEC) as batches:
        for batch in islice(batches, 400):
            num_shared += is_shared(batch)
            kept.append((batch, copied(batch)))
            parts.append((batch.columns["observation"][3:5, 1], batch.columns["observation"][3:5, 1].copy()))
            for held in (kept, parts):
                if len(held) > 2:
                    held.pop(int(rng.integers(len(held))))
            for one, copy in kept:
                assert_same(one, copy)
            for one, copy in parts:
                np.testing.assert_array_equal(one, copy)
    for one, copy in kept:
        assert_same(one, copy)
    for one, copy in parts:
        np.testing.assert_array_equal(one, copy)
    assert num_shared > 350


def test_without_a_free_slot_batches_come_over_grpc(client: ReplayClient, table: str) -> None:
    """As many as one likes to keep; when they are gone, slots are used again."""
    with client.sample_stream(table, SPEC) as batches:
        kept = [(batch, copied(batch)) for batch in islice(batches, 30)]
        assert sum(is_shared(batch) for batch, _ in kept) == SLOTS
        for batch, copy in kept:
            assert_same(batch, copy)
        del batch
        kept.clear()
        assert sum(map(is_shared, islice(batches, 10))) >= 7


def test_one_call_takes_over_from_another(client: ReplayClient, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call has memory of its own, and goes without what another had."""
    monkeypatch.setattr(ordered_stream, "_SENDING_SECONDS", 0.02)
    names: set[str] = set()
    kept: list[tuple[SequenceBatch, Mapping[str, np.ndarray]]] = []
    with client.sample_stream(table, SPEC) as batches:
        while len(names) < 6:
            batch = next(batches)
            kept = [*kept[-3:], (batch, copied(batch))]
            names |= mapped()
            for one, copy in kept:
                assert_same(one, copy)
        assert len(mapped()) <= 3


def test_a_server_that_cannot_map_answers_over_grpc(
    client: ReplayClient, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has another /dev/shm: after three attempts nothing is offered any more."""
    monkeypatch.setattr(mapped_memory, "FOLDER", tmp_path)
    offered: list[str] = []
    take = OfferedMemory.take
    monkeypatch.setattr(OfferedMemory, "take", lambda memory: (offered.append(memory.offer.name), take(memory))[1])
    with client.sample_stream(table, SPEC) as batches:
        assert not any(map(is_shared, islice(batches, 30)))
    assert len(set(offered)) == 3


def test_without_room_there_is_no_offer(table: str, client: ReplayClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full /dev/shm costs speed, no batch and no file."""

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with client.sample_stream(table, SPEC) as batches:
        assert not any(map(is_shared, islice(batches, 10)))


def test_requests_of_one_slot_do_not_meet() -> None:
    """What was offered and not answered there is not offered again."""
    slots = AnswerSlots(2, enabled=True)
    assert slots.take() is None  # nobody knows yet how large answers are
    slots.was_not_used(None, 1000)
    first, second = slots.take(), slots.take()
    assert first is not None
    assert second is not None
    assert (first.offer, first.number) != (second.offer, second.number)
    slots.was_not_used(first, 1000)
    third = slots.take()
    assert third is not None
    assert third.offer.name != second.offer.name
    slots.was_not_used(second, 1000)  # of the memory before
    fourth = slots.take()
    assert fourth is not None
    assert fourth.offer is third.offer
    slots.close()


# --- what a server maps ---


class Asking:
    """A client that offers what it likes."""

    def __init__(self, address: str, table: str) -> None:
        self._address = address
        self._table = table

    def ask(self, *offers: tuple[replay_pb2.SharedMemory, int]) -> list[replay_pb2.SampleStreamResponse]:
        """The answers to requests over one call, each with its offer and slot."""
        requests: list[bytes] = []
        for offer, slot in offers:
            request = replay_pb2.SampleStreamRequest.FromString(streamed_sample(self._table))
            request.shared_memory.CopyFrom(offer)
            request.slot = slot
            requests.append(request.SerializeToString())
        with grpc.insecure_channel(self._address) as channel:
            call = channel.stream_stream(SERVICE + "SampleStream")(iter(requests), timeout=30)
            return [replay_pb2.SampleStreamResponse.FromString(answer) for answer in call]


@pytest.fixture
def asking(addresses: BoundAddresses, table: str) -> Asking:
    """Over the shared server."""
    return Asking(addresses.address, table)


@pytest.fixture
def offered() -> Iterator[OfferedMemory]:
    """Four slots of 64 KiB."""
    memory = OfferedMemory(1 << 16, 4)
    yield memory
    memory.remove()


def test_a_slot_that_was_asked_for_is_written(asking: Asking, offered: OfferedMemory) -> None:
    """That slot and no other; the file is gone with the first answer. A slot that is none is not written."""
    slots = {slot.number: slot.memory for slot in (offered.take() for _ in range(4)) if slot is not None}
    before = slots[2].copy()
    asked = (3, 0, 1, 5, -1)
    answers = asking.ask(*((offered.offer, number) for number in asked))
    assert [answer.shared_bytes > 0 for answer in answers] == [True, False, True, False, False]
    assert [answer.HasField("sampled") for answer in answers] == [False, True, False, True, True]
    for number, answer in zip(asked, answers, strict=True):
        if answer.shared_bytes:
            written = replay_pb2.SampleResponse.FromString(slots[number][: answer.shared_bytes].tobytes())
            assert written.keys
            assert written.columns
    np.testing.assert_array_equal(slots[2], before)
    assert not (FOLDER / offered.offer.name).exists()
    slots.clear()


def test_one_call_has_it_for_itself(asking: Asking, offered: OfferedMemory) -> None:
    """Another one that names it is answered over gRPC, whatever happened to the first."""
    assert asking.ask((offered.offer, 1))[0].shared_bytes
    assert not asking.ask((offered.offer, 1))[0].shared_bytes


def test_an_answer_that_is_too_large_for_a_slot_comes_over_grpc(asking: Asking) -> None:
    """Slots are what was offered, not what is needed."""
    memory = OfferedMemory(16, 4)
    try:
        answer = asking.ask((memory.offer, 1))[0]
        assert answer.HasField("sampled")
        assert not answer.shared_bytes
    finally:
        memory.remove()


def _new_name() -> str:
    return f"zero-{secrets.token_hex(16)}"


def _changed(offer: replay_pb2.SharedMemory, **fields: object) -> replay_pb2.SharedMemory:
    return replay_pb2.SharedMemory(**{field.name: value for field, value in offer.ListFields()} | fields)


def _moved(offer: replay_pb2.SharedMemory, name: str) -> replay_pb2.SharedMemory:
    (FOLDER / offer.name).rename(FOLDER / name)
    return _changed(offer, name=name)


def _behind_a_link(offer: replay_pb2.SharedMemory) -> replay_pb2.SharedMemory:
    link = _new_name()
    (FOLDER / link).symlink_to(FOLDER / offer.name)
    return _changed(offer, name=link)


def _linked_twice(offer: replay_pb2.SharedMemory) -> replay_pb2.SharedMemory:
    other = _new_name()
    (FOLDER / other).hardlink_to(FOLDER / offer.name)
    return _changed(offer, name=other)


def _a_pipe(offer: replay_pb2.SharedMemory) -> replay_pb2.SharedMemory:
    pipe = _new_name()
    os.mkfifo(FOLDER / pipe)
    return _changed(offer, name=pipe)


def _with_holes(offer: replay_pb2.SharedMemory) -> replay_pb2.SharedMemory:
    path = FOLDER / offer.name
    size = path.stat().st_size
    os.truncate(path, 4096)
    os.truncate(path, size)
    return offer


def _longer(offer: replay_pb2.SharedMemory) -> replay_pb2.SharedMemory:
    with (FOLDER / offer.name).open("ab") as file:
        file.write(b"x")
    return offer


def _of_another_user(offer: replay_pb2.SharedMemory) -> replay_pb2.SharedMemory:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(FOLDER / offer.name, 12345, -1)
    return offer


BAD_OFFERS: Mapping[str, Callable[[replay_pb2.SharedMemory], replay_pb2.SharedMemory]] = {
    "no name": lambda offer: _changed(offer, name=""),
    "no such file": lambda offer: _changed(offer, name=_new_name()),
    "another folder": lambda offer: _changed(offer, name=f"../shm/{offer.name}"),
    "another name": lambda offer: _moved(offer, "zero-x" + offer.name[6:]),
    "a longer name": lambda offer: _moved(offer, offer.name + "0"),
    "a name and a line": lambda offer: _moved(offer, offer.name + "\n"),
    "a link": _behind_a_link,
    "a second name": _linked_twice,
    "a pipe": _a_pipe,
    "holes": _with_holes,
    "a longer file": _longer,
    "another user": _of_another_user,
    "another secret": lambda offer: _changed(offer, secret=b"0" * 16),
    "a short secret": lambda offer: _changed(offer, secret=offer.secret[:8]),
    "no secret": lambda offer: _changed(offer, secret=b""),
    "fewer slots": lambda offer: _changed(offer, slots=3),
    "larger slots": lambda offer: _changed(offer, slot_bytes=1 << 17),
    "no slots": lambda offer: _changed(offer, slots=0),
    "slots below zero": lambda offer: _changed(offer, slots=-4, slot_bytes=-(1 << 16)),
    "too many slots": lambda offer: _changed(offer, slots=1024, slot_bytes=256),
}


@pytest.mark.parametrize("case", BAD_OFFERS)
def test_what_is_not_as_agreed_is_not_mapped(asking: Asking, offered: OfferedMemory, case: str) -> None:
    """It is answered over gRPC; neither written nor removed."""
    offer = BAD_OFFERS[case](offered.offer)
    files = [FOLDER / name for name in {offered.offer.name, offer.name} if name]
    there = [os.path.lexists(file) for file in files]
    try:
        answers = asking.ask((offer, 1), (offer, 2))
        assert [answer.shared_bytes for answer in answers] == [0, 0]
        assert all(len(answer.sampled.keys) for answer in answers)
        assert [os.path.lexists(file) for file in files] == there
        slot = offered.take()
        assert slot is not None
        assert not slot.memory[16:].any()
        del slot
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_a_file_beyond_the_limit_is_not_mapped(offered: OfferedMemory) -> None:
    """One byte decides."""
    request = replay_pb2.SampleStreamRequest(shared_memory=offered.offer, slot=1)
    assert MappedMemory("unix:", (4 << 16) - 1).slot(request) is None
    assert MappedMemory("unix:", 4 << 16).slot(request) is not None


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        ("ipv4:127.0.0.1:1234", True),
        ("ipv6:%5B::1%5D:1234", True),
        ("ipv6:[::1]:1234", True),
        ("unix:", True),
        ("unix:/tmp/socket", True),
        ("ipv4:10.0.0.1:1234", False),
        ("ipv6:%5B2001:db8::1%5D:1234", False),
        ("ipv4:128.127.0.1:127", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_only_peers_on_loopback_share_memory(offered: OfferedMemory, peer: str, is_local: bool) -> None:
    """Whoever else names a file of this machine has not made it."""
    request = replay_pb2.SampleStreamRequest(shared_memory=offered.offer, slot=1)
    assert (MappedMemory(peer, 1 << 20).slot(request) is not None) == is_local


# --- deaths ---

TAKE = """
import re, sys, signal
from pathlib import Path
from replay_server.client import ReplayClient
from zero.trajectories import SampleSpec
client = ReplayClient(sys.argv[1])
batches = client.sample_stream(sys.argv[2], SampleSpec(16, {"reward": 2}))
for _ in range(6):
    batch = next(batches)
print(*set(re.findall("zero-[0-9a-f]{32}", Path("/proc/self/maps").read_text())), flush=True)
signal.pause()
"""


def test_a_killed_client_leaves_nothing(addresses: BoundAddresses, table: str) -> None:
    """Neither a file nor the server's mapping."""
    command = [sys.executable, "-c", TAKE, addresses.address, table]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        names = set(process.stdout.readline().split())
        try:
            assert len(names) == 1
            assert mapped() == names
            assert not any((FOLDER / name).exists() for name in names)
        finally:
            process.send_signal(signal.SIGKILL)
    wait_until(lambda: not mapped(), 3)


def _take_until_shared(batches: SampleStream) -> SequenceBatch:
    return next(batch for batch in islice(batches, 20) if is_shared(batch))


@pytest.mark.slow
def test_a_stream_goes_on_over_a_killed_server(tmp_path: Path) -> None:
    """What came before stays as it is; the next server gets memory of its own."""
    with killable_server(tmp_path) as server, ReplayClient(server.address) as client:
        client.create_table(table_config())
        client.insert("games", [played(n) for n in range(8)])
        with client.sample_stream("games", SPEC) as batches:
            kept: list[tuple[SequenceBatch, Mapping[str, np.ndarray]]] = []
            for _ in range(3):
                batch = _take_until_shared(batches)
                kept.append((batch, copied(batch)))
                assert not set(FOLDER.glob("zero-*")) & {FOLDER / name for name in mapped(server.pid)}
                server.kill()
                server.start()
                for one, copy in kept:
                    assert_same(one, copy)
            assert is_shared(_take_until_shared(batches))
