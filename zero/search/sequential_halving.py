"""Sequential Halving as a table: how many visits an action must have to be eligible in a simulation."""

import numpy as np
from numpy.typing import NDArray


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """Visits that an action must have to be eligible, for each simulation (Danihelka et al. 2022, section 3).

    The actions start level. Each phase visits all that are left equally often and halves them, so the two best ones
    remain to the end.
    """
    if num_considered <= 1:
        return list(range(num_simulations))
    num_phases = (num_considered - 1).bit_length()
    visits = [0] * num_considered
    remaining = num_considered
    schedule: list[int] = []
    while len(schedule) < num_simulations:
        for _ in range(max(1, num_simulations // (num_phases * remaining))):
            schedule += visits[:remaining]
            for action in range(remaining):
                visits[action] += 1
        remaining = max(2, remaining // 2)
    return schedule[:num_simulations]


def considered_visits_table(max_num_considered: int, num_simulations: int) -> NDArray[np.int32]:
    """int32 [max_num_considered + 1, num_simulations]: row m is the schedule for m considered actions."""
    rows = [considered_visits(num_considered, num_simulations) for num_considered in range(max_num_considered + 1)]
    return np.array(rows, np.int32)
