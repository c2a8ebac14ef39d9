"""Decides on positions by the weights of a run under search, however many positions are asked about at once."""

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.errors import BAD_INPUT, DeployError
from deploy.run_weights import RunWeights
from zero.config import ExperimentConfig
from zero.games.game import Game, States
from zero.networks.inference import fastest_dtype, make_inference
from zero.networks.make_network import make_network
from zero.networks.weights import WeightsMismatchError, load_weights
from zero.search.make_search import make_search
from zero.search.tree_search import TreeSearch

WIDTHS = (1, 4, 16, 64)
"""Positions that are searched at once; what does not fill the narrowest that is wide enough is filled up."""
MAX_LEAVES = 4096
"""Evaluated at once, so that many requests do not take all the memory; also the most of one request."""


@dataclass(frozen=True)
class Decision:
    """What the agent makes of one position.

    Attributes:
        action: what it plays.
        legal_actions: int64 [L], ascending.
        policy: float32 [L], of the search, over the legal actions; sums to 1.
        value: what the position is worth to the player to move.
    """

    action: int
    legal_actions: NDArray[np.int64]
    policy: NDArray[np.float32]
    value: float


@dataclass(frozen=True)
class Version:
    """Which weights decide.

    Attributes:
        training_step: optimizer updates that made them.
        sha256: hex digest of the weights.
        weights_version: as the replay server counts, of those that are taken from there; else None.
    """

    training_step: int
    sha256: str
    weights_version: int | None = None


class Agent:
    """A network and its searches; for one thread at a time.

    Args:
        config: the experiment.
        game: its game.
        weights: of the run.
        dtype: to compute in; None measures which is fastest.
        device: where to compute, "cpu" or "cuda".

    Attributes:
        version: of the weights.
        dtype: what it computes in.

    Raises:
        DeployError: the weights are of another network.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        game: Game,
        weights: RunWeights,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> None:
        network = make_network(game, config.network, config.seed)
        try:
            load_weights(network, weights.payload)
        except WeightsMismatchError as error:
            raise DeployError(str(error), BAD_INPUT) from error
        self.version = Version(weights.training_step, hashlib.sha256(weights.payload).hexdigest(), weights.version)
        self.dtype = dtype or fastest_dtype(network, WIDTHS[-1], time.perf_counter, device=device)
        self._inference = inference = make_inference(network, self.dtype, device)
        self._game = game
        self._searches = {width: make_search(game, inference, config, width) for width in WIDTHS}

    def warm_up(self) -> None:
        """Search first positions in every width, so that nobody waits for what is compiled or allocated once."""
        for width in WIDTHS:
            outcomes = self._game.draw_chance(np.random.default_rng(0), width)
            self.decide(self._game.initial(outcomes), np.zeros(width, np.uint64))

    def evaluate(self, encoded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Policy logits [B, A] and values [B] of encoded observations [B, E], without a search."""
        parts = [self._inference(encoded[row : row + MAX_LEAVES]) for row in range(0, len(encoded), MAX_LEAVES)]
        return np.concatenate([logits for logits, _ in parts]), np.concatenate([values for _, values in parts])

    def decide(self, states: States, seeds: NDArray[np.uint64]) -> list[Decision]:
        """Search positions [B, state_size] in which somebody is to move, without noise.

        A row's decision does not depend on the others, but for the last bits of the network's arithmetic.

        Args:
            states: the positions.
            seeds: uint64 [B], of the chance that the search draws, which is not the game's.
        """
        decisions: list[Decision] = []
        while len(decisions) < len(states):
            start = len(decisions)
            search = self._searches[_width(len(states) - start)]
            part = slice(start, start + search.batch_size)
            decisions += _searched(self._game, search, states[part], seeds[part])
        return decisions


def _width(count: int) -> int:
    """The narrowest search that takes so many positions, or else the widest."""
    return next((width for width in WIDTHS if width >= count), WIDTHS[-1])


def _searched(game: Game, search: TreeSearch, states: States, seeds: NDArray[np.uint64]) -> list[Decision]:
    count = len(states)
    # Filled up with the first position: rows are independent of each other.
    rows = np.append(np.arange(count), np.zeros(search.batch_size - count, np.int64))
    result = search.run(states[rows], seeds[rows], noise_scale=0.0)
    decisions: list[Decision] = []
    for row, mask in enumerate(game.legal_action_mask(states)):
        legal = np.flatnonzero(mask)
        policy = result.search_policy[row, legal]
        decisions.append(Decision(int(result.actions[row]), legal, policy, float(result.search_value[row])))
    return decisions
