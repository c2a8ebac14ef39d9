"""Collector, buffer and user together: the same properties in one process and against a replay server."""

import gc
import itertools
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.data_collector import DataCollector, DataCollectorsDict
from learner.data_user import DataUser, DataUsersDict
from learner.training_condition import TrainingCondition
from replay_server.answers import InsertResult, ReplayError, ReplayTimeout
from replay_server.buffer_contract import check_buffer
from replay_server.client import ReplayClient
from replay_server.data_buffer import DataBuffer, FieldMismatch
from replay_server.data_queue import QueueClosedError, QueueFullError
from replay_server.replacement_buffer import RandomReplacementBuffer
from replay_server.sequential_buffer import SequentialBuffer
from replay_server.server import ReplayServer, ReplayServerSettings
from replay_server.table_buffer import on_server
from replay_server.table_inlet import InletOptions, TableInlet
from zero.tables import Durability
from zero.trajectories import ColumnSpec, PriorityUpdates, Trajectory

NAMES = ["observation", "action"]
SIGNATURE = (ColumnSpec("observation", "float32", (3,)), ColumnSpec("action", "int64"))
PLACES = ["here", "server"]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that all tests share."""
    with ReplayServer(ReplayServerSettings(tmp_path_factory.mktemp("replay"))) as bound:
        yield bound.address


@pytest.fixture
def client(address: str) -> Iterator[ReplayClient]:
    """A client of it."""
    with ReplayClient(address) as client:
        yield client


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, client: ReplayClient) -> Callable[..., DataBuffer[Any, Any]]:
    """Puts a buffer where the test runs: leaves it here, or puts it on the server."""
    if request.param == "here":
        return lambda buffer, **_: buffer
    return lambda buffer, **options: on_server(buffer, client, f"data-{next(_numbers)}", SIGNATURE, **options)


def step(number: int) -> dict[str, Any]:
    """A sample that no other number has."""
    return {"observation": np.full(3, number, np.float32), "action": number}


def settle(collector: DataCollector[Any]) -> None:
    """Return when the server has everything; in one process there is nothing to wait for."""
    inlet = vars(collector)["_inlet"]
    if isinstance(inlet, TableInlet):
        inlet.flush()


def numbers(data: Any) -> list[int]:
    """The samples that get_data gave, whose columns must belong together."""
    assert [int(one[0]) for one in data["observation"]] == [int(one) for one in data["action"]]
    return [int(one) for one in data["action"]]


def test_end_to_end_order_and_the_newest(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """Of 5,000 samples the newest 1,000, in the order in which they were collected, whatever batches they came in."""
    user = DataUser(place(SequentialBuffer(NAMES, 1000), max_queue_size=5000), overflow="block")
    with DataCollector[Any](user.open_inlet()) as collector:
        for number in range(5000):
            collector.collect(step(number))
            if number % 700 == 0:
                user.update()
                settle(collector)
        settle(collector)
        assert numbers(user.get_data()) == list(range(4000, 5000))
        assert len(user) == 1000
        pieces = [numbers(piece) for piece in user.snapshot(300)]
        assert [len(piece) for piece in pieces] == [300, 300, 300, 100]
        assert list(itertools.chain(*pieces)) == list(range(4000, 5000))


def test_counting_since(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """Strictly after, ties and stamps out of order, also of samples that are gone from the buffer."""
    user = DataUser(place(SequentialBuffer(NAMES, 16)))
    clock = iter([1, 2, 2, 3, 10, 2.5, 2, 4]).__next__
    collector = DataCollector[Any](user.open_inlet(), clock=clock)
    for number in range(8):
        collector.collect(step(number))
    settle(collector)
    condition = TrainingCondition(user, min_buffer_size=8, min_new_data_count=8)
    assert not condition.check().met
    user.update()
    assert [user.count_data_added_since(time) for time in (0, 2, 2.5, 3, 4, 10)] == [8, 4, 3, 2, 1, 0]
    assert condition.check().met
    collector.close()


def test_by_value_and_refused_in_the_producer(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """A dict used again does not alias; a malformed sample in the middle costs only itself."""
    user = DataUser(place(SequentialBuffer(NAMES, 10)))
    collector = DataCollector[Any](user.open_inlet())
    reused = step(0)
    for number in range(6):
        reused["observation"][:] = number
        reused["action"] = number
        if number == 3:
            del reused["action"]
            with pytest.raises(FieldMismatch, match=r"lacks \['action'\]"):
                collector.collect(reused)
            with pytest.raises(FieldMismatch, match=r"\['extra'\] too many"):
                collector.collect({**step(number), "extra": 1})
        else:
            collector.collect(reused)
    settle(collector)
    assert numbers(user.get_data()) == [0, 1, 2, 4, 5]
    collector.close()


def test_acquired_once_released_and_shared(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """One producer at a time, unless all choose otherwise; who released collects no more."""
    users = DataUsersDict.from_data_buffers(x=place(SequentialBuffer(NAMES, 10)))
    collectors, others = (DataCollectorsDict(users.data_collectors_dict) for _ in range(2))
    first = collectors.acquire("x")
    for exclusive in (True, False):
        with pytest.raises(KeyError, match="already acquired"):
            others.acquire("x", exclusive=exclusive)
    collectors.release("x")
    with pytest.raises(QueueClosedError, match="acquire it again"):
        first.collect(step(0))
    for number in range(2):
        collector = others.acquire("x", exclusive=False)
        collector.collect(step(number))
        settle(collector)
    with pytest.raises(KeyError, match="already acquired"):
        collectors.acquire("x")
    assert sorted(numbers(users["x"].get_data())) == [0, 1]
    others.close()
    collectors.acquire("x").collect(step(2))
    collectors.close()
    assert sorted(numbers(users["x"].get_data())) == [0, 1, 2]


def test_sampling_and_priorities(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """Sequences go on in order; what is drawn follows the priorities."""
    user = DataUser(place(SequentialBuffer(NAMES, 64)), rng=np.random.default_rng(0))
    with DataCollector[Any](user.open_inlet()) as collector:
        for number in range(40):
            collector.collect(step(number))
        settle(collector)
        batch = user.sample(500, 3)
        assert batch.columns["observation"].shape == (500, 3, 3)
        for row, length in zip(batch.columns["action"], batch.lengths, strict=True):
            assert row[:length].tolist() == list(range(row[0], row[0] + length))
        assert set(batch.columns["action"][:, 0]) >= set(range(30))
        keys, places = np.unique(batch.keys, return_index=True)
        chosen = batch.columns["action"][places, 0] == 7
        user.update_priorities(PriorityUpdates(keys, chosen.astype(np.float32)))
        drawn = user.sample(100, 1).columns["action"][:, 0]
        assert set(drawn.tolist()) <= {7} | (set(range(40)) - set(batch.columns["action"][places, 0].tolist()))


def test_a_replacement_buffer_takes_a_fair_share(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """Of 2,000 samples that come when 64 are stored a quarter is taken, by age as uniform replacement has it."""
    buffer = place(RandomReplacementBuffer(NAMES, 64, 0.25, rng=np.random.default_rng(2)), max_queue_size=3000)
    user = DataUser(buffer, overflow="block")
    with DataCollector[Any](user.open_inlet()) as collector:
        for number in range(64):
            collector.collect(step(number))
        settle(collector)
        assert sorted(numbers(user.get_data())) == list(range(64))
        taken = 0
        seen: set[int] = set(range(64))
        for start in range(64, 2064, 20):
            for number in range(start, start + 20):
                collector.collect(step(number))
            settle(collector)
            stored = set(numbers(user.get_data()))
            assert len(stored) == 64
            taken += len(stored - seen)
            seen |= stored
        # Of 20 that come, 5 are taken, of which the ones behind overwrite some: 64 x (1 - (1 - 1/64) ^ 5) = 4.84.
        assert abs(taken - 484) < 4 * np.sqrt(2000 * 0.25 * 0.75)
        ages = 2064 - np.array(sorted(stored))
        assert 150 < ages.mean() < 370  # N / p = 256, with a standard error of 32


class Totals(DataBuffer[Any, dict[str, int]]):
    """A buffer of one's own: counts actions."""

    def __init__(self) -> None:
        super().__init__(max_queue_size=100)
        self.counts: Counter[int] = Counter()

    def add(self, data: Any) -> None:
        """Count it; 3 is too much."""
        if data["action"] == 3:
            raise RuntimeError("not 3")
        self.counts[int(data["action"])] += 1

    def get_data(self) -> dict[str, int]:
        """By name."""
        return {str(action): count for action, count in self.counts.items()}

    def __len__(self) -> int:
        return self.counts.total()


