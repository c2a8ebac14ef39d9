"""Values with a version: the newest stay, in whatever order writers come; and looking at a table without using it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from replay_server.answers import ReplayError, ReplayTimeout, UpdateResult
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.replay_server.held import until
from tests.replay_server.held_writes import held_writes
from tests.replay_server.killable import killable_server
from tests.replay_server.played import SIGNATURE, played, table_config
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import ColumnSpec, StepFilter, Trajectory

VERSIONED = (*SIGNATURE, ColumnSpec("version", "uint32"))
MakeTable = Callable[..., TableConfig]


def versioned(number: int, num_steps: int = 5, version: int = 0) -> Trajectory:
    """A trajectory with the versions of its values."""
    one = played(number, num_steps)
    return replace(one, columns=one.columns | {"version": np.full(num_steps, version, np.uint32)})


def keys_of(client: ReplayClient, table: str) -> np.ndarray:
    """All keys of a small table."""
    return np.unique(client.peek(table, 2000, {"action": 1}).keys)


def rewarded(version: int, number: int) -> dict[str, np.ndarray]:
    """New values that tell their version."""
    return {"reward": np.full(number, version, np.float32), "version": np.full(number, version, np.uint32)}


@pytest.mark.parametrize("durability", [Durability.MEMORY, Durability.REDIS])
def test_an_older_version_never_replaces_a_newer_one(
    client: ReplayClient, make_table: MakeTable, durability: Durability
) -> None:
    """Step by step: those that hold a greater one stay and are counted, the others of the same call are replaced."""
    table = make_table(signature=VERSIONED, durability=durability).name
    client.insert(table, [versioned(0, 3, version=5), versioned(1, 2, version=7)])
    keys = keys_of(client, table)
    result = client.update_columns(table, np.append(keys, np.uint64(1 << 63)), rewarded(6, 6), version_column="version")
    assert result == UpdateResult(3, 1, 2)
    assert client.update_columns(table, keys, rewarded(6, 5), version_column="version") == UpdateResult(3, 0, 2)
    batch = client.sample(table, 200, {"reward": 1, "version": 1})
    pairs = set(zip(batch.columns["version"][:, 0].tolist(), batch.columns["reward"][:, 0].tolist(), strict=True))
    assert {reward for version, reward in pairs if version == 6} == {6.0}
    assert {version for version, _ in pairs} == {6, 7}
    assert 6.0 not in {reward for version, reward in pairs if version == 7}
    assert client.server_info().tables[table].updated_steps == 6


def test_an_older_version_does_not_slip_in_while_a_newer_one_is_under_way(settings: ReplayServerSettings) -> None:
    """What memory does not show yet counts: the older one comes while the newer is on its way to the log."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client, ThreadPoolExecutor(2) as writers:
        client.create_table(table_config(signature=VERSIONED))
        client.insert("games", [versioned(0, 20)])
        keys = keys_of(client, "games")

        def write(version: int) -> Future[UpdateResult]:
            values = rewarded(version, 20)
            return writers.submit(client.update_columns, "games", keys, values, version_column="version")

        with held_writes() as came:
            newer = write(7)
            assert came.wait(20)
            under_way = client.server_info().in_flight_bytes
            older = write(6)
            until(lambda: client.server_info().in_flight_bytes > under_way)
        assert newer.result() == UpdateResult(20, 0, 0)
        assert older.result() == UpdateResult(0, 0, 20)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        (whole,) = client.read_trajectories("games")
        assert (set(whole.columns["version"]), set(whole.columns["reward"])) == ({7}, {7.0})


@pytest.mark.slow
def test_versions_stay_newest_over_a_kill(settings: ReplayServerSettings) -> None:
    """What was acknowledged before kill -9 still refuses what is older, and keys of evicted steps hit nothing."""
    with killable_server(settings.data_dir) as server:
        with ReplayClient(server.address) as client:
            client.create_table(table_config(signature=VERSIONED, capacity=20))
            client.insert("games", [versioned(number) for number in range(4)])
            keys = keys_of(client, "games")
            assert client.update_columns("games", keys, rewarded(9, 20), version_column="version").updated == 20
            client.insert("games", [versioned(4, 10)])  # evicts two
        server.kill()
        server.start()
        with ReplayClient(server.address) as client:
            assert client.update_columns("games", keys, rewarded(8, 20), version_column="version") == UpdateResult(
                0, 10, 10
            )
            assert client.update_columns("games", keys, rewarded(10, 20), version_column="version").updated == 10
            values = [(one.trajectory_id, set(one.columns["version"])) for one in client.read_trajectories("games")]
    assert values == [("t2", {10}), ("t3", {10}), ("t4", {0})]


def test_a_version_column_must_be_one_of_integers(client: ReplayClient, make_table: MakeTable) -> None:
    """Refused before anything is replaced."""
    table = make_table(signature=VERSIONED).name
    client.insert(table, [versioned(0)])
    keys = keys_of(client, table)
    for name, reason in (("reward", "WRONG_SIGNATURE"), ("action", "BAD_MESSAGE")):
        with pytest.raises(ReplayError, match=reason):
            client.update_columns(table, keys, rewarded(3, 5), version_column=name)
    assert client.server_info().tables[table].updated_steps == 0


def test_looking_uses_nothing(client: ReplayClient, make_table: MakeTable) -> None:
    """Every item alike whatever the priorities; the rate limiter neither holds nor counts it, no item is used up."""
    limits = RateLimiterConfig(min_size_to_sample=100, samples_per_insert=1.0, error_buffer=100.0)
    config = make_table(selector="prioritized", rate_limiter=limits, max_times_sampled=1)
    first = replace(played(0, 4), priorities=np.array([0, 1, 1e6, 1], np.float32))
    client.insert(config.name, [first])
    batch = client.peek(config.name, 4000, {"action": 2})
    counts = np.unique(batch.columns["action"][:, 0], return_counts=True)[1]
    assert len(counts) == 4
    assert counts.min() > 850
    assert set(batch.probabilities) == {0.25}
    assert set(batch.lengths.tolist()) == {1, 2}
    info = client.server_info().tables[config.name]
    assert (info.num_items, info.sampled_positions, info.rate_limiter.sampled) == (4, 0, 0)
    client.insert(config.name, [played(1, 3, weights_version=8)])
    newer = client.peek(config.name, 50, {"action": 1}, filter=StepFilter(min_weights_version=8))
    assert set(newer.weights_versions.tolist()) == {8}


def test_looking_waits_for_something_to_look_at(client: ReplayClient, make_table: MakeTable) -> None:
    """At an empty table; in vain until the timeout."""
    table = make_table().name
    with pytest.raises(ReplayTimeout):
        client.peek(table, 4, {"action": 1}, timeout=0.3)
    with ThreadPoolExecutor(1) as executor:
        looking = executor.submit(client.peek, table, 4, {"action": 1})
        until(lambda: not looking.done())
        client.insert(table, [played(0)])
        assert len(looking.result(timeout=10).keys) == 4
