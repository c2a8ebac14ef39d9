"""What a batch shows, held against what was inserted, computed again step by step."""

from collections import Counter
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from replay_server.answers import ReplayError, ReplayTimeout
from replay_server.client import ReplayClient
from replay_server.server import BoundAddresses
from tests.replay_server.messages import SERVICE
from tests.replay_server.played import SIGNATURE, played
from zero.tables import Durability, EpisodeEnd, SequenceRule, TableConfig
from zero.trajectories import (
    ColumnSpec,
    NStep,
    PriorityUpdates,
    SampleSpec,
    SequenceBatch,
    StepFilter,
    TableShare,
    Trajectory,
    Window,
)
from zero.wire import codec, frames

MakeTable = Callable[..., TableConfig]


def changed(trajectory: Trajectory, **fields: object) -> Trajectory:
    return Trajectory(**{**vars(trajectory), **fields})


def several(first: int, number: int) -> dict[int, Trajectory]:
    """Trajectories of 1 to 7 steps, every other one ended by the rules."""
    trajectories = (played(i, num_steps=1 + i % 7) for i in range(first, first + number))
    return {
        trajectory.episode_seed: changed(trajectory, terminated=False, truncated=True)
        if trajectory.episode_seed % 2 == 0
        else trajectory
        for trajectory in trajectories
    }


def rows_of(batch: SequenceBatch, trajectories: dict[int, Trajectory]) -> list[tuple[Trajectory, int]]:
    """The trajectory and the step that every row was drawn from, as its reward says."""
    rewards = batch.columns["reward"][:, 0].astype(np.float64)
    return [(trajectories[int(reward)], round((reward - int(reward)) * 1000)) for reward in rewards]


def test_windows_show_what_they_ask_for(client: ReplayClient, make_table: MakeTable) -> None:
    """A column twice, at an offset, under another name; zero beyond the end; lengths and ends as far as they reach."""
    config = make_table()
    trajectories = several(0, 20)
    client.insert(config.name, list(trajectories.values()))
    windows = {"reward": 1, "now": Window("observation", 2), "next": Window("observation", 3, 1), "policy": 4}
    batch = client.sample(config.name, 200, windows)
    assert list(batch.columns) == list(windows)
    for row, (trajectory, step) in enumerate(rows_of(batch, trajectories)):
        for name, column, length, offset in (
            ("now", "observation", 2, 0),
            ("next", "observation", 3, 1),
            ("policy", "policy", 4, 0),
        ):
            seen = trajectory.columns[column][step + offset : step + offset + length]
            np.testing.assert_array_equal(batch.columns[name][row, : len(seen)], seen)
            assert not batch.columns[name][row, len(seen) :].any()
        left = trajectory.num_steps - step
        assert batch.lengths[row] == min(left, 4)
        assert batch.terminated[row] == (trajectory.terminated and left <= 4)


def test_n_step_returns_are_those_of_the_formula(client: ReplayClient, make_table: MakeTable) -> None:
    """R = sum of discount^k x reward; what follows counts discount^n, nothing if the game ended among them."""
    config = make_table(capacity=2000)
    trajectories = several(0, 60)
    client.insert(config.name, list(trajectories.values()))
    spec = NStep("reward", 0.9, 3)
    batch = client.sample(config.name, 300, {"reward": 1}, n_step=spec)
    assert batch.columns["n_step_return"].shape == batch.columns["n_step_discount"].shape == (300,)
    for row, (trajectory, step) in enumerate(rows_of(batch, trajectories)):
        summed = 0.0
        count = 0
        for k in range(3):
            if step + k < trajectory.num_steps:
                summed += 0.9**k * float(trajectory.columns["reward"][step + k])
                count += 1
        ended = trajectory.terminated and step + 3 >= trajectory.num_steps
        assert batch.columns["n_step_return"][row] == pytest.approx(summed, rel=1e-5)
        assert batch.columns["n_step_discount"][row] == pytest.approx(0.0 if ended else 0.9**count)
        assert batch.lengths[row] == 1, "the returns look further than the windows show"
        assert batch.terminated[row] == (trajectory.terminated and step + 1 == trajectory.num_steps)


