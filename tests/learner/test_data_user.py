"""Collectors and data users in one process: nothing lost, nothing shared, everything counted."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.data_collector import DataCollector, DataCollectorsDict
from learner import stamps as stamps_module
from learner.data_user import DataUser, DataUsersDict
from learner.stamps import Stamps
from learner.training_condition import TrainingCondition
from replay_server.data_buffer import DataBuffer, FieldMismatch
from replay_server.data_queue import DataQueue, QueueClosedError, QueueFullError
from replay_server.inlets import QueueInlet
from replay_server.replacement_buffer import RandomReplacementBuffer
from replay_server.sequential_buffer import SequentialBuffer
from replay_server.state_file import StateError
from zero.trajectories import PriorityUpdates

NAMES = ["observation", "action"]


def pair(size: int = 100, *, clock: Any = None, **options: Any) -> tuple[DataCollector[Any], DataUser[list[Any]]]:
    """A collector and the user of a sequential buffer."""
    user = DataUser(SequentialBuffer[Any, list[Any]](size), **options)
    collector = DataCollector[Any](user.open_inlet(), **({} if clock is None else {"clock": clock}))
    return collector, user


def test_what_is_collected_is_used_in_order() -> None:
    """Update moves it and returns None; get_data updates first."""
    collector, user = pair()
    for number in range(5):
        collector.collect(number)
    assert len(user) == 0
    assert user.update() is None
    assert len(user) == 5
    collector.collect(5)
    assert user.get_data() == [0, 1, 2, 3, 4, 5]


def test_64000_samples_from_many_threads_and_several_users() -> None:
    """None is lost or comes twice, and those of one producer keep their order, whoever takes them in."""
    buffer = SequentialBuffer[Any, list[Any]](64_000)
    user = DataUser(buffer)
    done = threading.Event()

    def collect(producer: int) -> None:
        collector = DataCollector[Any](user.open_inlet(exclusive=False))
        for number in range(8000):
            collector.collect((producer, number))

    def use() -> None:
        while not done.is_set():
            user.update()

    producers = [threading.Thread(target=collect, args=(producer,)) for producer in range(8)]
    users = [threading.Thread(target=use) for _ in range(3)]
    for thread in (*users, *producers):
        thread.start()
    for thread in producers:
        thread.join()
    done.set()
    for thread in users:
        thread.join()
    data = user.get_data()
    assert len(data) == 64_000
    for producer in range(8):
        assert [number for one, number in data if one == producer] == list(range(8000))
    assert user.count_data_added_since(0) == 64_000
    assert user.counts() == (64_000, 0, 0)


def test_samples_are_taken_by_value() -> None:
    """A dict, its arrays, lists and what they hold may be used again at once; so may what get_data gave."""
    collector, user = pair()
    step: dict[str, Any] = {"observation": np.zeros(2), "nested": [[1], {"a": np.ones(1)}], "action": 0}
    for action in range(3):
        step["action"] = action
        step["observation"][:] = action
        step["nested"][0][0] = action
        step["nested"][1]["a"][0] = action
        collector.collect(MappingProxyType(step) if action else step)
    data = user.get_data()
    assert [one["action"] for one in data] == [0, 1, 2]
    assert [one["observation"].tolist() for one in data] == [[0, 0], [1, 1], [2, 2]]
    assert [(one["nested"][0][0], one["nested"][1]["a"][0]) for one in data] == [(0, 0), (1, 1), (2, 2)]
    data.clear()
    assert len(user.get_data()) == 3


def test_tensors_are_taken_by_value() -> None:
    """Filled again in place, they do not change what was collected; what they were computed with is not kept."""
    collector, user = pair()
    weight = torch.ones(2, requires_grad=True)
    reused = torch.zeros(2)
    for number in range(3):
        reused.fill_(number)
        collector.collect({"observation": reused, "value": weight * number})
    data = user.get_data()
    assert [one["observation"].tolist() for one in data] == [[0, 0], [1, 1], [2, 2]]
    assert not any(one["value"].requires_grad for one in data)


def test_a_broken_clock_is_told_where_it_is() -> None:
    """A time that is none costs only the sample it belongs to, and whoever collects hears of it."""
    collector, user = pair(clock=iter((1.0, math.nan, math.inf, 2.0)).__next__)
    for number in range(4):
        if number in (1, 2):
            with pytest.raises(ValueError, match="clock gave"):
                collector.collect(number)
        else:
            collector.collect(number)
    assert user.get_data() == [0, 3]
    assert user.count_data_added_since(1) == 1


def test_a_malformed_sample_is_refused_where_it_is_collected() -> None:
    """The producer hears of it; what was collected before and after is there."""
    user = DataUser(SequentialBuffer(NAMES, 10))
    collector = DataCollector[Any](user.open_inlet())
    collector.collect({"observation": 0, "action": 0})
    with pytest.raises(FieldMismatch, match=r"lacks \['observation'\] and has \[\] too many"):
        collector.collect({"action": 1})
    collector.collect({"observation": 2, "action": 2})
    assert user.get_data() == {"observation": [0, 2], "action": [0, 2]}


class Picky(SequentialBuffer[Any, list[Any]]):
    """Does not take 3, but only says so when it comes."""

    def add(self, data: Any) -> None:
        """See SequentialBuffer."""
        if data == 3:
            raise RuntimeError("not 3")
        super().add(data)


def test_a_bad_sample_in_the_middle_of_a_batch_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Those before and after are added and counted; it is counted as refused and logged, and nothing stops."""
    user = DataUser(Picky(10))
    collector = DataCollector[Any](user.open_inlet())
    for number in range(6):
        collector.collect(number)
    assert user.get_data() == [0, 1, 2, 4, 5]
    assert (user.refused, user.count_data_added_since(0)) == (1, 5)
    assert "Picky does not take it" in caplog.text


