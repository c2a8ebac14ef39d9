"""Every call, and what the client hides: what a call can survive."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from replay_server.answers import InsertResult, ReplayError, ReplayTimeout, UpdateResult
from replay_server.client import ReplayClient
from replay_server.connection import Connection
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.replay_server.played import SIGNATURE, played, table_config
from tests.roles import wait_until
from zero.tables import RateLimiterConfig, TableConfig
from zero.trajectories import PriorityUpdates, SampleSpec, StatRange, TableShare, TrajectoryFilter

MakeTable = Callable[..., TableConfig]


@pytest.mark.parametrize("grace", [0.0, 2.0])
def test_a_held_sample_survives_a_restart_of_the_server(tmp_path: Path, grace: float) -> None:
    """A call that the rate limiter holds when the server stops is answered by the next one."""
    config = table_config("held")
    settings = ReplayServerSettings(tmp_path)
    first = ReplayServer(settings)
    address = first.start().address
    windows = {config.signature[0].name: 1}
    with ReplayClient(address) as client, ThreadPoolExecutor(1) as executor:
        client.create_table(config)
        held = executor.submit(client.sample, "held", 2, windows, timeout=30)
        wait_until(lambda: bool(client.server_info().tables["held"].sample_blocked_because))
        first.stop(grace)
        with ReplayServer(replace(settings, port=int(address.rpartition(":")[2]))):
            client.insert("held", [played(1)])
            assert held.result(timeout=30).keys.shape == (2,)


def test_what_is_read_is_what_was_inserted(client: ReplayClient, make_table: MakeTable) -> None:
    """Every field, in order; filtered and limited as asked."""
    table = make_table().name
    wholes = [replace(played(n), actor_id=f"actor-{n % 2}") for n in range(6)]
    client.insert(table, wholes)
    for whole, read in zip(wholes, client.read_trajectories(table), strict=True):
        assert replace(read, columns={}) == replace(whole, columns={})
        assert all(np.array_equal(read.columns[name], array) for name, array in whole.columns.items())
    odd = TrajectoryFilter(actor_id="actor-1", stats=(StatRange("score", minimum=2),))
    assert [read.trajectory_id for read in client.read_trajectories(table, odd)] == ["t3", "t5"]
    assert len(list(client.read_trajectories(table, limit=2))) == 2
    with pytest.raises(ReplayError, match="UNKNOWN_TABLE"):
        next(client.read_trajectories("no-such-table"))


def test_reading_with_a_closed_client_says_so(client: ReplayClient) -> None:
    """As every other call."""
    with ReplayClient(client.address) as closed:
        reading = closed.read_trajectories("any")
    with pytest.raises(ReplayError, match="the client is closed"):
        next(reading)


def test_several_tables_take_one_insert_and_give_one_batch(client: ReplayClient, make_table: MakeTable) -> None:
    """All of them store it; a mix says how many rows are whose."""
    both = [make_table().name, make_table().name]
    assert client.insert(both, [played(1), played(2)]) == InsertResult(4, 0)
    client.insert(both[1], [played(3)])
    shares = [TableShare(both[0], 0.25), TableShare(both[1], 0.75)]
    batch = client.sample_mix(shares, SampleSpec(16, {"reward": 1}))
    assert batch.rows_per_table == (4, 12)


def test_columns_can_be_replaced(client: ReplayClient, make_table: MakeTable) -> None:
    """By key; what is gone is counted."""
    table = make_table().name
    client.insert(table, [played(1)])
    keys = np.unique(client.sample(table, 100, {"action": 1}).keys)
    gone = np.uint64(1 << 63)
    values = {"action": np.full(len(keys) + 1, 77, np.uint16)}
    assert client.update_columns(table, np.append(keys, gone), values) == UpdateResult(len(keys), 1)
    assert set(client.sample(table, 32, {"action": 1}).columns["action"][:, 0].tolist()) == {77}


def test_trajectories_and_tables_can_be_deleted(client: ReplayClient, make_table: MakeTable) -> None:
    """Chosen ones stay known; a reset forgets; a deleted table is unknown."""
    table = make_table().name
    client.insert(table, [played(n) for n in range(4)])
    assert client.delete_trajectories(table, TrajectoryFilter(trajectory_ids=("t1", "t2"))) == 2
    assert client.insert(table, [played(1)]) == InsertResult(0, 1)
    assert client.server_info().tables[table].removed_trajectories == 2
    assert client.reset_table(table) == 2
    assert client.insert(table, [played(1)]) == InsertResult(1, 0)
    client.delete_table(table)
    assert table not in client.server_info().tables


def test_limits_can_be_changed_while_calls_wait(client: ReplayClient, make_table: MakeTable) -> None:
    """What waits is looked at again."""
    table = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=100)).name
    client.insert(table, [played(1)])
    with ThreadPoolExecutor(1) as executor:
        held = executor.submit(client.sample, table, 2, {"reward": 1}, timeout=30)
        wait_until(lambda: client.server_info().tables[table].rate_limiter.waiting_samples == 1)
        client.set_rate_limiter(table, RateLimiterConfig(min_size_to_sample=5))
        assert len(held.result(30).keys) == 2
    assert client.server_info().tables[table].rate_limiter.config.min_size_to_sample == 5


def test_a_table_can_be_verified(client: ReplayClient, make_table: MakeTable) -> None:
    """Its log has what was inserted, and nothing is wrong."""
    table = make_table().name
    client.insert(table, [played(1), played(2)])
    client.insert(table, [played(3)])
    verification = client.verify_table(table)
    assert (verification.entries, verification.chunks, verification.problems) == (2, 3, ())
    assert verification.num_bytes > 0


def test_without_repeating_a_call_fails_at_once() -> None:
    """For those who would rather do something else than wait."""
    with ReplayClient("127.0.0.1:1", repeat=False) as client:
        began = time.monotonic()
        with pytest.raises(ReplayTimeout, match="UNAVAILABLE"):
            client.server_info(timeout=30)
        assert time.monotonic() - began < 5


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    """A call that finds too many waiting is repeated after the pause that the server names, until there is room."""
    with (
        ReplayServer(ReplayServerSettings(tmp_path, max_waiting_calls=1)) as bound,
        ReplayClient(bound.address) as client,
        ReplayClient(bound.address, repeat=False) as hasty,
        ThreadPoolExecutor(2) as executor,
    ):
        client.create_table(table_config())
        held = executor.submit(client.sample, "games", 2, {"reward": 1}, timeout=30)
        wait_until(lambda: client.server_info().tables["games"].rate_limiter.waiting_samples == 1)
        with pytest.raises(ReplayTimeout) as caught:
            hasty.sample("games", 2, {"reward": 1}, timeout=30)
        assert caught.value.reason == "TOO_BUSY"
        assert caught.value.pause_seconds > 0
        again = executor.submit(client.sample, "games", 2, {"reward": 1}, timeout=30)
        client.insert("games", [played(1)])
        assert len(held.result(30).keys) == len(again.result(30).keys) == 2


def test_a_timeout_says_why_the_call_was_held(client: ReplayClient, make_table: MakeTable) -> None:
    """However short it is, and however often."""
    table = make_table(rate_limiter=RateLimiterConfig(min_size_to_sample=100)).name
    with ThreadPoolExecutor(4) as executor:
        held = [executor.submit(client.sample, table, 2, {"reward": 1}, timeout=0.2) for _ in range(32)]
    assert [str(call.exception())[:12] for call in held] == ["RATE_LIMITED"] * 32


def test_the_last_reason_outlives_an_attempt_without_an_answer() -> None:
    """Of a server that goes away meanwhile the error says just that."""
    said = [ReplayTimeout("RATE_LIMITED", "too few items"), ReplayTimeout("DEADLINE_EXCEEDED", "Stream removed")]
    gone = [ReplayTimeout("RATE_LIMITED", "too few items"), ReplayTimeout("UNAVAILABLE", "Socket closed")]

    def outcome(failures: list[ReplayTimeout]) -> str:
        coming = iter(failures)
        attempts: list[float] = []

        def attempt(seconds: float) -> None:
            attempts.append(seconds)
            time.sleep(seconds if len(attempts) == len(failures) else 0)
            raise next(coming)

        connection = Connection("127.0.0.1:1")
        with closing(connection), pytest.raises(ReplayTimeout) as caught:
            connection.call(attempt, 0.2)
        assert min(attempts) >= 0.05
        return caught.value.reason

    assert (outcome(said), outcome(gone)) == ("RATE_LIMITED", "UNAVAILABLE")


def test_closing_leaves_no_thread(client: ReplayClient, make_table: MakeTable) -> None:
    """Streams that nobody closed end with the client."""
    table = make_table(signature=SIGNATURE).name
    before = set(threading.enumerate())
    with ReplayClient(client.address) as other:
        other.insert_stream(table).insert([played(1)]).result(10)
        next(other.sample_stream(table, SampleSpec(2, {"reward": 1})))
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_tensors_and_lists_are_taken_wherever_arrays_are(client: ReplayClient, make_table: MakeTable) -> None:
    """Columns, initial priorities, new values and priority updates."""
    table = make_table(selector="prioritized").name
    whole = played(1)
    columns: dict[str, object] = {
        name: torch.from_numpy(array) if name != "action" else array for name, array in whole.columns.items()
    }
    client.insert(table, [replace(whole, columns=columns, priorities=[1.0, 0, 0, 0, 0])])
    batch = client.sample(table, 2, {"reward": 1})
    np.testing.assert_array_equal(batch.columns["reward"][:, 0], whole.columns["reward"][[0, 0]])
    key = batch.keys[:1]
    rewards: Any = torch.tensor([7.0])
    assert client.update_columns(table, key, {"reward": rewards}) == UpdateResult(1, 0)
    given: list[Any] = [torch.from_numpy(key.view(np.int64)), torch.tensor([3.0], requires_grad=True)]
    updates = PriorityUpdates(*given)
    assert client.sample(table, 2, {"reward": 1}, updates).columns["reward"].tolist() == [[7.0], [7.0]]
    assert client.update_priorities(table, PriorityUpdates(*cast(list[Any], [key.tolist(), [2]]))) == UpdateResult(1, 0)
    assert client.server_info().tables[table].mass == pytest.approx(2**0.6, rel=1e-5)


def test_what_is_too_large_for_grpc_is_refused_with_a_remedy(client: ReplayClient, make_table: MakeTable) -> None:
    """In the words of the options, whoever refuses it."""
    table = make_table().name
    with (
        ReplayClient(client.address, max_message_bytes=1000) as small,
        pytest.raises(ReplayError, match=r"^MESSAGE_TOO_LARGE: .*--max-message-mib.*send fewer") as caught,
    ):
        small.insert(table, [played(1, 900)])
    assert not isinstance(caught.value, ReplayTimeout)
