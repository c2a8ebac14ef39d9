"""The MuZero search model: a network foresees what actions do; the rules are read at the root alone."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game
from zero.search.model import RootOutput, StepOutput

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@runtime_checkable
class ModelNetwork(Protocol):
    """A network with a learned model; rows are independent of each other."""

    def represent(self, encoded: Floats) -> Floats:
        """Latents [B, size] of encoded observations [B, E]."""
        ...

    def foresee(self, latents: Floats, actions: Integers) -> tuple[Floats, Floats]:
        """Latents [B, size] after actions [B] but before chance; rewards [B], in real scale, chance averaged out."""
        ...

    def expect_chance(self, latents: Floats) -> tuple[Floats, tuple[Floats, ...]]:
        """The probability [B] that chance follows, and those of every part's codes, [B, size of the part], if it does.

        Asked only where the game names chance codes.
        """
        ...

    def resolve(self, afterstates: Floats, codes: Integers) -> Floats:
        """Latents [B, size] of afterstates [B, size] after outcomes with chance codes [B, parts]."""
        ...

    def predict(self, latents: Floats) -> tuple[Floats, Floats]:
        """Policy logits [B, A] and values [B], in real scale, for the player to move."""
        ...


class LearnedModel:
    """A network with a learned model as the search sees it (Schrittwieser et al. 2020; Antonoglou et al. 2022).

    Positions are the game's states [B, S]; embeddings are latents [B, size]. What may be played is known at the root
    alone; below it every action is considered, and no game is over: that nothing more can be earned, and what nobody
    would play, is learned.

    Where the game names chance codes, an action after which the network expects chance leads to an afterstate, of
    which every visit draws one outcome by the probabilities that the network gives.

    Args:
        game: the rules.
        network: the functions of the model.
        discount: per step, in (0, 1].
    """

    def __init__(self, game: Game, network: ModelNetwork, discount: float) -> None:
        if not 0 < discount <= 1:
            raise ValueError(f"discount must be above 0 and at most 1, got {discount}")
        self.num_actions = game.num_actions
        self.max_legal_actions = game.num_actions
        self.chance_size = len(game.chance_code_sizes)
        self.discount = discount
        self._game = game
        self._network = network
        # Players move in turns: whatever an action does, the value after it is the other one's.
        self._signed_discount = np.float32(discount if game.num_players == 1 else -discount)

    def root(self, positions: NDArray[np.generic]) -> RootOutput:
        """Evaluate states [B, S]."""
        states = positions.astype(np.uint64, copy=False)
        latents = self._network.represent(self._game.encode(self._game.observation(states)))
        logits, values = self._network.predict(latents)
        values = np.where(self._game.terminated(states), np.float32(0), values)
        return RootOutput(latents, logits, values, self._game.search_action_mask(states))

    def step(
        self,
        embeddings: NDArray[np.generic],
        actions: NDArray[np.int64],
        uniforms: NDArray[np.float64],
    ) -> StepOutput:
        """Foresee actions [B], or draw an outcome where the action is -1, and evaluate what comes out.

        The value of a step that ends in an afterstate belongs to an outcome drawn from the uniforms.
        """
        latents = embeddings.astype(np.float32, copy=False)
        stepping = actions >= 0
        # Afterstates are foreseen with the others, and left out after it: one shape is faster than a few rows less.
        following, rewards = self._network.foresee(latents, np.where(stepping, actions, 0))
        reached = following if stepping.all() else np.where(stepping[:, None], following, latents)
        is_chance, drawn = self._resolve(reached, ~stepping, uniforms)
        logits, values = self._network.predict(drawn)
        count = len(actions)
        return StepOutput(
            embeddings=reached,
            rewards=rewards,
            chance_rewards=np.zeros(count, np.float32),
            discounts=np.full(count, self._signed_discount),
            values=values,
            logits=logits,
            legal_action_mask=np.ones((count, self.num_actions), np.bool_),
            terminated=np.zeros(count, np.bool_),
            is_chance=is_chance,
        )

    def _resolve(
        self, reached: Floats, is_afterstate: NDArray[np.bool_], uniforms: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], Floats]:
        """Which rows are afterstates, those already known to be included; and all latents, with outcomes in theirs."""
        if not self.chance_size:
            return is_afterstate, reached
        follows, probabilities = self._network.expect_chance(reached)
        is_chance = is_afterstate | (follows > 0.5)
        rows = np.flatnonzero(is_chance)
        if not len(rows):
            return is_chance, reached
        codes = [_draw(part[rows], uniforms[rows, number]) for number, part in enumerate(probabilities)]
        drawn = reached.copy()
        drawn[rows] = self._network.resolve(reached[rows], np.stack(codes, axis=1))
        return is_chance, drawn


def _draw(probabilities: Floats, uniforms: NDArray[np.float64]) -> Integers:
    """One index [B] per row of probabilities [B, size], by uniforms [B]."""
    cumulative = probabilities.astype(np.float64).cumsum(-1)
    return (cumulative[:, :-1] <= (uniforms * cumulative[:, -1])[:, None]).sum(-1)
