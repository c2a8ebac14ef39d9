"""Gumbel search over many games in lock step: one model call per simulation for all of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero.config import SearchConfig
from zero.search import kernels
from zero.search.model import RootOutput, SearchModel, StepOutput
from zero.search.sequential_halving import considered_visits_table
from zero.search.tree import (
    ROOT,
    Leaves,
    SearchRules,
    Tree,
    allocate_outcome,
    allocate_selection,
    allocate_tree,
)

_LEAST_VALUE_RANGE = 1e-8


class SearchError(ValueError):
    """Positions that cannot be searched, or a model whose output cannot be used; the text says which."""


@dataclass(frozen=True)
class SearchResult:
    """What B searches found; new arrays, the caller's to keep.

    Attributes:
        actions: int64 [B], the most visited action with the best gumbel + logit + value; -1 where the root has none.
        search_policy: float32 [B, A], softmax(logits + sigma(completed values)) over the actions considered legal at
            the root, 0 elsewhere and all over where there are none. The policy target.
        search_value: float32 [B], mean return over the root's own evaluation and all simulations, in real scale, for
            the player to move.
        raw_value: float32 [B], the root's own evaluation.
        visit_counts: int32 [B, A], simulations through each action; they sum to num_simulations, or 0.
        num_unique_leaves: int32 [B], simulations that reached a new node. Those that met the end of a game or an
            afterstate again did not.
    """

    actions: NDArray[np.int64]
    search_policy: NDArray[np.float32]
    search_value: NDArray[np.float32]
    raw_value: NDArray[np.float32]
    visit_counts: NDArray[np.int32]
    num_unique_leaves: NDArray[np.int32]


class GumbelSearch:
    """Gumbel AlphaZero and Gumbel MuZero (Danihelka et al. 2022, "Policy improvement by planning with Gumbel").

    Which of the two it is depends on the model. Games are independent: a game gives the same result alone and among
    others, if the model does. Every search starts anew; nothing but memory is kept from one to the next.

    An afterstate is a chance node: every visit samples a fresh outcome, and its value is the mean over them of the
    outcome's reward plus the discounted value; there is no descent below it.

    Args:
        model: what to simulate with.
        config: how much and how to search. `min_value_range` is an absolute floor, in units of value, of the range
            that sigma rescales; with 0 the search is invariant to the scale of rewards, and noise alone is stretched
            to full range.
        batch_size: B, games searched at once.
    """

    def __init__(self, model: SearchModel, config: SearchConfig, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._model = model
        self._num_simulations = config.num_simulations
        self._rules = SearchRules(
            c_visit=config.c_visit,
            c_scale=config.c_scale,
            min_value_range=max(config.min_value_range, _LEAST_VALUE_RANGE),
            considered_visits=considered_visits_table(
                min(config.max_num_considered_actions, model.max_legal_actions), config.num_simulations
            ),
        )
        self._tree = allocate_tree(batch_size, config.num_simulations + 1, model.max_legal_actions)
        self._selection = allocate_selection(batch_size, model.chance_size)
        self._games = np.arange(batch_size)
        self._embeddings: NDArray[np.generic] = np.zeros((batch_size, 0))

    @property
    def batch_size(self) -> int:
        """B, games searched at once."""
        return len(self._games)

    @property
    def tree(self) -> Tree:
        """The trees of the last search, for analysis; the next search overwrites them."""
        return self._tree

    def run(
        self,
        positions: NDArray[np.generic],
        seeds: NDArray[np.uint64],
        gumbel_scale: float = 1.0,
    ) -> SearchResult:
        """Search every position.

        Args:
            positions: [B, ...], as the model takes them. A root without an action to consider costs nothing but its
                place in the batch.
            seeds: uint64 [B], one per game and search; all noise and all chance of a search follow from it.
            gumbel_scale: factor of the noise at the root; 0 to play best.

        Raises:
            SearchError: another batch size, or a model output that is not finite or has more legal actions than the
                model announced.
        """
        if positions.shape[0] != self.batch_size or seeds.shape != (self.batch_size,):
            raise SearchError(
                f"this search takes {self.batch_size} positions and seeds, "
                f"got shapes {positions.shape} and {seeds.shape}"
            )
        seeds = _laid_out(seeds, np.uint64)
        root = self._model.root(positions)
        self._check(kernels.start(self._tree, _root_leaves(root), seeds, float(gumbel_scale)))
        self._keep_root_embeddings(root.embeddings)
        for simulation in range(self._num_simulations):
            self._simulate(simulation, seeds)
        return self._conclude()

    def _simulate(self, simulation: int, seeds: NDArray[np.uint64]) -> None:
        selection = self._selection
        # Noise at the root uses up the first A numbers of a game's stream.
        first_counter = self._model.num_actions + simulation * self._model.chance_size
        kernels.select(self._tree, self._rules, seeds, simulation, first_counter, selection)
        step = self._model.step(self._embeddings[self._games, selection.source], selection.action, selection.uniforms)
        self._embeddings[:, simulation + 1] = step.embeddings
        self._check(kernels.expand_and_back_up(self._tree, selection, _leaves(step), simulation))

    def _keep_root_embeddings(self, embeddings: NDArray[np.generic]) -> None:
        """Store the embeddings of the roots in [B, N, ...], made anew if their kind is another one than before."""
        shape = (self.batch_size, self._num_simulations + 1, *embeddings.shape[1:])
        if self._embeddings.shape != shape or self._embeddings.dtype != embeddings.dtype:
            self._embeddings = np.zeros(shape, embeddings.dtype)
        self._embeddings[:, ROOT] = embeddings

    def _conclude(self) -> SearchResult:
        outcome = allocate_outcome(self.batch_size, self._model.num_actions)
        kernels.conclude(self._tree, self._rules, outcome)
        return SearchResult(*outcome)

    def _check(self, status: int) -> None:
        if status == kernels.TOO_MANY_ACTIONS:
            raise SearchError(
                f"the model allows more than the {self._model.max_legal_actions} actions that it announced"
            )
        if status == kernels.NOT_FINITE:
            raise SearchError("the model gave a reward, discount, value or legal logit that is not finite")


def _root_leaves(root: RootOutput) -> Leaves:
    """The roots in the layout of a step, of which only the prediction is read."""
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
