"""Inserts over a stream: everything once, in order, bounded, and never without an answer."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from replay_server import ordered_stream
from replay_server.answers import InsertResult, ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.credentials import Credentials, SecuritySettings
from replay_server.insert_stream import InsertStream
from replay_server.server import BoundAddresses, ReplayServer, ReplayServerSettings
from tests.procfs import suspend
from tests.replay_server.killable import killable_server
from tests.replay_server.played import SIGNATURE, played, table_config
from tests.roles import wait_until
from zero.tables import Durability, RateLimiterConfig, TableConfig
from zero.trajectories import SampleSpec, Trajectory

MakeTable = Callable[..., TableConfig]


def ids(client: ReplayClient, table: str) -> list[str]:
    return [trajectory.trajectory_id for trajectory in client.read_trajectories(table)]


def test_what_is_sent_is_stored_in_order(client: ReplayClient, make_table: MakeTable) -> None:
    """Leaving the context waits for all; the table has them in the order of the calls."""
    table = make_table().name
    with client.insert_stream(table, in_flight=3) as stream:
        outcomes = [stream.insert([played(2 * n), played(2 * n + 1)]) for n in range(20)]
        stream.insert([played(0)])
    assert {outcome.result(0) for outcome in outcomes} == {InsertResult(2, 0)}
    assert ids(client, table) == [f"t{n}" for n in range(40)]


@pytest.mark.slow
def test_a_killed_server_costs_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed twice while a stream inserts: all arrive once, in order, and chunks of a trajectory find each other."""
    with killable_server(tmp_path) as server, ReplayClient(server.address) as client:
        client.create_table(table_config(capacity=10**6))
        with client.insert_stream("games", in_flight=8) as stream:
            outcomes: list[Future[InsertResult]] = []
            for life in range(3):
                sending = Thread(target=send, args=(stream, range(300 * life, 300 * life + 300), outcomes))
                sending.start()
                if life < 2:
                    wait_until(lambda: sum(outcome.done() for outcome in outcomes) > 300 * life + 60)  # noqa: B023
                    server.kill()
                    server.start()
                sending.join()
        results = [outcome.result(0) for outcome in outcomes]
        assert {result.stored + result.duplicates for result in results} == {1}
        assert ids(client, "games") == [f"t{n}" for n in range(900)]
        info = client.server_info().tables["games"]
        assert (info.inserted_trajectories, info.inserted_steps) == (900, 4500)


def send(stream, numbers: range, outcomes: list[Future[InsertResult]]) -> None:
    """Every trajectory in two chunks, one behind the other."""
    for number in numbers:
        first, second = chunks(played(number), 2)
        stream.insert([first])
        outcomes.append(stream.insert([second]))


def chunks(whole: Trajectory, length: int) -> tuple[Trajectory, Trajectory]:
    """The first steps of a trajectory and the rest of it."""
    first = {name: array[:length] for name, array in whole.columns.items()}
    rest = {name: array[length:] for name, array in whole.columns.items()}
    return (
        replace(whole, columns=first, open=True, terminated=False, stats={}),
        replace(whole, columns=rest, first_step=length),
    )


def test_a_refused_insert_fails_alone(client: ReplayClient, make_table: MakeTable) -> None:
    """Those around it, in flight with it, are stored."""
    table = make_table().name
    with client.insert_stream(table, in_flight=8, raise_failures=False) as stream:
        outcomes = [stream.insert([trajectory]) for trajectory in (played(0), not_finite(1), played(2), played(3))]
        wait_for(outcomes, 20)
    assert outcomes[1].exception(0).reason == "NOT_FINITE"
    assert ids(client, table) == ["t0", "t2", "t3"]


def not_finite(number: int) -> Trajectory:
    whole = played(number)
    return replace(whole, columns=whole.columns | {"reward": np.full(5, np.nan, np.float32)})


@pytest.mark.parametrize(
    "go_on",
    [lambda stream: stream.insert([played(2)]), InsertStream.flush, lambda stream: stream.__exit__(None, None, None)],
    ids=["insert", "flush", "end"],
)
def test_a_refusal_is_raised(
    client: ReplayClient, make_table: MakeTable, go_on: Callable[[InsertStream], object]
) -> None:
    """Once, by what comes next: nobody has to look at outcomes to learn of it."""
    table = make_table().name
    stream = client.insert_stream(table)
    wait_for([stream.insert([not_finite(1)])], 20)
    with pytest.raises(ReplayError, match="NOT_FINITE"):
        go_on(stream)
    with client.insert_stream(table) as stream:
        stream.insert([played(3)])
    assert ids(client, table) == ["t3"]


