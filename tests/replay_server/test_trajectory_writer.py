"""Trajectories written step by step are those written at once."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from replay_server.answers import InsertResult, ReplayError
from replay_server.client import ReplayClient
from replay_server.trajectory_writer import TrajectoryWriter
from tests.replay_server.played import SIGNATURE, played
from tests.roles import wait_until
from zero.tables import TableConfig
from zero.trajectories import Trajectory

MakeTable = Callable[..., TableConfig]


def steps(trajectory: Trajectory) -> list[dict[str, np.ndarray]]:
    return [{name: array[t] for name, array in trajectory.columns.items()} for t in range(trajectory.num_steps)]


def stored(client: ReplayClient, table: str) -> list[Trajectory]:
    return list(client.read_trajectories(table))


def step(**changes: object) -> dict[str, object]:
    values = {"observation": np.zeros((2, 3), np.uint8), "action": 1, "reward": 0.5, "policy": np.zeros(4, np.float16)}
    return values | changes


@pytest.mark.parametrize("chunk_length", [0, 1, 3, 5, 7])
def test_steps_make_the_trajectory(client: ReplayClient, make_table: MakeTable, chunk_length: int) -> None:
    """However it is cut: same columns, same meta; and the second one, shorter, has nothing of the first."""
    table = make_table().name
    wholes = [played(1, num_steps=10), played(2, num_steps=3)]
    with client.insert_stream(table) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE, actor_id="actor-0", chunk_length=chunk_length)
        for whole in wholes:
            writer.begin(whole.trajectory_id, episode_seed=whole.episode_seed, weights_version=whole.weights_version)
            for values in steps(whole):
                writer.append(values)
            assert writer.end(terminated=True, stats=whole.stats).result(10) == InsertResult(1, 0)
    for whole, read in zip(wholes, stored(client, table), strict=True):
        assert replace(read, columns={}) == replace(whole, columns={})
        for name, array in whole.columns.items():
            assert np.array_equal(read.columns[name], array), name


def test_a_long_trajectory_can_be_drawn_from_while_it_is_played(client: ReplayClient, make_table: MakeTable) -> None:
    """Every chunk that is followed by a step is there, open; the end closes it."""
    table = make_table().name
    with client.insert_stream(table) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE, chunk_length=4)
        for values in steps(played(1, num_steps=9)):
            writer.append(values)
        wait_until(lambda: client.server_info().tables[table].num_steps == 8)
        assert stored(client, table)[0].open
        assert len(client.sample(table, 8, {"reward": 1}).keys) == 8
        writer.end(terminated=False)
    (read,) = stored(client, table)
    assert (read.num_steps, read.open, read.terminated, read.truncated) == (9, False, False, True)


def test_steps_are_copied(client: ReplayClient, make_table: MakeTable) -> None:
    """A caller may use the same arrays for every step, also beyond the room that the writer begins with."""
    table = make_table().name
    observation = np.zeros((2, 3), np.uint8)
    with client.insert_stream(table) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE)
        for t in range(200):
            observation[:] = t
            writer.append(step(observation=observation))
        writer.end(terminated=True)
    (read,) = stored(client, table)
    assert np.array_equal(read.columns["observation"][:, 1, 2], np.arange(200))


def test_numbers_and_tensors_become_what_the_table_has(client: ReplayClient, make_table: MakeTable) -> None:
    """Python numbers, NumPy scalars of other dtypes, tensors with a gradient: whatever fits."""
    table = make_table().name
    with client.insert_stream(table) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE)
        writer.append(step(action=np.int64(7), reward=np.float64(0.25)))
        writer.append(
            {
                "observation": torch.full((2, 3), 200),
                "action": torch.tensor(9),
                "reward": torch.tensor(0.75, requires_grad=True),
                "policy": torch.full((4,), 0.5),
            }
        )
        writer.end(terminated=True)
    (read,) = stored(client, table)
    assert read.columns["action"].tolist() == [7, 9]
    assert read.columns["reward"].tolist() == [0.25, 0.75]
    assert read.columns["observation"][1].tolist() == [[200] * 3] * 2
    assert read.columns["policy"][1].tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"action": 1}, "a step with"),
        (step(more=1), "a step with"),
        (step(observation=np.zeros(3, np.uint8)), r"'observation' is \(3,\)"),  # would broadcast
        (step(action=1.5), "do not fit into uint16"),
        (step(action=-1), "do not fit into uint16"),
        (step(action=65536), "do not fit into uint16"),
        (step(action=np.uint32(65536)), "do not fit into uint16"),  # of the same kind, and would wrap
        (step(observation=np.full((2, 3), 300)), "do not fit into uint8"),
        (step(action=np.nan), "do not fit into uint16"),
        (step(reward="good"), "do not fit into float32"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(
    client: ReplayClient, make_table: MakeTable, values: Mapping[str, object], complaint: str
) -> None:
    """Where it is added, and without a trace."""
    table = make_table().name
    with client.insert_stream(table) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE)
        writer.append(step())
        with pytest.raises(ValueError, match=complaint):
            writer.append(values)
        writer.append(step(action=2))
        writer.end(terminated=True)
    assert stored(client, table)[0].columns["action"].tolist() == [1, 2]


def test_first_priorities_go_with_the_steps(client: ReplayClient, make_table: MakeTable) -> None:
    """Across chunks; given for some steps only they are refused."""
    table = make_table(selector="prioritized").name
    with client.insert_stream(table) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE, chunk_length=2)
        for t in range(5):
            writer.append(step(action=t), priority=float(t == 3))
        with pytest.raises(ValueError, match="priorities"):
            writer.append(step())
        writer.end(terminated=True)
    assert set(client.sample(table, 32, {"action": 1}).columns["action"][:, 0]) == {3}


def test_what_the_server_refuses_is_raised(client: ReplayClient, make_table: MakeTable) -> None:
    """After `drop` the next trajectory goes well."""
    table = make_table().name
    with client.insert_stream(table, in_flight=1) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE, chunk_length=1)
        writer.append(step(reward=np.nan))
        writer.append(step())  # sends the first, waits for nothing
        with pytest.raises(ReplayError, match="NOT_FINITE"):
            stream.flush()
        writer.drop()
        writer.append(step(action=2))
        writer.end(terminated=True)
    assert [read.columns["action"].tolist() for read in stored(client, table)] == [[2]]


def test_calls_out_of_order_are_refused(client: ReplayClient, make_table: MakeTable) -> None:
    """An end without steps, a beginning without an end."""
    with client.insert_stream(make_table().name) as stream:
        writer = TrajectoryWriter(stream, SIGNATURE)
        with pytest.raises(ValueError, match="at least one step"):
            writer.end(terminated=True)
        writer.append(step())
        with pytest.raises(ValueError, match=r"call end\(\) or drop\(\)"):
            writer.begin("t1")
        writer.drop()
        writer.begin("t1")
