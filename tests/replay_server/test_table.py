"""The table in memory against a naive list of trajectories."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replay_server.block import Block, BlockReader
from replay_server.errors import Refusal
from replay_server.removers import REMOVERS
from replay_server.selectors import SELECTORS
from replay_server.table import Drawn, Placement, Table
from tests.replay_server.played import SIGNATURE, played, table_config
from zero.tables import EpisodeEnd, SequenceRule, TableConfig
from zero.trajectories import (
    NStep,
    PriorityUpdates,
    SampleSpec,
    StatRange,
    StepFilter,
    Trajectory,
    TrajectoryFilter,
    Window,
)
from zero.wire import codec, replay_pb2
from zero.wire.insert_parts import take_apart

CAPACITY = 23
WINDOWS = {"observation": 1, "action": 3, "reward": 4, "policy": 6}
REACH = 6


class Clock:
    """A time that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.now


def block_of(*trajectories: Trajectory) -> Block:
    request = replay_pb2.InsertRequest(trajectories=[codec.encode_trajectory(item) for item in trajectories])
    message = request.SerializeToString()
    return BlockReader(SIGNATURE).read(message, take_apart(message).trajectories, CAPACITY, 1 << 20)


def table(**changes: object) -> Table:
    return Table(table_config(capacity=CAPACITY, **changes), np.random.default_rng(0), logged=True, clock=Clock())


def insert(table: Table, *trajectories: Trajectory) -> Placement:
    """Store what is new to the table."""
    block = block_of(*trajectories)
    new = table.check_new(block)
    block = block_of(*(trajectories[i] for i in new))
    placement = table.place(block)
    table.store(block, placement, ["1-1"] * len(new))
    return placement


def chunk(whole: Trajectory, start: int, stop: int) -> Trajectory:
    """The steps start to stop - 1 of a trajectory; open unless they are its last ones."""
    more = stop < whole.num_steps
    columns = {name: column[start:stop] for name, column in whole.columns.items()}
    return replace(whole, columns=columns, first_step=start, open=more, terminated=whole.terminated and not more)


def gather(table: Table, drawn: Drawn, windows: dict[str, int]) -> dict[str, np.ndarray]:
    return {name: table.rings.take(name, drawn.walk.rows[:, :length]) for name, length in windows.items()}


def drawn_steps(table: Table, number: int, **spec: object) -> list[tuple[int, int]]:
    """Trajectory number and step of what is drawn, as the reward of `played` tells."""
    drawn = table.draw(SampleSpec(number, {"reward": 1}, **spec))
    rewards = table.rings.take("reward", drawn.walk.rows[:, 0])
    return [(int(reward), round((reward - int(reward)) * 1000)) for reward in rewards.tolist()]


@dataclass
class Naive:
    """A stored trajectory, written as if speed did not matter: what it is, and what its steps hold now."""

    whole: Trajectory
    first: int  # the number of its first stored step
    stop: int  # up to which it has come
    rewards: list[float] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    after: "Naive | None" = None

    @property
    def open(self) -> bool:
        """More chunks are to come."""
        return self.stop < self.whole.num_steps

    def sequence(self, step: int, length: int) -> list[tuple["Naive", int]]:
        """Owner and step of the steps from one on."""
        steps = [(self, s) for s in range(step, self.stop)]
        if self.after is not None:
            steps += self.after.sequence(self.after.first, length)
        return steps[:length]

    def items(self, rule: SequenceRule) -> list[int]:
        """The steps that may be drawn."""
        short = rule.length - 1 if rule.episode_end is EpisodeEnd.TRUNCATE else 0
        steps = range(self.first, self.stop - short)
        if rule.period == 0:
            return [0] if 0 in steps and not self.open else []
        return [step for step in steps if step % rule.period == 0]


@settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
class TableMachine(RuleBasedStateMachine):
    """A table of any strategies, and a naive one that is told which trajectories were removed."""

    @initialize(
        selector=st.sampled_from(list(SELECTORS)),
        remover=st.sampled_from(list(REMOVERS)),
        rule=st.builds(SequenceRule, st.integers(1, 4), st.integers(0, 3), st.sampled_from(EpisodeEnd)),
        first=st.integers(0, 2**33),
    )
    def start(self, selector: str, remover: str, rule: SequenceRule, first: int) -> None:
        """An empty table of any kind."""
        config = table_config(capacity=CAPACITY, selector=selector, remover=remover, sequences=rule)
        self.clock = Clock()
        self.table = Table(config, np.random.default_rng(0), logged=True, first_ordinal=first, clock=self.clock)
        self.stored: dict[str, Naive] = {}
        self.games: dict[str, tuple[Trajectory, int]] = {}  # everything ever begun, and how far it was sent
        self.newest: dict[str, Naive] = {}
        self.stale: list[int] = []
        self.entries: list[tuple[Block, Placement]] = []
        self.number = 0

    def _forget_removed(self) -> None:
        for removed in self.table.take_removed():
            gone = self.stored.pop(removed.trajectory_id)
            self.stale += gone.keys
            before = next((other for other in self.stored.values() if other.after is gone), None)
            if before is not None:
                before.after = gone.after
            if self.newest.get(gone.whole.actor_id) is gone:
                del self.newest[gone.whole.actor_id]
                if before is not None:
                    self.newest[gone.whole.actor_id] = before

    def _store(self, chunks: list[Trajectory]) -> None:
        block = block_of(*chunks)
        assert self.table.check_new(block) == list(range(len(chunks)))
        assert self.table.can_place(block)
        stored_before = self.table.num_steps
        placement = self.table.place(block)
        removed_room = stored_before - self.table.num_steps
        self._forget_removed()
        assert (removed_room == 0) == (stored_before + block.num_steps <= CAPACITY), "nothing is removed without need"
        items = self.table.items_of(block)
        before = self.table.num_items
        self.table.store(block, placement, ["1-1"] * len(chunks))
        assert self.table.num_items - before == items
        self.entries.append((block, placement))
        slots = placement.slots.tolist()
        for part in chunks:
            self._note(part, [slots.pop(0) for _ in range(part.num_steps)])

    def _note(self, part: Trajectory, slots: list[int]) -> None:
        whole, _ = self.games[part.trajectory_id]
        stop = part.first_step + part.num_steps
        naive = self.stored.get(part.trajectory_id)
        if naive is None:
            naive = Naive(whole, part.first_step, part.first_step)
            self.stored[part.trajectory_id] = naive
            if self.table.config.sequences.episode_end is EpisodeEnd.CONTINUE:
                last = self.newest.get(whole.actor_id)
                if last is not None and not last.open:
                    last.after = naive
                self.newest[whole.actor_id] = naive
        naive.stop = stop
        naive.rewards += part.columns["reward"].tolist()
        slot_keys = {int(key) & 0xFFFFFFFF: int(key) for key in self._all_keys()}
        naive.keys += [slot_keys[slot] for slot in slots]
        self.games[part.trajectory_id] = (whole, stop)

    def _all_keys(self) -> np.ndarray:
        slots = np.arange(CAPACITY)
        return self.table._slots.keys(slots)

    @rule(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3).filter(lambda t: sum(t) <= CAPACITY))
    def insert_whole_ones(self, lengths: list[int]) -> None:
        """Several trajectories of two actors in one block."""
        chunks = [self._begin(length) for length in lengths]
        self._store(chunks)

    def _begin(self, length: int) -> Trajectory:
        whole = replace(played(self.number, length), actor_id=f"actor-{self.number % 2}")
        self.number += 1
        self.games[whole.trajectory_id] = (whole, 0)
        return whole

    @rule(length=st.integers(2, 12), sent=st.integers(1, 6))
    def begin_a_long_one(self, length: int, sent: int) -> None:
        """Its first chunk."""
        whole = self._begin(length)
        self._store([chunk(whole, 0, min(sent, length - 1))])

    @precondition(lambda self: any(sent < whole.num_steps for whole, sent in self.games.values()))
    @rule(data=st.data(), added=st.integers(1, 5))
    def append(self, data: st.DataObject, added: int) -> None:
        """The next chunk of one that is open, whether its beginning is still stored or not."""
        open_ones = [one for one, (whole, sent) in self.games.items() if sent < whole.num_steps]
        whole, sent = self.games[data.draw(st.sampled_from(open_ones))]
        part = chunk(whole, sent, min(sent + added, whole.num_steps))
        known = self.stored.get(whole.trajectory_id)
        if known is not None and part.first_step + part.num_steps - known.first > CAPACITY:
            return
        self._store([part])

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """What was sent is known with its content, and with no other, also after it was removed."""
        if not self.entries:
            return
        block, _ = data.draw(st.sampled_from(self.entries))
        assert self.table.check_new(block) == []
        forged = replace(block, records=[block.records[0]._replace(digest=b"x" * 16)])
        with pytest.raises(Refusal) as caught:
            self.table.check_new(forged)
        assert caught.value.reason == "CONTENT_CONFLICT"

    @rule(length=st.integers(1, 9))
    def abandon(self, length: int) -> None:
        """A write that failed leaves the room, and nothing else."""
        block = block_of(played(10_000_000, length))
        placement = self.table.place(block)
        self._forget_removed()
        self.table.abandon(placement)
        assert self.table.check_new(block) == [0]

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """By id."""
        if self.stored:
            wanted = data.draw(st.lists(st.sampled_from(list(self.stored)), min_size=1, max_size=2))
            found = self.table.matching(TrajectoryFilter(tuple(wanted)))
            assert {one.trajectory_id for one in found} == set(wanted)
            self.table.remove(found)
            self._forget_removed()

    @rule(data=st.data(), value=st.floats(-5, 5, width=32))
    def rewrite_rewards(self, data: st.DataObject, value: float) -> None:
        """In place, by keys of which some may be stale."""
        current = [key for naive in self.stored.values() for key in naive.keys]
        if not current + self.stale:
            return
        keys = data.draw(st.lists(st.sampled_from(current + self.stale), unique=True, max_size=5))
        slots, valid = self.table.find(np.array(keys, np.uint64))
        assert valid.tolist() == [key in current for key in keys]
        self.table.write_rows(slots[valid], {"reward": np.full(int(valid.sum()), value, np.float32)})
        for naive in self.stored.values():
            naive.rewards = [
                float(np.float32(value)) if key in keys else reward
                for key, reward in zip(naive.keys, naive.rewards, strict=True)
            ]

    @rule(data=st.data())
    def update_priorities(self, data: st.DataObject) -> None:
        """Stale keys are counted and change nothing."""
        current = [key for naive in self.stored.values() for key in naive.keys]
        if current + self.stale:
            keys = data.draw(st.lists(st.sampled_from(current + self.stale), unique=True, max_size=6))
            values = np.array([data.draw(st.sampled_from([0.0, 0.5, 3.0])) for _ in keys], np.float32)
            hits = sum(key in current for key in keys)
            updates = PriorityUpdates(np.array(keys, np.uint64), values)
            assert self.table.update_priorities(updates) == (hits, len(keys) - hits)

    @rule()
    def restart(self) -> None:
        """A table restored from what was stored, at the same slots, is the same table."""
        old = self.table
        self.table = Table(old.config, np.random.default_rng(1), logged=True, clock=self.clock)
        for block, placement in self.entries:
            keep, slots, start = [], [], 0
            for i, record in enumerate(block.records):
                stop = start + record.num_steps
                stored = old.find_trajectory(record.trajectory_id)
                if stored is not None and any(c.ordinal == placement.ordinal + i for c in stored.chunks):
                    keep.append((i, start, stop))
                start = stop
            for i, start, stop in keep:
                slots = placement.slots[start:stop]
                part = Block([block.records[i]], [column[start:stop] for column in block.columns], b"")
                self.table.restore(part, Placement(placement.ordinal + i, slots, placement.stored_at), ["1-1"])
        self.table.recall_removed(old.removed_known())
        self.table.settle()
        self.table.next_ordinal = max(self.table.next_ordinal, old.next_ordinal)
        for naive in self.stored.values():  # as the durable store brings back what was updated in place
            slots = np.array([key & 0xFFFFFFFF for key in naive.keys])
            self.table.write_rows(slots, {"reward": np.array(naive.rewards, np.float32)})
        self._forget_links_over_open_ones()

    def _forget_links_over_open_ones(self) -> None:
        """Take over which sequences go on: games that one actor plays at the same time may be linked anew."""
        self.newest.clear()
        for one in self.table.trajectories():
            naive = self.stored[one.trajectory_id]
            after = None if one.linked_to is None else self.stored[one.linked_to.trajectory_id]
            assert naive.after in (None, after), "a link is lost or leads elsewhere"
            naive.after = after
            if self.table.config.sequences.episode_end is EpisodeEnd.CONTINUE:
                self.newest[one.actor_id] = naive

    @invariant()
    def the_table_is_the_naive_one(self) -> None:
        """Counts, and every drawn row recomputed."""
        if not hasattr(self, "table"):
            return
        rule = self.table.config.sequences
        assert self.table.num_trajectories == len(self.stored)
        assert self.table.num_steps == sum(naive.stop - naive.first for naive in self.stored.values())
        where = {
            naive.keys[step - naive.first]: (naive, step)
            for naive in self.stored.values()
            for step in naive.items(rule)
        }
        assert self.table.num_items == len(where)
        assert self.table.can_draw(1) == bool(where)
        if not where:
            return
        drawn = self.table.draw(SampleSpec(16, WINDOWS))
        assert drawn.table_size == len(where)
        columns = gather(self.table, drawn, WINDOWS)
        for row, key in enumerate(drawn.keys.tolist()):
            naive, step = where[key]
            sequence = naive.sequence(step, REACH)
            assert drawn.walk.lengths[row] == len(sequence)
            own = [s for owner, s in sequence if owner is naive]
            ends = not naive.open and own[-1] == naive.stop - 1
            assert drawn.walk.terminated[row] == (ends and naive.whole.terminated)
            assert drawn.weights_versions[row] == naive.whole.weights_version
            for name, length in WINDOWS.items():
                expected = np.zeros_like(columns[name][row])
                for t, (owner, s) in enumerate(sequence[:length]):
                    reward = owner.rewards[s - owner.first]
                    expected[t] = reward if name == "reward" else owner.whole.columns[name][s]
                np.testing.assert_array_equal(columns[name][row], expected)


