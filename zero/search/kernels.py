"""The compiled loops of Gumbel search: start, select, expand and back up, conclude, each for all games at once."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit
from zero.search.randomness import gumbel, uniform
from zero.search.tree import ROOT, UNVISITED, Leaves, Outcome, SearchRules, Selection, Tree

OK = 0
TOO_MANY_ACTIONS = 1
NOT_FINITE = 2

_TINY = float(np.finfo(np.float32).tiny)


class Completion(NamedTuple):
    """How sigma reads the completed values of one node: sigma(q) = scale * (q - low).

    Attributes:
        mixed_value: stands in for the value of unvisited children.
        low: least completed value.
        high: largest completed value.
        scale: (c_visit + largest visit count) * c_scale / range.
        num_visits: visits of all children.
    """

    mixed_value: float
    low: float
    high: float
    scale: float
    num_visits: int


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
def complete(tree: Tree, rules: SearchRules, game: int, node: int) -> Completion:
    """Complete the values of a node that has children (Danihelka et al. 2022, appendix D) and rescale them.

    The range that is rescaled to [0, 1] is at least `min_value_range`, in units of value: without a floor, children
    whose values differ by noise alone would be told apart as sharply as a win from a loss.
    """
    visits = tree.child_visits[game, node]
    values = tree.child_q[game, node]
    priors = tree.child_prior[game, node]
    count = tree.num_children[game, node]
    num_visits, num_visited, max_visits = 0, 0, 0
    weight, weighted = 0.0, 0.0
    low, high = np.inf, -np.inf
    for k in range(count):
        if visits[k] > 0:
            value = float(values[k])
            num_visits += visits[k]
            num_visited += 1
            max_visits = max(max_visits, visits[k])
            weight += priors[k]
            weighted += priors[k] * value
            low = min(low, value)
            high = max(high, value)
    mixed = float(tree.raw_value[game, node])
    if num_visited > 0:
        mixed = (mixed + num_visits * weighted / weight) / (1 + num_visits)
    if num_visited < count:
        low = min(low, mixed)
        high = max(high, mixed)
    scale = (rules.c_visit + max_visits) * rules.c_scale / max(high - low, rules.min_value_range)
    return Completion(mixed, low, high, scale, num_visits)


@njit
def _sigma(completion: Completion, visits: int, value: float) -> float:
    return completion.scale * ((value if visits > 0 else completion.mixed_value) - completion.low)


@njit
def _select_at_root(tree: Tree, rules: SearchRules, game: int, simulation: int) -> int:
    """The child with the largest gumbel + logit + sigma among those that Sequential Halving has in turn."""
    count = tree.num_children[game, ROOT]
    num_considered = min(count, rules.considered_visits.shape[0] - 1)
    due = rules.considered_visits[num_considered, simulation]
    return _best_with_visits(tree, complete(tree, rules, game, ROOT), game, due)


@njit
def _best_with_visits(tree: Tree, completion: Completion, game: int, due: int) -> int:
    best, best_score = 0, -np.inf
    for k in range(tree.num_children[game, ROOT]):
        visits = tree.child_visits[game, ROOT, k]
        if visits != due:
            continue
        sigma = _sigma(completion, visits, tree.child_q[game, ROOT, k])
        score = tree.root_gumbel[game, k] + tree.child_logit[game, ROOT, k] + sigma
        if score > best_score:
            best, best_score = k, score
    return best


@njit
def _improve_policy(tree: Tree, completion: Completion, game: int, node: int) -> NDArray[np.float64]:
    """softmax(logits + sigma(completed values)) over the children of a node, float64 [number of children].

    Computed as priors times exp(sigma), of which unvisited children share one. The result is overwritten by the next.
    """
    count = tree.num_children[game, node]
    priors = tree.child_prior[game, node]
    visits = tree.child_visits[game, node]
    values = tree.child_q[game, node]
    policy = tree.improved_policy[:count]
    unvisited = math.exp(completion.scale * (completion.mixed_value - completion.high))
    total = 0.0
    for k in range(count):
        factor = math.exp(completion.scale * (values[k] - completion.high)) if visits[k] > 0 else unvisited
        policy[k] = priors[k] * factor
        total += policy[k]
    for k in range(count):
        policy[k] /= total
    return policy


@njit
def _select_inside(tree: Tree, rules: SearchRules, game: int, node: int) -> int:
    """The child whose share of visits is furthest below its improved policy (Danihelka et al. 2022, section 5)."""
    completion = complete(tree, rules, game, node)
    policy = _improve_policy(tree, completion, game, node)
    visits = tree.child_visits[game, node]
    best, best_score = 0, -np.inf
    for k in range(policy.shape[0]):
        score = policy[k] - visits[k] / (1 + completion.num_visits)
        if score > best_score:
            best, best_score = k, score
    return best


@njit
def start(tree: Tree, root: Leaves, seeds: NDArray[np.uint64], gumbel_scale: float) -> int:
    """Make the roots of all games; returns OK or what is wrong with the model's output."""
    for game in range(seeds.shape[0]):
        status = list_children(tree, game, ROOT, root.logits[game], root.legal_action_mask[game])
        if status != OK:
            return status
        if not math.isfinite(root.values[game]):
            return NOT_FINITE
        value = 0.0 if root.terminated[game] else root.values[game]
        tree.raw_value[game, ROOT] = value
        tree.node_value[game, ROOT] = value
        tree.num_made[game] = 0
        tree.node_visits[game] = 0
        tree.node_visits[game, ROOT] = 1
        open_children(tree, game, ROOT)
        for k in range(tree.num_children[game, ROOT]):
            # Noise belongs to the action, not to its place in the list, so other masks leave it as it is.
            tree.root_gumbel[game, k] = gumbel_scale * gumbel(seeds[game], tree.child_action[game, ROOT, k])
    return OK


