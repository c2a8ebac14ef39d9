"""The compiled loops that all searches share: begin, expand and back up, describe, each for one tree or for all.

Numba watches only the file of the function that it compiled: who changes this one must touch its importers too.
"""

import math

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit
from zero.search.randomness import uniform
from zero.search.tree import ROOT, UNVISITED, Leaves, Outcome, Selection, Tree

OK = 0
TOO_MANY_ACTIONS = 1
NOT_FINITE = 2

_TINY = float(np.finfo(np.float32).tiny)


@njit
def list_children(tree: Tree, game: int, node: int, logits: NDArray[np.float32], mask: NDArray[np.bool_]) -> int:
    """List the legal actions of a node with their logits; returns OK or what is wrong.

    The rest of what is known of a child is written by `open_children` when the search first descends from the node:
    most nodes are leaves to the end, and their priors would cost an exponential each.
    """
    actions = tree.child_action[game, node]
    listed = tree.child_logit[game, node]
    count, total = 0, 0.0
    for action in range(mask.shape[0]):
        if not mask[action]:
            continue
        if count == actions.shape[0]:
            return TOO_MANY_ACTIONS
        actions[count] = action
        listed[count] = logits[action]
        total += logits[action]
        count += 1
    tree.num_children[game, node] = count
    # A sum is finite only if every term is.
    return OK if math.isfinite(total) else NOT_FINITE


@njit
def open_children(tree: Tree, game: int, node: int) -> None:
    """Shift the logits of a node's children, give them priors, and mark them unvisited.

    Priors are normalised over the legal actions alone: what a network says about others must not weaken them.
    """
    count = tree.num_children[game, node]
    shifted = tree.child_logit[game, node]
    priors = tree.child_prior[game, node]
    largest = np.float32(-np.inf)
    for k in range(count):
        largest = max(largest, shifted[k])
    total = 0.0
    for k in range(count):
        shifted[k] -= largest
        priors[k] = math.exp(shifted[k])
        total += priors[k]
    for k in range(count):
        # A prior of 0 would leave the mixed value of a node undefined while only such children are visited.
        priors[k] = max(priors[k] / total, _TINY)
    tree.child_visits[game, node, :count] = 0
    tree.child_q[game, node, :count] = 0.0
    tree.child_index[game, node, :count] = UNVISITED


@njit
def begin(tree: Tree, root: Leaves, game: int) -> int:
    """Make a new root, with no noise yet; returns OK or what is wrong with the model's output."""
    status = list_children(tree, game, ROOT, root.logits[game], root.legal_action_mask[game])
    if status != OK:
        return status
    if not math.isfinite(root.values[game]):
        return NOT_FINITE
    value = 0.0 if root.terminated[game] else root.values[game]
    tree.raw_value[game, ROOT] = value
    tree.node_value[game, ROOT] = value
    tree.least_value[game] = value
    tree.largest_value[game] = value
    tree.num_kept[game] = 0
    tree.num_made[game] = 0
    tree.node_visits[game] = 0
    tree.node_visits[game, ROOT] = 1
    open_children(tree, game, ROOT)
    return OK


@njit
def settle(tree: Tree, game: int, parent: int, slot: int, simulation: int, selection: Selection) -> None:
    """Enter where a walk ended that left `parent` through its child `slot`; a root without children is its own end."""
    node = ROOT if tree.num_children[game, parent] == 0 else int(tree.child_index[game, parent, slot])
    selection.slot[game] = slot
    selection.reached[game] = tree.num_kept[game] + simulation + 1 if node == UNVISITED else node
    if node == ROOT or (node != UNVISITED and tree.is_chance[game, node]):
        selection.source[game] = node
        selection.action[game] = -1
    else:
        selection.source[game] = parent
        selection.action[game] = tree.child_action[game, parent, slot]


@njit
def draw_uniforms(seed: np.uint64, first_counter: int, draw: int, uniforms: NDArray[np.float64]) -> None:
    """Fill in the chance of draw number `draw`, counted from `first_counter` of the game's own stream on."""
    size = uniforms.shape[0]
    for index in range(size):
        uniforms[index] = uniform(seed, first_counter + draw * size + index)


@njit
def expand_and_back_up(tree: Tree, selection: Selection, leaves: Leaves) -> int:
    """Enter the step of one simulation into every tree; returns OK or what is wrong with the model's output."""
    for game in range(selection.reached.shape[0]):
        node = int(selection.reached[game])
        if node == ROOT:
            continue
        if not _is_finite(leaves, game):
            return NOT_FINITE
        if tree.node_visits[game, node] == 0:
            status = _make_node(tree, selection, leaves, game, node)
            if status != OK:
                return status
        _back_up(tree, game, node, _leaf_return(tree, leaves, game, node))
    return OK


