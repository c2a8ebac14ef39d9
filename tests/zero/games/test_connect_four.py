"""Connect Four against its rules told another way, published counts and published solutions."""

from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.zero.games.naive_connect_four import HEIGHT, WIDTH, NaiveConnectFour
from zero.games.connect_four import ConnectFour
from zero.games.game import Game, GameError, States

NO_CHANCE = np.zeros((1, 0), np.int64)


def after(game: ConnectFour, columns: str) -> States:
    """The position after stones in these columns, counted from 1 as players write games down."""
    states = game.initial(NO_CHANCE)
    for column in columns:
        states = game.apply(states, np.array([int(column) - 1])).states
    return states


def best_result(game: ConnectFour, states: States) -> int:
    """By exhaustion, as it is published: stones that the winner has left when the game ends, negative if he loses."""
    best = -WIDTH * HEIGHT
    for action in np.flatnonzero(game.legal_action_mask(states)[0]):
        result = game.apply(states, np.array([action]))
        if result.rewards[0]:
            value = 22 - (int(np.bitwise_count(states).sum()) // 2 + 1)
        else:
            value = 0 if result.terminated[0] else -best_result(game, result.states)
        best = max(best, value)
    return best


def test_random_games_agree_with_the_other_telling():
    """Legal columns, ends, rewards, players, and every cell of planes and text, in 200 games played as one batch."""
    game, rng, size = ConnectFour(), np.random.default_rng(1), 200
    naive = [NaiveConnectFour() for _ in range(size)]
    states = game.initial(np.zeros((size, 0), np.int64))
    for _ in range(WIDTH * HEIGHT):
        mask = game.legal_action_mask(states)
        assert [np.flatnonzero(row).tolist() for row in mask] == [one.legal() for one in naive]
        assert game.terminated(states).tolist() == [one.over for one in naive]
        assert game.to_play(states).tolist() == [sum(map(len, one.columns)) % 2 for one in naive]
        check_pictures(game, states, naive)
        actions = np.where(mask, rng.random(mask.shape), -1).argmax(1)
        result = game.step(states, actions, np.zeros((size, 0), np.int64))
        rewards = [0.0 if one.over else one.play(action) for one, action in zip(naive, actions.tolist(), strict=True)]
        assert result.rewards.tolist() == rewards
        states = result.states
    assert {one.winner for one in naive} == {0, 1, None}


def check_pictures(game: ConnectFour, states: States, naive: list[NaiveConnectFour]) -> None:
    planes = game.encode(game.observation(states)).reshape(-1, 3, HEIGHT, WIDTH)
    for index, one in enumerate(naive):
        mover = sum(map(len, one.columns)) % 2
        top_down = [[one.cell(column, HEIGHT - 1 - row) for column in range(WIDTH)] for row in range(HEIGHT)]
        assert planes[index, 0].tolist() == [[float(mark == mover) for mark in row] for row in top_down]
        assert planes[index, 1].tolist() == [[float(mark == 1 - mover) for mark in row] for row in top_down]
        assert (planes[index, 2] == 1 - mover).all()
    last = len(naive) - 1
    lines = ["".join("." if mark is None else "XO"[mark] for mark in row) for row in top_down]
    assert game.render_ascii(states, last) == "\n".join([*lines, "0123456"])


def test_the_number_of_positions_at_each_depth_is_the_known_one():
    """Distinct positions after 0 to 8 stones, https://oeis.org/A212693."""
    game, level, counts = ConnectFour(), ConnectFour().initial(NO_CHANCE), [1]
    for _ in range(8):
        rows, columns = np.nonzero(game.legal_action_mask(level))
        level = np.unique(game.apply(level[rows], columns).states, axis=0)
        counts.append(len(level))
    assert counts == [1, 7, 49, 238, 1120, 4263, 16422, 54859, 184275]


@pytest.mark.parametrize(
    ("columns", "result"),
    [
        ("2252576253462244111563365343671351441", -1),
        ("7422341735647741166133573473242566", 1),
        ("23163416124767223154467471272416755633", 0),
        ("65214673556155731566316327373221417", -1),
    ],
)
def test_published_solutions_hold(columns: str, result: int):
    """Late positions of Pascal Pons' benchmark (http://blog.gamesolver.org), solved by exhaustion."""
    game = ConnectFour()
    assert best_result(game, after(game, columns)) == result


@pytest.mark.parametrize("columns", ["1212121", "1122334", "12233434464", "76655454424"])
def test_four_in_a_row_win_in_every_direction(columns: str):
    """Upright, level, rising and falling lines; what completes them pays, and the game is over."""
    game = ConnectFour()
    before = after(game, columns[:-1])
    result = game.apply(before, np.array([int(columns[-1]) - 1]))
    assert (result.rewards.tolist(), result.terminated.tolist()) == ([1.0], [True])
    assert not game.legal_action_mask(result.states).any()


def test_lines_do_not_run_from_one_column_into_the_next():
    """Three at the top of a column and one at the bottom of the next are no four."""
    game = ConnectFour()
    states = after(game, "3131711515162")
    assert game.render_ascii(states).splitlines()[:3] == ["X......"] * 3
    assert not game.terminated(states)[0]


def test_illegal_actions_are_refused():
    """A full column, or none of the seven; but a finished game takes anything."""
    game = ConnectFour()
    for states, action in ((after(game, "111111"), 0), (after(game, ""), -1), (after(game, ""), 7)):
        with pytest.raises(GameError, match=f"action {action} is not legal"):
            game.apply(states, np.array([action]))
    finished = after(game, "1213141")
    assert np.array_equal(game.apply(finished, np.array([9])).states, finished)


@pytest.mark.parametrize(
    ("first", "second"),
    [(0b1010101, 0b0101010), (0b1, 0b1), (0b10, 0), (0b11, 0), (0, 0b1)],
    ids=["seven in a column", "two in a cell", "floating", "two ahead", "the second began"],
)
def test_observations_that_are_no_positions_are_refused(first: int, second: int):
    """Stones lie on stones, one in a cell, put in turns."""
    game = ConnectFour()
    observation = np.zeros((1, 2, WIDTH), np.uint8)
    observation[0, :, 0] = first, second
    with pytest.raises(GameError, match="observation 0 is no position"):
        game.decode(observation)


def test_random_returns_are_those_of_random_games():
    """The compiled playouts give, seed by seed, what the interface's own give, at most as long as they may be."""
    game = ConnectFour()
    states = np.concatenate([after(game, columns) for columns in ("", "1", "445", "1213141", "121314")] * 200)
    seeds = np.arange(len(states), dtype=np.uint64)
    for max_moves in (100, 2):
        compiled = game.random_returns(states, seeds, max_moves)
        assert np.array_equal(compiled, Game.random_returns(game, states, seeds, max_moves))
    assert not compiled[3::5].any()
    assert set(game.random_returns(states, seeds, 100).tolist()) == {1.0, 0.0, -1.0}


def test_svg_draws_a_disc_per_cell():
    """42 discs: five free ones less, and each player's in a colour of his own."""
    game = ConnectFour()
    root = ElementTree.fromstring(game.render_svg(np.concatenate([after(game, "4"), after(game, "44353")]), 1))
    discs = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert sorted(Counter(disc.get("fill") for disc in discs).values()) == [2, 3, 37]
    bottom = [disc.get("fill") for disc in discs[-WIDTH:]]
    assert bottom[2] == bottom[3] != bottom[4] != bottom[0]