TestTableMachine = TableMachine.TestCase


def test_new_steps_get_the_highest_priority_seen_unless_they_bring_their_own() -> None:
    """P(i) is priority ^ exponent over its sum."""
    prioritized = table(selector="prioritized", priority_exponent=0.5)
    insert(prioritized, played(0, 1), replace(played(1, 1), priorities=np.array([9.0], np.float32)))
    drawn = prioritized.draw(SampleSpec(64, {"reward": 1}))
    assert {round(p, 6) for p in drawn.probabilities.tolist()} == {0.25, 0.75}
    insert(prioritized, played(2, 1))
    assert prioritized.draw(SampleSpec(64, {"reward": 1})).probabilities.max() == pytest.approx(3 / 7)


def test_the_oldest_make_room_by_default() -> None:
    """First in, first out, whole trajectories."""
    fifo = table()
    for number in range(5):
        insert(fifo, played(number, 7))
    assert [one.trajectory_id for one in fifo.trajectories()] == ["t2", "t3", "t4"]


def test_a_heap_remover_goes_by_the_highest_priority_of_a_trajectory() -> None:
    """The one whose best step is the worst goes first."""
    heap = table(remover="min_heap", selector="prioritized")
    for number in range(3):
        insert(heap, played(number, 7))
    steps = {one.trajectory_id: heap._slots.keys(one.slots.astype(np.int64)) for one in heap.trajectories()}
    for trajectory_id, values in {"t0": [5, 0], "t1": [1, 1], "t2": [0.5, 2]}.items():
        priorities = np.array([*values, 0, 0, 0, 0, 0], np.float32)
        heap.update_priorities(PriorityUpdates(steps[trajectory_id], priorities))
    insert(heap, played(3, 7))
    assert [one.trajectory_id for one in heap.trajectories()] == ["t0", "t2", "t3"]


