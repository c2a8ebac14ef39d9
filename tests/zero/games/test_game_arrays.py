"""Checks of arrays before compiled code."""

import numpy as np
import pytest

from zero.games.arrays import as_actions, as_outcomes, as_rows
from zero.games.game import GameError


def test_good_arrays_pass_without_a_copy():
    """What has the right type and layout is handed on as it is."""
    rows = np.zeros((4, 5), np.uint64)
    assert as_rows("states", rows, np.uint64, (5,)) is rows


@pytest.mark.parametrize(
    "rows",
    [
        np.frombuffer(bytes(160), np.int64).reshape(4, 5),
        np.zeros((4, 10), np.int64)[:, ::2],
        np.zeros((5, 4), np.int64).T,
        np.zeros((4, 5), np.int32),
        np.zeros((4, 5), ">i8"),
    ],
)
def test_others_become_one_layout(rows: np.ndarray):
    """Read-only, strided, transposed, narrow and big-endian arrays are copied, so that one compilation serves all."""
    plain = as_rows("actions", rows, np.int64, (5,))
    assert plain.flags.carray
    assert plain.dtype == np.int64
    assert np.array_equal(plain, rows)


def test_misfits_are_refused():
    """The error names the argument, what was given and what is expected."""
    with pytest.raises(GameError, match=r"states must have shape \[B, 5\], got \(4, 6\)"):
        as_rows("states", np.zeros((4, 6), np.uint64), np.uint64, (5,))
    with pytest.raises(GameError, match=r"actions must have shape \[B\], got \(\)"):
        as_actions(np.array(3), 1)
    with pytest.raises(GameError, match="actions must be int64, got float64"):
        as_actions(np.zeros(2), 2)
    with pytest.raises(GameError, match="outcomes are for 2 positions, there are 3"):
        as_outcomes(np.zeros((2, 3), np.int64), 3, 3)