def test_a_message_too_large_for_the_server_fails_alone(client: ReplayClient, make_table: MakeTable) -> None:
    """Although it breaks the call: what is in flight before and behind it is sent again."""
    table = full_queue(client, make_table)
    huge = played(2, num_steps=(33 << 20) // 20)  # steps of 20 bytes; gRPC takes 32 MiB
    with client.insert_stream(table, raise_failures=False) as stream:
        outcomes = [stream.insert([trajectory]) for trajectory in (played(1), huge, played(3))]
        for _ in range(2):
            client.sample(table, 1, {"reward": 1})
        wait_for(outcomes, 20)
    assert outcomes[1].exception(0).reason == "MESSAGE_TOO_LARGE"
    assert [outcomes[n].exception(0) for n in (0, 2)] == [None, None]


def test_a_message_too_large_for_the_client_is_not_taken(addresses: BoundAddresses, make_table: MakeTable) -> None:
    """The caller learns of it at once."""
    table = make_table().name
    with ReplayClient(addresses.address, max_message_bytes=1000) as client, client.insert_stream(table) as stream:
        with pytest.raises(ReplayError, match="MESSAGE_TOO_LARGE"):
            stream.insert([played(1, num_steps=50)])
        stream.insert([played(1)])


@pytest.mark.parametrize("bound", [{"in_flight": 3}, {"max_bytes": 2000}])
def test_an_insert_waits_while_the_server_holds(
    client: ReplayClient, make_table: MakeTable, bound: dict[str, int]
) -> None:
    """No more requests or bytes than the bound are taken from the caller; samples let it go on."""
    table = full_queue(client, make_table)
    with client.insert_stream(table, **bound) as stream, ThreadPoolExecutor(1) as executor:
        held = [stream.insert([played(n, num_steps=20)]) for n in range(1, 4)]
        blocked = executor.submit(stream.insert, [played(4)])
        with pytest.raises(TimeoutError):
            blocked.result(0.3)
        assert not any(outcome.done() for outcome in held)
        rewards = [client.sample(table, 1, {"reward": 1}).columns["reward"][0, 0] for _ in range(5)]
        assert blocked.result(20).result(20) == InsertResult(1, 0)
    assert rewards == [0, 1, 2, 3, 4]


def full_queue(client: ReplayClient, make_table: MakeTable) -> str:
    """A table that holds every insert until its only trajectory is drawn."""
    table = make_table().name + "-queue"
    client.create_table(TableConfig.queue(table, SIGNATURE, 1, 1000))
    client.insert(table, [played(0)])
    return table


def test_an_insert_larger_than_the_bound_goes_alone(client: ReplayClient, make_table: MakeTable) -> None:
    """It is not stuck for ever."""
    with client.insert_stream(make_table().name, max_bytes=1) as stream:
        outcomes = [stream.insert([played(n)]) for n in range(3)]
    assert [outcome.result(0).stored for outcome in outcomes] == [1, 1, 1]


def test_an_insert_that_is_held_too_long_says_why(client: ReplayClient, make_table: MakeTable) -> None:
    """The server's own words reach the caller."""
    table = full_queue(client, make_table)
    with client.insert_stream(table, timeout=0.5, raise_failures=False) as stream:
        error = stream.insert([played(1)]).exception(10)
    assert isinstance(error, ReplayTimeout)
    assert error.reason == "RATE_LIMITED"


def test_chunks_stay_in_order_while_the_limiter_holds_them(
    client: ReplayClient, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that was refused for now, and what was sent behind it, is sent again until it is let in."""
    monkeypatch.setattr(ordered_stream, "_HOLD_SECONDS", 0.1)
    table = make_table(rate_limiter=RateLimiterConfig(queue_size=5), max_times_sampled=1).name
    client.insert(table, [played(0)])
    with client.insert_stream(table) as stream:
        outcomes = [stream.insert([chunk]) for chunk in chunks(played(1), 2)]
        with pytest.raises(TimeoutError):
            outcomes[0].result(0.5)
        client.sample(table, 5, {"reward": 1})
    assert [outcome.result(0) for outcome in outcomes] == [InsertResult(1, 0)] * 2
    assert [read.num_steps for read in client.read_trajectories(table)] == [5]


def test_a_stream_goes_on_over_many_calls(
    client: ReplayClient, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call ends in order when it is old, the next takes over, and nothing is sent twice."""
    monkeypatch.setattr(ordered_stream, "_SENDING_SECONDS", 0.02)
    table = make_table().name
    with client.insert_stream(table) as stream:
        outcomes = [stream.insert([played(n)]) for n in range(200)]
    assert {outcome.result(0) for outcome in outcomes} == {InsertResult(1, 0)}
    assert ids(client, table) == [f"t{n}" for n in range(200)]


def test_many_threads_share_a_stream(client: ReplayClient, make_table: MakeTable) -> None:
    """Each gets the outcome of its own insert."""
    table = make_table().name
    with client.insert_stream(table, in_flight=3, raise_failures=False) as stream, ThreadPoolExecutor(8) as executor:

        def insert(number: int) -> str:
            trajectory = not_finite(number) if number % 7 == 0 else played(number)
            error = stream.insert([trajectory]).exception(20)
            return "" if error is None else error.reason

        reasons = list(executor.map(insert, range(100)))
    assert reasons == ["NOT_FINITE" if n % 7 == 0 else "" for n in range(100)]
    assert sorted(ids(client, table)) == sorted(f"t{n}" for n in range(100) if n % 7)


def test_streams_show_their_token(tmp_path: Path) -> None:
    """With the right one they work; with another every insert fails for itself, at once."""
    (tmp_path / "tokens").write_text("actor:0123456789abcdef\n")
    (tmp_path / "wrong").write_text("fedcba9876543210\n")
    settings = ReplayServerSettings(tmp_path / "data", security=SecuritySettings(token_file=tmp_path / "tokens"))
    with (
        ReplayServer(settings) as bound,
        ReplayClient(bound.address, credentials=Credentials(token_file=tmp_path / "tokens")) as client,
        ReplayClient(bound.address, credentials=Credentials(token_file=tmp_path / "wrong")) as stranger,
    ):
        client.create_table(table_config())
        with client.insert_stream("games") as stream:
            stream.insert([played(1)])
        with stranger.insert_stream("games", raise_failures=False) as stream:
            outcomes = [stream.insert([played(n)]) for n in range(3)]
            assert [outcome.exception(10).reason for outcome in outcomes] == ["UNAUTHENTICATED"] * 3
        with client.sample_stream("games", SampleSpec(2, {"reward": 1})) as batches:
            assert len(next(batches).keys) == 2


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.slow
def test_without_a_server_an_insert_fails_in_time(tmp_path: Path, hangs: bool) -> None:
    """Whether it is gone or hangs."""
    with killable_server(tmp_path) as server, ReplayClient(server.address) as client:
        client.create_table(table_config(durability=Durability.MEMORY))
        client.insert("games", [played(0)])
        with client.insert_stream("games", timeout=1.0, raise_failures=False) as stream:
            assert stream.insert([played(0)]).result(10).duplicates == 1
            if hangs:
                suspend(server.pid)
            else:
                os.kill(server.pid, signal.SIGKILL)
            began = time.monotonic()
            assert isinstance(stream.insert([played(1)]).exception(10), ReplayTimeout)
            assert 0.9 < time.monotonic() - began < 5.0


def test_closing_the_client_ends_its_streams(client: ReplayClient, make_table: MakeTable) -> None:
    """Held inserts fail, and later ones are refused."""
    other = ReplayClient(client.address)
    stream = other.insert_stream(full_queue(client, make_table), raise_failures=False)
    held = stream.insert([played(1)])
    other.close()
    assert held.exception(0).reason == "CANCELLED"
    with pytest.raises(ReplayError, match="closed"):
        stream.insert([played(2)])
    stream.close()


def test_an_error_in_the_context_is_not_held_up(client: ReplayClient, make_table: MakeTable) -> None:
    """What is not acknowledged then fails; the error goes on."""
    table = full_queue(client, make_table)
    began = time.monotonic()
    with pytest.raises(KeyError), client.insert_stream(table, timeout=30) as stream:  # noqa: PT012 -- a user's code
        held = stream.insert([played(1)])
        raise KeyError
    assert held.exception(0).reason == "CANCELLED"
    assert time.monotonic() - began < 5


def test_several_tables_get_the_same(client: ReplayClient, make_table: MakeTable) -> None:
    """One request, stored in all of them."""
    tables = [make_table(durability=durability).name for durability in (Durability.MEMORY, Durability.REDIS)]
    with client.insert_stream(tables) as stream:
        assert stream.insert([played(0)]).result(10) == InsertResult(2, 0)
    assert [ids(client, table) for table in tables] == [["t0"], ["t0"]]
