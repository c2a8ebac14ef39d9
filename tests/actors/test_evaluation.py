"""Evaluation is a function of player and seeds, and ranks players as they are."""

import numpy as np
import pytest

from actors.evaluation import EvaluationScore, evaluate_player
from actors.players import GreedyPlayer, PolicyPlayer, RandomPlayer, SearchPlayer
from zero.config import NetworkConfig, SearchConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.inference import InferenceNetwork
from zero.networks.residual import make_network
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.gumbel import GumbelSearch


@pytest.fixture(scope="module")
def triangle() -> Game:
    """The puzzle."""
    return make_game("triangle", {})


def test_baselines_score_what_they_should(triangle: Game) -> None:
    """Random play averages about 2 points, greedy play about 6.7."""
    random, greedy = RandomPlayer(triangle), GreedyPlayer(triangle)
    random_score = evaluate_player(triangle, random, random, 256, 1_000_000, 2000)
    greedy_score = evaluate_player(triangle, greedy, greedy, 256, 1_000_000, 2000)
    assert abs(random_score.mean - 2.0) < 5 * random_score.standard_error
    assert abs(greedy_score.mean - 6.7) < 5 * greedy_score.standard_error


def test_scores_do_not_depend_on_how_games_are_packed(triangle: Game) -> None:
    """The first games of a long evaluation are the games of a short one."""
    player = GreedyPlayer(triangle)
    long = [evaluate_player(triangle, player, player, 1, seed, 2000).mean for seed in range(70)]
    assert evaluate_player(triangle, player, player, 70, 0, 2000).mean == pytest.approx(np.mean(long))


def test_search_with_an_untrained_network_beats_its_policy(triangle: Game) -> None:
    """Looking ahead is worth something even with an ignorant network."""
    network = InferenceNetwork(make_network(triangle, NetworkConfig(channels=8, blocks=1), seed=0))
    search = GumbelSearch(AlphaZeroModel(triangle, network, 0.99), SearchConfig(num_simulations=16), 16)
    policy = PolicyPlayer(triangle, network)
    searched = evaluate_player(triangle, SearchPlayer(search), policy, 16, 0, 2000)
    assert searched.mean > evaluate_player(triangle, policy, policy, 16, 0, 2000).mean


def test_two_player_results_are_seen_from_the_player() -> None:
    """Greedy beats random from either seat, and random loses to greedy by as much."""
    game = make_game("tic_tac_toe", {})
    random, greedy = RandomPlayer(game), GreedyPlayer(game)
    winner = evaluate_player(game, greedy, random, 200, 0, 100)
    loser = evaluate_player(game, random, greedy, 200, 0, 100)
    assert winner.mean > 0.2
    assert loser.mean < -0.2


def test_max_moves_ends_a_game_with_the_score_it_has(triangle: Game) -> None:
    """After one move without a clearing the score is the reward of that move."""
    player = RandomPlayer(triangle)
    score = evaluate_player(triangle, player, player, 4, 0, max_moves=1)
    assert 0 < score.mean < 0.1


def test_standard_error_of_known_scores() -> None:
    """The sample standard deviation over the root of the number."""
    score = EvaluationScore.of(np.array([1.0, 3.0]))
    assert (score.mean, score.standard_error, score.num_games) == (2.0, pytest.approx(1.0), 2)
