"""Draws by a seed: the same of the same steps and priorities, by another server too, and after a restart."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from replay_server.client import ReplayClient
from replay_server.sample_stream import SampleStream, StreamState
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.replay_server.played import played, table_config
from tests.roles import wait_until
from zero.trajectories import PriorityUpdates, SampleSpec, SequenceBatch

SPEC = SampleSpec(16, {"observation": 1, "reward": 3})
TABLE = "games"


def learn(stream: SampleStream, batches: int) -> list[SequenceBatch]:
    """Take batches, and give each drawn step a priority that depends on what it is."""
    taken: list[SequenceBatch] = []
    for batch in islice(stream, batches):
        reward = batch.columns["reward"][:, 0]
        stream.update_priorities(batch.keys, np.float32(0.1) + np.abs(np.sin(37 * reward + len(taken))))
        taken.append(batch)
    return taken


def same(one: Sequence[SequenceBatch], other: Sequence[SequenceBatch]) -> bool:
    """Whether batches agree in everything, bit for bit; keys are those of a server and may differ."""
    return len(one) == len(other) and all(
        np.array_equal(a.probabilities, b.probabilities)
        and np.array_equal(a.lengths, b.lengths)
        and all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
        for a, b in zip(one, other, strict=True)
    )


def fill(client: ReplayClient, selector: str) -> None:
    """A table through which more has gone than it holds, so that what it holds lies in any order."""
    client.create_table(table_config(TABLE, capacity=200, selector=selector))
    for number in range(70):
        client.insert(TABLE, [played(number, num_steps=1 + number % 7)])


@pytest.mark.parametrize("selector", ["uniform", "prioritized"])
def test_a_stream_goes_on_bit_by_bit_after_everything_was_started_again(tmp_path: Path, selector: str) -> None:
    """State and priorities of the fifth batch, then ten more batches, then a restart: the same ten once more."""
    settings = ReplayServerSettings(tmp_path / "replay")
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        fill(client, selector)
        with client.sample_stream(TABLE, SPEC, in_flight=3, state=StreamState(seed=11)) as stream:
            learn(stream, 5)
            priorities, state = client.read_priorities(TABLE), stream.state()
            following = learn(stream, 10)
    assert len(priorities.keys) == (0 if selector == "uniform" else client_steps(settings))
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        for updates in (priorities, state.applied):
            if updates is not None:
                client.update_priorities(TABLE, updates)
        with client.sample_stream(TABLE, SPEC, in_flight=3, state=state) as stream:
            assert same(learn(stream, 10), following)
    assert not same(following[:5], following[5:])


def client_steps(settings: ReplayServerSettings) -> int:
    """How many steps the table holds."""
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        return client.server_info().tables[TABLE].num_steps


def test_a_seed_draws_the_same_elsewhere(tmp_path: Path) -> None:
    """Two servers that were told the same give the same batches; another seed gives others."""
    taken: list[list[SequenceBatch]] = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with ReplayServer(ReplayServerSettings(tmp_path / name)) as bound, ReplayClient(bound.address) as client:
            fill(client, "prioritized")
            with client.sample_stream(TABLE, SPEC, state=StreamState(seed)) as stream:
                taken.append(learn(stream, 6))
    assert same(taken[0], taken[1])
    assert not same(taken[0], taken[2])


def test_what_waits_for_the_rate_limiter_is_asked_again(tmp_path: Path) -> None:
    """A state holds what was drawn, and the number and the priorities of what was not."""
    with ReplayServer(ReplayServerSettings(tmp_path)) as bound, ReplayClient(bound.address) as client:
        client.create_table(table_config(TABLE, selector="prioritized"))
        client.insert(TABLE, [played(0)])
        with client.sample_stream(TABLE, SPEC, in_flight=2, state=StreamState(3)) as stream:
            learn(stream, 1)
            wait_until(lambda: client.server_info().tables[TABLE].sampled_positions == 3 * 16)
            client.reset_table(TABLE)  # nothing can be drawn from now on
            learn(stream, 2)
            state = stream.state()
            assert (state.next_number, [asked.number for asked in state.asked], len(state.drawn)) == (5, [3, 4], 0)
            assert all(asked.updates is not None for asked in state.asked)
            assert isinstance(state.updates, PriorityUpdates)


def test_a_stream_that_draws_at_random_has_no_state(client: ReplayClient, make_table) -> None:
    """It could not be gone on with."""
    table = make_table().name
    client.insert(table, [played(0)])
    with client.sample_stream(table, SPEC) as stream, pytest.raises(ValueError, match="one with a seed"):
        stream.state()