def test_an_item_is_drawn_at_most_so_many_times_and_then_gone() -> None:
    """Two draws of each of six items, in whatever batches; a trajectory goes with its last item."""
    for selector in SELECTORS:
        limited = table(selector=selector, max_times_sampled=2)
        insert(limited, played(1, 2), played(2, 4))
        seen: list[tuple[int, int]] = []
        for size in (5, 1, 4, 2):
            assert limited.can_draw(size)
            seen += drawn_steps(limited, size)
            assert limited.num_trajectories == len(
                {one for one in seen if seen.count(one) < 2 for one in [one[0]]}
                | {
                    number
                    for number, length in ((1, 2), (2, 4))
                    if any(seen.count((number, s)) < 2 for s in range(length))
                }
            )
        assert sorted(seen) == sorted([(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)] * 2), selector
        assert not limited.can_draw(1)
        assert (limited.num_items, limited.num_steps, limited.num_trajectories) == (0, 0, 0)
        assert len(limited.take_removed()) == 2


def test_a_filter_that_leaves_too_few_draws_uses_nothing_up() -> None:
    """Refused, and everything can still be drawn."""
    limited = table(max_times_sampled=1, selector="fifo")
    insert(limited, played(1, 3, weights_version=1), played(2, 2, weights_version=2))
    wanted = StepFilter(min_weights_version=2)
    assert limited.can_match(wanted, 2)
    assert not limited.can_match(wanted, 3)
    with pytest.raises(Refusal) as caught:
        drawn_steps(limited, 3, filter=wanted)
    assert caught.value.reason == "RATE_LIMITED"
    assert drawn_steps(limited, 5) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


