"""Batches over a stream: as a sample draws them, ahead but not far, with priorities on their way back."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from replay_server import ordered_stream
from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from tests.replay_server.killable import killable_server
from tests.replay_server.played import SIGNATURE, played, table_config
from tests.roles import wait_until
from zero.tables import TableConfig
from zero.trajectories import NStep, SampleSpec, SequenceBatch, StepFilter, Window

MakeTable = Callable[..., TableConfig]

SPEC = SampleSpec(16, {"reward": 1})
FIRST = {round(t / 1000, 3) for t in range(5)}
"""Rewards of played(0)."""


def rewards(batch: SequenceBatch) -> set[float]:
    return {round(float(reward), 3) for reward in batch.columns["reward"][:, 0]}


def test_batches_are_what_sample_draws(client: ReplayClient, make_table: MakeTable) -> None:
    """With everything that a spec may ask for; the arrays are the caller's own."""
    table = make_table().name
    client.insert(table, [played(n) for n in range(4)])
    spec = SampleSpec(
        8,
        {"reward": 2, "next": Window("reward", 1, offset=1), "policy": 1},
        importance_sampling_exponent=0.5,
        filter=StepFilter(min_weights_version=2),
        n_step=NStep("reward", 0.5, 2),
    )
    with client.sample_stream(table, spec) as batches:
        streamed = next(batches)
    once = client.sample(
        table,
        8,
        spec.windows,
        importance_sampling_exponent=0.5,
        filter=spec.filter,
        n_step=spec.n_step,
    )
    for batch in (streamed, once):
        reward = batch.columns["reward"]
        assert rewards(batch) <= {round(n + t / 1000, 3) for n in (2, 3) for t in range(5)}
        assert np.array_equal(batch.columns["next"][:, 0], reward[:, 1])
        assert np.allclose(batch.columns["n_step_return"], reward[:, 0] + 0.5 * reward[:, 1])
        assert np.all(batch.importance_weights == 1)
        assert batch.columns["policy"].shape == (8, 1, 4)
        reward += 1  # writable
        assert batch.keys.flags.writeable


def test_few_batches_are_drawn_ahead(client: ReplayClient, make_table: MakeTable) -> None:
    """Never more than asked for: what was drawn early has old priorities."""
    table = make_table().name
    client.insert(table, [played(0)])
    with client.sample_stream(table, SPEC, in_flight=3) as batches:
        for _ in range(5):
            next(batches)
        wait_until(lambda: client.server_info().tables[table].sampled_positions == (5 + 3) * 16)
        with pytest.raises(AssertionError):
            wait_until(lambda: client.server_info().tables[table].sampled_positions > (5 + 3) * 16, 0.3)


def test_priorities_ride_on_the_next_request(client: ReplayClient, make_table: MakeTable) -> None:
    """What was drawn after them knows them; the last ones are sent at the end."""
    table = make_table(selector="prioritized").name
    client.insert(table, [played(0)])
    with client.sample_stream(table, SampleSpec(64, {"reward": 1}), in_flight=1) as batches:
        first = next(batches)
        wanted = first.columns["reward"][:, 0] == first.columns["reward"][0, 0]
        batches.update_priorities(first.keys, np.where(wanted, 1, 0).astype(np.float32))
        next(batches)  # was asked for before
        next(batches)  # was asked for with them, or before
        assert rewards(next(batches)) == {round(float(first.columns["reward"][0, 0]), 3)}
        batches.update_priorities(first.keys, np.where(wanted, 0, 1).astype(np.float32))
    assert rewards(client.sample(table, 64, {"reward": 1})) == rewards(first) - {
        round(float(first.columns["reward"][0, 0]), 3)
    }


def test_priorities_must_fit_their_keys(client: ReplayClient, make_table: MakeTable) -> None:
    """Refused where they are given."""
    table = make_table().name
    client.insert(table, [played(0)])
    with client.sample_stream(table, SPEC) as batches:
        batch = next(batches)
        with pytest.raises(ValueError, match="priorities"):
            batches.update_priorities(batch.keys, np.ones(3, np.float32))


