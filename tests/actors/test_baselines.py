"""Baselines are as strong as they should be, and each does what its name says."""

import numpy as np
import pytest

from actors import baselines
from actors.baselines import (
    BASELINES,
    FlatMonteCarloPlayer,
    PerfectPlayer,
    default_baselines,
    line_fill,
    make_baseline,
    mobility,
)
from actors.baselines_mcts import MctsPlayer
from actors.evaluation import EvaluationScore, Schedule
from actors.players import RandomPlayer
from tests.scores import score_of
from zero.games.connect_four import ConnectFour
from zero.games.game import Game, GameError, States
from zero.games.registry import make_game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle
from zero.games.triangle_board import SHAPE_OF_TEMPLATE, TEMPLATES

PUZZLE = Schedule(num_games=256, seed=1_000_000, max_moves=2000)


def seeds(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64)


def match(game: Game, player: str, opponent: str, num_games: int) -> EvaluationScore:
    schedule = Schedule(num_games, 0, 100)
    return score_of(game, make_baseline(player, game), make_baseline(opponent, game), schedule)


@pytest.mark.parametrize(("name", "mean"), [("random", 2.2), ("greedy", 6.7), ("line-fill", 33.0), ("mobility", 39.8)])
def test_scores_on_the_puzzle_are_the_known_ones(name: str, mean: float) -> None:
    """On the fixed seeds, within three standard errors."""
    game = Triangle()
    player = make_baseline(name, game)
    score = score_of(game, player, player, PUZZLE)
    assert abs(score.mean - mean) < 3 * score.standard_error


def test_flat_monte_carlo_is_far_better_than_what_it_plays() -> None:
    """A few random games per action are worth several times the points of random play."""
    game = Triangle()
    player = make_baseline("flat-8", game)
    score = score_of(game, player, player, Schedule(16, 1_000_000, 2000))
    assert score.mean > 5 * 2.2


def test_line_fill_is_the_sum_of_squares_over_the_lines() -> None:
    """Two triangles at an end of the top row: they share the line of nine, and lie on two more each."""
    game = Triangle()
    fill = line_fill(game)
    states = np.concatenate([game.position([], [0, 0, 0]), game.position([(0, 3), (0, 4)], [0, 0, 0])])
    # (0, 3) and (0, 4) lie on the lines of 9 along the row and 9 rising, and on two falling ones of 15.
    assert fill(states).tolist() == [0.0, pytest.approx((2 / 9) ** 2 + (2 / 9) ** 2 + 2 * (1 / 15) ** 2)]


@pytest.mark.parametrize("num_slots", [1, 3, 8])
def test_mobility_is_the_expected_number_of_places(num_slots: int) -> None:
    """On the empty board the mean over the templates; with one free cell, how likely its shape is dealt."""
    game = make_game("triangle", {"num_slots": num_slots})
    assert isinstance(game, Triangle)
    places = [
        int(game.legal_action_mask(game.position([], [template] + [None] * (num_slots - 1))).sum())
        for template in range(len(TEMPLATES))
    ]
    cells = [(row, column) for row, ends in enumerate(game.options.playable_ranges) for column in range(*ends)]
    hand = [0] * num_slots
    states = np.concatenate([game.position([], hand), game.position(cells[1:], hand)])
    lone_down = sum(TEMPLATES[template].offsets == ((0, 0),) and not TEMPLATES[template].up for template in range(31))
    expected = baselines.MOBILITY_WEIGHT * np.array([np.mean(places), lone_down / len(SHAPE_OF_TEMPLATE)])
    points_up = (cells[0][0] + cells[0][1]) % 2 == 1
    if points_up:
        expected[1] = baselines.MOBILITY_WEIGHT * 2 / 31
    assert mobility(game)(states).tolist() == pytest.approx(expected.tolist())


def to_states(game: TicTacToe, *boards: str) -> States:
    return game.decode(np.array([[".XO".index(mark) for mark in board] for board in boards], np.uint8))


@pytest.mark.parametrize("name", ["flat-200", "mcts-200", "perfect", "greedy"])
def test_a_win_is_taken_and_only_the_blind_overlook_a_threat(name: str) -> None:
    """Both seats complete a line; a lone free cell against a line is taken, which greed does not see."""
    game = TicTacToe()
    player = make_baseline(name, game)
    states = to_states(game, "XX.OO....", "XX..OOX..", "XX..O....")
    actions = np.concatenate([player.choose(states, seeds(3) + np.uint64(10 * repeat)) for repeat in range(8)])
    actions = actions.reshape(8, 3)
    assert set(actions[:, 0].tolist()) == {2}
    assert set(actions[:, 1].tolist()) == {3}
    assert (set(actions[:, 2].tolist()) == {2}) == (name != "greedy")