def test_a_buffer_of_ones_own(place: Callable[..., DataBuffer[Any, Any]], caplog: pytest.LogCaptureFixture) -> None:
    """Takes in what is collected, here or through a server; one that it does not take costs only itself."""
    user = DataUser(place(Totals()))
    with DataCollector[Any](user.open_inlet()) as collector:
        for number in (1, 2, 3, 2):
            collector.collect(step(number))
        settle(collector)
        assert user.get_data() == {"1": 1, "2": 2}
        collector.collect(step(1))
        settle(collector)
        assert user.get_data() == {"1": 2, "2": 2}
    assert "Totals does not take it" in caplog.text
    assert user.count_data_added_since(0) == 4
    assert user.refused == 1


class Picky(SequentialBuffer[Any, dict[str, list[Any]]]):
    """Does not take odd numbers."""

    def add(self, data: Any) -> None:
        """See SequentialBuffer."""
        if data["action"] % 2:
            raise RuntimeError("odd")
        super().add(data)


def test_a_subclass_of_a_built_in_buffer_keeps_its_meaning(
    place: Callable[..., DataBuffer[Any, Any]], tmp_path: Path
) -> None:
    """What it does of its own it does on a server, too; what it refuses is counted, over a reload as well."""
    users = DataUsersDict(x=DataUser(place(Picky(NAMES, 10))))
    with DataCollector[Any](users["x"].open_inlet()) as collector:
        for number in range(4):
            collector.collect(step(number))
        settle(collector)
        users.save_state(tmp_path)
        users.load_state(tmp_path)
        collector.collect(step(5))
        settle(collector)
        assert numbers(users["x"].get_data()) == [0, 2]
    assert users["x"].refused == 3
    assert users.metrics.registry.get_sample_value("zero_data_refused_samples_total", {"name": "x"}) == 3


