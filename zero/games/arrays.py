"""Checks of the arrays that games are given, before compiled code reads them without bounds checks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero.games.game import GameError


def as_rows(what: str, array: NDArray[Any], dtype: type[np.generic], row_shape: tuple[int, ...]) -> NDArray[Any]:
    """The array as [B, *row_shape] of the dtype, writable and C-contiguous: itself if it is so already, else a copy.

    Compiled functions are specialised by layout; one layout for all means one compilation.

    Raises:
        GameError: another shape, or another kind of number.
    """
    if array.shape[1:] != row_shape or array.ndim == 0:
        raise GameError(f"{what} must have shape [B{''.join(f', {size}' for size in row_shape)}], got {array.shape}")
    if array.dtype == dtype and array.flags.carray:
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise GameError(f"{what} must be {np.dtype(dtype).name}, got {array.dtype.name}")
    return np.require(array, dtype, ["C", "W"])


def as_actions(actions: NDArray[Any], batch_size: int) -> NDArray[np.int64]:
    """Actions as int64 [B].

    Raises:
        GameError: another shape, another kind of number, or another batch size.
    """
    rows = as_rows("actions", actions, np.int64, ())
    _check_batch_size("actions", rows.shape[0], batch_size)
    return rows


def as_outcomes(outcomes: NDArray[Any], batch_size: int, chance_size: int) -> NDArray[np.int64]:
    """Chance outcomes as int64 [B, chance_size].

    Raises:
        GameError: another shape, another kind of number, or another batch size.
    """
    rows = as_rows("outcomes", outcomes, np.int64, (chance_size,))
    _check_batch_size("outcomes", rows.shape[0], batch_size)
    return rows


def _check_batch_size(what: str, given: int, expected: int) -> None:
    if given != expected:
        raise GameError(f"{what} are for {given} positions, there are {expected}")
