"""A trajectory is stored once, however often, from wherever and across whatever restarts it is sent."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest

from replay_server.answers import InsertResult, ReplayError
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.replay_server.messages import call, insert_bytes
from tests.replay_server.played import played, table_config
from zero.tables import Durability, TableConfig
from zero.trajectories import PriorityUpdates, Trajectory

MakeTable = Callable[..., TableConfig]


def other_content(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, episode_seed=trajectory.episode_seed + 1)


def test_sent_three_times_at_once_it_is_stored_once(client: ReplayClient, make_table: MakeTable) -> None:
    """Eight threads send overlapping calls three times over; each is acknowledged, each trajectory stored once."""
    config = make_table(capacity=100_000)
    calls = [[played(number) for number in range(start, start + 4)] for start in range(60)] * 3
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda call: client.insert(config.name, call), calls))
    assert all(result.stored + result.duplicates == 4 for result in results)
    assert sum(result.stored for result in results) == 63
    info = client.server_info().tables[config.name]
    assert (info.num_trajectories, info.num_steps) == (63, 315)


def test_known_and_new_in_one_call_and_twice_in_one_call(client: ReplayClient, make_table: MakeTable) -> None:
    """Only what is new is stored; the same id twice with the same content is one trajectory and one duplicate."""
    config = make_table()
    client.insert(config.name, [played(1), played(2)])
    result = client.insert(config.name, [played(2), played(3), played(3), played(1), played(4)])
    assert result == InsertResult(stored=2, duplicates=3)
    assert client.server_info().tables[config.name].num_trajectories == 4


def test_other_content_under_a_known_id_is_refused_whole(client: ReplayClient, make_table: MakeTable) -> None:
    """CONTENT_CONFLICT, and the new trajectory of the same call is not stored either; also within one call."""
    config = make_table()
    client.insert(config.name, [played(1)])
    for calls in ([played(5), other_content(played(1))], [played(5), other_content(played(5))]):
        with pytest.raises(ReplayError, match="other content") as caught:
            client.insert(config.name, calls)
        assert caught.value.reason == "CONTENT_CONFLICT"
    assert client.server_info().tables[config.name].num_trajectories == 1
    assert client.insert(config.name, [played(5)]).stored == 1


def test_an_evicted_trajectory_is_not_stored_again(client: ReplayClient, make_table: MakeTable) -> None:
    """A late repetition of what has been evicted since is a duplicate."""
    config = make_table(capacity=10)
    for number in range(4):
        client.insert(config.name, [played(number)])
    assert client.insert(config.name, [played(0)]) == InsertResult(stored=0, duplicates=1)
    assert client.server_info().tables[config.name].inserted_trajectories == 4


def test_a_restart_forgets_nothing(settings: ReplayServerSettings) -> None:
    """Stored and evicted ids stay known, conflicts stay conflicts, counts and contents are as before."""
    config = table_config(capacity=40)
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        for start in range(0, 24, 3):
            client.insert(config.name, [played(number) for number in range(start, start + 3)])
        rows = sampled_steps(client, config.name)
        before = client.server_info().tables[config.name]
    for _ in range(2):
        with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
            assert client.create_table(config) is False
            assert client.server_info().tables[config.name] == before
            assert sampled_steps(client, config.name) == rows
            for start in range(0, 24, 6):
                result = client.insert(config.name, [played(number) for number in range(start, start + 6)])
                assert result == InsertResult(stored=0, duplicates=6)
            for number in (0, 23):
                with pytest.raises(ReplayError) as caught:
                    client.insert(config.name, [other_content(played(number))])
                assert caught.value.reason == "CONTENT_CONFLICT"
            before = client.server_info().tables[config.name]


def sampled_steps(client: ReplayClient, table: str) -> dict[int, bytes]:
    """Key to contents of all positions."""
    batch = client.sample(table, 2000, {"observation": 2, "reward": 1})
    rows = zip(batch.columns["observation"], batch.columns["reward"], strict=True)
    return {key: a.tobytes() + b.tobytes() for key, (a, b) in zip(batch.keys.tolist(), rows, strict=True)}


def test_memory_tables_come_back_empty_and_old_keys_miss_their_steps(settings: ReplayServerSettings) -> None:
    """After a restart the config is there, the data is not, and a key of the earlier life names nothing."""
    config = table_config(durability=Durability.MEMORY, selector="prioritized")
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        client.create_table(config)
        client.insert(config.name, [played(1)])
        keys = client.sample(config.name, 8, {"action": 1}).keys
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        assert client.server_info().tables[config.name].num_steps == 0
        client.insert(config.name, [played(1)])
        result = client.update_priorities(config.name, PriorityUpdates(keys, np.ones(8, np.float32)))
        assert (result.updated, result.evicted) == (0, 8)


@pytest.mark.parametrize("remover", ["fifo", "lifo"])
def test_a_field_of_another_kind_harms_neither_server_nor_log(settings: ReplayServerSettings, remover: str) -> None:
    """A varint under the number of the trajectories: protobuf skips it. Stored once, and read again after a restart."""
    table = table_config("odd", remover=remover)
    message = b"\x10\x01" + insert_bytes("odd", played(1), played(2))
    for _ in range(2):
        with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
            client.create_table(table)
            with grpc.insecure_channel(bound.address) as channel:
                call(channel, "Insert", message)
            assert client.server_info().tables["odd"].num_trajectories == 2
            assert client.verify_table("odd").problems == ()