def test_a_queue_hands_out_whole_trajectories_in_their_order_once_they_are_complete() -> None:
    """Each once; one that is still being played waits for its end."""
    config = TableConfig.queue("queue", SIGNATURE, 10, CAPACITY)
    queue = Table(config, np.random.default_rng(0))
    long = played(9, 4)
    insert(queue, chunk(long, 0, 2))
    insert(queue, played(1, 3), played(2, 1))
    assert drawn_steps(queue, 2) == [(1, 0), (2, 0)]
    assert not queue.can_draw(1)
    insert(queue, chunk(long, 2, 4))
    assert drawn_steps(queue, 1) == [(9, 0)]
    assert queue.num_steps == 0


def test_filters_by_age_and_weights_version() -> None:
    """Only steps that match are drawn, with their probability among those."""
    filtered = table()
    clock = Clock()
    filtered._clock = clock
    insert(filtered, played(1, 4, weights_version=5))
    clock.now += 100
    insert(filtered, played(2, 4, weights_version=3))
    assert {one for one, _ in drawn_steps(filtered, 50, filter=StepFilter(max_age_seconds=50))} == {2}
    assert {one for one, _ in drawn_steps(filtered, 50, filter=StepFilter(min_weights_version=4))} == {1}
    drawn = filtered.draw(SampleSpec(8, {"reward": 1}, filter=StepFilter(min_weights_version=4)))
    assert (drawn.probabilities == 0.25).all()
    assert drawn.mean_age_seconds == 100
    with pytest.raises(Refusal, match="match the filter"):
        drawn_steps(filtered, 1, filter=StepFilter(50, 4))


def test_trajectories_are_found_by_what_they_are() -> None:
    """Actor, versions, stats; all that is set must hold."""
    found = table()
    insert(found, played(1, 3), played(2, 3), replace(played(3, 3), actor_id="other"))

    def ids(**wanted: object) -> list[str]:
        return [one.trajectory_id for one in found.matching(TrajectoryFilter(**wanted))]

    assert ids(actor_id="other") == ["t3"]
    assert ids(min_weights_version=2) == ["t2", "t3"]
    assert ids(max_weights_version=2, actor_id="actor-0") == ["t1", "t2"]
    assert ids(stats=(StatRange("score", 2, 2),)) == ["t2"]
    assert ids(stats=(StatRange("no such stat"),)) == []
    assert ids(trajectory_ids=("t3", "nobody", "t1"), actor_id="other") == ["t3"]


@pytest.mark.parametrize("terminated", [True, False])
def test_n_step_returns_are_those_of_a_sum(terminated: bool) -> None:
    """Rewards discounted up to n or the end; a value after them counts discount ^ summed, or 0 after a termination."""
    returns = table(selector="fifo")
    game = replace(played(1, 5), terminated=terminated, truncated=not terminated)
    insert(returns, game)
    rewards = game.columns["reward"].astype(np.float64)
    wanted = NStep("reward", 0.9, 3)
    drawn = returns.draw(SampleSpec(5, {"reward": 1}, n_step=wanted))
    n_step_returns, discounts = returns.n_step(drawn, wanted)
    for t in range(5):
        part = rewards[t : t + 3]
        assert n_step_returns[t] == pytest.approx((part * 0.9 ** np.arange(len(part))).sum(), rel=1e-6)
        assert discounts[t] == pytest.approx(0.0 if terminated and t + 3 >= 5 else 0.9 ** len(part))


