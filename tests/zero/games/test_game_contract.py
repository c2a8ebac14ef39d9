"""The published contract test passes good games and catches broken ones."""

from functools import partial

import numpy as np
import pytest

from zero.games.connect_four import ConnectFour
from zero.games.contract import ContractError, check_game
from zero.games.game import Symmetry, Transition
from zero.games.registry import make_game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions
from zero.trajectories import ColumnSpec


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("triangle", {}),
        ("triangle", {"rows": 4, "cols": 9, "playable_ranges": [[1, 8], [0, 9], [0, 9], [1, 8]], "num_slots": 2}),
        ("triangle", {"illegal_action_mode": "ignore", "penalty_on_natural_end": -10.0, "num_slots": 1}),
        ("tic_tac_toe", {}),
        ("connect_four", {}),
    ],
)
def test_built_in_games_keep_the_contract(name: str, options: dict):
    """Every property holds along random games."""
    check_game(make_game(name, options), num_games=12, seed=3)


def change_input(apply, states, actions):
    result = apply(states, actions)
    states[:] = result.states
    return result


def pay_after_the_end(apply, states, actions):
    result = apply(states, actions)
    result.rewards[result.terminated] = 1
    return result


def deal_itself(resolve, states, outcomes):
    return resolve(states, np.random.default_rng().integers(0, 31, outcomes.shape))


def ignore_the_end(_, states):
    return ((states[:, :1] | states[:, 1:]) >> np.arange(9, dtype=np.uint64)) & np.uint64(1) == 0


def ignore_the_deal(resolve, states, outcomes):
    return resolve(states, np.zeros_like(outcomes))


def pay_late(resolve, states, outcomes):
    result = resolve(states, outcomes)
    return Transition(result.states, result.rewards + np.float32(1), result.terminated, result.chance_pending)


def pass_the_turn_with_chance(_, states):
    game = Triangle()
    return (~game.legal_action_mask(states).any(axis=1) & ~game.terminated(states)).astype(np.int8)


def keep_first_after_odd_moves(search_action_mask, states):
    mask = search_action_mask(states)
    odd = Triangle().num_moves(states) % 2 == 1
    return np.where(odd[:, None], mask & (mask.cumsum(axis=1) == 1), mask)


