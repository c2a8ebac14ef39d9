"""What every buffer of samples is: the extension point between those who collect and those who use data."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np

from replay_server.data_queue import QueueCounts
from replay_server.inlets import Inlet
from zero.trajectories import PriorityUpdates, SequenceBatch

T = TypeVar("T")
R = TypeVar("R")


class FieldMismatch(KeyError, ValueError):  # noqa: N818 -- says what is wrong, as both of its bases do
    """A sample with other fields than the buffer's, refused where it was collected.

    Attributes:
        missing: fields of the buffer that the sample lacks, sorted.
        extra: fields of the sample that the buffer does not have, sorted.
    """

    def __init__(self, missing: Iterable[str], extra: Iterable[str]) -> None:
        self.missing = tuple(sorted(missing))
        self.extra = tuple(sorted(map(str, extra)))
        super().__init__(self.missing, self.extra)  # with what it is made of, it can be sent between processes

    def __str__(self) -> str:
        return f"a sample lacks {list(self.missing)} and has {list(self.extra)} too many"


def check_fields(names: frozenset[str], data: object) -> None:
    """Refuse a sample that is not a mapping with exactly these fields.

    Raises:
        FieldMismatch: it is another one.
        TypeError: it is no mapping.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"a sample must be a mapping with the fields {sorted(names)}, not {type(data).__name__}")
    given = frozenset(cast("Mapping[str, object]", data))
    if given != names:
        raise FieldMismatch(names - given, given - names)


def _bound(max_queue_size: int | None = None) -> tuple[None, None, int | None]:
    return None, None, max_queue_size


def _names_and_size(collecting_data_names: Iterable[str], max_size: int) -> tuple[Iterable[str], int, int]:
    return collecting_data_names, max_size, max_size


class DataBuffer(ABC, Generic[T, R]):
    """Stores samples of type T, and gives out everything it stores as an R.

    A subclass implements `add`, `get_data` and `__len__`; to be saved also `save_state` and `load_state`. It need not
    be safe for several threads: a DataUser calls one method at a time. `check_buffer` tests whether it keeps the
    contract.

    With `collecting_data_names`, samples are mappings with exactly these fields.
    """

    @overload
    def __init__(self, max_queue_size: int | None = None) -> None: ...
    @overload
    def __init__(self, collecting_data_names: Iterable[str], max_size: int) -> None: ...

    def __init__(self, *given: Any, **named: Any) -> None:
        """Either way of construction, by place or by name.

        Args:
            given: the most samples that wait to be added, None for any number; or names and size.
            named: `max_queue_size`, or `collecting_data_names`, the fields of every sample, and `max_size`, the most
                samples stored, which bounds those that wait, too.

        Warns:
            RuntimeWarning: without a bound a trainer that lags behind lets the memory fill up.

        Raises:
            ValueError: a negative bound.
            TypeError: other arguments.
        """
        with_names = "collecting_data_names" in named or (given and not isinstance(given[0], int | None))
        names, max_size, max_queue_size = _names_and_size(*given, **named) if with_names else _bound(*given, **named)
        self._collecting_data_names = None if names is None else list(dict.fromkeys(names))
        self._names = None if names is None else frozenset(self._collecting_data_names or ())
        self._max_size: int | None = max_size
        self._max_queue_size = max_queue_size
        if max_queue_size is None:
            warnings.warn(
                f"{type(self).__name__}: samples wait without a bound; give max_queue_size to bound what they take",
                RuntimeWarning,
                stacklevel=3,
            )
        elif max_queue_size < 0:
            raise ValueError(f"max_queue_size is {max_queue_size}, must not be negative")

    @property
    def max_queue_size(self) -> int | None:
        """The most samples that wait to be added; None for any number."""
        return self._max_queue_size

    @property
    def max_size(self) -> int | None:
        """The most samples stored; None where nobody has said."""
        return self._max_size

    @property
    def collecting_data_names(self) -> list[str] | None:
        """The fields of every sample, in order; None where samples may be anything."""
        return None if self._collecting_data_names is None else list(self._collecting_data_names)

    def check(self, data: T) -> None:
        """Refuse a malformed sample; called where it is collected, in any thread, so it must change nothing.

        Raises:
            FieldMismatch: its fields are others.
        """
        if self._names is not None:
            check_fields(self._names, data)

    @abstractmethod
    def add(self, data: T) -> None:
        """Store a sample."""

    @abstractmethod
    def get_data(self) -> R:
        """Everything stored; what is returned is the caller's own, the samples in it are not to be changed."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples stored."""

    def save_state(self, path: Path) -> None:
        """Write everything needed to go on from here to `path`, a file or a folder that does not exist.

        Raises:
            NotImplementedError: this buffer cannot be saved.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not implement save_state and load_state: it would come back empty"
        )

    def load_state(self, path: Path) -> None:
        """Go on from what was saved; what is stored now is replaced.

        Raises:
            NotImplementedError: this buffer cannot be saved.
            StateError: what is there is damaged, of another version or of another kind of buffer.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not implement save_state and load_state: it cannot read {path}"
        )

    def snapshot(self, chunk_size: int) -> Iterator[R]:  # noqa: ARG002 -- a buffer in memory may give all at once
        """What get_data gives now, in pieces of at most `chunk_size` samples where a buffer can."""
        return iter((self.get_data(),))

    def sample(self, batch_size: int, sequence_length: int, rng: np.random.Generator) -> SequenceBatch:
        """Draw sequences of consecutive samples.

        Raises:
            NotImplementedError: this buffer cannot.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement sample: use get_data")

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Draw samples in proportion to these priorities from now on; keys of what is gone are passed over.

        Raises:
            NotImplementedError: this buffer cannot.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement update_priorities")


class FedBuffer(DataBuffer[T, R]):
    """A buffer that samples reach without the help of its DataUser: on a server, or in another process."""

    @abstractmethod
    def open_inlet(self, *, exclusive: bool = True) -> Inlet[Any]:
        """Where a collector attaches; see InletSource."""

    @abstractmethod
    def counts(self) -> QueueCounts:
        """What became of all that was collected through this object."""

    @property
    def missed(self) -> int:
        """Chunks of samples that were gone before `pull` could see them."""
        return 0

    @property
    def refused(self) -> int:
        """Samples that `pull` has left out, since the buffer was made or loaded."""
        return 0

    @abstractmethod
    def pull(self) -> Iterable[Sequence[float]]:
        """See what has come since the last call, part by part as it is gone through: when each was collected."""