def test_states(place: Callable[..., DataBuffer[Any, Any]], tmp_path: Path) -> None:
    """Saved and loaded, counts and data go on; what was collected since comes in."""
    buffer = place(SequentialBuffer(NAMES, 10))
    users = DataUsersDict.from_data_buffers(x=buffer)
    with DataCollector[Any](users["x"].open_inlet(), clock=iter(range(1, 9)).__next__) as collector:
        collector.collect(step(0))
        settle(collector)
        users.save_state(tmp_path)
        collector.collect(step(1))
        settle(collector)
        users.load_state(tmp_path)
        assert numbers(users["x"].get_data()) == [0, 1]
        assert [users["x"].count_data_added_since(time) for time in (0, 1, 2)] == [2, 1, 0]


def test_several_users_and_producers_at_once(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """4 x 500 samples of 2 collectors, three users: nothing is lost or comes twice, each thread's keep their order."""
    user = DataUser(place(SequentialBuffer(NAMES, 4000), max_queue_size=2000), overflow="block")
    done = threading.Event()

    collectors = [DataCollector[Any](user.open_inlet(exclusive=False)) for _ in range(2)]

    def collect(producer: int) -> None:
        for number in range(500):
            collectors[producer % 2].collect(step(producer * 500 + number))

    def use() -> None:
        while not done.is_set():
            user.get_data()

    producers = [threading.Thread(target=collect, args=(producer,)) for producer in range(4)]
    consumers = [threading.Thread(target=use) for _ in range(3)]
    for thread in (*consumers, *producers):
        thread.start()
    for thread in producers:
        thread.join()
    for collector in collectors:
        collector.close()
    done.set()
    for thread in consumers:
        thread.join()
    data = numbers(user.get_data())
    assert sorted(data) == list(range(2000))
    for producer in range(4):
        own = [number for number in data if number // 500 == producer]
        assert own == sorted(own)
    assert user.count_data_added_since(0) == 2000


# --- what only a server has ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: SequentialBuffer(NAMES, 4),
        lambda: SequentialBuffer(4),
        lambda: RandomReplacementBuffer(NAMES, 4, 0.5),
        lambda: Picky(NAMES, 4),
        Totals,
    ],
)
def test_contract_of_buffers_on_a_server(
    make: Callable[[], DataBuffer[Any, Any]], client: ReplayClient, tmp_path: Path
) -> None:
    """They keep the contract that buffers in a process keep; whoever makes one again finds what the server has."""
    name = f"contract-{next(_numbers)}"
    check_buffer(lambda: on_server(make(), client, name, SIGNATURE), [step(number) for number in range(6)], tmp_path)


