"""The compiled loops of PUCT search: start, select, conclude, each for all games at once."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit
from zero.search.kernels import OK, begin, describe, describe_policy, draw_uniforms, open_children, settle
from zero.search.randomness import log_gamma
from zero.search.tree import ROOT, UNVISITED, Leaves, Outcome, Selection, Tree


class PuctRules(NamedTuple):
    """The numbers of a PUCT search.

    Attributes:
        pb_c_init: weight of priors against values.
        pb_c_base: visits over which that weight grows.
        dirichlet_alpha: concentration of the noise, of all actions of the root together.
        min_value_range: the least range that values are rescaled by, above 0.
        common_chance: chance is numbered by visits of the root's child, not by simulations.
    """

    pb_c_init: float
    pb_c_base: float
    dirichlet_alpha: float
    min_value_range: float
    common_chance: bool


@njit
def start(
    tree: Tree,
    rules: PuctRules,
    root: Leaves,
    seeds: NDArray[np.uint64],
    is_kept: NDArray[np.bool_],
    noise_fraction: float,
) -> int:
    """Make the roots that are not kept, and put noise on all; returns OK or what is wrong with the model's output."""
    for game in range(seeds.shape[0]):
        if not is_kept[game]:
            status = begin(tree, root, game)
            if status != OK:
                return status
        if noise_fraction > 0 and tree.num_children[game, ROOT] > 0:
            _mix_noise(tree, rules, game, seeds[game], noise_fraction)
    return OK


@njit
def _mix_noise(tree: Tree, rules: PuctRules, game: int, seed: np.uint64, fraction: float) -> None:
    """Mix the priors of the root with a draw from the symmetric Dirichlet distribution: gamma numbers, normalised."""
    count = tree.num_children[game, ROOT]
    noise = tree.policy[:count]
    largest = -np.inf
    for k in range(count):
        noise[k] = log_gamma(seed, tree.child_action[game, ROOT, k], rules.dirichlet_alpha / count)
        largest = max(largest, noise[k])
    total = 0.0
    for k in range(count):
        noise[k] = math.exp(noise[k] - largest)
        total += noise[k]
    for k in range(count):
        prior = tree.child_prior[game, ROOT, k]
        tree.child_prior[game, ROOT, k] = (1 - fraction) * prior + fraction * noise[k] / total


@njit
def _select_child(tree: Tree, rules: PuctRules, game: int, node: int) -> int:
    """The child with the largest value plus bonus (Schrittwieser et al. 2020, appendix B).

    Values are rescaled by the range of all that were seen in the tree; only differences matter, so nothing is
    subtracted but the value of the node, with which unvisited children count. If these counted with the least value
    seen, most would never be tried where priors are flat and simulations few.
    """
    count = tree.num_children[game, node]
    visits = tree.child_visits[game, node]
    values = tree.child_q[game, node]
    priors = tree.child_prior[game, node]
    unvisited = float(tree.node_value[game, node])
    stretch = 1 / max(float(tree.largest_value[game] - tree.least_value[game]), rules.min_value_range)
    num_visits = tree.node_visits[game, node]
    pb_c = rules.pb_c_init + math.log((num_visits + rules.pb_c_base + 1) / rules.pb_c_base)
    bonus = pb_c * math.sqrt(num_visits)
    best, best_score = 0, -np.inf
    for k in range(count):
        value = values[k] if visits[k] > 0 else unvisited
        score = stretch * (value - unvisited) + bonus * priors[k] / (1 + visits[k])
        if score > best_score:
            best, best_score = k, score
    return best


@njit
def select(
    tree: Tree,
    rules: PuctRules,
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
            if node != ROOT and tree.node_visits[game, node] == 1:
                open_children(tree, game, node)
            slot = _select_child(tree, rules, game, node)
            if node == ROOT and rules.common_chance:
                draw = int(tree.child_visits[game, ROOT, slot])
            node = int(tree.child_index[game, parent, slot])
        settle(tree, game, parent, slot, simulation, selection)
        draw_uniforms(seeds[game], first_counter, draw, selection.uniforms[game])


@njit
def conclude(tree: Tree, outcome: Outcome) -> None:
    """Write what the finished searches say; `outcome` holds zeros before."""
    for game in range(outcome.actions.shape[0]):
        describe(tree, game, outcome)
        count = tree.num_children[game, ROOT]
        if count == 0:
            continue
        visits = tree.child_visits[game, ROOT, :count]
        policy = tree.policy[:count]
        num_visits = visits.sum()
        for k in range(count):
            policy[k] = visits[k] / num_visits
        describe_policy(tree, game, policy, outcome)
        outcome.actions[game] = tree.child_action[game, ROOT, _most_visited(tree, game)]


@njit
def _most_visited(tree: Tree, game: int) -> int:
    """The child of the root with the most visits, the one with the largest value among several."""
    visits = tree.child_visits[game, ROOT]
    values = tree.child_q[game, ROOT]
    best = 0
    for k in range(1, tree.num_children[game, ROOT]):
        if visits[k] > visits[best] or (visits[k] == visits[best] and values[k] > values[best]):
            best = k
    return best
