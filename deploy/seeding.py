"""Seeds what draws from generators of a whole process."""

import random

import numpy as np


def seed_process(seeds: np.random.SeedSequence) -> None:
    """Seed Python's `random`, NumPy's old functions and PyTorch.

    Nothing of ours draws from them; games and libraries of others may.
    """
    import torch  # noqa: PLC0415 - large

    for_python, for_numpy, for_torch = seeds.generate_state(3, np.uint64).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy % 2**32)
    torch.manual_seed(for_torch % 2**63)
