"""Plain Monte Carlo tree search (UCT) by random games, for two players without chance, many games in lock step."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.players import Actions, Seeds
from zero.games.game import Game, GameError, States
from zero.jit import njit
from zero.search.randomness import uniform

EXPLORATION = 1.0
"""Weight of the confidence bound against results of -1 to 1."""
MAX_ROLLOUT_MOVES = 2000
_SEED_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROOT = 0
_NONE = -1


class _Tree(NamedTuple):
    """B trees of at most N nodes; node 0 is the root, node i + 1 the one made in simulation i.

    Attributes:
        legal: bool [B, N, A].
        child: int32 [B, N, A], the node behind an action, -1 for none yet.
        parent: int32 [B, N].
        over: bool [B, N], the game has ended there.
        reward: float32 [B, N], for the move into the node, to the player who made it.
        visits: int32 [B, N].
        total: float64 [B, N], sum of the returns from that move on, to the player who made it.
    """

    legal: NDArray[np.bool_]
    child: NDArray[np.int32]
    parent: NDArray[np.int32]
    over: NDArray[np.bool_]
    reward: NDArray[np.float32]
    visits: NDArray[np.int32]
    total: NDArray[np.float64]


def _allocate(batch: int, nodes: int, actions: int) -> _Tree:
    return _Tree(
        legal=np.zeros((batch, nodes, actions), np.bool_),
        child=np.full((batch, nodes, actions), _NONE, np.int32),
        parent=np.zeros((batch, nodes), np.int32),
        over=np.zeros((batch, nodes), np.bool_),
        reward=np.zeros((batch, nodes), np.float32),
        visits=np.zeros((batch, nodes), np.int32),
        total=np.zeros((batch, nodes)),
    )


@njit
def _untried_action(tree: _Tree, game: int, node: int, number: float) -> int:
    """One of the legal actions that lead to no node yet, each equally likely; -1 if there is none."""
    count = 0
    for action in range(tree.legal.shape[2]):
        count += tree.legal[game, node, action] and tree.child[game, node, action] == _NONE
    left = int(number * count)
    for action in range(tree.legal.shape[2]):
        if tree.legal[game, node, action] and tree.child[game, node, action] == _NONE:
            if left == 0:
                return action
            left -= 1
    return _NONE


@njit
def _best_child(tree: _Tree, game: int, node: int, exploration: float) -> int:
    """The child with the highest upper confidence bound (Kocsis and Szepesvari 2006); all have been visited."""
    best, highest = _NONE, -np.inf
    for action in range(tree.legal.shape[2]):
        child = tree.child[game, node, action]
        if child != _NONE:
            visits = tree.visits[game, child]
            bound = tree.total[game, child] / visits
            bound += exploration * np.sqrt(np.log(tree.visits[game, node]) / visits)
            if bound > highest:
                best, highest = child, bound
    return best


@njit
def _select(
    tree: _Tree,
    seeds: NDArray[np.uint64],
    simulation: int,
    exploration: float,
    nodes: NDArray[np.int64],
    actions: NDArray[np.int64],
) -> None:
    """Set where each game leaves its tree: a node and an untried action, or a finished node and -1; both [B]."""
    for game in range(nodes.shape[0]):
        node, action = _ROOT, _NONE
        while not tree.over[game, node]:
            action = _untried_action(tree, game, node, uniform(seeds[game], simulation))
            if action != _NONE:
                break
            node = _best_child(tree, game, node, exploration)
        nodes[game], actions[game] = node, action


@njit
def _back_up(tree: _Tree, leaves: NDArray[np.int64], returns: NDArray[np.float32]) -> None:
    """Add returns [B], to the players to move at the leaves [B], to all nodes above; the players take turns."""
    for game in range(leaves.shape[0]):
        node, value = leaves[game], float(returns[game])
        while node != _ROOT:
            value = tree.reward[game, node] - value
            tree.visits[game, node] += 1
            tree.total[game, node] += value
            node = tree.parent[game, node]
        tree.visits[game, _ROOT] += 1


class MctsPlayer:
    """Plays the action that UCT visits most.

    Args:
        game: for two players, without chance.
        num_rollouts: random games per move, one per simulation.
        exploration: weight of the confidence bound.

    Raises:
        GameError: a game for one player, or with chance.
    """

    def __init__(self, game: Game, num_rollouts: int, exploration: float = EXPLORATION) -> None:
        if game.num_players != 2 or game.chance_size:
            raise GameError("plain tree search plays games for two players without chance only")
        self._game = game
        self._num_rollouts = num_rollouts
        self._exploration = exploration

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        tree = self.search(states, seeds)
        child = tree.child[:, _ROOT]
        visits = np.where(child == _NONE, _NONE, np.take_along_axis(tree.visits, np.maximum(child, 0), axis=1))
        return visits.argmax(axis=1)

    def search(self, states: States, seeds: Seeds) -> _Tree:
        """The trees of B positions after all simulations."""
        batch = len(states)
        tree = _allocate(batch, self._num_rollouts + 1, self._game.num_actions)
        positions = np.zeros((batch, self._num_rollouts + 1, self._game.state_size), np.uint64)
        positions[:, _ROOT] = states
        tree.legal[:, _ROOT] = self._game.legal_action_mask(states)
        tree.over[:, _ROOT] = self._game.terminated(states)
        nodes, actions = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        seed_steps = np.arange(1, self._num_rollouts + 1, dtype=np.uint64) * _SEED_STEP
        for simulation in range(self._num_rollouts):
            _select(tree, seeds, simulation, self._exploration, nodes, actions)
            expanding = np.flatnonzero(actions != _NONE)
            leaves, returns = nodes.copy(), np.zeros(batch, np.float32)
            if len(expanding):
                leaves[expanding] = simulation + 1
                after = self._expand(tree, positions, expanding, nodes[expanding], actions[expanding], simulation + 1)
                rollout_seeds = seeds[expanding] + seed_steps[simulation]
                returns[expanding] = self._game.random_returns(after, rollout_seeds, MAX_ROLLOUT_MOVES)
            _back_up(tree, leaves, returns)
        return tree

    def _expand(
        self,
        tree: _Tree,
        positions: NDArray[np.uint64],
        games: NDArray[np.int64],
        nodes: NDArray[np.int64],
        actions: NDArray[np.int64],
        made: int,
    ) -> States:
        """Make node `made` behind an action of a node in each of the games; the positions there."""
        transition = self._game.apply(positions[games, nodes], actions)
        positions[games, made] = transition.states
        tree.child[games, nodes, actions] = made
        tree.parent[games, made] = nodes
        tree.legal[games, made] = self._game.legal_action_mask(transition.states)
        tree.over[games, made] = transition.terminated
        tree.reward[games, made] = transition.rewards
        return transition.states