def test_sequences_go_on_in_the_next_trajectory_of_the_actor(client: ReplayClient, make_table: MakeTable) -> None:
    """Where the table says so; returns and `terminated` still end with the trajectory."""
    config = make_table(sequences=SequenceRule(episode_end=EpisodeEnd.CONTINUE))
    one, other = played(1, 3), changed(played(2, 3), terminated=False, truncated=True)
    client.insert(config.name, [one, other])
    batch = client.sample(config.name, 50, {"reward": 4}, n_step=NStep("reward", 1.0, 4))
    for row, (trajectory, step) in enumerate(rows_of(batch, {1: one, 2: other})):
        whole = np.concatenate([one.columns["reward"], other.columns["reward"]])
        start = step if trajectory is one else step + 3
        np.testing.assert_array_equal(batch.columns["reward"][row][: 6 - start], whole[start : start + 4])
        own = trajectory.columns["reward"][step:].astype(np.float64).sum()
        assert batch.columns["n_step_return"][row] == pytest.approx(own, rel=1e-6)
        assert batch.terminated[row] == (trajectory is one)


@pytest.mark.parametrize("exponent", [0.4, 1.0])
def test_importance_weights_are_those_of_the_formula(
    client: ReplayClient, make_table: MakeTable, exponent: float
) -> None:
    """(N x probability) ^ -exponent over the largest of the batch; not there unless asked for."""
    config = make_table(selector="prioritized", priority_exponent=0.7)
    client.insert(config.name, [changed(played(1, 50), priorities=np.arange(1, 51, dtype=np.float32))])
    batch = client.sample(config.name, 64, {"action": 1}, importance_sampling_exponent=exponent)
    expected = (batch.table_size * batch.probabilities) ** -exponent
    assert batch.importance_weights is not None
    np.testing.assert_allclose(batch.importance_weights, expected / expected.max(), rtol=1e-6)
    assert client.sample(config.name, 4, {"action": 1}).importance_weights is None


def test_a_mix_is_grouped_by_table_in_its_shares(client: ReplayClient, make_table: MakeTable) -> None:
    """Every row is of its table and weighed by it; counts add up and hold on average; a share of 0 gives nothing."""
    tables = [
        make_table(selector="prioritized", priority_exponent=1.0),
        make_table(durability=Durability.MEMORY),
        make_table(),
    ]
    stored = [several(100 * i, 10 + 5 * i) for i in range(3)]
    for config, trajectories in zip(tables, stored, strict=True):
        client.insert(config.name, list(trajectories.values()))
    shares = [TableShare(table.name, fraction) for table, fraction in zip(tables, (0.55, 0.45, 0.0), strict=True)]
    spec = SampleSpec(10, {"reward": 2, "action": 1}, importance_sampling_exponent=1.0)
    totals: Counter[int] = Counter()
    for _ in range(100):
        batch = client.sample_mix(shares, spec)
        counts = batch.rows_per_table
        assert sum(counts) == 10
        assert counts[0] in (5, 6)
        assert counts[2] == 0
        owners = np.repeat([0, 1, 2], counts)
        for row, owner in enumerate(owners):
            trajectory, step = rows_of(batch, stored[0] | stored[1])[row]
            assert trajectory.episode_seed in stored[owner]
            seen = trajectory.columns["reward"][step : step + 2]
            np.testing.assert_array_equal(batch.columns["reward"][row, : len(seen)], seen)
        sizes = np.array([sum(t.num_steps for t in trajectories.values()) for trajectories in stored])
        assert batch.table_size == sizes[:2].sum()
        expected = 1 / (sizes[owners] * batch.probabilities)
        np.testing.assert_allclose(batch.importance_weights, expected / expected.max(), rtol=1e-6)
        totals.update(dict(enumerate(counts)))
    assert 500 < totals[0] < 600


def test_updates_ride_on_every_share_of_a_mix(client: ReplayClient, make_table: MakeTable) -> None:
    """Each goes to its own table before the draw."""
    tables = [make_table(selector="prioritized") for _ in range(2)]
    shares: list[TableShare] = []
    chosen: list[int] = []
    for number, config in enumerate(tables):
        client.insert(config.name, [played(number, 6)])
        keys = np.unique(client.sample(config.name, 256, {"action": 1}).keys)
        priorities = np.zeros(6, np.float32)
        priorities[number + 2] = 1
        chosen.append(int(keys[number + 2]))
        shares.append(TableShare(config.name, 0.5, PriorityUpdates(keys, priorities)))
    batch = client.sample_mix(shares, SampleSpec(20, {"action": 1}))
    assert set(batch.keys[:10].tolist()) == {chosen[0]}
    assert set(batch.keys[10:].tolist()) == {chosen[1]}