def test_drops_are_counted_where_they_happen(client: ReplayClient) -> None:
    """A ring of 5 that nobody empties in time loses the oldest, and the metric of the collectors says how many."""
    buffer = on_server(SequentialBuffer(NAMES, 100), client, "drops", SIGNATURE, max_queue_size=5)
    collectors = DataCollectorsDict({"drops": buffer})
    collector = collectors.acquire("drops")
    for number in range(3000):
        collector.collect(step(number))
    settle(collector)
    dropped = collectors.metrics.registry.get_sample_value("zero_data_dropped_samples_total", {"name": "drops"})
    stored = client.server_info().tables["drops"].inserted_steps
    assert dropped
    assert dropped + stored == 3000
    assert numbers(buffer.get_data())[-5:] == [2995, 2996, 2997, 2998, 2999]
    collectors.close()


def test_what_several_producers_drop_is_counted_together(client: ReplayClient) -> None:
    """Of all who collect under a name, and of those before them; the metrics of users and collectors say the same."""
    users = DataUsersDict.from_data_buffers(
        x=on_server(SequentialBuffer(NAMES, 10), client, "together", SIGNATURE, max_queue_size=0)
    )
    collectors = DataCollectorsDict(users.data_collectors_dict)
    for producers in (2, 3):
        for collector in [collectors.acquire("x", exclusive=False) for _ in range(producers)]:
            collector.collect(step(0))
        collectors.release("x")
    for metrics in (users.metrics, collectors.metrics):
        value = metrics.registry.get_sample_value
        assert value("zero_data_collected_samples_total", {"name": "x"}) == 5
        assert value("zero_data_dropped_samples_total", {"name": "x"}) == 5
    assert users["x"].get_data() == {"observation": [], "action": []}
    with pytest.raises(ValueError, match="never"):
        on_server(SequentialBuffer(NAMES, 10), client, "together", SIGNATURE, max_queue_size=0, overflow="block").add(
            step(0)
        )


def test_what_was_released_is_let_go(place: Callable[..., DataBuffer[Any, Any]]) -> None:
    """One may acquire and release for ever: what a released producer had is not kept."""
    users = DataUsersDict.from_data_buffers(x=place(SequentialBuffer(NAMES, 10)))
    collectors = DataCollectorsDict(users.data_collectors_dict)
    inlets: list[weakref.ref[Any]] = []
    for number in range(3):
        with collectors.acquire("x") as collector:
            collector.collect(step(number))
            inlets.append(weakref.ref(vars(collector)["_inlet"]))
    collector = collectors.acquire("x")
    gc.collect()
    assert [inlet() for inlet in inlets] == [None, None, None]
    assert users["x"].counts().collected == 3
    assert numbers(users["x"].get_data()) == [0, 1, 2]
    collectors.close()