@njit
def select(
    tree: Tree,
    rules: SearchRules,
    seeds: NDArray[np.uint64],
    simulation: int,
    first_counter: int,
    selection: Selection,
) -> None:
    """Walk down every tree to where the simulation steps, and draw its chance uniforms from the game's own stream.

    Uniforms of the simulation are the numbers `first_counter`, ... of the stream.
    """
    for game in range(seeds.shape[0]):
        for index in range(selection.uniforms.shape[1]):
            selection.uniforms[game, index] = uniform(seeds[game], first_counter + index)
        _select_leaf(tree, rules, game, simulation, selection)


@njit
def _select_leaf(tree: Tree, rules: SearchRules, game: int, simulation: int, selection: Selection) -> None:
    node, parent, slot = ROOT, ROOT, 0
    while node != UNVISITED and tree.num_children[game, node] > 0:
        parent = node
        if node == ROOT:
            slot = _select_at_root(tree, rules, game, simulation)
        else:
            if tree.node_visits[game, node] == 1:
                open_children(tree, game, node)
            slot = _select_inside(tree, rules, game, node)
        node = int(tree.child_index[game, parent, slot])
    selection.slot[game] = slot
    selection.reached[game] = simulation + 1 if node == UNVISITED else node
    if node == ROOT or (node != UNVISITED and tree.is_chance[game, node]):
        selection.source[game] = node
        selection.action[game] = -1
    else:
        selection.source[game] = parent
        selection.action[game] = tree.child_action[game, parent, slot]


@njit
def expand_and_back_up(tree: Tree, selection: Selection, leaves: Leaves, simulation: int) -> int:
    """Enter the step of one simulation into every tree; returns OK or what is wrong with the model's output."""
    for game in range(selection.reached.shape[0]):
        node = int(selection.reached[game])
        if node == ROOT:
            continue
        if not _is_finite(leaves, game):
            return NOT_FINITE
        if node == simulation + 1:
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
        tree.child_q[game, parent, slot] = reward + discount * tree.node_value[game, node]
        value = reward + discount * value
        node = int(parent)
        _average(tree, game, node, value)


@njit
def _average(tree: Tree, game: int, node: int, value: float) -> None:
    visits = tree.node_visits[game, node]
    tree.node_value[game, node] = (tree.node_value[game, node] * float(visits) + value) / (visits + 1)
    tree.node_visits[game, node] = visits + 1


@njit
def conclude(tree: Tree, rules: SearchRules, outcome: Outcome) -> None:
    """Write what the finished searches say; `outcome` holds zeros before."""
    for game in range(outcome.actions.shape[0]):
        outcome.search_value[game] = tree.node_value[game, ROOT]
        outcome.raw_value[game] = tree.raw_value[game, ROOT]
        outcome.num_unique_leaves[game] = tree.num_made[game]
        outcome.actions[game] = -1
        if tree.num_children[game, ROOT] > 0:
            _conclude_root(tree, rules, game, outcome)


@njit
def _conclude_root(tree: Tree, rules: SearchRules, game: int, outcome: Outcome) -> None:
    completion = complete(tree, rules, game, ROOT)
    policy = _improve_policy(tree, completion, game, ROOT)
    most_visits = 0
    for k in range(policy.shape[0]):
        action = tree.child_action[game, ROOT, k]
        visits = tree.child_visits[game, ROOT, k]
        outcome.visit_counts[game, action] = visits
        outcome.search_policy[game, action] = policy[k]
        most_visits = max(most_visits, visits)
    outcome.actions[game] = tree.child_action[game, ROOT, _best_with_visits(tree, completion, game, most_visits)]
