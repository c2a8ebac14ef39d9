"""Samples on their way to a table, as rows of columns: taken by value, checked, cheap to send together."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from replay_server.data_buffer import check_fields
from replay_server.trajectory_writer import value_of
from zero.trajectories import ColumnSpec, Signature

STAMP = ColumnSpec("collected_at", "float64")
"""The column of a table that says when a sample was collected, by the clock of its collector."""

_FIRST_ROWS = 1024
_PLAIN = {"f": float, "i": int, "u": int, "b": bool}


class _Field(NamedTuple):
    """A column of the ring.

    Attributes:
        spec: what it is.
        dtype: of its elements.
        plain: the type of a Python number that needs no second look; None for arrays.
        is_float: whether values must be finite.
    """

    spec: ColumnSpec
    dtype: np.dtype[Any]
    plain: type | None
    is_float: bool


class SampleRing:
    """Rows in the order in which they came; for one thread at a time."""

    def __init__(self, signature: Signature, max_size: int | None) -> None:
        """At most `max_size` rows, and one more for as long as it is put before another is dropped; None for any."""
        self._names = frozenset(spec.name for spec in signature)
        self._fields = [_field(spec) for spec in signature]
        self._most_rows = math.inf if max_size is None else max_size + 1  # one is free, to look at what comes
        rows = int(min(self._most_rows, _FIRST_ROWS))
        self._columns = [np.empty((rows, *spec.shape), spec.dtype) for spec in signature]
        self._times = np.empty(rows, np.float64)
        self._first = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, data: Mapping[str, ArrayLike], time: float) -> None:
        """Add a row.

        Raises:
            FieldMismatch: other fields.
            ValueError: a value has another shape, does not fit into the dtype or is not finite; nothing is added.
        """
        row = self._write(data)
        self._times[row] = time
        self._size += 1

    def check(self, data: Mapping[str, ArrayLike]) -> None:
        """Refuse what `put` would refuse, and add nothing."""
        self._write(data)

    def _write(self, data: Mapping[str, ArrayLike]) -> int:
        """Fill the free row behind the last one; returns its number."""
        check_fields(self._names, data)
        if self._size == len(self._times):
            self._grow()
        row = (self._first + self._size) % len(self._times)
        for column, field in zip(self._columns, self._fields, strict=True):
            value = data[field.spec.name]
            if type(value) is not field.plain:
                value = _checked(value, field)
            elif field.is_float and not math.isfinite(value):  # type: ignore[arg-type]
                raise ValueError(f"column {field.spec.name!r} is {value}, must be finite")
            try:
                column[row] = value
            except OverflowError:
                raise ValueError(f"column {field.spec.name!r} is {value}, which {field.dtype} cannot hold") from None
        return row

    def drop_oldest(self) -> None:
        """Forget the first row."""
        self._first = (self._first + 1) % len(self._times)
        self._size -= 1

    def take(self, most: int) -> dict[str, NDArray[Any]]:
        """The first rows, which are gone from here, with their times."""
        number = min(most, self._size)
        rows = (self._first + np.arange(number)) % len(self._times)
        taken = {field.spec.name: column[rows] for field, column in zip(self._fields, self._columns, strict=True)}
        taken[STAMP.name] = self._times[rows]
        self._first = (self._first + number) % len(self._times)
        self._size -= number
        return taken

    def _grow(self) -> None:
        rows = (self._first + np.arange(self._size)) % len(self._times)
        more = int(min(len(self._times), self._most_rows - self._size))
        self._columns = [np.concatenate((column[rows], np.empty_like(column[:more]))) for column in self._columns]
        self._times = np.concatenate((self._times[rows], np.empty(more)))
        self._first = 0


def _field(spec: ColumnSpec) -> _Field:
    dtype = np.dtype(spec.dtype)
    return _Field(spec, dtype, None if spec.shape else _PLAIN[dtype.kind], dtype.kind == "f")


def _checked(value: ArrayLike, field: _Field) -> ArrayLike:
    usual = isinstance(value, np.ndarray) and value.dtype == field.dtype and value.shape == field.spec.shape
    array = value if usual else value_of(value, field.spec)
    if field.is_float and not np.isfinite(array).all():
        raise ValueError(f"column {field.spec.name!r} holds NaN or infinity")
    return array
