"""Where the random numbers of a run come from: one `numpy.random.SeedSequence` of the experiment's seed."""

from collections.abc import Mapping

import numpy as np

STREAMS: Mapping[str, int] = {"replay-server": 0, "learner": 1, "actor": 2, "evaluator": 3, "reanalyser": 4}
"""The first word of a role's spawn key."""
_INCARNATION_BITS = 32


def entropy_of(session: int, incarnation: int) -> int:
    """What tells a process from all that filled its post before: it must not play their games again.

    Args:
        session: counts the sessions of the run.
        incarnation: how often the post was filled before in this session.
    """
    return session << _INCARNATION_BITS | incarnation


def process_seeds(seed: int, role: str, index: int, entropy: int) -> np.random.SeedSequence:
    """The sequence of one process; its spawn key is the role's number, the index and the entropy.

    Args:
        seed: the experiment's.
        role: one of STREAMS.
        index: which of several processes of the role.
        entropy: as entropy_of gives it, or any number that no other process of the run has.
    """
    return np.random.SeedSequence(seed, spawn_key=(STREAMS[role], index, entropy))
