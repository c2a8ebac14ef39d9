"""Reanalysis: stored positions are searched again (Schrittwieser et al. 2021, "Online and offline RL")."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.search.tree_search import TreeSearch
from zero.search_ages import SEARCH_WINDOWS
from zero.trajectories import SequenceBatch

WINDOWS = {"observation": 1, "search_policy": 1, "search_value": 1, **SEARCH_WINDOWS}
"""What is looked at of a stored step; nothing of what followed it."""


@dataclass(frozen=True)
class Positions:
    """Stored steps that are to be searched again.

    Attributes:
        keys: uint64 [N], none twice.
        observations: [N, *shape].
        policies: float32 [N, A], as stored; zeros where there is none to be learned.
        values: float32 [N], as stored.
    """

    keys: NDArray[np.uint64]
    observations: NDArray[np.generic]
    policies: NDArray[np.float32]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Reanalysed:
    """What a search found of positions.

    Attributes:
        keys: uint64 [N].
        policies: float32 [N, A].
        values: float32 [N].
        policy_divergence: mean KL divergence of the new policies from those that were stored, in nats, over positions
            that had one; NaN if none had.
        value_change: mean absolute difference of the values, in real scale.
        num_simulations: made for it, those for rows that fill the batch included.
    """

    keys: NDArray[np.uint64]
    policies: NDArray[np.float32]
    values: NDArray[np.float32]
    policy_divergence: float
    value_change: float
    num_simulations: int


def choose_positions(seen: SequenceBatch, weights_version: int, number: int) -> Positions | None:
    """Of steps looked at, those whose search is the oldest.

    Args:
        seen: with the columns of WINDOWS, in random order.
        weights_version: of the weights at hand; a step that was searched with them, or newer ones, is left alone.
        number: of steps at most.

    Returns:
        The steps; None if no search is older.
    """
    _, first = np.unique(seen.keys, return_index=True)
    rows = np.sort(first)  # in the order in which they were drawn, so that those of one age are chosen at random
    versions = seen.columns["search_version"][rows, 0]
    old = np.flatnonzero(np.less(versions, weights_version))
    if not len(old):
        return None
    rows = rows[old[np.argsort(versions[old], kind="stable")[:number]]]
    return Positions(
        keys=seen.keys[rows],
        observations=seen.columns["observation"][rows, 0],
        policies=seen.columns["search_policy"][rows, 0].astype(np.float32),
        values=seen.columns["search_value"][rows, 0].astype(np.float32),
    )


class Reanalysis:
    """Searches stored positions as if they had just come up, noise included: all that a table holds is made alike.

    Args:
        game: the rules.
        config: of the experiment.
        rng: of the searches; nothing of it comes from the games that are searched.
    """

    def __init__(self, game: Game, config: ExperimentConfig, rng: np.random.Generator) -> None:
        self._game = game
        self._noise_scale = config.self_play.noise_scale
        self._num_simulations = config.search.num_simulations
        self._rng = rng

    def search(self, search: TreeSearch, positions: Positions) -> Reanalysed:
        """Search positions with a search of at least as many games; those that are too many repeat the first ones."""
        number = len(positions.keys)
        rows = np.arange(search.batch_size) % number
        seeds = self._rng.integers(0, 2**64, search.batch_size, dtype=np.uint64)
        result = search.run(self._game.decode(positions.observations[rows]), seeds, self._noise_scale)
        policies, values = result.search_policy[:number], result.search_value[:number]
        return Reanalysed(
            keys=positions.keys,
            policies=policies,
            values=values,
            policy_divergence=_divergence(policies, positions.policies),
            value_change=float(np.abs(values - positions.values).mean()),
            num_simulations=search.batch_size * self._num_simulations,
        )


def _divergence(policies: NDArray[np.float32], stored: NDArray[np.float32]) -> float:
    """Mean KL divergence of policies [N, A] from stored ones, of which some may be zeros all over."""
    known = stored.sum(-1) > 0
    if not known.any():
        return float("nan")
    new, old = policies[known].astype(np.float64), stored[known].astype(np.float64)
    floor = float(np.finfo(np.float16).smallest_subnormal)  # what half precision stores as 0 is not impossible
    old = np.maximum(old / old.sum(-1, keepdims=True), floor)
    return float((new * (np.log(np.maximum(new, floor)) - np.log(old))).sum(-1).mean())
