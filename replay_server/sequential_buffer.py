"""The newest samples, in the order in which they came."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from replay_server.stored_samples import StoredSamples, split_shape

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")


class SequentialBuffer(StoredSamples[T, R]):
    """Keeps the newest `max_size` samples; as many wait at most.

    `SequentialBuffer(1000)` takes anything and gives a list; `SequentialBuffer(["observation", "action"], 1000)` takes
    mappings with these fields and gives a list for each.
    """

    kind = "SequentialBuffer"

    @overload
    def __init__(self: "SequentialBuffer[S, list[S]]", max_size: int) -> None: ...
    @overload
    def __init__(
        self: "SequentialBuffer[Mapping[str, Any], dict[str, list[Any]]]",
        collecting_data_names: Iterable[str],
        max_size: int,
    ) -> None: ...

    def __init__(self, *shape: Any, **named: Any) -> None:
        names, size = split_shape(*shape, **named)
        super().__init__(names, size, size)
        self._next = 0  # the slot of the next sample, which is the oldest of a full buffer

    def add(self, data: T) -> None:
        """Store a sample; the oldest one of a full buffer goes.

        Raises:
            FieldMismatch: its fields are others.
        """
        self.check(data)
        self._put(self._next, data)
        self._next = (self._next + 1) % self.max_size

    def _order(self) -> NDArray[np.int64]:
        size = len(self._slots)
        return (np.arange(size) + (self._next if size == self.max_size else 0)) % max(size, 1)

    def load_state(self, path: Path) -> None:
        """Go on from a file; the newest samples stay where not all fit.

        Raises:
            StateError: damaged, of another version, of another kind of buffer or with other fields; nothing changed.
            OSError: it cannot be read.
        """
        super().load_state(path)
        self._next = len(self._slots) % self.max_size


class DictSequentialBuffer(SequentialBuffer[Mapping[str, V], dict[str, list[V]]]):
    """A SequentialBuffer of mappings, with the names always given."""

    def __init__(self, keys: Iterable[str], max_size: int) -> None:
        """Takes mappings with exactly these keys."""
        super().__init__(list(keys), max_size)
