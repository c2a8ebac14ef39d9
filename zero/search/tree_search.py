"""Tree search over many games in lock step: one model call per simulation for all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero.config import SearchConfig
from zero.search import kernels
from zero.search.model import RootOutput, SearchModel, StepOutput
from zero.search.tree import (
    ROOT,
    Leaves,
    Outcome,
    Tree,
    allocate_outcome,
    allocate_selection,
    allocate_tree,
)

LEAST_VALUE_RANGE = 1e-8
"""Of the ranges of values that are rescaled, where the config sets no floor."""


class SearchError(ValueError):
    """Positions that cannot be searched, or a model whose output cannot be used; the text says which."""


@dataclass(frozen=True)
class SearchResult:
    """What B searches found; new arrays, the caller's to keep.

    Attributes:
        actions: int64 [B], the best one; -1 where the root has none.
        search_policy: float32 [B, A], over the actions considered legal at the root, 0 elsewhere and all over where
            there are none. The policy target.
        search_value: float32 [B], what the root is worth, in real scale, for the player to move. Of Gumbel search the
            completed values under the search policy, for half of its simulations go through actions that it then drops;
            of PUCT the mean return over the root's own evaluation and all simulations.
        raw_value: float32 [B], the root's own evaluation.
        visit_counts: int32 [B, A], simulations through each action, those that a kept subtree had included.
        num_unique_leaves: int32 [B], simulations that reached a new node. Those that met the end of a game or an
            afterstate again did not.
        policy_entropy: float32 [B], of the search policy, in nats.
        policy_divergence: float32 [B], KL divergence of the search policy from the network's own over the same
            actions, in nats.
    """

    actions: NDArray[np.int64]
    search_policy: NDArray[np.float32]
    search_value: NDArray[np.float32]
    raw_value: NDArray[np.float32]
    visit_counts: NDArray[np.int32]
    num_unique_leaves: NDArray[np.int32]
    policy_entropy: NDArray[np.float32]
    policy_divergence: NDArray[np.float32]


class TreeSearch(ABC):
    """A search of B games at once; what is chosen in the tree, and in the end, is a subclass's.

    Games are independent: a game gives the same result alone and among others, if the model does.

    An afterstate is a chance node: every visit samples a fresh outcome, and its value is the mean over them of the
    outcome's reward plus the discounted value; there is no descent below it.

    Args:
        model: what to simulate with.
        config: how much and how to search. `min_value_range` is an absolute floor, in units of value, of the range
            that is rescaled; with 0 the search is invariant to the scale of rewards, and noise alone is stretched to
            full range.
        batch_size: B, games searched at once.
        num_kept_nodes: slots per tree for nodes kept from earlier searches.
    """

    def __init__(self, model: SearchModel, config: SearchConfig, batch_size: int, num_kept_nodes: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._model = model
        self._num_simulations = config.num_simulations
        self._num_nodes = 1 + num_kept_nodes + config.num_simulations
        self._may_keep_nodes = num_kept_nodes > 0
        self._tree = allocate_tree(batch_size, self._num_nodes, model.max_legal_actions)
        self._selection = allocate_selection(batch_size, model.chance_size)
        self._games = np.arange(batch_size)
        self._embeddings: NDArray[np.generic] = np.zeros((batch_size, 0))

    @property
    def batch_size(self) -> int:
        """B, games searched at once."""
        return len(self._games)

    @property
    def discount(self) -> float:
        """Per step, as search values have it."""
        return self._model.discount

    @property
    def tree(self) -> Tree:
        """The trees of the last search, for analysis; the next search overwrites them."""
        return self._tree

    def run(
        self,
        positions: NDArray[np.generic],
        seeds: NDArray[np.uint64],
        noise_scale: float = 1.0,
        num_simulations: int | None = None,
    ) -> SearchResult:
        """Search every position.

        Args:
            positions: [B, ...], as the model takes them. A root without an action to consider costs nothing but its
                place in the batch.
            seeds: uint64 [B], one per game and search; all noise and all chance of a search follow from it.
            noise_scale: factor of the noise at the root; 0 to play best.
            num_simulations: at most as many as the search was made for, which is what None stands for.

        Raises:
            SearchError: another batch size, a number of simulations that is out of range, or a model output that is
                not finite or has more legal actions than the model announced.
        """
        if positions.shape[0] != self.batch_size or seeds.shape != (self.batch_size,):
            raise SearchError(
                f"this search takes {self.batch_size} positions and seeds, "
                f"got shapes {positions.shape} and {seeds.shape}"
            )
        if num_simulations is None:
            num_simulations = self._num_simulations
        if not 1 <= num_simulations <= self._num_simulations:
            raise SearchError(f"this search makes 1 to {self._num_simulations} simulations, not {num_simulations}")
        seeds = _laid_out(seeds, np.uint64)
        root = self._model.root(positions)
        self._check(self._start(root, seeds, float(noise_scale), num_simulations))
        for simulation in range(num_simulations):
            self._simulate(simulation, seeds)
        outcome = allocate_outcome(self.batch_size, self._model.num_actions)
        self._conclude(outcome)
        return SearchResult(*outcome)

    @abstractmethod
    def _start(self, root: RootOutput, seeds: NDArray[np.uint64], noise_scale: float, num_simulations: int) -> int:
        """Make the roots and keep their embeddings; returns a status of the kernels."""

    @abstractmethod
    def _select(self, seeds: NDArray[np.uint64], simulation: int, first_counter: int) -> None:
        """Fill the selection with where the simulation leads; chance is counted from `first_counter` on."""

    @abstractmethod
    def _conclude(self, outcome: Outcome) -> None:
        """Write what the search found."""

    def _simulate(self, simulation: int, seeds: NDArray[np.uint64]) -> None:
        selection = self._selection
        # Noise at the root uses up the first A numbers of a game's stream.
        self._select(seeds, simulation, self._model.num_actions)
        step = self._model.step(self._embeddings[self._games, selection.source], selection.action, selection.uniforms)
        if self._may_keep_nodes:
            self._embeddings[self._games, self._tree.num_kept + (simulation + 1)] = step.embeddings
        else:  # the same, in a fraction of the time
            self._embeddings[:, simulation + 1] = step.embeddings
        self._check(kernels.expand_and_back_up(self._tree, selection, _leaves(step)))

    def _keep_root_embeddings(self, embeddings: NDArray[np.generic]) -> None:
        """Store the embeddings of the roots in [B, N, ...], made anew if their kind is another one than before."""
        shape = (self.batch_size, self._num_nodes, *embeddings.shape[1:])
        if self._embeddings.shape != shape or self._embeddings.dtype != embeddings.dtype:
            self._embeddings = np.zeros(shape, embeddings.dtype)
        self._embeddings[:, ROOT] = embeddings

    def _check(self, status: int) -> None:
        if status == kernels.TOO_MANY_ACTIONS:
            raise SearchError(
                f"the model allows more than the {self._model.max_legal_actions} actions that it announced"
            )
        if status == kernels.NOT_FINITE:
            raise SearchError("the model gave a reward, discount, value or legal logit that is not finite")


def root_leaves(root: RootOutput) -> Leaves:
    """The roots in the layout of a step, of which only the prediction is read.

    Raises:
        SearchError: another element type.
    """
    nothing = np.zeros(root.values.shape, np.float32)
    never = np.zeros(root.values.shape, np.bool_)
    return Leaves(
        rewards=nothing,
        chance_rewards=nothing,
        discounts=nothing,
        values=_laid_out(root.values, np.float32),
        logits=_laid_out(root.logits, np.float32),
        legal_action_mask=_laid_out(root.legal_action_mask, np.bool_),
        terminated=never,
        is_chance=never,
    )


def _leaves(step: StepOutput) -> Leaves:
    return Leaves(
        rewards=_laid_out(step.rewards, np.float32),
        chance_rewards=_laid_out(step.chance_rewards, np.float32),
        discounts=_laid_out(step.discounts, np.float32),
        values=_laid_out(step.values, np.float32),
        logits=_laid_out(step.logits, np.float32),
        legal_action_mask=_laid_out(step.legal_action_mask, np.bool_),
        terminated=_laid_out(step.terminated, np.bool_),
        is_chance=_laid_out(step.is_chance, np.bool_),
    )


def _laid_out(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """The array writable and C-contiguous: kernels are compiled for one layout, another one would compile anew.

    Raises:
        SearchError: another element type.
    """
    if array.dtype != dtype:
        raise SearchError(f"expected an array of {np.dtype(dtype).name}, got {array.dtype.name}")
    return array if array.flags.carray else np.require(array, dtype, ["C", "W"])
