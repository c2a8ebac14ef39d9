"""Gumbel search: Sequential Halving at the root, visits in proportion to the improved policy below it."""

import numpy as np
from numpy.typing import NDArray

from zero.config import SearchConfig
from zero.search import gumbel_kernels
from zero.search.gumbel_kernels import GumbelRules
from zero.search.model import RootOutput, SearchModel
from zero.search.sequential_halving import considered_visits_table
from zero.search.tree import Outcome
from zero.search.tree_search import LEAST_VALUE_RANGE, TreeSearch, root_leaves


class GumbelSearch(TreeSearch):
    """Gumbel AlphaZero and Gumbel MuZero (Danihelka et al. 2022, "Policy improvement by planning with Gumbel").

    Which of the two it is depends on the model. Every search starts anew; nothing but memory is kept from one to the
    next. The search policy is softmax(logits + sigma(completed values)), the action the most visited one with the best
    gumbel + logit + sigma(value).
    """

    def __init__(self, model: SearchModel, config: SearchConfig, batch_size: int) -> None:
        if config.root_policy != "gumbel":
            raise ValueError(f"root_policy is {config.root_policy!r}: make_search makes the search that it names")
        super().__init__(model, config, batch_size)
        self._config = config
        self._rules = self._make_rules(config.num_simulations)

    def _make_rules(self, num_simulations: int) -> GumbelRules:
        config = self._config
        num_considered = min(config.max_num_considered_actions, self._model.max_legal_actions)
        return GumbelRules(
            c_visit=config.c_visit,
            c_scale=config.c_scale,
            min_value_range=max(config.min_value_range, LEAST_VALUE_RANGE),
            common_chance=config.common_chance,
            considered_visits=considered_visits_table(num_considered, num_simulations),
        )

    def _start(self, root: RootOutput, seeds: NDArray[np.uint64], noise_scale: float, num_simulations: int) -> int:
        if self._rules.considered_visits.shape[1] != num_simulations:
            self._rules = self._make_rules(num_simulations)
        self._keep_root_embeddings(root.embeddings)
        return gumbel_kernels.start(self._tree, root_leaves(root), seeds, noise_scale)

    def _select(self, seeds: NDArray[np.uint64], simulation: int, first_counter: int) -> None:
        gumbel_kernels.select(self._tree, self._rules, seeds, simulation, first_counter, self._selection)

    def _conclude(self, outcome: Outcome) -> None:
        gumbel_kernels.conclude(self._tree, self._rules, outcome)
