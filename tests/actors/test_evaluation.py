"""Evaluation is a function of player and seeds, plays both sides, and ranks players as they are."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from actors.evaluation import EvaluationScore, FixedWidthPlayer, Schedule, batch_width, play_games
from actors.players import Actions, GreedyPlayer, PolicyPlayer, RandomPlayer, SearchPlayer, Seeds
from tests.scores import score_of
from zero.config import NetworkConfig, SearchConfig
from zero.games.game import Game, States
from zero.games.registry import make_game
from zero.networks.inference import InferenceNetwork
from zero.networks.make_network import make_network
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.gumbel import GumbelSearch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of tiny networks only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def triangle() -> Game:
    """The puzzle."""
    return make_game("triangle", {})


def test_baselines_score_what_they_should(triangle: Game) -> None:
    """Random play averages about 2 points, greedy play about 6.7."""
    random, greedy = RandomPlayer(triangle), GreedyPlayer(triangle)
    random_score = score_of(triangle, random, random, Schedule(256, 1_000_000, 2000))
    greedy_score = score_of(triangle, greedy, greedy, Schedule(256, 1_000_000, 2000))
    assert abs(random_score.mean - 2.0) < 5 * random_score.standard_error
    assert abs(greedy_score.mean - 6.7) < 5 * greedy_score.standard_error


def test_scores_do_not_depend_on_how_games_are_packed(triangle: Game) -> None:
    """The first games of a long evaluation are the games of a short one."""
    player = GreedyPlayer(triangle)
    long = [score_of(triangle, player, player, Schedule(1, seed, 2000)).mean for seed in range(70)]
    assert score_of(triangle, player, player, Schedule(70, 0, 2000)).mean == pytest.approx(np.mean(long))


def test_search_with_an_untrained_network_beats_its_policy(triangle: Game) -> None:
    """Looking ahead is worth something even with an ignorant network."""
    network = InferenceNetwork(make_network(triangle, NetworkConfig(channels=8, blocks=1), seed=0))
    search = GumbelSearch(AlphaZeroModel(triangle, network, 0.99), SearchConfig(num_simulations=16), 16)
    policy = PolicyPlayer(triangle, network)
    searched = score_of(triangle, FixedWidthPlayer(SearchPlayer(search), 16), policy, Schedule(16, 0, 2000))
    assert searched.mean > score_of(triangle, policy, policy, Schedule(16, 0, 2000)).mean


def test_two_player_results_are_seen_from_the_player() -> None:
    """Greedy beats random from either seat, and random loses to greedy by as much."""
    game = make_game("tic_tac_toe", {})
    random, greedy = RandomPlayer(game), GreedyPlayer(game)
    winner = score_of(game, greedy, random, Schedule(200, 0, 100))
    loser = score_of(game, random, greedy, Schedule(200, 0, 100))
    assert winner.mean > 0.2
    assert loser.mean < -0.2


def test_max_moves_ends_a_game_with_the_score_it_has(triangle: Game) -> None:
    """After one move without a clearing the score is the reward of that move."""
    player = RandomPlayer(triangle)
    score = score_of(triangle, player, player, Schedule(4, 0, 1))
    assert 0 < score.mean < 0.1


def test_known_scores_are_summarised() -> None:
    """The sample standard deviation over the root of the number, the median, and what was won and lost."""
    score = EvaluationScore.of(np.array([1.0, -1.0, 0.0, 1.0]))
    assert (score.mean, score.median, score.num_games, score.num_won, score.num_lost) == (0.25, 0.5, 4, 2, 1)
    assert score.standard_error == pytest.approx(np.std([1, -1, 0, 1], ddof=1) / 2)


class Recorder:
    """Plays the first legal action and remembers what it was asked about."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.asked: list[States] = []

    def choose(self, states: States, seeds: Seeds) -> Actions:  # noqa: ARG002
        """See Player."""
        self.asked.append(states)
        return self.game.legal_action_mask(states).argmax(1)


def test_a_player_is_asked_only_where_it_moves() -> None:
    """Never about finished games or the other one's turn; it begins every other game, so both sides are played."""
    game = make_game("tic_tac_toe", {})
    player, opponent = Recorder(game), Recorder(game)
    play_games(game, player, opponent, Schedule(20, 0, 100))
    assert [len(recorder.asked[0]) for recorder in (player, opponent)] == [10, 10]
    assert max(len(states) for states in player.asked) == batch_width(game, 20)
    assert sum(len(states) for states in player.asked) == sum(len(states) for states in opponent.asked)
    # With openings, games end at different times.
    play_games(game, player, opponent, Schedule(20, 0, 100, opening_moves=2))
    for recorder in (player, opponent):
        assert not game.terminated(np.concatenate(recorder.asked)).any()


def test_openings_are_drawn_once_for_both_sides() -> None:
    """Games 2n and 2n + 1 begin alike, other pairs otherwise; then the players are asked."""
    game = make_game("connect_four", {})
    player, opponent = Recorder(game), Recorder(game)
    scores = play_games(game, player, opponent, Schedule(40, 5, 100, opening_moves=3))
    # After three moves the second player of a game is asked: the player in odd games, the opponent in even ones.
    first, second = opponent.asked[0], player.asked[0]
    assert np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) > 10
    assert (np.bitwise_count(first).sum(axis=1) == 3).all()
    assert np.array_equal(scores[::2], -scores[1::2])


def test_without_openings_two_players_without_randomness_repeat_one_game() -> None:
    """The reason for openings."""
    game = make_game("connect_four", {})
    player = Recorder(game)
    assert len(set(play_games(game, player, player, Schedule(10, 0, 100))[::2].tolist())) == 1


def test_a_player_of_one_width_is_asked_in_parts() -> None:
    """The answers are those for the positions, whatever fills up the last part."""
    game = make_game("tic_tac_toe", {})
    rng = np.random.default_rng(0)
    states = game.initial(np.zeros((7, 0), np.int64))
    states = game.apply(states, rng.integers(0, 9, 7)).states
    seeds = np.arange(7, dtype=np.uint64)
    recorder = Recorder(game)
    assert np.array_equal(FixedWidthPlayer(recorder, 3).choose(states, seeds), recorder.choose(states, seeds))
    assert [len(asked) for asked in recorder.asked] == [3, 3, 3, 7]
