"""All random numbers of a run come from its one seed: the same again for one process, others for every other one."""

import random
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch

from deploy.seeding import seed_process
from zero.seeds import STREAMS, entropy_of, process_seeds


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Other tests find the generators of the process where they were."""
    python, old_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python)
    np.random.set_state(old_numpy)
    torch.set_rng_state(of_torch)


def drawn(seeds: np.random.SeedSequence) -> tuple[float, float, float]:
    """The first numbers of Python, NumPy and PyTorch."""
    seed_process(seeds)
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_python_numpy_and_torch_are_seeded_by_one_sequence() -> None:
    """Each of the three, with its own part of it."""
    first = drawn(process_seeds(7, "learner", 0, 0))
    assert drawn(process_seeds(7, "learner", 0, 0)) == first
    other = drawn(process_seeds(8, "learner", 0, 0))
    assert all(one != another for one, another in zip(first, other, strict=True))


def test_no_process_draws_what_another_one_draws() -> None:
    """Whichever role, number or session."""
    states = {
        tuple(process_seeds(7, role, index, entropy_of(session, 0)).generate_state(4))
        for role, index, session in product(STREAMS, range(3), range(3))
    }
    assert len(states) == len(STREAMS) * 9
