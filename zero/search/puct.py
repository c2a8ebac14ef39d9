"""PUCT search: priors with Dirichlet noise at the root, the upper bound of AlphaZero and MuZero throughout the tree."""

import numpy as np
from numpy.typing import NDArray

from zero.config import SearchConfig
from zero.search import puct_kernels
from zero.search.model import RootOutput, SearchModel
from zero.search.puct_kernels import PuctRules
from zero.search.subtree import keep_subtrees
from zero.search.tree import ROOT, UNVISITED, Outcome
from zero.search.tree_search import LEAST_VALUE_RANGE, SearchError, TreeSearch, root_leaves

_KEPT_NODES_PER_SIMULATION = 3
"""Room for moves that keep three quarters of the tree again and again; a subtree that is larger is dropped."""


class PuctSearch(TreeSearch):
    """PUCT (Silver et al. 2018; Schrittwieser et al. 2020, appendix B).

    The search policy is the distribution of the root's visits; the action is the most visited one. Values are rescaled
    by the range of those in the tree, so that returns of any size can be searched.

    With `reuse_subtree` a search begins with what the last one found below the position that it is given; the noise is
    drawn anew, and all simulations come on top. A position is recognised by its embedding, so a tree is never taken for
    another position's; one that chance has led to is in no tree, and the search begins anew.
    """

    def __init__(self, model: SearchModel, config: SearchConfig, batch_size: int) -> None:
        if config.root_policy != "puct":
            raise ValueError(f"root_policy is {config.root_policy!r}: make_search makes the search that it names")
        kept_nodes = _KEPT_NODES_PER_SIMULATION * config.num_simulations if config.reuse_subtree else 0
        super().__init__(model, config, batch_size, kept_nodes)
        self._reuse_subtree = config.reuse_subtree
        self._dirichlet_fraction = config.dirichlet_fraction
        self._rules = PuctRules(
            pb_c_init=config.pb_c_init,
            pb_c_base=config.pb_c_base,
            dirichlet_alpha=config.dirichlet_alpha,
            min_value_range=max(config.min_value_range, LEAST_VALUE_RANGE),
            common_chance=config.common_chance,
        )
        self._is_kept = np.zeros(batch_size, np.bool_)
        self._moved_from = np.full((batch_size, self._num_nodes), UNVISITED, np.int64)

    def _start(self, root: RootOutput, seeds: NDArray[np.uint64], noise_scale: float, num_simulations: int) -> int:
        fraction = self._dirichlet_fraction * noise_scale
        if not 0 <= fraction <= 1:
            raise SearchError(
                f"noise_scale {noise_scale:g} x dirichlet_fraction {self._dirichlet_fraction:g} must be within 0 to 1"
            )
        if self._reuse_subtree:
            self._keep_subtrees(root.embeddings, num_simulations)
        self._keep_root_embeddings(root.embeddings)
        return puct_kernels.start(self._tree, self._rules, root_leaves(root), seeds, self._is_kept, fraction)

    def _select(self, seeds: NDArray[np.uint64], simulation: int, first_counter: int) -> None:
        puct_kernels.select(self._tree, self._rules, seeds, simulation, first_counter, self._selection)

    def _conclude(self, outcome: Outcome) -> None:
        puct_kernels.conclude(self._tree, outcome)

    def _keep_subtrees(self, embeddings: NDArray[np.generic], num_simulations: int) -> None:
        """Make the nodes that hold the embeddings the roots of their trees, where there are such below the roots."""
        tree = self._tree
        found = (tree.node_visits > 0) & (tree.num_children > 0)
        if not found.any():
            self._is_kept[:] = False
            return
        same = self._embeddings == embeddings[:, None]  # [B, N, ...]
        found &= same.reshape(*found.shape, -1).all(-1)
        # Nothing found is the first slot too: NO_NODE.
        keep_subtrees(tree, found.argmax(1), num_simulations, self._moved_from)
        self._is_kept = self._moved_from[:, ROOT] != UNVISITED
        for game in np.flatnonzero(self._is_kept):
            slots = self._moved_from[game, : tree.num_kept[game] + 1]
            self._embeddings[game, : len(slots)] = self._embeddings[game, slots]
