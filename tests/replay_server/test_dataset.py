"""A dataset is batches, in this process or in the workers of a DataLoader."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from replay_server.client import ReplayClient
from replay_server.dataset import SequenceDataset
from tests.replay_server.played import played
from zero.tables import TableConfig
from zero.trajectories import SampleSpec, SequenceBatch

MakeTable = Callable[..., TableConfig]

SPEC = SampleSpec(16, {"reward": 3, "observation": 1})


class Sequences(SequenceDataset[dict[str, torch.Tensor]], IterableDataset):
    """What a user writes."""


def to_tensors(batch: SequenceBatch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.columns.items()}


def rewards(values: np.ndarray) -> set[int]:
    return {int(reward) for reward in np.asarray(values)[:, 0]}


@pytest.mark.parametrize(
    "num_workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_data_loader_takes_it(client: ReplayClient, make_table: MakeTable, num_workers: int) -> None:
    """Every worker yields as many batches as were asked for, as tensors."""
    table = make_table().name
    client.insert(table, [played(n) for n in range(1, 4)])
    dataset = Sequences(client.address, table, SPEC, to_tensors, num_batches=5)
    context = "spawn" if num_workers else None  # this process serves gRPC
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=context)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 5 * max(num_workers, 1)
        for batch in batches:
            assert batch["reward"].shape == (16, 3)
            assert rewards(batch["reward"].numpy()) <= {1, 2, 3}


def test_tensors_share_the_memory_of_the_batch(client: ReplayClient, make_table: MakeTable) -> None:
    """Nothing is copied, and PyTorch does not complain."""
    table = make_table().name
    client.insert(table, [played(1)])
    batch = next(iter(SequenceDataset(client.address, table, SPEC, lambda batch: batch)))
    for array in (*batch.columns.values(), batch.keys, batch.probabilities, batch.lengths, batch.terminated):
        assert torch.from_numpy(array).data_ptr() == array.ctypes.data


def test_an_iteration_may_stop_anywhere(client: ReplayClient, make_table: MakeTable) -> None:
    """Its stream ends with it; the next iteration begins anew."""
    table = make_table().name
    client.insert(table, [played(1)])
    dataset = SequenceDataset(client.address, table, SPEC, lambda batch: rewards(batch.columns["reward"]))
    for _ in range(2):
        assert list(islice(dataset, 3)) == [{1}] * 3