class Meanwhile(SequentialBuffer[Any, list[Any]]):
    """Something happens while the sample 2 is added, or while data are given out, once."""

    def __init__(self, happens: Callable[[], object], during: str = "add") -> None:
        super().__init__(10)
        self.happens: Callable[[], object] | None = happens
        self.during = during

    def add(self, data: Any) -> None:
        """See SequentialBuffer."""
        if data == 2:
            self._let_happen("add")
        super().add(data)

    def get_data(self) -> list[Any]:
        """See SequentialBuffer."""
        self._let_happen("get_data")
        return super().get_data()

    def _let_happen(self, during: str) -> None:
        if during == self.during and self.happens is not None:
            happens, self.happens = self.happens, None
            happens()


def test_an_interrupted_update_loses_at_most_the_sample_at_hand() -> None:
    """What came after it waits again, before what has come since."""

    def interrupt() -> None:
        collector.collect(5)
        raise KeyboardInterrupt

    user = DataUser(Meanwhile(interrupt))
    collector = DataCollector[Any](user.open_inlet())
    for number in range(5):
        collector.collect(number)
    with pytest.raises(KeyboardInterrupt):
        user.update()
    collector.collect(6)
    assert user.get_data() == [0, 1, 3, 4, 5, 6]
    assert user.count_data_added_since(0) == 6


@pytest.mark.parametrize("during", ["add", "get_data"])
def test_users_take_turns(during: str, tmp_path: Path) -> None:
    """While one takes samples in or reads, no other adds its own before them, or sees or changes the buffer."""
    updates = PriorityUpdates(np.zeros(1, np.uint64), np.ones(1, np.float32))
    user_calls: list[Callable[[DataUser[Any]], object]] = [
        DataUser.update,
        DataUser.get_data,
        lambda user: list(user.snapshot()),
        lambda user: user.sample(1),
        lambda user: user.update_priorities(updates),
        len,
        DataUser.size_and_added,
        lambda user: user.count_data_added_since(0),
        lambda user: user.save_state(tmp_path),
    ]
    ended: list[threading.Thread] = []

    def let_others_try() -> None:
        collector.collect(5)
        for thread in threads:
            thread.start()
            thread.join(0.02)
            ended.extend([] if thread.is_alive() else [thread])

    user = DataUser(Meanwhile(let_others_try, during))
    threads = [threading.Thread(target=call, args=(user,)) for call in user_calls]
    collector = DataCollector[Any](user.open_inlet())
    for number in range(5):
        collector.collect(number)
    assert user.get_data() == [0, 1, 2, 3, 4]
    assert ended == []
    for thread in threads:
        thread.join(10)
    assert user.get_data() == [0, 1, 2, 3, 4, 5]


# --- overflow --------------------------------------------------------------------------------------------------------