@njit
def _is_finite(leaves: Leaves, game: int) -> bool:
    # One test for all four: a sum is finite only if every term is.
    return math.isfinite(
        abs(leaves.rewards[game])
        + abs(leaves.chance_rewards[game])
        + abs(leaves.discounts[game])
        + abs(leaves.values[game])
    )


@njit
def _make_node(tree: Tree, selection: Selection, leaves: Leaves, game: int, node: int) -> int:
    parent, slot = selection.source[game], selection.slot[game]
    tree.num_made[game] += 1
    tree.parent[game, node] = parent
    tree.parent_slot[game, node] = slot
    tree.child_index[game, parent, slot] = node
    tree.is_chance[game, node] = leaves.is_chance[game]
    tree.reward[game, node] = leaves.rewards[game]
    tree.discount[game, node] = leaves.discounts[game]
    tree.raw_value[game, node] = 0.0 if leaves.terminated[game] else leaves.values[game]
    tree.node_visits[game, node] = 0
    tree.node_value[game, node] = 0.0
    tree.num_children[game, node] = 0
    if leaves.is_chance[game] or leaves.terminated[game]:
        return OK
    return list_children(tree, game, node, leaves.logits[game], leaves.legal_action_mask[game])


@njit
def _leaf_return(tree: Tree, leaves: Leaves, game: int, node: int) -> float:
    """The return from the leaf on: of the drawn outcome at a chance node, as first evaluated elsewhere."""
    if tree.is_chance[game, node]:
        return leaves.chance_rewards[game] + tree.discount[game, node] * float(leaves.values[game])
    return tree.raw_value[game, node]


@njit
def _back_up(tree: Tree, game: int, leaf: int, leaf_return: float) -> None:
    node, value = leaf, leaf_return
    _average(tree, game, node, value)
    while node != ROOT:
        reward = tree.reward[game, node]
        # Chance is half of a step: the value of an afterstate is the mover's own, discounted when it was sampled.
        discount = 1.0 if tree.is_chance[game, node] else float(tree.discount[game, node])
        parent, slot = tree.parent[game, node], tree.parent_slot[game, node]
        tree.child_visits[game, parent, slot] += 1
        child_value = np.float32(reward + discount * tree.node_value[game, node])
        tree.child_q[game, parent, slot] = child_value
        tree.least_value[game] = min(tree.least_value[game], child_value)
        tree.largest_value[game] = max(tree.largest_value[game], child_value)
        value = reward + discount * value
        node = int(parent)
        _average(tree, game, node, value)


@njit
def _average(tree: Tree, game: int, node: int, value: float) -> None:
    visits = tree.node_visits[game, node]
    tree.node_value[game, node] = (tree.node_value[game, node] * float(visits) + value) / (visits + 1)
    tree.node_visits[game, node] = visits + 1


@njit
def describe(tree: Tree, game: int, outcome: Outcome) -> None:
    """Write what a finished search says of its root, beside action and policy; `outcome` holds zeros before."""
    outcome.search_value[game] = tree.node_value[game, ROOT]
    outcome.raw_value[game] = tree.raw_value[game, ROOT]
    outcome.num_unique_leaves[game] = tree.num_made[game]
    outcome.actions[game] = -1


@njit
def describe_policy(tree: Tree, game: int, policy: NDArray[np.float64], outcome: Outcome) -> None:
    """Write the policy over the children of the root, its entropy and its divergence from the network's own."""
    total = 0.0
    for k in range(policy.shape[0]):
        total += math.exp(tree.child_logit[game, ROOT, k])
    log_total, entropy, divergence = math.log(total), 0.0, 0.0
    for k in range(policy.shape[0]):
        action = tree.child_action[game, ROOT, k]
        outcome.visit_counts[game, action] = tree.child_visits[game, ROOT, k]
        outcome.search_policy[game, action] = policy[k]
        if policy[k] > 0:
            log_policy = math.log(policy[k])
            entropy -= policy[k] * log_policy
            divergence += policy[k] * (log_policy - (tree.child_logit[game, ROOT, k] - log_total))
    outcome.policy_entropy[game] = entropy
    # Of equal policies rounding may leave less than nothing.
    outcome.policy_divergence[game] = max(divergence, 0.0)
