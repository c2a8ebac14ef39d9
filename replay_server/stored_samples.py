"""What the built-in buffers have in common: samples in slots, given out as lists, drawn, saved and loaded."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from replay_server.data_buffer import DataBuffer
from replay_server.state_file import StateError, read_state, write_state
from zero.trajectories import PriorityUpdates, SequenceBatch

T = TypeVar("T")
R = TypeVar("R")

_VALUE = "data"
"""The column of samples that are no mappings."""


def split_shape(
    *given: int | Iterable[str] | None,
    max_size: int | None = None,
    collecting_data_names: Iterable[str] | None = None,
) -> tuple[list[str] | None, int]:
    """Names and size, of either way of construction: (max_size) or (names, max_size), by place or by name.

    Raises:
        ValueError: the size is missing, given twice or not positive.
    """
    sizes = [value for value in (*given, max_size) if isinstance(value, int)]
    names = [value for value in (*given, collecting_data_names) if value is not None and not isinstance(value, int)]
    if len(sizes) != 1 or len(names) > 1 or len(given) > 2:
        raise ValueError("give max_size, the most samples stored, or names of fields and max_size")
    if sizes[0] < 1:
        raise ValueError(f"max_size is {sizes[0]}, must be at least 1")
    return list(dict.fromkeys(names[0])) if names else None, sizes[0]


def as_lists(samples: Sequence[Any], names: Iterable[str] | None) -> Any:
    """Samples as they are given out: a list, or a list for every field."""
    if names is None:
        return list(samples)
    return {name: [sample[name] for sample in samples] for name in names}


class StoredSamples(DataBuffer[T, R]):
    """Samples in slots 0 to max_size - 1; a subclass decides which slot a new one takes."""

    kind = "buffer"

    def __init__(self, names: list[str] | None, max_size: int, max_queue_size: int | None) -> None:
        if names is None:
            super().__init__(max_queue_size)
        else:
            super().__init__(names, max_size)
        self._max_size = max_size
        self._max_queue_size = max_queue_size
        self._slots: list[T] = []
        self._added = 0  # ever: the generation of a key
        self._generations = np.zeros(max_size, np.uint64)
        self._priorities = np.zeros(max_size, np.float32)
        self._highest = 1.0

    @property
    def max_size(self) -> int:
        """The most samples stored."""
        assert self._max_size is not None
        return self._max_size

    @property
    def keys(self) -> set[str]:
        """The fields of every sample; none where samples may be anything."""
        return set(self._collecting_data_names or ())

    @property
    def is_full(self) -> bool:
        """Whether a new sample can only take the place of another."""
        return len(self._slots) == self.max_size

    def __len__(self) -> int:
        return len(self._slots)

    def _put(self, slot: int, data: T) -> None:
        if slot == len(self._slots):
            self._slots.append(data)
        else:
            self._slots[slot] = data
        self._added += 1
        self._generations[slot] = self._added
        self._priorities[slot] = self._highest

    def _order(self) -> NDArray[np.int64]:
        """Slots in the order in which samples are given out."""
        return np.arange(len(self._slots))

    def get_data(self) -> R:
        """Everything stored: a list, or with names a list for every field."""
        return as_lists([self._slots[slot] for slot in self._order().tolist()], self._collecting_data_names)

    def snapshot(self, chunk_size: int) -> Iterator[R]:
        """What is stored now, in pieces of at most `chunk_size` samples."""
        samples = [self._slots[slot] for slot in self._order().tolist()]
        starts = range(0, max(len(samples), 1), chunk_size)
        return (as_lists(samples[start : start + chunk_size], self._collecting_data_names) for start in starts)

    # --- drawing -----------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, sequence_length: int, rng: np.random.Generator) -> SequenceBatch:
        """Draw sequences of consecutive samples, evenly or by the priority of their first one.

        Raises:
            ValueError: fewer samples than a sequence has.
        """
        order = self._order()
        starts = len(order) - sequence_length + 1
        if batch_size < 1 or sequence_length < 1 or starts < 1:
            raise ValueError(f"{len(order)} samples: no batch of {batch_size} sequences of {sequence_length}")
        weights = self._priorities[order[:starts]].astype(np.float64)
        mass = np.cumsum(weights)
        if mass[-1] > 0:
            drawn = np.minimum(np.searchsorted(mass, rng.random(batch_size) * mass[-1], side="right"), starts - 1)
            probabilities = weights[drawn] / mass[-1]
        else:  # all have priority 0
            drawn = rng.integers(starts, size=batch_size)
            probabilities = np.full(batch_size, 1 / starts)
        slots = order[drawn[:, None] + np.arange(sequence_length)]  # [B, L]
        first = slots[:, 0].astype(np.uint64)
        return SequenceBatch(
            columns=self._columns(slots),
            keys=self._generations[slots[:, 0]] << np.uint64(32) | first,
            probabilities=probabilities,
            lengths=np.full(batch_size, sequence_length, np.int32),
            weights_versions=np.zeros(batch_size, np.uint64),
            terminated=np.zeros(batch_size, np.bool_),
            table_size=len(order),
        )

    def _columns(self, slots: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        samples = [self._slots[slot] for slot in slots.ravel().tolist()]
        first = samples[0]
        names = list(cast("Mapping[str, Any]", first)) if isinstance(first, Mapping) else None
        lists: dict[str, list[Any]] = {_VALUE: samples} if names is None else as_lists(samples, names)
        stacked = {name: np.stack([np.asarray(value) for value in values]) for name, values in lists.items()}
        return {name: column.reshape(*slots.shape, *column.shape[1:]) for name, column in stacked.items()}

    def update_priorities(self, updates: PriorityUpdates) -> None:
        """Set the priorities of stored samples; what is new gets the highest one seen.

        Raises:
            ValueError: a negative priority, or one that is not finite.
        """
        if not (np.isfinite(updates.priorities).all() and (updates.priorities >= 0).all()):
            raise ValueError("priorities must be finite and not negative")
        slots = (updates.keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        valid = slots < len(self._slots)
        valid[valid] = self._generations[slots[valid]] == updates.keys[valid] >> np.uint64(32)
        self._priorities[slots[valid]] = updates.priorities[valid]
        self._highest = max(self._highest, float(np.max(updates.priorities, initial=0.0)))

    # --- saving ------------------------------------------------------------------------------------------------------

    def save_state(self, path: Path) -> None:
        """Write one file, whole or not at all.

        Raises:
            TypeError: a sample holds what cannot be saved without running code on load.
            OSError: the disk refused.
        """
        order = self._order()
        state = {
            "names": self._collecting_data_names,
            "samples": as_lists([self._slots[slot] for slot in order.tolist()], self._collecting_data_names),
            "priorities": self._priorities[order],
            "highest": self._highest,
            "added": self._added,
            **self._more_state(),
        }
        write_state(path, self.kind, state)

    def load_state(self, path: Path) -> None:
        """Go on from a file; what does not fit a smaller buffer is left out.

        Raises:
            StateError: damaged, of another version, of another kind of buffer or with other fields; nothing changed.
            OSError: it cannot be read.
        """
        state = read_state(path, self.kind)
        if state["names"] != self._collecting_data_names:
            raise StateError(f"{path} has the fields {state['names']}, this buffer has {self._collecting_data_names}")
        samples: list[T] = state["samples"]
        if self._collecting_data_names is not None:
            columns = cast("dict[str, list[Any]]", state["samples"])
            rows = zip(*(columns[name] for name in self._collecting_data_names), strict=True)
            samples = cast("list[T]", [dict(zip(self._collecting_data_names, row, strict=True)) for row in rows])
        self._load_more_state(path, state)
        kept = self._kept(len(samples)) if len(samples) > self.max_size else np.arange(len(samples))
        self._slots = [samples[i] for i in kept.tolist()]
        size = len(self._slots)
        self._highest = float(state["highest"])
        # Keys of an earlier life must not hit what is in their slots now.
        self._added = int(state["added"]) + size
        self._generations[:size] = np.arange(self._added - size + 1, self._added + 1)
        self._priorities[:size] = cast("NDArray[np.float32]", state["priorities"])[kept]

    def _kept(self, number: int) -> NDArray[np.int64]:
        """Which of more samples than fit stay, in order."""
        return np.arange(number - self.max_size, number)

    def _more_state(self) -> dict[str, Any]:
        """What a subclass needs besides its samples."""
        return {}

    def _load_more_state(self, path: Path, state: Mapping[str, Any]) -> None:
        """Take it back."""
