"""Baseline players that need no network: one-ply heuristics, flat Monte Carlo, tree search by random play, a solver."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.baselines_mcts import MctsPlayer
from actors.players import Actions, GreedyPlayer, Player, RandomPlayer, Seeds, best_actions
from zero.games.game import Game, GameError, States
from zero.games.random_play import row_uniforms
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle
from zero.games.triangle_board import NO_SHAPE, SHAPE_OF_TEMPLATE, SHAPES, bitboard, find_lines
from zero.games.triangle_kernels import NUM_EXTRA_WORDS

MAX_ROLLOUT_MOVES = 2000
"""A random game is cut here."""
ROLLOUTS_AT_ONCE = 2**14
MAX_SOLVED_POSITIONS = 100_000
MOBILITY_WEIGHT = 0.1
"""What one more place for a random shape is worth, in reward."""

_SEED_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROLLOUT_STREAM = np.uint64(0xD1B54A32D192ED03)

Heuristic = Callable[[States], NDArray[np.float64]]
"""How good positions [B, state_size] are for the player who moved there, [B]; chance may be pending."""


class OnePlyPlayer:
    """Plays the action with the best immediate reward plus heuristic of where it leads; ties at random."""

    def __init__(self, game: Game, heuristic: Heuristic) -> None:
        self._game = game
        self._heuristic = heuristic

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        mask = self._game.search_action_mask(states)
        rows, actions = np.nonzero(mask)
        values = np.full(mask.shape, -np.inf)
        if len(rows):
            transition = self._game.apply(states[rows], actions)
            values[rows, actions] = transition.rewards + self._heuristic(transition.states)
        return best_actions(values, seeds)


def line_fill(game: Triangle) -> Heuristic:
    """Sum of the squared fractions to which the lines of the board are full."""
    options = game.options
    num_cells = options.rows * options.cols
    lines = [line for lines in find_lines(options.playable_ranges, options.min_line_length) for line in lines]
    masks = np.array([bitboard(line, options.cols, num_cells) for line in lines])  # [L, W]
    lengths = np.bitwise_count(masks).sum(axis=1)

    def fill(states: States) -> NDArray[np.float64]:
        occupied = states[:, None, :-NUM_EXTRA_WORDS] & masks  # [B, L, W]
        return ((np.bitwise_count(occupied).sum(axis=2) / lengths) ** 2).sum(axis=1)

    return fill


def mobility(game: Triangle) -> Heuristic:
    """MOBILITY_WEIGHT times the number of places that a shape drawn at random has on the board, in expectation."""
    slots = game.options.num_slots
    weights = np.bincount(SHAPE_OF_TEMPLATE, minlength=NO_SHAPE + 1) / len(SHAPE_OF_TEMPLATE)
    padded = np.concatenate([np.arange(len(SHAPES)), np.full(-len(SHAPES) % slots, NO_SHAPE)])

    def expected_places(states: States) -> NDArray[np.float64]:
        observations = game.observation(states)
        expected = np.zeros(len(states))
        for hand in padded.reshape(-1, slots):
            observations[:, -slots:] = hand
            fits = game.legal_action_mask(game.decode(observations))
            places = fits.reshape(len(states), slots, -1).sum(axis=2)
            expected += places @ weights[hand]
        return MOBILITY_WEIGHT * expected

    return expected_places


class FlatMonteCarloPlayer:
    """Plays the action with the best mean return of random games after it.

    The n-th game after every action of a position is dealt from the same numbers, so that what is compared is the
    actions.

    Args:
        game: the rules.
        num_rollouts: random games per action.
    """

    def __init__(self, game: Game, num_rollouts: int) -> None:
        self._game = game
        self._num_rollouts = num_rollouts

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        mask = self._game.search_action_mask(states)
        rows, actions = np.nonzero(mask)
        values = np.full(mask.shape, -np.inf)
        at_once = max(1, ROLLOUTS_AT_ONCE // self._num_rollouts)
        for start in range(0, len(rows), at_once):
            pairs = slice(start, start + at_once)
            values[rows[pairs], actions[pairs]] = self._mean_returns(
                states[rows[pairs]], actions[pairs], seeds[rows[pairs]]
            )
        return best_actions(values, seeds)

    def _mean_returns(self, states: States, actions: Actions, seeds: Seeds) -> NDArray[np.float64]:
        """Mean returns [P] of random games after one action in each of P positions."""
        game, count = self._game, self._num_rollouts
        numbers = np.arange(count, dtype=np.uint64) * _SEED_STEP
        rollout_seeds = (seeds[:, None] + numbers).reshape(-1)
        before = np.repeat(states, count, axis=0)
        outcomes = game.chance_from_uniforms(row_uniforms(rollout_seeds, 0, game.chance_size))
        step = game.step(before, np.repeat(actions, count), outcomes)
        returns = game.random_returns(step.states, rollout_seeds ^ _ROLLOUT_STREAM, MAX_ROLLOUT_MOVES)
        same_player = game.to_play(before) == game.to_play(step.states)
        totals = step.rewards + np.where(same_player, returns, -returns)
        return totals.reshape(-1, count).mean(axis=1, dtype=np.float64)


class PerfectPlayer:
    """Plays a small game for two without chance perfectly: any action that keeps the best result, at random.

    Args:
        game: the rules; every position that can come up is solved at once.

    Raises:
        GameError: a game of another kind, or one with more than MAX_SOLVED_POSITIONS positions.
    """

    def __init__(self, game: Game) -> None:
        if game.num_players != 2 or game.chance_size:
            raise GameError("only games for two players without chance are solved")
        self._game = game
        self._best: dict[bytes, NDArray[np.bool_]] = {}
        self._solve()

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player; positions must be reachable from the start."""
        nothing = np.zeros(self._game.num_actions, np.bool_)
        best = np.array([self._best.get(state.tobytes(), nothing) for state in states])
        return best_actions(best.astype(np.float64), seeds)

    def _solve(self) -> None:
        """Walk forward through the levels of the game, then back with what every position is worth."""
        levels = list[_Level]()
        states = self._game.initial(np.zeros((1, 0), np.int64))
        num_positions = 0
        while len(states):
            num_positions += len(states)
            if num_positions > MAX_SOLVED_POSITIONS:
                raise GameError(f"the game has more than {MAX_SOLVED_POSITIONS} positions: too many to solve it")
            rows, actions = np.nonzero(self._game.legal_action_mask(states))
            transition = self._game.apply(states[rows], actions)
            children, child = np.unique(transition.states, axis=0, return_inverse=True)
            levels.append(_Level(states, rows, actions, transition.rewards, child.reshape(-1)))
            states = children
        values = np.zeros(0)
        for level in reversed(levels):
            values = self._solve_level(level, values)

    def _solve_level(self, level: "_Level", child_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values [P] of the positions of a level, for the player to move, from those of the next one."""
        results = np.full((len(level.states), self._game.num_actions), -np.inf)
        if len(level.rows):
            results[level.rows, level.actions] = level.rewards - child_values[level.child]
        values = results.max(axis=1)
        for state, best in zip(level.states, (results == values[:, None]) & np.isfinite(results), strict=True):
            self._best[state.tobytes()] = best
        return np.where(np.isfinite(values), values, 0.0)


class _Level(NamedTuple):
    """The positions [P] after some number of moves; the E moves from them: where from, which, what for, where to."""

    states: States
    rows: NDArray[np.int64]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    child: NDArray[np.int64]


def _triangle_player(game: Game, heuristic: Callable[[Triangle], Heuristic], name: str) -> Player:
    if not isinstance(game, Triangle):
        raise GameError(f"baseline {name!r} plays the triangle puzzle only")
    return OnePlyPlayer(game, heuristic(game))


_WITHOUT_NUMBER: Mapping[str, Callable[[Game], Player]] = {
    "random": RandomPlayer,
    "greedy": GreedyPlayer,
    "line-fill": lambda game: _triangle_player(game, line_fill, "line-fill"),
    "mobility": lambda game: _triangle_player(game, mobility, "mobility"),
    "perfect": PerfectPlayer,
}
_WITH_NUMBER: Mapping[str, Callable[[Game, int], Player]] = {"flat": FlatMonteCarloPlayer, "mcts": MctsPlayer}

BASELINES = (*_WITHOUT_NUMBER, *(f"{name}-NUMBER" for name in _WITH_NUMBER))
"""What `make_baseline` takes."""


def make_baseline(name: str, game: Game) -> Player:
    """A baseline by its name.

    Args:
        name: one of BASELINES, for example "greedy", "flat-100" (rollouts per action) or "mcts-1000" (per move).
        game: what it plays.

    Raises:
        GameError: there is no such baseline, or it does not play this game.
    """
    kind, _, number = name.rpartition("-")
    if name in _WITHOUT_NUMBER:
        return _WITHOUT_NUMBER[name](game)
    if kind in _WITH_NUMBER and number.isdecimal() and int(number) > 0:
        return _WITH_NUMBER[kind](game, int(number))
    raise GameError(f"there is no baseline {name!r}; known: {', '.join(BASELINES)}")


def default_baselines(game: Game) -> tuple[str, ...]:
    """Names of baselines that are quick enough to be measured beside a run, the weakest first."""
    if isinstance(game, Triangle):
        return "random", "greedy", "line-fill", "mobility"
    if isinstance(game, TicTacToe):
        return "random", "greedy", "mcts-1000", "perfect"
    if game.num_players == 2 and not game.chance_size:
        return "random", "greedy", "mcts-1000"
    return "random", "greedy"