def test_a_stream_waits_for_data_and_says_why(client: ReplayClient, make_table: MakeTable) -> None:
    """A timeout ends the waiting, not the request: the batch comes when there is one."""
    table = make_table().name
    with client.sample_stream(table, SPEC, in_flight=1, timeout=0.2) as batches:
        with pytest.raises(ReplayTimeout):
            next(batches)
        client.insert(table, [played(0)])
        assert len(next(batches).keys) == 16


def test_a_refused_request_is_raised(client: ReplayClient, make_table: MakeTable) -> None:
    """Every time it is tried."""
    make_table()
    with client.sample_stream("no-such-table", SPEC, in_flight=2) as batches:
        for _ in range(4):
            with pytest.raises(ReplayError, match="UNKNOWN_TABLE"):
                next(batches)


def test_closing_the_client_ends_the_stream(client: ReplayClient, make_table: MakeTable) -> None:
    """A waiting iteration ends with an error, not never."""
    table = make_table().name
    other = ReplayClient(client.address)
    batches = other.sample_stream(table, SPEC)
    other.close()
    with pytest.raises(ReplayError, match="closed"):
        next(batches)


@pytest.mark.slow
def test_a_stream_survives_a_killed_server(tmp_path: Path) -> None:
    """Iteration goes on over two deaths; priorities given while the server is away arrive, also if that is the end."""
    everything = {round(n + t / 1000, 3) for n in range(3) for t in range(5)}
    with killable_server(tmp_path) as server, ReplayClient(server.address) as client:
        client.create_table(table_config(selector="prioritized"))
        client.insert("games", [played(n) for n in range(3)])
        with client.sample_stream("games", SampleSpec(64, {"reward": 1}), in_flight=2) as batches:
            for _ in range(2):
                batch = next(batches)
                server.kill()
                server.start()
                for _ in range(4):  # more than were drawn before
                    batch = next(batches)
                    assert rewards(batch) <= everything
            server.kill()
            first = batch.columns["reward"][:, 0] < 1
            batches.update_priorities(batch.keys, first.astype(np.float32))
            server.start()
            for _ in range(4):
                after = next(batches)
            assert not rewards(after) & rewards(batch) - FIRST
            wait_until(lambda: batches._drawn.qsize() == 2)
            server.kill()
            batches.update_priorities(batch.keys, (~first).astype(np.float32))
            next(batches)  # was there; another is asked for in vain, together with the priorities
            starting = Thread(target=server.start)
            starting.start()
        starting.join()
        assert not rewards(client.sample("games", 64, {"reward": 1})) & rewards(batch) & FIRST


def test_a_queue_is_drawn_once_and_in_order(
    client: ReplayClient, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stream hands out is what was inserted, each once, also where one call ends and the next takes over."""
    monkeypatch.setattr(ordered_stream, "_SENDING_SECONDS", 0.01)
    table = make_table().name + "-queue"
    client.create_table(TableConfig.queue(table, SIGNATURE, 200, 1000))
    client.insert(table, [played(n) for n in range(200)])
    with client.sample_stream(table, SampleSpec(2, {"reward": 1}), in_flight=2) as batches:
        drawn = [batch.columns["reward"][:, 0] for batch in islice(batches, 98)]
    assert np.concatenate(drawn).tolist() == list(range(196))


def test_a_queue_loses_nothing_while_requests_are_held_and_refused(
    client: ReplayClient, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is repeated takes none of those in flight with it."""
    monkeypatch.setattr(ordered_stream, "_HOLD_SECONDS", 0.005)
    table = make_table().name + "-queue"
    client.create_table(TableConfig.queue(table, SIGNATURE, 200, 1000))
    with client.sample_stream(table, SampleSpec(1, {"reward": 1}), in_flight=3, timeout=10) as batches:
        for n in range(100):
            client.insert(table, [played(n)])
            assert next(batches).columns["reward"][0, 0] == n
