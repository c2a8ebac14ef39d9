"""The compiled loops of Gumbel search: start, select, conclude, each for all games at once."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit
from zero.search.kernels import OK, begin, describe, describe_policy, draw_uniforms, open_children, settle
from zero.search.randomness import gumbel
from zero.search.tree import ROOT, UNVISITED, Leaves, Outcome, Selection, Tree


class GumbelRules(NamedTuple):
    """The numbers of a Gumbel search.

    Attributes:
        c_visit: visits added to the largest visit count in the scale of sigma.
        c_scale: factor of sigma.
        min_value_range: the least range that completed values are rescaled by, above 0.
        common_chance: chance is numbered by visits of the root's child, not by simulations.
        considered_visits: int32 [M + 1, num_simulations], Sequential Halving for each number of considered actions.
    """

    c_visit: float
    c_scale: float
    min_value_range: float
    common_chance: bool
    considered_visits: NDArray[np.int32]


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
def complete(tree: Tree, rules: GumbelRules, game: int, node: int) -> Completion:
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
def _select_at_root(tree: Tree, rules: GumbelRules, game: int, simulation: int) -> int:
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
    policy = tree.policy[:count]
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
def _value_of(tree: Tree, completion: Completion, game: int, policy: NDArray[np.float64]) -> float:
    """The completed values of the root's children under a policy."""
    value = 0.0
    for k in range(policy.shape[0]):
        visited = tree.child_visits[game, ROOT, k] > 0
        value += policy[k] * (tree.child_q[game, ROOT, k] if visited else completion.mixed_value)
    return value


@njit
def _select_inside(tree: Tree, rules: GumbelRules, game: int, node: int) -> int:
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
def start(tree: Tree, root: Leaves, seeds: NDArray[np.uint64], noise_scale: float) -> int:
    """Make the roots of all games; returns OK or what is wrong with the model's output."""
    for game in range(seeds.shape[0]):
        status = begin(tree, root, game)
        if status != OK:
            return status
        for k in range(tree.num_children[game, ROOT]):
            # Noise belongs to the action, not to its place in the list, so other masks leave it as it is.
            tree.root_gumbel[game, k] = noise_scale * gumbel(seeds[game], tree.child_action[game, ROOT, k])
    return OK


@njit
def select(
    tree: Tree,
    rules: GumbelRules,
    seeds: NDArray[np.uint64],
    simulation: int,
    first_counter: int,
    selection: Selection,
) -> None:
    """Walk down every tree to where the simulation steps, and draw its chance."""
    for game in range(seeds.shape[0]):
        draw = simulation
        node, parent, slot = ROOT, ROOT, 0
        while node != UNVISITED and tree.num_children[game, node] > 0:
            parent = node
            if node == ROOT:
                slot = _select_at_root(tree, rules, game, simulation)
                if rules.common_chance:
                    draw = int(tree.child_visits[game, ROOT, slot])
            else:
                if tree.node_visits[game, node] == 1:
                    open_children(tree, game, node)
                slot = _select_inside(tree, rules, game, node)
            node = int(tree.child_index[game, parent, slot])
        settle(tree, game, parent, slot, simulation, selection)
        draw_uniforms(seeds[game], first_counter, draw, selection.uniforms[game])


@njit
def conclude(tree: Tree, rules: GumbelRules, outcome: Outcome) -> None:
    """Write what the finished searches say; `outcome` holds zeros before."""
    for game in range(outcome.actions.shape[0]):
        describe(tree, game, outcome)
        if tree.num_children[game, ROOT] == 0:
            continue
        completion = complete(tree, rules, game, ROOT)
        policy = _improve_policy(tree, completion, game, ROOT)
        describe_policy(tree, game, policy, outcome)
        outcome.search_value[game] = _value_of(tree, completion, game, policy)
        most_visits = tree.child_visits[game, ROOT, : tree.num_children[game, ROOT]].max()
        best = _best_with_visits(tree, completion, game, most_visits)
        outcome.actions[game] = tree.child_action[game, ROOT, best]