def test_a_full_queue_drops_the_oldest_and_counts_it() -> None:
    """By default; the metric says so."""
    users = DataUsersDict.from_data_buffers(x=SequentialBuffer(3))
    collector = DataCollectorsDict(users.data_collectors_dict).acquire("x")
    for number in range(10):
        collector.collect(number)
    assert users.metrics.registry.get_sample_value("zero_data_dropped_samples_total", {"name": "x"}) == 7
    assert users["x"].get_data() == [7, 8, 9]
    assert users.metrics.registry.get_sample_value("zero_data_collected_samples_total", {"name": "x"}) == 10
    assert users.metrics.registry.get_sample_value("zero_data_waiting_samples", {"name": "x"}) == 0


def test_a_full_queue_rejects_if_asked_to() -> None:
    """The producer hears of it, and what waits stays."""
    collector, user = pair(2, overflow="reject")
    collector.collect(0)
    collector.collect(1)
    with pytest.raises(QueueFullError, match="2 samples wait"):
        collector.collect(2)
    assert user.get_data() == [0, 1]
    collector.collect(3)
    assert user.get_data() == [1, 3]
    assert user.counts().dropped == 1


def test_a_full_queue_blocks_if_asked_to() -> None:
    """Until there is room, so that nothing is lost; or until its time has passed."""
    collector, user = pair(4, overflow="block")
    producer = threading.Thread(target=lambda: [collector.collect(number) for number in range(1000)])
    producer.start()
    used: list[int] = []
    while len(used) < 1000:
        before = user.count_data_added_since(0)
        new = user.get_data()[-(user.count_data_added_since(0) - before) or len(user) :]
        used += new
    producer.join()
    assert used == list(range(1000))
    assert user.counts().dropped == 0
    impatient, _ = pair(1, overflow="block", block_seconds=0.01)
    impatient.collect(0)
    with pytest.raises(QueueFullError):
        impatient.collect(1)


def test_a_queue_of_size_zero() -> None:
    """Keeps nothing, counts it, and refuses to block, which would be for ever."""
    queue = DataQueue[int](0)
    queue.put((0.0, 1))  # type: ignore[arg-type]
    assert list(queue.take()) == []
    assert queue.counts() == (1, 1, 0)
    with pytest.raises(ValueError, match="never"):
        DataQueue[int](0, "block")
    with pytest.raises(ValueError, match="sometimes"):
        DataQueue[int](3, "sometimes")


def test_a_closed_queue_wakes_who_waits() -> None:
    """A producer that blocks does not outlive its queue."""
    queue = DataQueue[int](1, "block")
    queue.put((0.0, 1))  # type: ignore[arg-type]
    failures: list[BaseException] = []

    def put() -> None:
        try:
            queue.put((0.0, 2))  # type: ignore[arg-type]
        except QueueClosedError as error:
            failures.append(error)

    producer = threading.Thread(target=put)
    producer.start()
    queue.close()
    producer.join(10)
    assert len(failures) == 1
    assert len(queue.take()) == 1


# --- acquisition -----------------------------------------------------------------------------------------------------


def test_a_collector_is_acquired_once_and_released() -> None:
    """A second acquire and an unknown name are KeyErrors; after release anybody may, and the old one may not."""
    users = DataUsersDict.from_data_buffers({"x": SequentialBuffer(3), "y": SequentialBuffer(3)}, y=SequentialBuffer(7))
    assert users["y"].max_size == 7
    collectors, others = DataCollectorsDict(users.data_collectors_dict), DataCollectorsDict(users.data_collectors_dict)
    first = collectors.acquire("x")
    with pytest.raises(KeyError, match="already acquired"):
        others.acquire("x")
    with pytest.raises(KeyError, match="already acquired"):
        others.acquire("x", exclusive=False)
    with pytest.raises(KeyError, match="no collector 'z'"):
        collectors.acquire("z")
    collectors.release("x")
    with pytest.raises(KeyError, match="not acquired"):
        collectors.release("x")
    second = others.acquire("x")
    with pytest.raises(QueueClosedError, match="released"):
        first.collect(1)
    second.collect(2)
    assert users["x"].get_data() == [2]
    assert list(others) == ["x"]
    others.close()
    with users.data_collectors_dict and collectors.acquire("x") as third:
        third.collect(3)
    collectors.acquire("y")


class FailingInlet(QueueInlet[Any]):
    """Not all that was collected arrives."""

    def close(self) -> None:
        """See Inlet."""
        super().close()
        raise RuntimeError("not all arrived")


class FailingUser(DataUser[Any]):
    """Opens such inlets."""

    def open_inlet(self, *, exclusive: bool = True) -> FailingInlet:
        """See DataUser."""
        self._claims.claim(exclusive=exclusive)
        return FailingInlet(self._queue, self._buffer.check, self._claims.release)


