"""What the search asks of a model: a prediction at the root, and one step of every game per simulation."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RootOutput:
    """Predictions at B roots.

    Attributes:
        embeddings: [B, ...], what `step` needs to go on from the root.
        logits: float32 [B, A]; read where `legal_action_mask` holds.
        values: float32 [B], return-to-go for the player to move, in real scale; 0 where the game is over.
        legal_action_mask: bool [B, A], the actions that the search may consider.
    """

    embeddings: NDArray[np.generic]
    logits: NDArray[np.float32]
    values: NDArray[np.float32]
    legal_action_mask: NDArray[np.bool_]


@dataclass(frozen=True)
class StepOutput:
    """What one simulated step gave, for B games.

    Where `is_chance` holds, the step ended in an afterstate: `embeddings` holds the afterstate, while `chance_rewards`
    and `values` belong to a sampled outcome of it or are means over several, and `logits` mean nothing. Chance is no
    step of its own: the return of the step is `rewards + chance_rewards + discounts * values`. Where the action was -1,
    `rewards` and `discounts` are not read, for they are those of the step that led to the afterstate.

    Attributes:
        embeddings: [B, ...], of the reached node.
        rewards: float32 [B], for the action, to the player who moved; outcome-dependent reward not included.
        chance_rewards: float32 [B], reward of the sampled outcome, to the player who moved; 0 without chance.
        discounts: float32 [B], from the reached node's value to the parent's: the discount, negative if the player
            changes.
        values: float32 [B], return-to-go for the player to move after the step; 0 where the game is over.
        logits: float32 [B, A].
        legal_action_mask: bool [B, A].
        terminated: bool [B], no descent below this node. False for a chance node even if the sampled outcome ended
            the game.
        is_chance: bool [B].
    """

    embeddings: NDArray[np.generic]
    rewards: NDArray[np.float32]
    chance_rewards: NDArray[np.float32]
    discounts: NDArray[np.float32]
    values: NDArray[np.float32]
    logits: NDArray[np.float32]
    legal_action_mask: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    is_chance: NDArray[np.bool_]


class SearchModel(Protocol):
    """The model that a search simulates with; rows are independent of each other."""

    num_actions: int
    """Size A of the action space."""
    max_legal_actions: int
    """The most actions that the search ever considers at one node."""
    chance_size: int
    """Uniform numbers consumed whenever chance is sampled; 0 if nothing is ever random."""
    discount: float
    """Per step, above 0; `StepOutput.discounts` give it the sign."""

    def root(self, positions: NDArray[np.generic]) -> RootOutput:
        """Predict at the roots, from whatever the caller passes to the search."""
        ...

    def step(
        self,
        embeddings: NDArray[np.generic],
        actions: NDArray[np.int64],
        uniforms: NDArray[np.float64],
    ) -> StepOutput:
        """Step every game once.

        Args:
            embeddings: [B, ...], of the node that each game steps from. With action -1 it is an afterstate, of which
                one more outcome is sampled.
            actions: int64 [B], -1 to sample another outcome of an afterstate.
            uniforms: float64 [B, chance_size] in [0, 1), consumed where chance is pending.
        """
        ...
