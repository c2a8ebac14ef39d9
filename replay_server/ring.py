"""The hot copy of the steps: one preallocated ring per column, written in runs, read by gathering rows."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zero.trajectories import Signature


class ColumnRings:
    """Columns [capacity, *shape] in which position p lives at row p modulo capacity.

    Each has one more row, always zero, from which everything beyond a trajectory's end is read, so that a padded window
    costs no second pass.
    """

    def __init__(self, signature: Signature, capacity: int) -> None:
        self._capacity = capacity
        self._signature = {spec.name: spec for spec in signature}
        # zeros() maps the pages but does not touch them: an empty table takes no memory.
        self._rows = [np.zeros((capacity + 1, *spec.shape), spec.dtype) for spec in signature]
        # Rows are moved as bytes: any dtype then goes into an unaligned place of a message.
        self._bytes = {
            spec.name: rows.reshape(capacity + 1, -1).view(np.uint8)
            for spec, rows in zip(signature, self._rows, strict=True)
        }

    @property
    def row_bytes(self) -> dict[str, int]:
        """Bytes of a step of every column, by name."""
        return {name: rows.shape[1] for name, rows in self._bytes.items()}

    def write(self, position: int, columns: Sequence[NDArray[np.generic]]) -> None:
        """Write steps [N, *shape] of every column, in the order of the signature, from a position on."""
        start = position % self._capacity
        for rows, values in zip(self._rows, columns, strict=True):
            straight = min(len(values), self._capacity - start)
            rows[start : start + straight] = values[:straight]
            if straight < len(values):
                rows[: len(values) - straight] = values[straight:]

    def read(self, slots: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """The rows [N, *shape] of every column."""
        return {name: rows[slots] for name, rows in zip(self._signature, self._rows, strict=True)}

    def gather(
        self, positions: NDArray[np.int64], remaining: NDArray[np.int64], windows: Mapping[str, int]
    ) -> dict[str, NDArray[np.generic]]:
        """Windows [B, window of the column, *shape] from positions [B] on, zero from `remaining` [B] steps on."""
        rows_of = {length: self._window_rows(positions, remaining, length) for length in set(windows.values())}
        return {name: self._take(name, rows_of[length]) for name, length in windows.items()}

    def _window_rows(
        self, positions: NDArray[np.int64], remaining: NDArray[np.int64], length: int
    ) -> NDArray[np.int64]:
        offsets = np.arange(length)
        rows = (positions[:, None] + offsets) % self._capacity
        rows[offsets >= remaining[:, None]] = self._capacity  # the zero row
        return rows

    def _take(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        spec = self._signature[name]
        source = self._bytes[name]
        gathered = np.empty((*rows.shape, source.shape[1]), np.uint8)
        # mode="clip" gathers straight into `out`; the default mode goes through a copy.
        np.take(source, rows, axis=0, out=gathered, mode="clip")
        return gathered.view(spec.dtype).reshape(*rows.shape, *spec.shape)