class Holding(ReplayClient):
    """Sends nothing for a while."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.holds, self.goes_on = threading.Event(), threading.Event()

    def insert(self, *given: Any, **named: Any) -> InsertResult:
        """See ReplayClient."""
        self.holds.set()
        self.goes_on.wait(10)
        return super().insert(*given, **named)


@pytest.mark.parametrize(
    ("overflow", "stored"), [("drop_oldest", [0, 2, 3, 4]), ("reject", [0, 1, 2, 3]), ("block", [0, 1, 2, 3])]
)
def test_a_full_ring_is_as_large_as_it_says_and_loses_nothing_to_what_is_malformed(
    overflow: str, stored: list[int], address: str
) -> None:
    """While one is on its way 3 wait; a malformed one makes no room for itself, what comes then does as it is told."""
    with Holding(address) as client:
        table = f"full-{next(_numbers)}"
        buffer = on_server(SequentialBuffer(NAMES, 9), client, table, SIGNATURE)
        inlet = TableInlet(client, table, SIGNATURE, InletOptions(3, overflow, block_seconds=0.05))
        inlet.put(step(0), 0.0)
        assert client.holds.wait(10)
        for number in (1, 2, 3):
            inlet.put(step(number), 0.0)
        for malformed, text in (({"action": 1}, "lacks"), (step(9) | {"action": 0.5}, "action")):
            with pytest.raises(ValueError, match=text):
                inlet.put(malformed, 0.0)
        assert inlet.counts() == (4, 0, 4)
        with nullcontext() if overflow == "drop_oldest" else pytest.raises(QueueFullError, match="3 samples wait"):
            inlet.put(step(4), 0.0)
        assert (inlet.counts().dropped, inlet.counts().waiting) == (1, 4)
        client.goes_on.set()
        inlet.close()
        assert numbers(buffer.get_data()) == stored


class Breaking(ReplayClient):
    """The connection ends after the first answer."""

    breaks = True

    def read_since(self, *given: Any, **named: Any) -> Iterator[tuple[int, Sequence[Trajectory]]]:
        """See ReplayClient."""
        yield from super().read_since(*given, **named)
        if self.breaks:
            raise ReplayTimeout("UNAVAILABLE", "the server is away")


@pytest.mark.parametrize("make", [lambda: SequentialBuffer(NAMES, 9), lambda: Picky(NAMES, 9)])
def test_an_update_that_breaks_off_counts_what_it_took_in(
    make: Callable[[], DataBuffer[Any, Any]], address: str
) -> None:
    """The next one goes on after it: each sample is there once, and counted once."""
    with Breaking(address) as client:
        user = DataUser(on_server(make(), client, f"breaks-{next(_numbers)}", SIGNATURE))
        with DataCollector[Any](user.open_inlet(), clock=iter((1.0, 2.0, 3.0)).__next__) as collector:
            for number in (0, 2):
                collector.collect(step(number))
            settle(collector)
            with pytest.raises(ReplayTimeout, match="away"):
                user.update()
            client.breaks = False
            collector.collect(step(4))
            settle(collector)
            assert numbers(user.get_data()) == [0, 2, 4]
            assert [user.count_data_added_since(time) for time in (0, 1, 2)] == [3, 2, 1]


@pytest.mark.parametrize("make", [lambda: SequentialBuffer(NAMES, 9), lambda: Picky(NAMES, 9)])
def test_a_user_goes_on_with_a_table_that_was_made_anew(
    make: Callable[[], DataBuffer[Any, Any]], client: ReplayClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Deleted and created again, its chunks have other numbers, greater or smaller ones: all of them are seen."""
    name = f"anew-{next(_numbers)}"
    user = DataUser(on_server(make(), client, name, SIGNATURE))
    for life in range(1, 7):
        with DataCollector[Any](on_server(make(), client, name, SIGNATURE).open_inlet()) as collector:
            collector.collect(step(2 * life))
        assert numbers(user.get_data())[-1] == 2 * life
        assert user.count_data_added_since(0) == life
        client.delete_table(name)
    assert caplog.text.count("made anew") == 5
    assert user.missed == 0


