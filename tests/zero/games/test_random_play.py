"""Uniformly random play."""

import numpy as np
import pytest

from zero.games.random_play import random_legal_actions, row_uniforms
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions


def test_every_legal_action_is_equally_likely():
    """Equally spaced uniforms hit each legal action equally often, and no other."""
    mask = np.zeros(360, np.bool_)
    mask[[0, 7, 120, 359]] = True
    uniforms = (np.arange(400) + 0.5) / 400
    actions = random_legal_actions(np.tile(mask, (400, 1)), uniforms)
    values, counts = np.unique(actions, return_counts=True)
    assert values.tolist() == [0, 7, 120, 359]
    assert counts.tolist() == [100] * 4


def test_where_nothing_is_legal_there_is_no_action():
    """-1 stands for none; the ends of the range of uniforms are safe."""
    mask = np.array([[False, False], [True, True], [True, True]])
    assert random_legal_actions(mask, np.array([0.5, 0.0, np.nextafter(1.0, 0.0)])).tolist() == [-1, 0, 1]


def test_streams_are_numbered_and_each_row_has_its_own():
    """Drawing on gives the same numbers as drawing at once; other seeds give others, evenly spread."""
    seeds = np.arange(2000, dtype=np.uint64)
    numbers = row_uniforms(seeds, 0, 5)
    assert np.array_equal(row_uniforms(seeds[7:9], 3, 2), numbers[7:9, 3:])
    assert len(np.unique(numbers)) == numbers.size
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(1000, abs=150)


def test_random_returns_are_sums_of_rewards_of_random_games():
    """Summed by hand along the same numbers, in a game with chance; a longer game counts as far as it was played."""
    game, seeds = Triangle(TriangleOptions(num_slots=2)), np.arange(1, 21, dtype=np.uint64)
    start = game.initial(game.draw_chance(np.random.default_rng(0), 20))
    for max_moves in (3, 1000):
        numbers = row_uniforms(seeds, 0, 3 * max_moves)
        states, total = start, np.zeros(20, np.float32)
        for move in range(min(max_moves, 100)):
            choice, deal = numbers[:, 3 * move].copy(), numbers[:, 3 * move + 1 : 3 * move + 3].copy()
            actions = random_legal_actions(game.legal_action_mask(states), choice)
            result = game.step(states, actions, game.chance_from_uniforms(deal))
            states, total = result.states, total + result.rewards
        assert np.array_equal(game.random_returns(start, seeds, max_moves), total)
    assert game.terminated(states).all()


def test_random_returns_of_two_players_are_seen_from_the_player_to_move():
    """Whoever wins with every cell that is left wins, from either seat, and the reward is his."""
    game = TicTacToe()
    first, second = [1, 1, 0, 2, 2, 1, 1, 2, 2], [2, 1, 1, 2, 2, 0, 1, 1, 0]
    states = game.decode(np.array([first, second] * 10, np.uint8))
    assert game.to_play(states).tolist() == [0, 1] * 10
    assert game.random_returns(states, np.arange(20, dtype=np.uint64), 9).tolist() == [1.0] * 20
