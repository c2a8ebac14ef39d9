"""Several servers as one: each trajectory on one of them, batches from all; a dead one is left out until it is back."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server import shards
from replay_server.answers import InsertResult, ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from replay_server.sharded_client import ShardedClient
from replay_server.sharding import Part, Placement, ShardedUpdates, Share, homes, join_batches, split_batch
from replay_server.trajectory_writer import TrajectoryWriter
from tests.replay_server.killable import KillableServer, killable_server
from tests.replay_server.played import SIGNATURE, played, table_config
from tests.roles import wait_until
from zero.tables import Durability, RateLimiterConfig
from zero.trajectories import ColumnSpec, PriorityUpdates, SampleSpec, SequenceBatch, TableShare

ADDRESSES = ("10.0.0.1:5000", "10.0.0.2:5000", "10.0.0.3:5000")


@pytest.fixture(scope="module", autouse=True)
def _look_often() -> Iterator[None]:
    """Clients know sooner what the servers have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_LOOK_SECONDS", 0.1)
        yield


def ids(client: ReplayClient | ShardedClient, table: str = "games") -> list[str]:
    return [trajectory.trajectory_id for trajectory in client.read_trajectories(table)]


def at_home(addresses: Sequence[str], shard: int, number: int) -> list[int]:
    """Numbers of trajectories that belong to a shard."""
    return list(islice((n for n in range(10**6) if homes(f"t{n}", addresses)[0] == shard), number))


# --- where trajectories go ---


def test_a_home_is_the_same_in_every_process() -> None:
    """Values that a program of another year must compute, too: another home would store a trajectory twice."""
    assert [homes(f"t{n}", ADDRESSES) for n in range(4)] == [[1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 1, 0]]


def test_the_order_of_the_addresses_does_not_matter() -> None:
    """Two actors may list the servers differently."""
    turned = ADDRESSES[::-1]
    for n in range(100):
        assert ADDRESSES[homes(f"t{n}", ADDRESSES)[0]] == turned[homes(f"t{n}", turned)[0]]


def test_trajectories_spread_evenly_and_few_move() -> None:
    """Without a server, only what it had goes elsewhere."""
    before = [homes(f"t{n}", ADDRESSES)[0] for n in range(3000)]
    assert min(np.bincount(before)) > 900
    after = [homes(f"t{n}", ADDRESSES[:2])[0] for n in range(3000)]
    assert all(new == old for old, new in zip(before, after, strict=True) if old < 2)


def test_a_diverted_trajectory_stays_where_it_went() -> None:
    """Sent again when its home is back, and every later chunk; one that went home stays there when that dies."""
    placement = Placement(ADDRESSES, divert=True)
    first, second = homes("t1", ADDRESSES)[:2]
    chunk = replace(played(1), open=True, terminated=False)
    later = replace(played(1), first_step=5)
    assert placement.groups([chunk], lambda shard: shard != first) == {second: [chunk]}
    assert placement.groups([chunk, later], lambda _: True) == {second: [chunk, later]}
    home = homes("t2", ADDRESSES)[0]
    assert list(placement.groups([played(2)], lambda _: True)) == [home]
    assert list(placement.groups([played(2)], lambda shard: shard != home)) == [home]
    # Nothing is known of where this one began, so it can only have been at home.
    other = homes("t3", ADDRESSES)[0]
    assert list(placement.groups([replace(played(3), first_step=5)], lambda shard: shard != other)) == [other]


# --- batches ---


@settings(deadline=None)
@given(
    st.integers(1, 1000),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(lambda masses: sum(masses) > 1e-3),
    st.integers(0, 2**32),
)
def test_a_split_adds_up_and_is_near_the_shares(batch_size: int, masses: list[float], seed: int) -> None:
    """No shard is a row away from its share, none without mass gives any."""
    counts = split_batch(batch_size, np.array(masses), np.random.default_rng(seed))
    shares = np.array(masses) / sum(masses) * batch_size
    assert counts.sum() == batch_size
    assert np.all(np.abs(counts - shares) < 1 + 1e-6)
    assert all(not count for count, mass in zip(counts, masses, strict=True) if not mass)


