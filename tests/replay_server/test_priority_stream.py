"""Priority updates over a stream: all applied, in order, failures told, nothing lost when the server is killed."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from replay_server.answers import ReplayError, UpdateResult
from replay_server.client import ReplayClient
from tests.procfs import suspend
from tests.replay_server.killable import killable_server
from tests.replay_server.played import played, table_config
from tests.roles import wait_until
from zero.tables import TableConfig
from zero.trajectories import PriorityUpdates
from zero.wire.codec import CodecError

MakeTable = Callable[..., TableConfig]


def filled(client: ReplayClient, table: str, trajectories: int = 3) -> np.ndarray:
    """All keys of a table filled with some trajectories, ascending."""
    client.insert(table, [played(n) for n in range(trajectories)])
    return np.unique(client.sample(table, 4000, {"reward": 1}).keys)


def weights_of(client: ReplayClient, table: str, keys: np.ndarray) -> np.ndarray:
    """The share of the mass of every key."""
    batch = client.sample(table, 4000, {"reward": 1})
    found, first = np.unique(batch.keys, return_index=True)
    shares = dict(zip(found.tolist(), batch.probabilities[first].tolist(), strict=True))
    return np.array([shares.get(key, 0.0) for key in keys.tolist()])


def test_all_updates_are_applied_and_the_last_of_a_key_counts(client: ReplayClient, make_table: MakeTable) -> None:
    """Many small updates from several threads; then ones for the same keys, of which the last holds."""
    table = make_table(selector="prioritized", priority_exponent=1.0).name
    keys = filled(client, table)
    with client.priority_stream(table) as stream:
        threads = [
            threading.Thread(target=lambda: [stream.update(keys, np.full(len(keys), 5.0)) for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stream.flush() == UpdateResult(200 * len(keys), 0)
        for priority in (7.0, 3.0, 0.0):
            stream.update(keys[1:], np.full(len(keys) - 1, priority))
        assert stream.flush() == UpdateResult(3 * (len(keys) - 1), 0)
        assert stream.flush() == UpdateResult(0, 0)
    assert weights_of(client, table, keys)[0] == pytest.approx(1.0)


def test_arrays_may_be_written_after_the_call(client: ReplayClient, make_table: MakeTable) -> None:
    """What was given is what is sent, whatever the caller does with its arrays afterwards."""
    table = make_table(selector="prioritized", priority_exponent=1.0).name
    keys = filled(client, table)
    priorities = np.zeros(len(keys), np.float32)
    priorities[2] = 1.0
    with client.priority_stream(table) as stream:
        for _ in range(20):
            stream.update(keys, priorities)
        priorities[:] = 9.0
    assert weights_of(client, table, keys)[2] == pytest.approx(1.0)


def test_bad_updates_are_refused_where_they_are_given(client: ReplayClient, make_table: MakeTable) -> None:
    """They never go together with good ones."""
    table = make_table().name
    keys = filled(client, table)
    with client.priority_stream(table) as stream:
        for bad in ([np.nan], [-1.0], [1.0, 2.0]):
            with pytest.raises(CodecError):
                stream.update(keys[:1], np.array(bad, np.float32))
        stream.update(keys[:1], np.ones(1, np.float32))
        assert stream.flush() == UpdateResult(1, 0)


def test_a_refused_call_is_told_once(client: ReplayClient) -> None:
    """By the next call on the stream; after that it goes on."""
    with client.priority_stream("no-such-table") as stream:
        stream.update(np.ones(1, np.uint64), np.ones(1, np.float32))
        with pytest.raises(ReplayError, match="UNKNOWN_TABLE"):
            stream.flush()
        assert stream.flush() == UpdateResult(0, 0)


def test_a_closed_stream_says_so(client: ReplayClient, make_table: MakeTable) -> None:
    """Its client was closed under it; nor does a closed client open one."""
    other = ReplayClient(client.address)
    stream = other.priority_stream(make_table().name)
    other.close()
    with pytest.raises(ReplayError, match="CANCELLED"):
        stream.update(np.ones(1, np.uint64), np.ones(1, np.float32))
    with pytest.raises(ReplayError, match="CANCELLED"):
        other.priority_stream("anything")


def test_updates_go_on_over_a_restart(tmp_path: Path) -> None:
    """A server that is killed and comes back gets what it had not acknowledged."""
    with killable_server(tmp_path) as server, ReplayClient(server.address) as client:
        config = table_config(selector="prioritized", priority_exponent=1.0)
        client.create_table(config)
        keys = filled(client, config.name)
        with client.priority_stream(config.name) as stream:
            stream.update(keys, np.ones(len(keys)))
            stream.flush()
            server.kill()
            stream.update(keys[1:], np.zeros(len(keys) - 1))
            server.start()
            stream.flush()
            client.update_priorities(config.name, PriorityUpdates(keys[:1], np.ones(1, np.float32)))
        assert weights_of(client, config.name, keys)[0] == pytest.approx(1.0)


def test_closing_waits_for_no_server_that_hangs(tmp_path: Path) -> None:
    """A call under way is cancelled; leaving with an error takes no time."""
    with killable_server(tmp_path) as server, ReplayClient(server.address) as client:
        config = table_config(selector="prioritized")
        client.create_table(config)
        keys = filled(client, config.name)
        suspend(server.pid)
        try:
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt), client.priority_stream(config.name) as stream:  # noqa: PT012
                stream.update(keys, np.ones(len(keys)))
                wait_until(lambda: stream.is_sending)
                raise KeyboardInterrupt
            assert time.monotonic() - started < 5
        finally:
            os.kill(server.pid, signal.SIGCONT)