def test_a_release_that_fails_keeps_no_name() -> None:
    """The failure is told, and every name and every producer of it is released all the same."""
    users = DataUsersDict(
        x=DataUser(SequentialBuffer(3)), bad=FailingUser(SequentialBuffer(3)), y=DataUser(SequentialBuffer(3))
    )
    collectors = DataCollectorsDict(users.data_collectors_dict)
    for name in ("x", "bad", "bad", "y"):
        collectors.acquire(name, exclusive=name != "bad")
    with pytest.raises(RuntimeError, match="not all arrived"):
        collectors.close()
    assert len(collectors) == 0
    for name in users:
        collectors.acquire(name)


def test_several_producers_by_choice() -> None:
    """All must say so."""
    users = DataUsersDict.from_data_buffers(x=SequentialBuffer(3))
    collectors = DataCollectorsDict(users.data_collectors_dict)
    for number in range(2):
        collectors.acquire("x", exclusive=False).collect(number)
    with pytest.raises(KeyError, match="already acquired"):
        collectors.acquire("x")
    assert users["x"].get_data() == [0, 1]
    collectors.release("x")
    collectors.acquire("x").collect(2)
    assert users["x"].get_data() == [0, 1, 2]


# --- counting --------------------------------------------------------------------------------------------------------


def test_counting_is_strict_and_knows_no_order_and_no_cap() -> None:
    """Ties do not count; stamps out of order, from clocks that go back, do; more than the buffer holds, too."""
    collector, user = pair(3, clock=iter((1, 2, 2, 3, 10, 2.5, 2, 4)).__next__)
    for number in range(3):
        collector.collect(number)
    user.update()
    assert [user.count_data_added_since(time) for time in (0, 1, 1.5, 2, 3)] == [3, 2, 2, 0, 0]
    for number in range(5):
        collector.collect(number)
        user.update()
    assert [user.count_data_added_since(time) for time in (0, 2, 2.5, 3, 4, 10)] == [8, 4, 3, 2, 1, 0]


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-5, 5))), st.floats(-6, 6))
def test_stamps_count_as_a_list_would(parts: list[list[float]], time: float) -> None:
    """Whatever comes in whatever order, also after a reload."""
    stamps = Stamps()
    for part in parts:
        stamps.add(part)
        stamps.count_after(time)
    every = [one for part in parts for one in part]
    assert stamps.count_after(time) == Stamps(*stamps.entries()).count_after(time) == sum(one > time for one in every)
    assert len(stamps) == len(every)
    with pytest.raises(ValueError, match="NaN"):
        stamps.add([float("nan")])