def test_a_user_goes_on_after_a_restart_of_a_table_in_memory(tmp_path: Path) -> None:
    """What the server held is gone with it; what comes afterwards is seen and counted."""
    settings = ReplayServerSettings(tmp_path / "replay")
    server = ReplayServer(settings)
    port = int(server.start().address.rpartition(":")[2])
    with ReplayClient(f"127.0.0.1:{port}") as client:
        user = DataUser(on_server(SequentialBuffer(NAMES, 9), client, "m", SIGNATURE, durability=Durability.MEMORY))
        collector = DataCollector[Any](user.open_inlet())
        for life in range(3):
            collector.collect(step(life))
            settle(collector)
            assert numbers(user.get_data()) == [life]
            assert user.count_data_added_since(0) == life + 1
            server.stop()
            server = ReplayServer(replace(settings, port=port))
            server.start()
        collector.close()
        server.stop()


def test_what_a_user_was_too_late_for_is_told(client: ReplayClient, caplog: pytest.LogCaptureFixture) -> None:
    """Chunks that were removed since its last update are counted; a user that begins later has missed nothing."""
    buffers = [on_server(Totals(), client, "late", SIGNATURE, history=10, overflow="block") for _ in range(2)]
    users = DataUsersDict.from_data_buffers(first=buffers[0], second=buffers[1])
    capacity = client.server_info().tables["late"].config.capacity
    with DataCollector[Any](buffers[0].open_inlet()) as collector:
        collector.collect(step(2))
        settle(collector)
        users["first"].update()
        for _ in range(2 * capacity):
            collector.collect(step(1))
        settle(collector)
        for user in users.values():
            user.update()
        missed = 2 * capacity - users["first"].get_data()["1"]
        assert 0 < users["first"].missed <= missed <= 10 * users["first"].missed
        assert "removed before they were read" in caplog.text
        assert users["second"].missed == 0
        before = users["first"].missed
        collector.collect(step(1))
        settle(collector)
        users["first"].update()
    value = users.metrics.registry.get_sample_value
    assert value("zero_data_missed_chunks_total", {"name": "first"}) == before == users["first"].missed
    assert value("zero_data_missed_chunks_total", {"name": "second"}) == 0


def test_a_malformed_value_is_refused_in_the_producer(client: ReplayClient) -> None:
    """Another shape, a value that the dtype cannot hold, NaN: each names its column, and costs only itself."""
    user = DataUser(on_server(SequentialBuffer(NAMES, 10), client, "values", SIGNATURE))
    with DataCollector[Any](user.open_inlet()) as collector:
        collector.collect(step(0))
        for wrong, text in (
            ({"observation": np.zeros(4, np.float32)}, "must be"),
            ({"observation": np.full(3, np.nan)}, "NaN"),
            ({"observation": 1.0}, "must be"),
            ({"action": 1 << 70}, "action"),
            ({"action": 0.5}, "action"),
        ):
            with pytest.raises(ValueError, match=text):
                collector.collect(step(1) | wrong)
        collector.collect({"observation": [2, 2, 2], "action": np.int8(2)})
        settle(collector)
        assert numbers(user.get_data()) == [0, 2]


def test_a_producer_that_is_fenced_off_inserts_no_more(client: ReplayClient) -> None:
    """Its lease runs out, another takes over: what it sends late is refused and not stored."""
    buffer = on_server(SequentialBuffer(NAMES, 10), client, "fenced", SIGNATURE)
    old = client.acquire_lease("fenced", "collector", "crashed", seconds=0.05)
    time.sleep(0.06)  # there is no other way to let it run out by the server's clock
    inlet = buffer.open_inlet()
    inlet.put(step(1), 0.0)
    inlet.flush()
    late = client.read_since("fenced", 0)
    (trajectory,) = next(late)[1]
    with pytest.raises(ReplayError, match="LEASE_LOST"):
        client.insert("fenced", [replace(trajectory, trajectory_id="late")], lease=old)
    with pytest.raises(ReplayError, match="LEASE_HELD"):
        client.acquire_lease("fenced", "collector", "crashed", seconds=0.05)
    assert numbers(buffer.get_data()) == [1]
    inlet.close()