def test_tables_that_differ_cannot_be_mixed(client: ReplayClient, make_table: MakeTable) -> None:
    """In what the windows show; other columns may differ."""
    one, same = make_table(), make_table(signature=(*SIGNATURE, ColumnSpec("value", "float32")))
    other = make_table(signature=(ColumnSpec("action", "int32"), *SIGNATURE[:1], *SIGNATURE[2:]))
    client.insert(one.name, [played(1)])
    value = {"value": np.zeros(5, np.float32)}
    client.insert(same.name, [changed(played(1), columns={**played(1).columns, **value})])
    shares = [TableShare(one.name, 0.5), TableShare(same.name, 0.5)]
    assert len(client.sample_mix(shares, SampleSpec(8, {"action": 1})).keys) == 8
    with pytest.raises(ReplayError, match=r"'action' of table .* is int32 \[\], of table .* it is uint16") as caught:
        client.sample_mix([shares[0], TableShare(other.name, 0.5)], SampleSpec(8, {"action": 1}))
    assert caught.value.reason == "WRONG_SIGNATURE"


def test_a_filter_leaves_only_what_matches(
    addresses: BoundAddresses, client: ReplayClient, make_table: MakeTable
) -> None:
    """By version; where nothing matches the call waits for what does, until its deadline."""
    config = make_table()
    for version in (1, 5):
        client.insert(config.name, [played(version, 4, weights_version=version)])
    batch = client.sample(config.name, 50, {"action": 1}, filter=StepFilter(min_weights_version=5))
    assert set(batch.weights_versions.tolist()) == {5}
    np.testing.assert_allclose(batch.probabilities, 0.25)
    with pytest.raises(ReplayTimeout):
        client.sample(config.name, 1, {"action": 1}, filter=StepFilter(min_weights_version=6), timeout=0.5)
    request = codec.encode_sample_request(
        config.name, SampleSpec(3, {"action": 1}, filter=StepFilter(min_weights_version=6)), None
    )
    with grpc.insecure_channel(addresses.address) as channel:
        held = channel.unary_unary(SERVICE + "Sample").future(request.SerializeToString(), timeout=30)
        client.insert(config.name, [played(15, 4, weights_version=2)])
        client.insert(config.name, [played(16, 4, weights_version=6)])
        batch = frames.decode_sample_response(held.result())
    assert batch.weights_versions.tolist() == [6, 6, 6]
    limiter = client.server_info().tables[config.name].rate_limiter
    assert limiter.sampled == 53, "what was given back does not count"


def test_a_mix_with_a_filter_draws_from_all_tables_or_none(client: ReplayClient, make_table: MakeTable) -> None:
    """Of one that hands items out once, none is lost while another has nothing that matches."""
    queue = make_table(selector="fifo", max_times_sampled=1)
    other = make_table()
    client.insert(queue.name, [played(5, 4)])
    client.insert(other.name, [played(1, 4)])
    shares = [TableShare(queue.name, 0.5), TableShare(other.name, 0.5)]
    spec = SampleSpec(8, {"action": 1}, filter=StepFilter(min_weights_version=5))
    with pytest.raises(ReplayTimeout):
        client.sample_mix(shares, spec, timeout=0.5)
    assert client.server_info().tables[queue.name].num_items == 4
    client.insert(other.name, [played(6, 4)])
    assert set(client.sample_mix(shares, spec).weights_versions.tolist()) == {5, 6}
    assert client.server_info().tables[queue.name].num_items == 0


def test_items_are_drawn_as_often_as_allowed_and_no_more(client: ReplayClient, make_table: MakeTable) -> None:
    """A trajectory goes with its last item; samples wait then; a batch that can never be is refused."""
    config = make_table(selector="fifo", max_times_sampled=2)
    client.insert(config.name, [played(1, 4), played(2, 4)])
    drawn = Counter(
        key for _ in range(4) for key in client.sample(config.name, 4, {"action": 1}, timeout=10).keys.tolist()
    )
    assert len(drawn) == 8
    assert set(drawn.values()) == {2}
    info = client.server_info().tables[config.name]
    assert (info.num_items, info.num_trajectories, info.removed_trajectories) == (0, 0, 2)
    assert "nothing that may be drawn" in info.sample_blocked_because
    with pytest.raises(ReplayTimeout):
        client.sample(config.name, 1, {"action": 1}, timeout=0.5)
    with pytest.raises(ReplayError, match="gives out at most 2000 positions") as caught:
        client.sample(config.name, 2001, {"action": 1})
    assert caught.value.reason == "BAD_LENGTH"
