"""Batches as an iterable dataset: iterate over it, or give it to a PyTorch DataLoader."""

import itertools
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from replay_server.client import ReplayClient
from replay_server.credentials import Credentials
from zero.trajectories import SampleSpec, SequenceBatch

Item = TypeVar("Item")


class SequenceDataset(Generic[Item]):
    """Batches of a table, drawn ahead; every iteration has a connection of its own.

    It can be sent to other processes, so it works in the worker processes of a DataLoader, each of which then draws
    batches of its own; start them by "spawn" or "forkserver" where the process that forks has used gRPC. The DataLoader
    asks for a class of its own, and must leave batches as they are:

        class Sequences(SequenceDataset[dict[str, Tensor]], IterableDataset): ...

        loader = DataLoader(Sequences(address, table, spec, to_tensors), batch_size=None, num_workers=1,
                            multiprocessing_context="spawn")

    where `to_tensors` is a function that applies torch.from_numpy to the arrays of a batch: they are the caller's own,
    so nothing is copied.
    """

    def __init__(
        self,
        address: str,
        table: str,
        spec: SampleSpec,
        convert: Callable[[SequenceBatch], Item],
        *,
        num_batches: int | None = None,
        in_flight: int = 2,
        timeout: float = 60.0,
        credentials: Credentials | None = None,
    ) -> None:
        """Connects when it is iterated over.

        Args:
            address: host:port of the replay server.
            table: its name.
            spec: what a batch is to hold.
            convert: makes an item of a batch, in the process that draws.
            num_batches: batches of one iteration, and process; None for no end.
            in_flight: batches drawn ahead.
            timeout: seconds to wait for a batch.
            credentials: what to trust and show.
        """
        self._address = address
        self._table = table
        self._spec = spec
        self._convert = convert
        self._num_batches = num_batches
        self._in_flight = in_flight
        self._timeout = timeout
        self._credentials = credentials

    def __iter__(self) -> Iterator[Item]:
        """Batches, converted.

        Raises:
            ReplayTimeout: none came within the timeout.
            ReplayError: the server refused the request.
        """
        with (
            ReplayClient(self._address, client_name="dataset", credentials=self._credentials) as client,
            client.sample_stream(self._table, self._spec, in_flight=self._in_flight, timeout=self._timeout) as batches,
        ):
            yield from map(self._convert, itertools.islice(batches, self._num_batches))
