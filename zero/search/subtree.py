"""Makes a node of a finished search the root of the next one, with all that is below it."""

import numpy as np
from numpy.typing import NDArray

from zero.jit import njit
from zero.search.kernels import open_children
from zero.search.tree import ROOT, UNVISITED, Tree

NO_NODE = ROOT
"""Stands for no node to keep: the old root is never made root again, for there is noise on it."""


@njit
def keep_subtrees(tree: Tree, tops: NDArray[np.int64], num_free: int, moved_from: NDArray[np.int64]) -> None:
    """Make node `tops[game]` the root of its tree, unless less than `num_free` slots would be left.

    Args:
        tree: as the last search left it.
        tops: int64 [B], a node that has children, or NO_NODE.
        num_free: slots.
        moved_from: int64 [B, N], filled in with the slots that the kept nodes had, the root's first, then UNVISITED.
    """
    for game in range(tops.shape[0]):
        moved_from[game] = UNVISITED
        if tops[game] == NO_NODE:
            continue
        count = _list_subtree(tree, game, int(tops[game]), moved_from[game])
        if count + num_free > moved_from.shape[1]:
            moved_from[game] = UNVISITED
            continue
        _move_subtree(tree, game, count, moved_from[game])


@njit
def _list_subtree(tree: Tree, game: int, top: int, moved_from: NDArray[np.int64]) -> int:
    """List a node and all below it, in the order in which they were made; returns how many they are."""
    listed = np.zeros(moved_from.shape[0], np.bool_)
    listed[top] = True
    moved_from[ROOT] = top
    count = 1
    # Children are made after their parents.
    for node in range(top + 1, moved_from.shape[0]):
        if tree.node_visits[game, node] > 0 and listed[tree.parent[game, node]]:
            listed[node] = True
            moved_from[count] = node
            count += 1
    return count


@njit
def _move_subtree(tree: Tree, game: int, count: int, moved_from: NDArray[np.int64]) -> None:
    moved_to = np.full(moved_from.shape[0], UNVISITED, np.int32)
    for node in range(count):
        moved_to[moved_from[node]] = node
    # Nodes only ever move to lower slots, so none is overwritten before it has moved.
    for node in range(count):
        _move_node(tree, game, int(moved_from[node]), node, moved_to)
    tree.node_visits[game, count:] = 0
    tree.num_kept[game] = count - 1
    tree.num_made[game] = 0
    tree.least_value[game] = tree.node_value[game, ROOT]
    tree.largest_value[game] = tree.node_value[game, ROOT]
    for node in range(1, count):
        value = tree.child_q[game, tree.parent[game, node], tree.parent_slot[game, node]]
        tree.least_value[game] = min(tree.least_value[game], value)
        tree.largest_value[game] = max(tree.largest_value[game], value)
    if tree.node_visits[game, ROOT] == 1:
        open_children(tree, game, ROOT)


@njit
def _move_node(tree: Tree, game: int, source: int, node: int, moved_to: NDArray[np.int32]) -> None:
    tree.node_visits[game, node] = tree.node_visits[game, source]
    tree.node_value[game, node] = tree.node_value[game, source]
    tree.raw_value[game, node] = tree.raw_value[game, source]
    tree.is_chance[game, node] = tree.is_chance[game, source]
    if node != ROOT:
        tree.parent[game, node] = moved_to[tree.parent[game, source]]
        tree.parent_slot[game, node] = tree.parent_slot[game, source]
        tree.reward[game, node] = tree.reward[game, source]
        tree.discount[game, node] = tree.discount[game, source]
    count = tree.num_children[game, source]
    tree.num_children[game, node] = count
    for k in range(count):
        tree.child_action[game, node, k] = tree.child_action[game, source, k]
        tree.child_logit[game, node, k] = tree.child_logit[game, source, k]
        if tree.node_visits[game, node] > 1:
            tree.child_prior[game, node, k] = tree.child_prior[game, source, k]
            tree.child_visits[game, node, k] = tree.child_visits[game, source, k]
            tree.child_q[game, node, k] = tree.child_q[game, source, k]
            child = tree.child_index[game, source, k]
            tree.child_index[game, node, k] = UNVISITED if child == UNVISITED else moved_to[child]