def test_a_collector_whose_name_was_taken_over_says_so(client: ReplayClient) -> None:
    """What it sends afterwards is not stored, whoever collects hears of it, and the new producer goes on."""
    buffer = on_server(SequentialBuffer(NAMES, 10), client, "taken", SIGNATURE)
    old = TableInlet(client, "taken", SIGNATURE, InletOptions(10), producer="old")
    client.release_lease("taken", "collector", "old")
    new = buffer.open_inlet()
    old.put(step(1), 0.0)
    with pytest.raises(QueueClosedError, match="taken over"):
        old.flush()
    with pytest.raises(QueueClosedError, match="taken over"):
        old.put(step(2), 0.0)
    new.put(step(3), 0.0)
    new.close()
    with pytest.raises(QueueClosedError, match="taken over"):
        old.close()
    assert numbers(buffer.get_data()) == [3]


def test_a_lease_and_what_was_collected_outlive_the_server(tmp_path: Path) -> None:
    """Killed and started again: a held name stays held, tokens go on, samples are there once, in order."""
    settings = ReplayServerSettings(tmp_path / "replay")
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        buffer = on_server(SequentialBuffer(NAMES, 100), client, "steps", SIGNATURE)
        inlet = buffer.open_inlet()
        for number in range(50):
            inlet.put(step(number), float(number))
        inlet.flush()
        first = client.acquire_lease("steps", "other", "me", 60)
        ((cursor, _),) = client.read_since("steps", 0)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        buffer = on_server(SequentialBuffer(NAMES, 100), client, "steps", SIGNATURE)
        assert numbers(buffer.get_data()) == list(range(50))
        assert list(client.read_since("steps", cursor)) == []
        with pytest.raises(ReplayError, match="UNKNOWN_CURSOR"):
            list(client.read_since("steps", 1))
        with pytest.raises(ReplayError, match="LEASE_HELD"):
            client.acquire_lease("steps", "other", "you", 60)
        client.release_lease("steps", "other", "me")
        assert client.acquire_lease("steps", "other", "you", 60).token == first.token + 1


def test_a_collector_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    """What is collected while the server is away waits, and arrives once and in order when it is back."""
    settings = ReplayServerSettings(tmp_path / "replay")
    server = ReplayServer(settings)
    bound = server.start()
    port = int(bound.address.rpartition(":")[2])
    with ReplayClient(bound.address) as client:
        buffer = on_server(SequentialBuffer(NAMES, 1000), client, "steps", SIGNATURE)
        inlet = buffer.open_inlet()
        for number in range(100):
            inlet.put(step(number), 0.0)
        inlet.flush()
        server.stop()
        for number in range(100, 300):
            inlet.put(step(number), 0.0)
        assert inlet.counts().waiting == 200
        again = ReplayServer(replace(settings, port=port))
        again.start()
        inlet.flush()
        assert numbers(buffer.get_data()) == list(range(300))
        inlet.close()
        again.stop()


def test_a_replacement_table_is_kept_to_its_size_over_a_restart(tmp_path: Path) -> None:
    """What was refused or replaced does not come back, and is not stored when it is sent again."""
    settings = ReplayServerSettings(tmp_path / "replay")
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        buffer = on_server(RandomReplacementBuffer(NAMES, 20, 0.5), client, "some", SIGNATURE)
        with DataCollector[Any](buffer.open_inlet()) as collector:
            for number in range(20):
                collector.collect(step(number))
            settle(collector)
            read = [chunk for _, chunks in client.read_since("some", 0) for chunk in chunks]
            sent = [replace(chunk, priorities=None) for chunk in read]  # they were not sent
            for number in range(20, 40):
                collector.collect(step(number))
            settle(collector)
        stored = numbers(buffer.get_data())
        assert len(stored) == 20
        assert client.insert("some", sent).duplicates == 20
        assert numbers(buffer.get_data()) == stored
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        buffer = on_server(RandomReplacementBuffer(NAMES, 20, 0.5), client, "some", SIGNATURE)
        assert numbers(buffer.get_data()) == stored
        assert client.insert("some", sent).duplicates == 20