def test_n_step_returns_stop_at_the_end_also_where_sequences_go_on() -> None:
    """The next trajectory's rewards are no part of this one's return."""
    going_on = table(selector="fifo", sequences=SequenceRule(episode_end=EpisodeEnd.CONTINUE))
    insert(going_on, replace(played(1, 2), terminated=False, truncated=True), played(2, 3))
    wanted = NStep("reward", 1.0, 3)
    drawn = going_on.draw(SampleSpec(2, {"reward": 4}, n_step=wanted))
    assert drawn.walk.lengths.tolist() == [4, 4]
    n_step_returns, discounts = going_on.n_step(drawn, wanted)
    assert n_step_returns.tolist() == pytest.approx([1.000 + 1.001, 1.001])
    assert discounts.tolist() == [1, 1]


def test_a_chunk_needs_its_predecessor() -> None:
    """A gap is MISSING_CHUNK, an overlap or a chunk after the end CONTENT_CONFLICT, the same chunk again known."""
    chunks = table()
    whole = played(1, 9)
    with pytest.raises(Refusal) as caught:
        insert(chunks, chunk(whole, 3, 6))
    assert caught.value.reason == "MISSING_CHUNK"
    insert(chunks, chunk(whole, 0, 3), chunk(whole, 3, 6))
    assert chunks.check_new(block_of(chunk(whole, 0, 3), chunk(whole, 3, 6))) == []
    for part, reason in ((chunk(whole, 7, 9), "MISSING_CHUNK"), (chunk(whole, 4, 7), "CONTENT_CONFLICT")):
        with pytest.raises(Refusal) as caught:
            insert(chunks, part)
        assert caught.value.reason == reason
    insert(chunks, chunk(whole, 6, 9))
    after_the_end = replace(chunk(whole, 6, 9), first_step=9)
    with pytest.raises(Refusal) as caught:
        insert(chunks, after_the_end)
    assert caught.value.reason == "CONTENT_CONFLICT"


def test_a_trajectory_cannot_outgrow_its_table() -> None:
    """It would remove its own beginning."""
    chunks = table()
    whole = played(1, 30)
    insert(chunks, chunk(whole, 0, 20))
    with pytest.raises(Refusal) as caught:
        insert(chunks, chunk(whole, 20, 30))
    assert caught.value.reason == "BAD_LENGTH"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"windows": {"nothing": 1}}, "WRONG_SIGNATURE"),
        ({"windows": {"reward": Window("nothing", 1)}}, "WRONG_SIGNATURE"),
        ({"windows": {"policy": 2**30}}, "MESSAGE_TOO_LARGE"),
        ({"windows": {"reward": Window("reward", 1, 2**30)}}, "MESSAGE_TOO_LARGE"),
        ({"windows": {"reward": 1}, "batch_size": 2**15}, "MESSAGE_TOO_LARGE"),
        ({"n_step": NStep("reward", 0.9, 2**24)}, "MESSAGE_TOO_LARGE"),
        ({"n_step": NStep("action", 0.9, 3)}, "WRONG_SIGNATURE"),
        ({"n_step": NStep("policy", 0.9, 3)}, "WRONG_SIGNATURE"),
    ],
)
def test_a_sample_that_cannot_be_answered_is_refused(changes: dict[str, object], reason: str) -> None:
    """Before anything is allocated."""
    spec = replace(SampleSpec(4, {"reward": 2}), **changes)
    with pytest.raises(Refusal) as caught:
        table().check_sample(spec, 1 << 20)
    assert caught.value.reason == reason


def test_restored_priorities_are_those_saved_and_the_highest_for_what_came_later() -> None:
    """What brought its own keeps it, unless another was saved."""
    old = table(selector="prioritized", priority_exponent=1.0)
    own = replace(played(2, 2), priorities=np.array([6.0, 6.0], np.float32))
    entries = [(block, old.place(block)) for block in (block_of(played(1, 2)), block_of(played(3, 2), own))]
    new = table(selector="prioritized", priority_exponent=1.0)
    for block, placement in entries:
        new.restore(block, placement, ["1-1"] * len(block.records))
    new.settle()
    saved = np.array([0.5, 2.0], np.float32)
    new.restore_priorities(saved, np.array([True, True]), 4.0)
    assert new.priorities.values[:6].tolist() == [0.5, 2.0, 6.0, 6.0, 6.0, 6.0]
    assert new.priorities.highest == 6.0
    total = 0.5 + 2 + 4 * 6
    drawn = new.draw(SampleSpec(200, {"reward": 1}))
    assert sorted({round(p, 6) for p in drawn.probabilities.tolist()}) <= sorted(
        {round(p / total, 6) for p in (0.5, 2.0, 6.0)}
    )