def test_stamps_take_bounded_room_and_count_what_is_recent_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million samples in 8,000 entries, a tenth of them out of order: the newest are exact, the rest nearly so."""
    monkeypatch.setattr(stamps_module, "MAX_ENTRIES", 8_000)
    monkeypatch.setattr(stamps_module, "PRECISION", 0.01)
    rng = np.random.default_rng(0)
    times = np.arange(1_000_000, dtype=np.float64)
    times[::10] -= rng.integers(0, 1_000, len(times[::10]))
    stamps = Stamps()
    for part in np.array_split(times, 300):
        stamps.add(part.tolist())
        stamps.count_after(0.0)
    assert len(stamps) == len(times)
    assert len(stamps.entries()[0]) <= 8_000
    in_order = np.sort(times)
    for time in (999_999.0, 999_000.5, 996_500.0, 990_000.0, 900_000.5, 500_000.0, 100_000.0, 1_000.0, -2_000.0):
        true = len(times) - int(np.searchsorted(in_order, time, side="right"))
        found = stamps.count_after(time)
        assert true <= found <= true * 1.05
        assert found == true or true > 4_000
    assert Stamps(*stamps.entries()).count_after(500_000.0) == stamps.count_after(500_000.0)


def test_a_condition_counts_what_arrives_while_training_begins() -> None:
    """A check changes nothing; what is added between it and the commit counts towards the next training."""
    collector, user = pair(10)
    condition = TrainingCondition(user, min_buffer_size=3, min_new_data_count=2)
    for number in range(2):
        collector.collect(number)
    user.update()
    assert condition.check() == (False, 2, 2, 2)
    collector.collect(2)
    user.update()
    check = condition.check()
    assert check.met
    assert condition.check() == check
    collector.collect(3)
    user.update()
    condition.commit(check)
    assert condition.check() == (False, 4, 1, 4)
    collector.collect(4)
    user.update()
    assert condition.check().met


def test_a_condition_may_want_more_than_the_queue_holds() -> None:
    """In the original it never triggers: here new samples are counted as they come in."""
    collector, user = pair(3)
    condition = TrainingCondition(user, min_new_data_count=8)
    for number in range(8):
        collector.collect(number)
        user.update()
    assert condition.check().met


class WithoutQueue(DataBuffer[Any, list[Any]]):
    """Lets nothing through to it."""

    def add(self, data: Any) -> None:
        """Never called."""

    def get_data(self) -> list[Any]:
        """Nothing."""
        return []

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("buffer", "bounds"),
    [
        (SequentialBuffer(3), {"min_buffer_size": 4}),
        (SequentialBuffer(3), {"min_buffer_size": -1}),
        (SequentialBuffer(3), {"min_new_data_count": -1}),
        (RandomReplacementBuffer(3), {"min_buffer_size": 4}),
        (WithoutQueue(0), {"min_buffer_size": 1}),
        (WithoutQueue(0), {"min_new_data_count": 1}),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(buffer: DataBuffer[Any, Any], bounds: dict[str, int]) -> None:
    """At construction, with the reason."""
    with pytest.raises(ValueError, match=r"min_|size 0"):
        TrainingCondition(DataUser(buffer), **bounds)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_states_are_saved_by_name_and_what_waits_is_kept(tmp_path: Path) -> None:
    """One folder per name; what waits when a state is loaded comes in after it; counts go on."""
    buffers = {"a": SequentialBuffer[Any, list[Any]](5), "b": SequentialBuffer[Any, list[Any]](5)}
    users = DataUsersDict.from_data_buffers(buffers)
    collectors = DataCollectorsDict(users.data_collectors_dict, clock=iter(range(1, 100)).__next__)
    for name in buffers:
        collectors.acquire(name).collect(name)
    users.save_state(tmp_path / "state")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["a", "b"]
    for name in buffers:
        users[name].get_data()
        collectors[name].collect("waits")
    users.load_state(tmp_path / "state")
    assert users["a"].get_data() == ["a", "waits"]
    users["b"].update()
    assert users["b"].count_data_added_since(2) == 1
    assert users["b"].count_data_added_since(1.5) == 2


def test_a_save_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write fails, loading gives the old state, buffer and counts of one moment; then it works again."""
    collector, user = pair(5)
    collector.collect(1)
    user.save_state(tmp_path)
    rename = Path.replace
    for failing in range(1, 4):
        collector.collect(2)
        calls = iter(range(1, 100))

        def refuse(self: Path, target: Path, calls: Iterator[int] = calls, failing: int = failing) -> Path:
            if next(calls) == failing:
                raise OSError("the disk is full")
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            with pytest.raises(OSError, match="full"):
                user.save_state(tmp_path)
        _, loaded = pair(5)
        loaded.load_state(tmp_path)
        assert (loaded.get_data(), loaded.count_data_added_since(0)) == ([1], 1)
    user.save_state(tmp_path)
    _, loaded = pair(5)
    loaded.load_state(tmp_path)
    assert loaded.get_data() == [1, 2, 2, 2]


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    """Nothing there, or something damaged."""
    _, user = pair(5)
    with pytest.raises(FileNotFoundError, match="no saved state"):
        user.load_state(tmp_path)
    user.save_state(tmp_path)
    (tmp_path / "current").write_bytes(b"no state")
    with pytest.raises(StateError, match="no state of a buffer"):
        user.load_state(tmp_path)


def test_a_snapshot_comes_in_pieces_and_stays_as_it_was() -> None:
    """Of at most so many samples, whatever is collected meanwhile."""
    collector, user = pair(10)
    for number in range(10):
        collector.collect(number)
    pieces = user.snapshot(4)
    first = next(pieces)
    collector.collect(10)
    user.update()
    assert [first, *pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_user_draws_by_its_own_generator() -> None:
    """Two users with the same seed draw alike; priorities go back to the buffer."""
    batches: list[list[int]] = []
    for _ in range(2):
        collector, user = pair(10, rng=np.random.default_rng(4))
        for number in range(10):
            collector.collect(number)
        batches.append(user.sample(8, 2).columns["data"].ravel().tolist())
    assert batches[0] == batches[1]