@pytest.mark.parametrize("name", ["random", "greedy", "line-fill", "mobility", "flat-3"])
def test_players_of_the_puzzle_depend_on_position_and_seed_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row gives the same action alone and among others, however its random games are cut into batches."""
    game, rng = Triangle(), np.random.default_rng(0)
    player = make_baseline(name, game)
    states = game.initial(game.draw_chance(rng, 5))
    for _ in range(4):
        together = player.choose(states, seeds(5))
        with monkeypatch.context() as patch:
            patch.setattr(baselines, "ROLLOUTS_AT_ONCE", 7)
            alone = [player.choose(states[row : row + 1], seeds(5)[row : row + 1])[0] for row in range(5)]
        assert together.tolist() == alone
        assert game.legal_action_mask(states)[np.arange(5), together].all()
        states = game.step(states, together, game.draw_chance(rng, 5)).states


@pytest.mark.parametrize("name", ["flat-3", "mcts-20", "perfect"])
def test_players_for_two_depend_on_position_and_seed_alone(name: str) -> None:
    """A row gives the same action alone and among others, finished games included."""
    game = TicTacToe()
    player = make_baseline(name, game)
    states = to_states(game, ".........", "X........", "XXXOO....", "XOXOXO...")
    together = player.choose(states, seeds(4))
    alone = [player.choose(states[row : row + 1], seeds(4)[row : row + 1])[0] for row in range(4)]
    assert together[[0, 1, 3]].tolist() == [alone[row] for row in (0, 1, 3)]


def test_ties_are_broken_at_random() -> None:
    """On the empty board all perfect first moves are played."""
    game = TicTacToe()
    states = game.initial(np.zeros((300, 0), np.int64))
    assert len(set(PerfectPlayer(game).choose(states, seeds(300)).tolist())) == 9


def test_the_perfect_player_never_loses_and_punishes_mistakes() -> None:
    """From both sides; perfect play against itself is a draw; random play loses most games."""
    game = TicTacToe()
    for opponent in ("random", "greedy", "mcts-100"):
        score = match(game, "perfect", opponent, 100)
        assert score.num_lost == 0
        assert score.num_won > 0
    assert match(game, "perfect", "random", 200).mean > 0.75
    drawn = match(game, "perfect", "perfect", 50)
    assert (drawn.num_won, drawn.num_lost) == (0, 0)


def best_actions(game: TicTacToe, states: States) -> tuple[float, set[int]]:
    """By recursion over single positions: the result for the player to move, and the actions that reach it."""
    results: dict[int, float] = {}
    for action in np.flatnonzero(game.legal_action_mask(states)[0]).tolist():
        step = game.apply(states, np.array([action]))
        results[action] = float(step.rewards[0]) - best_actions(game, step.states)[0]
    best = max(results.values(), default=0.0)
    return best, {action for action, result in results.items() if result == best}


@pytest.mark.parametrize("board", ["X...O...X", "XO.......", "XX.O.....", "X.O.X...O", "XOX.OX..."])
def test_perfect_play_is_what_exhaustion_finds(board: str) -> None:
    """All optimal actions, and no others."""
    game = TicTacToe()
    states = to_states(game, board)
    chosen = PerfectPlayer(game).choose(np.repeat(states, 200, axis=0), seeds(200))
    assert set(chosen.tolist()) == best_actions(game, states)[1]


def test_tree_search_beats_its_own_playouts_and_more_of_it_beats_less() -> None:
    """At Connect Four, from both sides."""
    game = ConnectFour()
    assert match(game, "mcts-300", "random", 32).mean > 0.9
    assert match(game, "mcts-300", "greedy", 32).mean > 0.9
    assert match(game, "mcts-400", "mcts-40", 32).mean > 0.5


def test_tree_search_counts_every_simulation() -> None:
    """Visits of the children sum to the simulations; the values are means of results for the player to move."""
    game = TicTacToe()
    player = MctsPlayer(game, 500)
    # In the first O completes the middle column with 7.
    states = to_states(game, "XOX.OX...", "XO.......")
    tree = player.search(states, seeds(2))
    assert tree.visits[:, 0].tolist() == [500, 500]
    for row in range(2):
        children = tree.child[row, 0][tree.child[row, 0] >= 0]
        assert tree.visits[row, children].sum() == 500
        assert len(children) == game.legal_action_mask(states)[row].sum()
        assert (np.abs(tree.total[row, children]) <= tree.visits[row, children]).all()
    winning = tree.child[0, 0, 7]
    assert tree.total[0, winning] == tree.visits[0, winning]
    assert tree.visits[0].argsort()[-2] == winning


@pytest.mark.parametrize("player", [MctsPlayer, FlatMonteCarloPlayer])
def test_tree_search_finds_a_loss_that_is_two_moves_ahead(player: type) -> None:
    """Who does not answer three in a row at the bottom of Connect Four loses: tree search answers, with few games."""
    game = ConnectFour()
    states = game.initial(np.zeros((1, 0), np.int64))
    for column in (2, 2, 3, 3):
        states = game.apply(states, np.array([column])).states
    states = game.apply(states, np.array([4])).states
    actions = {int(player(game, 300).choose(states, seeds(1) * np.uint64(repeat))[0]) for repeat in range(1, 9)}
    assert actions <= {1, 5}


def test_baselines_are_made_by_name() -> None:
    """With a number where they take one; what is unknown or plays another game is refused in one line."""
    puzzle, board = Triangle(), TicTacToe()
    assert isinstance(make_baseline("flat-7", board), FlatMonteCarloPlayer)
    assert isinstance(make_baseline("random", board), RandomPlayer)
    known = "known: random, greedy, line-fill, mobility, perfect, flat-NUMBER, mcts-NUMBER"
    assert known.removeprefix("known: ").split(", ") == list(BASELINES)
    for name in ("flat", "flat-0", "flat-x", "mcts-", "stockfish"):
        with pytest.raises(GameError, match=f"there is no baseline '{name}'; {known}"):
            make_baseline(name, board)
    for name, game, text in (
        ("mobility", board, "plays the triangle puzzle only"),
        ("mcts-10", puzzle, "two players without chance only"),
        ("perfect", puzzle, "two players without chance"),
        ("perfect", ConnectFour(), "more than 100000 positions"),
    ):
        with pytest.raises(GameError, match=text):
            make_baseline(name, game)


@pytest.mark.parametrize("name", ["triangle", "tic_tac_toe", "connect_four"])
def test_every_game_has_baselines_that_play_it(name: str) -> None:
    """The weakest first, which is random play."""
    game = make_game(name, {})
    names = default_baselines(game)
    assert names[:2] == ("random", "greedy")
    assert all(make_baseline(name, game) for name in names)
