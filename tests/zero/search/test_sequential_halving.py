"""The table of Sequential Halving: known rows, and its invariants for all small cases."""

import numpy as np
import pytest

from tests.zero.search.reference import halving
from zero.search.sequential_halving import considered_visits, considered_visits_table


@pytest.mark.parametrize(
    ("num_considered", "num_simulations", "expected"),
    [
        (1, 4, [0, 1, 2, 3]),
        (2, 5, [0, 0, 1, 1, 2]),
        (3, 7, [0, 0, 0, 1, 1, 2, 2]),
        (4, 16, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (4, 8, [0, 0, 0, 0, 1, 1, 2, 2]),
        (16, 4, [0, 0, 0, 0]),
        (16, 32, [0] * 16 + [1] * 8 + [2] * 4 + [3] * 4),
    ],
)
def test_known_rows(num_considered: int, num_simulations: int, expected: list[int]) -> None:
    """Worked out by hand from the paper's definition."""
    assert considered_visits(num_considered, num_simulations) == expected


def test_every_entry_can_be_served() -> None:
    """Serving any eligible action at each simulation, some action always has the visits that are due next."""
    for num_considered in range(1, 33):
        for num_simulations in (1, 2, 7, 16, 33, 100):
            visits = [0] * num_considered
            for due in considered_visits(num_considered, num_simulations):
                visits[len(visits) - 1 - visits[::-1].index(due)] += 1
            assert sum(visits) == num_simulations


def test_the_table_holds_a_row_per_number_of_considered_actions() -> None:
    """Row m is the schedule for m, as an independent implementation has it."""
    table = considered_visits_table(17, 50)
    assert table.shape == (18, 50)
    assert table.dtype == np.int32
    for num_considered in range(1, 18):
        assert table[num_considered].tolist() == halving(num_considered, 50)