BROKEN = (
    (Triangle, "chance_codes", lambda f, s, o: f(s, o) + 1, "a code outside chance_code_sizes"),
    (Triangle, "chance_codes", lambda f, s, o: f(s, o)[:, :2], "chance_codes must have shape"),
    (Triangle, "chance_codes", lambda f, s, o: f(s, o) // 2, "the same chance_codes lead to other observations"),
    (TicTacToe, "to_play", lambda f, s: f(s).astype(np.int64), "to_play must be int8, not int64"),
    (TicTacToe, "to_play", lambda f, s: 0 * f(s), "players must move in turns"),
    (TicTacToe, "to_play", lambda f, s: 2 * f(s), "to_play must name a player"),
    (Triangle, "terminated", lambda f, s: f(s).astype(np.uint8), "terminated must be bool"),
    (TicTacToe, "observation", lambda _, s: s.view(np.uint8)[:, :9], "observation: result shares memory"),
    (TicTacToe, "decode", lambda f, o: f(np.minimum(o, 1)), "an observation changes"),
    (TicTacToe, "legal_action_mask", ignore_the_end, "exactly the positions that are not over"),
    (TicTacToe, "legal_action_mask", lambda f, s: f(s) & f(s[::-1]), "legal_action_mask of a row depends"),
    (TicTacToe, "search_action_mask", lambda f, s: f(s) & False, "search_action_mask leaves no legal action"),
    (
        TicTacToe,
        "search_action_mask",
        lambda f, s: f(s) | (np.arange(9) == 4),
        "search_action_mask allows an illegal action",
    ),
    (TicTacToe, "encode", lambda f, o: np.where(f(o) > 0, np.float32(np.inf), f(o)), "encode gives a number"),
    (TicTacToe, "apply", pay_after_the_end, "a finished position changes or pays"),
    (TicTacToe, "resolve", pay_late, "resolve touches positions where no chance is pending"),
    (Triangle, "apply", change_input, "apply changes its input"),
    (Triangle, "resolve", deal_itself, "differs when called again"),
    (Triangle, "encode", lambda f, o: f(o) - f(o).max(axis=0, initial=0), "encode of a row depends on the other rows"),
    (Triangle, "to_play", pass_the_turn_with_chance, "the turn must pass with the action"),
    (Triangle, "search_action_mask", keep_first_after_odd_moves, "decode changes the search_action_mask"),
    (Triangle, "stats", lambda f, s: {"pieces": f(s)["pieces_placed"][:1]}, "must have shape"),
    (Triangle, "initial", lambda f, o: f(np.sort(o, axis=0)), "initial of a row depends"),
    (
        ConnectFour,
        "random_returns",
        lambda f, s, r, max_moves: f(s, r[::-1].copy(), max_moves),
        "random_returns of a row depends",
    ),
    (
        ConnectFour,
        "random_returns",
        lambda f, s, r, max_moves: f(s, r, max_moves).astype(np.float64),
        "random_returns must be float32",
    ),
    (
        ConnectFour,
        "random_returns",
        lambda f, s, r, max_moves: f(s, r, max_moves) + np.float32(1),
        "from a finished position",
    ),
)


@pytest.mark.parametrize(("game_class", "method", "replacement", "broken"), BROKEN)
def test_broken_methods_are_caught(game_class, method: str, replacement, broken: str):
    """A method that breaks one property is refused, and the error names the property."""
    game = game_class()
    setattr(game, method, partial(replacement, getattr(game, method)))
    with pytest.raises(ContractError, match=broken):
        check_game(game, seed=5)


def test_a_step_of_its_own_is_caught():
    """`step` must be `apply` and then `resolve`."""
    game = Triangle(TriangleOptions(num_slots=1))
    game.step = lambda states, actions, outcomes: ignore_the_deal(
        game.resolve, game.apply(states, actions).states, outcomes
    )
    with pytest.raises(ContractError, match="step differs from apply and then resolve"):
        check_game(game)


@pytest.mark.parametrize(
    ("attribute", "value", "broken"),
    [
        ("max_legal_actions", 8, "more than max_legal_actions"),
        ("observation_spec", ColumnSpec("board", "uint8", (9,)), 'named "observation"'),
        ("observation_spec", ColumnSpec("observation", "int8", (9,)), "observation must be int8"),
        ("planes_shape", (2, 3, 3), "encode must have shape"),
        ("state_size", 3, "initial must have shape"),
        ("num_players", 1, "to_play changes in a game for one player"),
    ],
)
def test_wrong_descriptions_are_caught(attribute: str, value: object, broken: str):
    """What a game says of itself must be what it does."""
    game = TicTacToe()
    setattr(game, attribute, value)
    with pytest.raises(ContractError, match=broken):
        check_game(game)


@pytest.mark.parametrize(
    ("lines", "broken"),
    [
        (np.zeros((1, 3, 3), np.bool_), "a line of lines has no cell"),
        (np.ones((1, 3, 4), np.bool_), "lines must have shape"),
        (np.ones((1, 3, 3), np.float32), "lines must be bool"),
    ],
)
def test_wrong_lines_are_caught(lines: np.ndarray, broken: str):
    """A line without a cell would be averaged to NaN."""

    class Lined(TicTacToe):
        @property
        def lines(self) -> np.ndarray:
            return lines

    with pytest.raises(ContractError, match=broken):
        check_game(Lined())


def turned(cells: np.ndarray) -> Symmetry:
    return Symmetry(cells, cells)


@pytest.mark.parametrize(
    ("symmetry", "broken"),
    [
        (turned(np.zeros(9, np.int64)), "every index once"),
        (turned(np.arange(9, dtype=np.int32)), "must be int64"),
        (turned(np.array([1, 0, 2, 3, 4, 5, 6, 7, 8])), "what is over|rewards|legal actions"),
        (Symmetry(np.arange(9)[::-1].copy(), np.arange(9)), "changes observations|legal actions"),
    ],
)
def test_wrong_symmetries_are_caught(symmetry: Symmetry, broken: str):
    """What is called a symmetry must map games onto games."""

    class Turned(TicTacToe):
        @property
        def symmetries(self) -> tuple[Symmetry, ...]:
            return (symmetry,)

    with pytest.raises(ContractError, match=broken):
        check_game(Turned(), num_games=12, seed=3)


def test_symmetries_of_chance_are_refused():
    """They would have to map outcomes, too."""

    class Turned(Triangle):
        @property
        def symmetries(self) -> tuple[Symmetry, ...]:
            return (Symmetry(np.arange(18), np.arange(360)),)

    with pytest.raises(ContractError, match="a game with chance names symmetries"):
        check_game(Turned(), num_games=2, max_moves=2)