def test_a_split_is_right_on_average() -> None:
    """A shard with a hundredth of a row is drawn from once in a hundred batches."""
    rng = np.random.default_rng(0)
    masses = np.array([0.01, 0.49, 2.5])
    counts = np.mean([split_batch(3, masses, rng) for _ in range(5_000)], axis=0)
    assert np.allclose(counts, masses, atol=0.008)


def batch_of(probabilities: list[float], table_size: int) -> SequenceBatch:
    number = len(probabilities)
    return SequenceBatch(
        columns={"reward": np.arange(number, dtype=np.float32)[:, None]},
        keys=np.arange(number, dtype=np.uint64),
        probabilities=np.array(probabilities),
        lengths=np.ones(number, np.int32),
        weights_versions=np.zeros(number, np.uint64),
        terminated=np.zeros(number, np.bool_),
        table_size=table_size,
    )


def test_joined_probabilities_are_those_over_all_shards() -> None:
    """Priorities 1, 2 on one shard, 3 on another, 4 on one that gave no row: as in one table of four."""
    parts = [Part(0, batch_of([1 / 3, 2 / 3], 2)), Part(2, batch_of([1.0], 1))]
    shares = {0: Share(3.0, 2), 2: Share(3.0, 1), 1: Share(4.0, 1)}
    joined = join_batches(parts, shares, exponent=0.5)
    assert np.allclose(joined.probabilities, [0.1, 0.2, 0.3])
    weights = (4 * np.array([0.1, 0.2, 0.3])) ** -0.5
    assert np.allclose(joined.importance_weights, weights / weights.max())
    assert (joined.table_size, joined.shards.tolist(), joined.keys.tolist()) == (4, [0, 0, 2], [0, 1, 0])
    assert joined.columns["reward"].tolist() == [[0], [1], [0]]


