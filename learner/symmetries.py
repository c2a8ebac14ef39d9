"""Shows each drawn position as one of those that are the same by a symmetry of the game."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game, Symmetry

Element = TypeVar("Element", bound=np.generic)


def all_symmetries(game: Game) -> tuple[Symmetry, ...]:
    """Those that the game names, and the identity."""
    size = int(np.prod(game.observation_spec.shape))
    return (Symmetry(np.arange(size), np.arange(game.num_actions)), *game.symmetries)


class SymmetricViews:
    """A symmetry for each of B positions, every one equally likely.

    Args:
        symmetries: to choose from.
        keys: uint64 [B], of the positions; what is chosen is a function of them all, so that a learner that is restored
            goes on as if it had never stopped.
    """

    def __init__(self, symmetries: Sequence[Symmetry], keys: NDArray[np.uint64]) -> None:
        self._symmetries = symmetries
        self._chosen = np.random.default_rng(keys).integers(0, len(symmetries), len(keys))

    def observations(self, observations: NDArray[np.generic]) -> NDArray[np.generic]:
        """Compact observations [B, L, *shape] under the symmetries."""
        flat = observations.reshape(*observations.shape[:2], -1)
        return self._taken(flat, [symmetry.observation for symmetry in self._symmetries]).reshape(observations.shape)

    def per_action(self, values: NDArray[Element]) -> NDArray[Element]:
        """What each action has [B, L, A], under the name that the action has then."""
        return self._taken(values, [symmetry.actions for symmetry in self._symmetries])

    def actions(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Other names of actions [B, L]."""
        names = np.stack([np.argsort(symmetry.actions) for symmetry in self._symmetries])
        return names[self._chosen[:, None], actions]

    def _taken(self, values: NDArray[Element], indices: list[NDArray[np.int64]]) -> NDArray[Element]:
        return np.take_along_axis(values, np.stack(indices)[self._chosen][:, None], axis=-1)
