"""The hot copy of the steps: one preallocated array per column, written by slot, read by gathering rows."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zero.trajectories import Signature


class ColumnRings:
    """Columns [capacity, *shape], a row per slot.

    Each has one more row, always zero, from which everything beyond a trajectory's end is read, so that a padded window
    costs no second pass.
    """

    def __init__(self, signature: Signature, capacity: int) -> None:
        self._signature = {spec.name: spec for spec in signature}
        # zeros() maps the pages but does not touch them: an empty table takes no memory.
        self._rows = {spec.name: np.zeros((capacity + 1, *spec.shape), spec.dtype) for spec in signature}
        # Rows are gathered as bytes: any dtype then goes into an unaligned place of a message.
        self._bytes = {name: rows.reshape(capacity + 1, -1).view(np.uint8) for name, rows in self._rows.items()}
        self._row_bytes = {name: rows.shape[1] for name, rows in self._bytes.items()}

    @property
    def row_bytes(self) -> Mapping[str, int]:
        """Bytes of a step of every column, by name."""
        return self._row_bytes

    def write(self, slots: NDArray[np.int64], columns: Sequence[NDArray[np.generic]]) -> None:
        """Write steps [N, *shape] of every column, in the order of the signature, into slots [N]."""
        target = _as_slice(slots)
        for rows, values in zip(self._rows.values(), columns, strict=True):
            rows[target] = values

    def write_some(self, slots: NDArray[np.int64], columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Write values [N, *shape] of some columns into slots [N]."""
        for name, values in columns.items():
            self._rows[name][slots] = values

    def read(self, slots: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """A copy of the rows [N, *shape] of every column."""
        return {name: rows[slots] for name, rows in self._rows.items()}

    def take(self, name: str, slots: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.generic]:
        """Rows [*slots.shape, *shape] of a column in the order of slots.

        Args:
            name: of the column.
            slots: any shape; the capacity stands for a row of zeros.
            out: contiguous bytes, as many as the rows take, at any place; new ones if not given.
        """
        spec = self._signature[name]
        source = self._bytes[name]
        if out is None:
            out = np.empty(slots.size * source.shape[1], np.uint8)
        # mode="clip" gathers straight into `out`; the default mode goes through a copy.
        np.take(source, slots.reshape(-1), axis=0, out=out.reshape(slots.size, source.shape[1]), mode="clip")
        return out.view(spec.dtype).reshape(*slots.shape, *spec.shape)


def _as_slice(slots: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """A run of slots as a slice, which is written several times faster."""
    first, last = int(slots[0]), int(slots[-1])
    if last - first == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
        return slice(first, last + 1)
    return slots
