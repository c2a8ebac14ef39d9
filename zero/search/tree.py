"""Search trees of B games as a structure of arrays: N node slots per game, K child slots per node."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = 0
UNVISITED = -1


class Tree(NamedTuple):
    """B trees; node 0 is the root, node num_kept + i + 1 is the one made in simulation i.

    A simulation that makes no node leaves its slot with 0 visits; nothing else of such a slot holds meaning. Of the
    children of a node with a single visit, only the actions and the raw logits are known.

    A chance node is an afterstate: its value is the mean over the outcomes sampled so far, and it has no children.

    Attributes:
        num_kept: int32 [B], nodes below the root that an earlier search made.
        num_made: int32 [B], nodes below the root that this search made.
        least_value: float32 [B], of the root's own evaluation and all values that children had in this search.
        largest_value: float32 [B], of the same.
        node_visits: int32 [B, N], simulations that reached the node, the one that made it included; at the root one
            more, for its own evaluation.
        node_value: float32 [B, N], mean return over these, for the player to move; for the player who moved at a
            chance node.
        raw_value: float32 [B, N], as the model gave it, 0 where the game is over.
        parent: int32 [B, N].
        parent_slot: int32 [B, N], which child of its parent the node is.
        is_chance: bool [B, N].
        reward: float32 [B, N], of the edge into the node.
        discount: float32 [B, N], from the value after the edge (and after chance) to the parent's.
        num_children: int32 [B, N]; 0 for chance and where no action may be considered, for one when the game is over.
        child_action: int32 [B, N, K], ascending.
        child_logit: float32 [B, N, K], less the largest one of the node.
        child_prior: float32 [B, N, K], softmax of the logits over the node's children, nowhere 0; with noise at the
            root of a PUCT search.
        child_visits: int32 [B, N, K].
        child_q: float32 [B, N, K], reward plus discounted value, for the player to move at the node; 0 if unvisited.
        child_index: int32 [B, N, K], the child's node, or UNVISITED.
        root_gumbel: float32 [B, K].
        policy: float64 [K], over the children of the node that was looked at last.
    """

    num_kept: NDArray[np.int32]
    num_made: NDArray[np.int32]
    least_value: NDArray[np.float32]
    largest_value: NDArray[np.float32]
    node_visits: NDArray[np.int32]
    node_value: NDArray[np.float32]
    raw_value: NDArray[np.float32]
    parent: NDArray[np.int32]
    parent_slot: NDArray[np.int32]
    is_chance: NDArray[np.bool_]
    reward: NDArray[np.float32]
    discount: NDArray[np.float32]
    num_children: NDArray[np.int32]
    child_action: NDArray[np.int32]
    child_logit: NDArray[np.float32]
    child_prior: NDArray[np.float32]
    child_visits: NDArray[np.int32]
    child_q: NDArray[np.float32]
    child_index: NDArray[np.int32]
    root_gumbel: NDArray[np.float32]
    policy: NDArray[np.float64]


def allocate_tree(batch_size: int, num_nodes: int, max_children: int) -> Tree:
    """Trees whose every slot is still to be made."""
    nodes = (batch_size, num_nodes)
    children = (batch_size, num_nodes, max_children)
    return Tree(
        num_kept=np.zeros(batch_size, np.int32),
        num_made=np.zeros(batch_size, np.int32),
        least_value=np.zeros(batch_size, np.float32),
        largest_value=np.zeros(batch_size, np.float32),
        node_visits=np.zeros(nodes, np.int32),
        node_value=np.zeros(nodes, np.float32),
        raw_value=np.zeros(nodes, np.float32),
        parent=np.zeros(nodes, np.int32),
        parent_slot=np.zeros(nodes, np.int32),
        is_chance=np.zeros(nodes, np.bool_),
        reward=np.zeros(nodes, np.float32),
        discount=np.zeros(nodes, np.float32),
        num_children=np.zeros(nodes, np.int32),
        child_action=np.zeros(children, np.int32),
        child_logit=np.zeros(children, np.float32),
        child_prior=np.zeros(children, np.float32),
        child_visits=np.zeros(children, np.int32),
        child_q=np.zeros(children, np.float32),
        child_index=np.zeros(children, np.int32),
        root_gumbel=np.zeros((batch_size, max_children), np.float32),
        policy=np.zeros(max_children, np.float64),
    )


def mean_depth(tree: Tree) -> float:
    """How many moves below the root simulations end, in the mean over all that the roots have seen.

    A simulation that ends in depth d visits d nodes below the root.
    """
    below, simulations = tree.node_visits[:, ROOT + 1 :].sum(), (tree.node_visits[:, ROOT] - 1).sum()
    return float(below) / max(1, int(simulations))


class Selection(NamedTuple):
    """Where one simulation of every game leads.

    Attributes:
        source: int64 [B], the node to step from.
        action: int64 [B], the action to step with; -1 samples an outcome.
        slot: int64 [B], the child of `source` that is made, if one is.
        reached: int64 [B], the node that the step ends in; a new one, or one seen before that has no children.
        uniforms: float64 [B, chance_size].
    """

    source: NDArray[np.int64]
    action: NDArray[np.int64]
    slot: NDArray[np.int64]
    reached: NDArray[np.int64]
    uniforms: NDArray[np.float64]


def allocate_selection(batch_size: int, chance_size: int) -> Selection:
    """A selection to be filled."""
    return Selection(
        source=np.zeros(batch_size, np.int64),
        action=np.zeros(batch_size, np.int64),
        slot=np.zeros(batch_size, np.int64),
        reached=np.zeros(batch_size, np.int64),
        uniforms=np.zeros((batch_size, chance_size), np.float64),
    )


class Leaves(NamedTuple):
    """A model's step, in the layout that the kernels are compiled for: StepOutput without embeddings."""

    rewards: NDArray[np.float32]
    chance_rewards: NDArray[np.float32]
    discounts: NDArray[np.float32]
    values: NDArray[np.float32]
    logits: NDArray[np.float32]
    legal_action_mask: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    is_chance: NDArray[np.bool_]


class Outcome(NamedTuple):
    """What a finished search says, as SearchResult describes it."""

    actions: NDArray[np.int64]
    search_policy: NDArray[np.float32]
    search_value: NDArray[np.float32]
    raw_value: NDArray[np.float32]
    visit_counts: NDArray[np.int32]
    num_unique_leaves: NDArray[np.int32]
    policy_entropy: NDArray[np.float32]
    policy_divergence: NDArray[np.float32]


def allocate_outcome(batch_size: int, num_actions: int) -> Outcome:
    """An outcome of zeros."""
    return Outcome(
        actions=np.zeros(batch_size, np.int64),
        search_policy=np.zeros((batch_size, num_actions), np.float32),
        search_value=np.zeros(batch_size, np.float32),
        raw_value=np.zeros(batch_size, np.float32),
        visit_counts=np.zeros((batch_size, num_actions), np.int32),
        num_unique_leaves=np.zeros(batch_size, np.int32),
        policy_entropy=np.zeros(batch_size, np.float32),
        policy_divergence=np.zeros(batch_size, np.float32),
    )