# --- two servers ---


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two servers in this process."""
    folder = tmp_path_factory.mktemp("shards")
    with (
        ReplayServer(ReplayServerSettings(folder / "0")) as first,
        ReplayServer(ReplayServerSettings(folder / "1")) as second,
    ):
        yield [first.address, second.address]


@pytest.fixture
def sharded(addresses: list[str]) -> Iterator[ShardedClient]:
    """A client of both, whose table is empty."""
    with ShardedClient(addresses, rng=np.random.default_rng(0)) as client:
        client.create_table(table_config(selector="prioritized"))
        client.reset_table("games")
        yield client


def test_every_trajectory_is_on_its_home_once(sharded: ShardedClient, addresses: list[str]) -> None:
    """Inserted at once, over a stream, step by step, twice: one place for each, all found."""
    wholes = [played(n) for n in range(40)]
    assert sharded.insert("games", wholes[:20]) == InsertResult(20, 0)
    assert sharded.insert("games", wholes[:20]) == InsertResult(0, 20)
    with sharded.insert_stream("games") as stream:
        assert stream.insert(wholes[10:30]).result(10) == InsertResult(10, 10)
        for whole in wholes[30:]:
            writer = TrajectoryWriter(stream, SIGNATURE, chunk_length=2)
            writer.begin(whole.trajectory_id)
            for t in range(whole.num_steps):
                writer.append({name: array[t] for name, array in whole.columns.items()})
            writer.end(terminated=True)
    for shard, address in enumerate(addresses):
        with ReplayClient(address) as client:
            assert set(ids(client)) == {f"t{n}" for n in range(40) if homes(f"t{n}", addresses)[0] == shard}
    assert len(ids(sharded)) == 40


def test_a_batch_is_drawn_as_from_one_table(sharded: ShardedClient, addresses: list[str]) -> None:
    """The probability of a position is its priority over that of all shards; so often is it drawn."""
    numbers = at_home(addresses, 0, 1) + at_home(addresses, 1, 3)
    sharded.insert("games", [replace(played(n), priorities=np.arange(1, 6, dtype=np.float32)) for n in numbers])
    refreshed(sharded, 20)
    total = 4 * sum(p**0.6 for p in range(1, 6))
    batch = sharded.sample("games", 4000, {"action": 1, "reward": 1}, importance_sampling_exponent=1.0)
    priorities = batch.columns["action"][:, 0].astype(float)
    assert np.allclose(batch.probabilities, priorities**0.6 / total)
    assert np.allclose(batch.importance_weights, priorities**-0.6)
    assert abs(np.mean(batch.shards == 0) - 0.25) < 0.001
    assert np.all(np.isin(np.floor(batch.columns["reward"][batch.shards == 0, 0]), numbers[:1]))
    assert batch.table_size == 20


def refreshed(sharded: ShardedClient, num_items: int, table: str = "games") -> None:
    """Wait until the client knows what the servers hold."""

    def known() -> int:
        infos = (info for info in sharded.server_infos().values() if info is not None)
        return sum(info.tables[table].num_items for info in infos)

    wait_until(lambda: known() == num_items)


def test_updates_go_home(sharded: ShardedClient, addresses: list[str]) -> None:
    """Also where two shards gave the same key; with the next batch, over a stream, and by themselves."""
    numbers = at_home(addresses, 0, 1) + at_home(addresses, 1, 1)
    sharded.insert("games", [played(n) for n in numbers])
    refreshed(sharded, 10)
    batch = sharded.sample("games", 512, {"reward": 1})  # so many that every item is among them
    assert set(batch.shards.tolist()) == {0, 1}
    wanted = float(batch.columns["reward"][0, 0])

    def only(reward: float) -> np.ndarray:
        return (batch.columns["reward"][:, 0] == np.float32(reward)).astype(np.float32)

    drawn = sharded.sample("games", 64, {"reward": 1}, updates=batch.updates(only(wanted)))
    of_its_shard = drawn.columns["reward"][drawn.shards == batch.shards[0], 0]
    assert set(of_its_shard.tolist()) <= {np.float32(wanted)}
    other = float(batch.columns["reward"][np.flatnonzero(batch.columns["reward"][:, 0] != np.float32(wanted))[0], 0])
    assert sharded.update_priorities("games", batch.updates(only(other))).updated == 512
    with sharded.sample_stream("games", SampleSpec(64, {"reward": 1})) as batches:
        next(batches)
        batches.update_priorities(batch.updates(only(wanted)))
    refreshed_mass(sharded, 1.0)
    assert set(sharded.sample("games", 64, {"reward": 1}).columns["reward"][:, 0].tolist()) == {np.float32(wanted)}


def refreshed_mass(sharded: ShardedClient, mass: float) -> None:
    wait_until(
        lambda: sum(info.tables["games"].mass for info in sharded.server_infos().values() if info is not None) == mass
    )


@pytest.fixture
def demos(sharded: ShardedClient) -> Iterator[str]:
    """Another table on both servers, with the columns of the first, drawn from evenly; emptied of earlier tests."""
    sharded.create_table(table_config("demos"))
    yield "demos"
    sharded.delete_table("demos")


def test_a_mix_is_drawn_from_every_table_as_from_one(sharded: ShardedClient, demos: str, addresses: list[str]) -> None:
    """One table after the other, each from all shards in proportion to its own mass; weighted by its own size."""
    first, second = at_home(addresses, 0, 4), at_home(addresses, 1, 3)
    numbers = {"games": [*first[:1], *second], demos: [*first[1:], *second[:1]]}
    for table, own in numbers.items():
        sharded.insert(table, [replace(played(n), priorities=np.arange(1, 6, dtype=np.float32)) for n in own])
        refreshed(sharded, 20, table)
    spec = SampleSpec(4000, {"action": 1, "reward": 1}, importance_sampling_exponent=1.0)
    batch = sharded.sample_mix([TableShare("games", 0.25), TableShare(demos, 0.75)], spec)
    assert (batch.rows_per_table, batch.table_size, len(batch.keys)) == ((1000, 3000), 40, 4000)
    games, demonstrated = slice(1000), slice(1000, None)
    for rows, own, at_first in ((games, numbers["games"], 250), (demonstrated, numbers[demos], 2250)):
        assert set(np.floor(batch.columns["reward"][rows, 0])) == set(own)
        assert abs(np.count_nonzero(batch.shards[rows] == 0) - at_first) <= 1
    priorities = batch.columns["action"][games, 0].astype(float)
    likely = priorities**0.6 / (4 * sum(p**0.6 for p in range(1, 6)))
    assert np.allclose(batch.probabilities[games], likely)
    assert np.allclose(batch.probabilities[demonstrated], 1 / 20)
    assert batch.importance_weights is not None
    assert np.allclose(batch.importance_weights * (20 * batch.probabilities), 20 * likely.min(), rtol=1e-4)


def test_updates_of_a_mix_go_home(sharded: ShardedClient, demos: str, addresses: list[str]) -> None:
    """To the table and shard of each row, though keys are alike everywhere; also with none of its rows wanted."""
    numbers = at_home(addresses, 0, 1) + at_home(addresses, 1, 1)
    for table in ("games", demos):
        sharded.insert(table, [played(n) for n in numbers])
        refreshed(sharded, 10, table)
    both, spec = [TableShare(demos, 0.5), TableShare("games", 0.5)], SampleSpec(256, {"reward": 1})
    batch = sharded.sample_mix(both, spec)
    rewards, rows = batch.columns["reward"][:, 0], slice(*np.cumsum(batch.rows_per_table))
    wanted = rewards[rows][0]
    updates = ShardedUpdates(batch.keys[rows], (rewards[rows] == wanted).astype(np.float32), batch.shards[rows])
    sharded.sample_mix([TableShare(demos, 1.0), TableShare("games", 0.0, updates)], spec)
    refreshed_mass(sharded, 1.0)
    assert set(sharded.sample("games", 64, {"reward": 1}).columns["reward"][:, 0]) == {wanted}
    other = rewards[rows][rewards[rows] != wanted][0]
    more = replace(updates, priorities=np.isin(rewards[rows], [wanted, other]).astype(np.float32))
    mixed = sharded.sample_mix([TableShare(demos, 0.5), TableShare("games", 0.5, more)], spec)
    assert set(mixed.columns["reward"][rows, 0]) <= {wanted, other}
    refreshed_mass(sharded, 2.0)
    assert set(sharded.sample("games", 64, {"reward": 1}).columns["reward"][:, 0]) == {wanted, other}


def test_a_mix_that_cannot_be_is_refused(sharded: ShardedClient) -> None:
    """As a server refuses it, which sees a part of the request only."""
    spec = SampleSpec(8, {"reward": 1})
    plain = PriorityUpdates(np.zeros(1, np.uint64), np.ones(1, np.float32))
    sharded.insert("games", [played(n) for n in range(8)])
    refreshed(sharded, 40)
    other = replace(table_config("others"), signature=(ColumnSpec("reward", "float64"),), durability=Durability.MEMORY)
    sharded.create_table(other)
    values = {"reward": np.ones(5)}
    sharded.insert("others", [replace(played(n), columns=values) for n in range(8)])
    refreshed(sharded, 40, "others")
    for shares, asked, reason in (
        ([], spec, "BAD_MESSAGE"),
        ([TableShare("games", 0.5), TableShare("games", 0.5)], spec, "BAD_MESSAGE"),
        ([TableShare("games", 0.5), TableShare("others", 0.4)], spec, "BAD_MESSAGE"),
        ([TableShare("games", 1.0)], replace(spec, batch_size=0), "BAD_MESSAGE"),
        ([TableShare("games", 1.0, plain)], spec, "BAD_MESSAGE"),
        ([TableShare("games", 0.5), TableShare("nowhere", 0.5)], spec, "UNKNOWN_TABLE"),
        ([TableShare("games", 0.5), TableShare("others", 0.5)], spec, "WRONG_SIGNATURE"),
    ):
        with pytest.raises(ReplayError) as caught:
            sharded.sample_mix(shares, asked)
        assert caught.value.reason == reason
    sharded.delete_table("others")


def test_columns_are_replaced_where_they_are(sharded: ShardedClient) -> None:
    """By key and shard."""
    sharded.insert("games", [played(n) for n in range(8)])
    refreshed(sharded, 40)
    batch = sharded.sample("games", 64, {"action": 1})
    keys = np.unique(np.stack([batch.keys, batch.shards.astype(np.uint64)]), axis=1)
    values = {"action": np.full(keys.shape[1], 999, np.uint16)}
    result = sharded.update_columns("games", keys[0], keys[1].astype(np.int32), values)
    assert result.updated == keys.shape[1]
    steps = np.concatenate([read.columns["action"] for read in sharded.read_trajectories("games")])
    assert np.count_nonzero(steps == 999) == keys.shape[1]


def test_an_empty_table_is_waited_for(sharded: ShardedClient) -> None:
    """A sample that nobody can answer times out, or is answered when there is something."""
    with pytest.raises(ReplayTimeout):
        sharded.sample("games", 4, {"reward": 1}, timeout=0.2)
    with ThreadPoolExecutor(1) as executor:
        held = executor.submit(sharded.sample, "games", 4, {"reward": 1}, timeout=20)
        sharded.insert("games", [played(n) for n in range(8)])
        assert len(held.result(20).keys) == 4


def test_a_shard_that_holds_samples_does_not_hold_up_the_others(addresses: list[str]) -> None:
    """It is left out until it has what it waits for."""
    limits = RateLimiterConfig(min_size_to_sample=6)
    with ShardedClient(addresses) as sharded:
        sharded.create_table(table_config("limited", rate_limiter=limits, durability=Durability.MEMORY))
        sharded.insert("limited", [played(n) for n in (*at_home(addresses, 0, 1), *at_home(addresses, 1, 2))])
        wait_until(lambda: can_sample(sharded, addresses[1]))
        assert set(sharded.sample("limited", 32, {"reward": 1}, timeout=5).shards.tolist()) == {1}
        sharded.insert("limited", [played(n) for n in at_home(addresses, 0, 2)])
        wait_until(lambda: set(sharded.sample("limited", 32, {"reward": 1}).shards.tolist()) == {0, 1})


def can_sample(sharded: ShardedClient, address: str) -> bool:
    info = sharded.server_infos()[address]
    return info is not None and not info.tables["limited"].sample_blocked_because


def test_closing_leaves_no_thread(addresses: list[str]) -> None:
    """Whatever it has done."""
    before = set(threading.enumerate())
    with ShardedClient(addresses) as sharded:
        sharded.create_table(table_config(selector="prioritized"))
        sharded.insert("games", [played(n) for n in range(8)])
        with sharded.sample_stream("games", SampleSpec(4, {"reward": 1})) as batches:
            next(batches)
    wait_until(lambda: not [thread for thread in set(threading.enumerate()) - before if thread.name != "Dummy"])


def test_a_closed_client_says_so(addresses: list[str]) -> None:
    """As a ReplayClient does, whatever is called."""
    with ShardedClient(addresses) as sharded:
        sharded.create_table(table_config("closed"))
    for call in (
        lambda: sharded.insert("closed", [played(1)], timeout=1),
        lambda: sharded.sample("closed", 2, {"reward": 1}, timeout=1),
        lambda: sharded.reset_table("closed", timeout=1),
    ):
        with pytest.raises(ReplayError) as caught:
            call()
        assert caught.value.reason == "CANCELLED"


def test_closing_ends_calls_that_have_not_begun(addresses: list[str]) -> None:
    """More than a server is sent at once: those that wait for their turn fail as those that wait for the server."""
    limits = RateLimiterConfig(min_size_to_sample=5, queue_size=5)
    with (
        ShardedClient(addresses[:1]) as sharded,
        ReplayClient(addresses[0]) as client,
        ThreadPoolExecutor(24) as callers,
    ):
        client.create_table(table_config("turns", rate_limiter=limits, durability=Durability.MEMORY))
        client.create_table(table_config("empty", durability=Durability.MEMORY))
        client.insert("turns", [played(0)])
        calls = [callers.submit(sharded.insert, "turns", [played(n)], 30) for n in range(1, 13)]
        calls += [callers.submit(sharded.sample, "empty", 1, {"reward": 1}, timeout=30) for _ in range(12)]
        shard = sharded._shards.shards[0]
        wait_until(lambda: [threads._work_queue.qsize() for threads in (shard.inserting, shard.drawing)] == [4, 4])
        sharded.close()
        errors = [call.exception(timeout=10) for call in calls]
    assert [getattr(error, "reason", error) for error in errors] == ["CANCELLED"] * 24


# --- a server dies ---


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[list[KillableServer]]:
    """Two servers in processes of their own."""
    with killable_server(tmp_path / "0") as first, killable_server(tmp_path / "1") as second:
        yield [first, second]


@pytest.mark.slow
def test_a_dead_shard_does_not_stop_the_others(killable: list[KillableServer]) -> None:
    """Batches come from the living one, inserts for the dead one wait; it is back when it answers."""
    addresses = [server.address for server in killable]
    with ShardedClient(addresses, rng=np.random.default_rng(0)) as sharded, ThreadPoolExecutor(1) as executor:
        sharded.create_table(table_config())
        sharded.insert("games", [played(n) for n in range(20)])
        refreshed(sharded, 100)
        with sharded.sample_stream("games", SampleSpec(64, {"reward": 1})) as batches:
            assert set(next(batches).shards.tolist()) == {0, 1}
            killable[0].kill()
            for _ in range(8):
                assert len(next(batches).keys) == 64
            batch = sharded.sample("games", 64, {"reward": 1})
            living = len([n for n in range(20) if homes(f"t{n}", addresses)[0] == 1])
            assert set(batch.shards.tolist()) == {1}
            assert np.allclose(batch.probabilities, 1 / (5 * living))
            here, there = at_home(addresses, 1, 30)[-1], at_home(addresses, 0, 30)[-1]
            assert sharded.insert("games", [played(here)], timeout=5) == InsertResult(1, 0)
            with pytest.raises(ReplayTimeout):
                sharded.insert("games", [played(there)], timeout=0.5)
            waiting = executor.submit(sharded.insert, "games", [played(there)], 60)
            killable[0].start()
            assert waiting.result(60).stored + waiting.result().duplicates == 1
            wait_until(lambda: set(next(batches).shards.tolist()) == {0, 1})
        assert sorted(ids(sharded)) == sorted(f"t{n}" for n in (*range(20), here, there))


@pytest.mark.slow
def test_a_stream_into_shards_loses_and_doubles_nothing(killable: list[KillableServer]) -> None:
    """One of them killed in the middle and started again."""
    addresses = [server.address for server in killable]
    with ShardedClient(addresses) as sharded:
        sharded.create_table(table_config(capacity=10**6))
        with sharded.insert_stream("games") as stream:
            outcomes = [stream.insert([played(n)]) for n in range(300)]
            killable[1].kill()
            restart = threading.Thread(target=killable[1].start)
            restart.start()
            outcomes += [stream.insert([played(n)]) for n in range(300, 600)]
            restart.join()
        assert all(outcome.result(0).stored + outcome.result(0).duplicates == 1 for outcome in outcomes)
        assert sorted(ids(sharded)) == sorted(f"t{n}" for n in range(600))


@pytest.mark.slow
def test_inserts_can_be_diverted(killable: list[KillableServer]) -> None:
    """By choice: what belongs to a dead server goes to the next, and stays there when it is sent again."""
    addresses = [server.address for server in killable]
    number = at_home(addresses, 0, 1)[0]
    with ShardedClient(addresses, divert_inserts=True) as sharded:
        sharded.create_table(table_config())
        killable[0].kill()
        wait_until(lambda: sharded.server_infos()[addresses[0]] is None)
        assert sharded.insert("games", [played(number)], timeout=5) == InsertResult(1, 0)
        killable[0].start()
        wait_until(lambda: sharded.server_infos()[addresses[0]] is not None)
        assert sharded.insert("games", [played(number)], timeout=5) == InsertResult(0, 1)
        assert ids(sharded) == [f"t{number}"]