def test_mass_is_the_sum_of_weights_or_the_number_of_items() -> None:
    """By priority ^ exponent where priorities count; by items elsewhere."""
    prioritized = table(selector="prioritized", priority_exponent=0.5)
    insert(prioritized, replace(played(1, 2), priorities=np.array([4.0, 9.0], np.float32)))
    assert prioritized.mass == pytest.approx(2 + 3)
    uniform = table()
    insert(uniform, played(1, 4))
    assert uniform.mass == 4


def test_a_heap_remover_survives_what_a_restart_brings_back_for_a_moment() -> None:
    """A trajectory that can never be drawn goes at once when it is restored; its priorities go with it."""
    rule = SequenceRule(length=4, episode_end=EpisodeEnd.TRUNCATE)
    old = table(remover="min_heap", selector="prioritized", max_times_sampled=1, sequences=rule)
    entries = [(block, old.place(block)) for block in (block_of(played(1, 2)), block_of(played(2, 6)))]
    new = table(remover="min_heap", selector="prioritized", max_times_sampled=1, sequences=rule)
    for block, placement in entries:
        new.restore(block, placement, ["1-1"])
    new.settle()
    new.restore_priorities(np.ones(CAPACITY, np.float32), np.zeros(CAPACITY, np.bool_), 2.0)
    for number in range(3, 9):
        insert(new, played(number, 7))
    assert new.num_trajectories == 3


def test_a_trajectory_of_very_many_chunks_is_looked_up_quickly() -> None:
    """The thousandth chunk compares about as many digests as the tenth: a lookup does not walk through all of them."""
    config = table_config(capacity=20_000)
    long = Table(config, np.random.default_rng(0))
    whole = played(1, 3000)
    for step in range(2000):
        insert(long, chunk(whole, step, step + 1))
    looked_at: list[int] = []

    class Counting(list):
        """Counts which places are looked at."""

        def __getitem__(self, place: int) -> object:
            looked_at.append(place)
            return super().__getitem__(place)

    stored = long.find_trajectory("t1")
    stored.chunks = Counting(stored.chunks)
    assert long.check_new(block_of(chunk(whole, 7, 8))) == []
    assert len(looked_at) < 40


@pytest.mark.parametrize("remover", REMOVERS)
def test_a_table_keeps_less_than_it_has_room_for(remover: str) -> None:
    """Whatever removes, whatever comes at once: no more steps stay than are to be kept; by p = 0 the first."""
    for probability, first_stay in ((1.0, False), (0.0, True)):
        kept = table(remover=remover, keep_steps=12, replace_probability=probability)
        for number in range(0, 40, 2):
            insert(kept, played(number, 1 + number % 3), played(number + 1, 2))
            assert kept.num_steps <= 12
            assert kept.num_items == kept.num_steps
        stored = [one.trajectory_id for one in kept.trajectories()]
        assert kept.num_steps >= 9  # the shortest that goes has a step, the longest that comes three
        if first_stay:
            assert stored == [f"t{number}" for number in range(len(stored))]
        for number in range(0, 40, 2):  # those that went are known
            assert kept.check_new(block_of(played(number, 1 + number % 3))) == []


def test_a_table_of_random_slots_takes_its_share_and_replaces_any() -> None:
    """Of 4,000 that come when 20 are kept a quarter is taken, and each of the 20 is as likely to go, by its age."""
    kept = table(remover="random", keep_steps=20, replace_probability=0.25)
    insert(kept, *(played(number, 1) for number in range(20)))
    before = [one.trajectory_id for one in kept.trajectories()]
    replaced = np.zeros(20, np.int64)
    for number in range(20, 4020):
        insert(kept, played(number, 1))
        after = [one.trajectory_id for one in kept.trajectories()]
        assert len(after) == 20
        if after != before:
            assert after[-1] == f"t{number}"
            (gone,) = set(before) - set(after)
            replaced[before.index(gone)] += 1
        before = after
    taken = replaced.sum()
    assert abs(taken - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)
    assert ((replaced - taken / 20) ** 2 / (taken / 20)).sum() < 43.8  # 19 degrees of freedom, one in a thousand