def test_a_cursor_gives_only_what_is_new(client: ReplayClient) -> None:
    """In the order of insertion, only the columns that were asked for, whoever else reads."""
    buffer = on_server(SequentialBuffer(NAMES, 100), client, "news", SIGNATURE, durability=Durability.MEMORY)
    cursor = 0
    with DataCollector[Any](buffer.open_inlet()) as collector:
        for start in range(0, 60, 20):
            for number in range(start, start + 20):
                collector.collect(step(number))
            settle(collector)
            news: list[int] = []
            for after, chunks in client.read_since("news", cursor, ["action"]):
                cursor = after
                assert {name for chunk in chunks for name in chunk.columns} == {"action"}
                news += [int(one) for chunk in chunks for one in chunk.columns["action"]]
            assert news == list(range(start, start + 20))
    assert list(client.read_since("news", cursor)) == []
    for foreign in (1, cursor + 1):
        with pytest.raises(ReplayError, match=r"UNKNOWN_CURSOR.*begin at 0"):
            list(client.read_since("news", foreign))
    for _ in range(8):  # what a new table begins with is chance
        client.reset_table("news")
        assert list(client.read_since("news", cursor)) == []
    with DataCollector[Any](buffer.open_inlet()) as collector:
        collector.collect(step(60))
    assert [chunk.num_steps for _, chunks in client.read_since("news", cursor) for chunk in chunks] == [1]
    with pytest.raises(ReplayError, match="WRONG_SIGNATURE"):
        next(client.read_since("news", 0, ["reward"]))


def test_a_large_table_is_read_in_many_messages(client: ReplayClient) -> None:
    """The newest 40 samples, in order, at once or in pieces; what is removed meanwhile is left out of these."""
    large = (ColumnSpec("frame", "uint8", (1 << 18,)), ColumnSpec("number", "int64"))
    buffer = on_server(SequentialBuffer(40), client, "large", large, overflow="block")
    user = DataUser(buffer)
    with DataCollector[Any](buffer.open_inlet()) as collector:
        for number in range(48):
            collector.collect({"frame": np.full(1 << 18, number, np.uint8), "number": number})
        settle(collector)
        assert sum(1 for _ in client.read_since("large", 0)) > 5
        data = user.get_data()
        assert [int(one["number"]) for one in data] == list(range(8, 48))
        assert all((one["frame"] == one["number"]).all() for one in data)
        assert [len(piece) for piece in user.snapshot(16)] == [16, 16, 8]
        pieces = user.snapshot(4)
        seen = [int(one["number"]) for one in next(pieces)]
        for number in range(48, 96):
            collector.collect({"frame": np.full(1 << 18, number, np.uint8), "number": number})
        settle(collector)
        seen += [int(one["number"]) for piece in pieces for one in piece]
    assert seen[:4] == list(range(8, 12))
    assert seen == sorted(set(seen))


def test_a_server_refuses_what_cannot_be(client: ReplayClient) -> None:
    """Names that differ, a buffer with samples in it, a table of another size."""
    with pytest.raises(ValueError, match="the signature"):
        on_server(SequentialBuffer(["x"], 5), client, "no", SIGNATURE)
    full = SequentialBuffer[Any, list[Any]](5)
    full.add(1)
    with pytest.raises(ValueError, match="holds 1 samples"):
        on_server(full, client, "no", SIGNATURE)
    on_server(SequentialBuffer(5), client, "sized", SIGNATURE)
    with pytest.raises(ReplayError, match="TABLE_CONFLICT"):
        on_server(SequentialBuffer(6), client, "sized", SIGNATURE)
