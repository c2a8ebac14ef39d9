"""Calls on a real server: what it answers, what it refuses and why, and that a refusal harms nobody else."""

import threading
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from replay_server.client import InsertResult, ReplayClient, ReplayError
from replay_server.server import BoundAddresses
from tests.replay_server.messages import call, insert_bytes, reason_of, sample_bytes
from tests.replay_server.played import played, table_config
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import (
    PriorityUpdates,
)

MakeTable = Callable[..., TableConfig]
WINDOWS = {"observation": 1, "action": 3, "reward": 4, "policy": 2}


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_sampled_is_what_was_inserted(
    addresses: BoundAddresses, make_table: MakeTable, durability: Durability, compress: bool
) -> None:
    """Every row of every column is the window of the trajectory that its reward names."""
    config = make_table(durability=durability)
    trajectories = {number: played(number, num_steps=1 + number % 7) for number in range(20)}
    with ReplayClient(addresses.address, compress=compress) as client:
        assert client.insert(config.name, list(trajectories.values())) == InsertResult(stored=20, duplicates=0)
        batch = client.sample(config.name, 64, WINDOWS)
    for row in range(64):
        reward = float(batch.columns["reward"][row, 0])
        trajectory = trajectories[int(reward)]
        step = round((reward - int(reward)) * 1000)
        assert batch.lengths[row] == min(trajectory.num_steps - step, 4)
        assert batch.weights_versions[row] == int(reward)
        for name, window in WINDOWS.items():
            seen = trajectory.columns[name][step : step + window]
            np.testing.assert_array_equal(batch.columns[name][row, : len(seen)], seen)
            assert not batch.columns[name][row, len(seen) :].any()
    assert batch.table_size == sum(trajectory.num_steps for trajectory in trajectories.values())


def test_updates_that_ride_on_a_sample_count_before_the_draw(client: ReplayClient, make_table: MakeTable) -> None:
    """With every priority but one set to 0, the same call draws that one position alone."""
    config = make_table(selector="prioritized")
    client.insert(config.name, [played(1, 8)])
    keys = np.unique(client.sample(config.name, 256, {"action": 1}).keys)
    assert len(keys) == 8
    updates = PriorityUpdates(keys, np.array([0, 0, 0, 5, 0, 0, 0, 0], np.float32))
    batch = client.sample(config.name, 32, {"action": 1}, updates)
    assert set(batch.keys.tolist()) == {keys[3]}
    np.testing.assert_array_equal(batch.probabilities, np.ones(32))
    result = client.update_priorities(
        config.name, PriorityUpdates(np.append(keys, np.uint64(999)), np.ones(9, np.float32))
    )
    assert (result.updated, result.evicted) == (8, 1)


def test_creating_a_table_again_confirms_it_and_another_config_is_a_conflict(
    client: ReplayClient, make_table: MakeTable
) -> None:
    """The line names the field that differs."""
    config = make_table()
    assert client.create_table(config) is False
    with pytest.raises(ReplayError, match="capacity 1000, asked for 5") as caught:
        client.create_table(table_config(config.name, capacity=5))
    assert caught.value.reason == "TABLE_CONFLICT"


def test_a_table_that_would_not_fit_into_memory_is_refused(client: ReplayClient) -> None:
    """Before anything is allocated, with the size."""
    with pytest.raises(ReplayError, match="GiB") as caught:
        client.create_table(table_config("huge", capacity=2**31 - 1))
    assert caught.value.reason == "BAD_CONFIG"


def test_server_info_counts_what_happened(client: ReplayClient, make_table: MakeTable) -> None:
    """Sizes, totals and the reason why samples wait."""
    config = make_table(capacity=20, rate_limiter=RateLimiterConfig(min_size_to_sample=15))
    client.insert(config.name, [played(1, 8)])
    info = client.server_info().tables[config.name]
    assert info.config == config
    assert "8 of 15 items" in info.sample_blocked_because
    client.insert(config.name, [played(2, 8), played(3, 7)])
    client.sample(config.name, 6, {"action": 1})
    info = client.server_info().tables[config.name]
    assert (info.num_steps, info.num_trajectories) == (15, 2)
    assert (info.inserted_steps, info.inserted_trajectories, info.sampled_positions) == (23, 3, 6)
    assert info.insert_blocked_because == info.sample_blocked_because == ""


def test_the_rate_limiter_holds_a_sample_until_there_is_data(client: ReplayClient, make_table: MakeTable) -> None:
    """A waiting sample is answered by the insert that reaches the minimum."""
    config = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=10))
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(len(client.sample(config.name, 4, {"action": 1}).keys)))
    waiting.start()
    client.insert(config.name, [played(1, 9)])
    assert not answers
    client.insert(config.name, [played(2, 1)])
    waiting.join(10)
    assert answers == [4]


def test_a_held_call_ends_before_its_deadline_and_says_why(
    addresses: BoundAddresses, client: ReplayClient, make_table: MakeTable
) -> None:
    """RATE_LIMITED with the reason in words, for both sides; afterwards the table goes on."""
    limiter = RateLimiterConfig(min_size_to_sample=5, samples_per_insert=1.0, error_buffer=5.0)
    config = make_table(rate_limiter=limiter)

    def held(method: str, data: bytes) -> str:
        with grpc.insecure_channel(addresses.address) as channel, pytest.raises(grpc.RpcError) as caught:
            call(channel, method, data, timeout=1.0)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason_of(caught.value) == "RATE_LIMITED"
        return caught.value.details()

    assert "0 of 5 items are inserted" in held("Sample", sample_bytes(config.name))
    client.insert(config.name, [played(1, 5)])
    client.insert(config.name, [played(2, 5)])
    assert "samples lag behind: 0 drawn, 5 items" in held("Insert", insert_bytes(config.name, played(3, 1)))
    client.sample(config.name, 1, {"action": 1})
    assert client.insert(config.name, [played(3, 1)]).stored == 1


def test_calls_larger_than_the_buffer_or_the_table_are_refused_at_once(
    client: ReplayClient, make_table: MakeTable
) -> None:
    """They would hang for ever otherwise."""
    config = make_table(capacity=8, rate_limiter=RateLimiterConfig(1, 2.0, 10.0))
    for attempt in (
        lambda: client.insert(config.name, [played(1, 6)]),
        lambda: client.sample(config.name, 11, {"action": 1}),
        lambda: client.insert(config.name, [played(2, 9)]),
        lambda: client.insert(config.name, [played(3, 5), played(4, 4)]),
    ):
        with pytest.raises(ReplayError) as caught:
            attempt()
        assert caught.value.reason == "BAD_LENGTH"
