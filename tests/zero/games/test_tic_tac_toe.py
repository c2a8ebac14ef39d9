"""Tic-tac-toe against its own rules, told over strings and exhausted."""

from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest

from zero.games.game import GameError
from zero.games.tic_tac_toe import TicTacToe

LINES = ("012", "345", "678", "036", "147", "258", "048", "246")


def winner(board: str) -> str | None:
    for line in LINES:
        marks = {board[int(cell)] for cell in line}
        if marks in ({"X"}, {"O"}):
            return marks.pop()
    return None


def to_states(game: TicTacToe, boards: list[str]) -> np.ndarray:
    return game.decode(np.array([[".XO".index(mark) for mark in board] for board in boards], np.uint8))


def test_the_whole_game_tree_agrees():
    """All 5,478 positions: legal actions, ends, rewards, players and successors, whole levels as one batch."""
    game, level, total = TicTacToe(), ["." * 9], 0
    while level:
        total += len(level)
        states = to_states(game, level)
        mover = "X" if level[0].count("X") == level[0].count("O") else "O"
        over = [winner(board) is not None or "." not in board for board in level]
        assert game.terminated(states).tolist() == over
        assert set(game.to_play(states).tolist()) == {"XO".index(mover)}
        moves = [
            (row, cell) for row, board in enumerate(level) if not over[row] for cell in range(9) if board[cell] == "."
        ]
        mask = game.legal_action_mask(states)
        assert list(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True)) == moves
        if not moves:
            break
        rows, cells = np.array(moves).T
        children = [level[row][:cell] + mover + level[row][cell + 1 :] for row, cell in moves]
        result = game.step(states[rows], cells, np.zeros((len(moves), 0), np.int64))
        assert np.array_equal(result.states, to_states(game, children))
        assert result.rewards.tolist() == [float(winner(child) == mover) for child in children]
        level = sorted(set(children))
    assert total == 5478


def test_planes_are_seen_by_the_player_to_move():
    """Own cells come first, whoever it is; the third plane says whether player 0 moves."""
    game = TicTacToe()
    planes = game.encode(game.observation(to_states(game, ["X........", "XO......."]))).reshape(2, 3, 9)
    assert [np.flatnonzero(plane).tolist() for plane in planes[0]] == [[], [0], []]
    assert [np.flatnonzero(plane).tolist() for plane in planes[1]] == [[0], [1], list(range(9))]


@pytest.mark.parametrize("action", [0, -1, 9])
def test_illegal_actions_are_refused(action: int):
    """A taken cell, or none of the nine; but a finished game takes anything."""
    game = TicTacToe()
    with pytest.raises(GameError, match=f"action {action} is not legal"):
        game.apply(to_states(game, ["X........"]), np.array([action]))
    finished = to_states(game, ["XXXOO...."])
    assert np.array_equal(game.apply(finished, np.array([action])).states, finished)


def test_rendering():
    """Three rows of marks."""
    game = TicTacToe()
    assert game.render_ascii(to_states(game, [".........", "XO.....X."]), 1) == "XO.\n...\n.X."


def test_svg_draws_marks_and_offers_free_cells():
    """A cross per cell of player 0, a nought per cell of player 1, and every free cell is a target."""
    game = TicTacToe()
    root = ElementTree.fromstring(game.render_svg(to_states(game, [".........", "XO.....X."]), 1))
    drawn = Counter(element.tag.rpartition("}")[2] for element in root)
    assert drawn == {"rect": 9, "path": 2, "circle": 1}
    assert [element.get("data-target") for element in root if element.get("data-target")] == list("234568")


def test_impossible_observations_are_refused():
    """A cell is free, or one of two players'."""
    with pytest.raises(GameError, match="holds 3"):
        TicTacToe().decode(np.full((1, 9), 3, np.uint8))
