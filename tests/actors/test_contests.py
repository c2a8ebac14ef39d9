"""Players of a network and baselines meet as planned, and the report says what came of it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from actors import contests
from actors.contests import OPENING_MOVES, Contest, Evaluation
from actors.evaluation import Schedule, play_games
from actors.evaluator_metrics import EvaluatorMetrics
from actors.players import Player
from zero.config import ExperimentConfig, parse_config
from zero.games.game import Game, GameError
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes

SMALL = ["network.channels=4", "network.blocks=1", "search.num_simulations=4", "self_play.max_moves=50"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of tiny networks only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(game: str) -> ExperimentConfig:
    return parse_config("", [*SMALL, f"game.name={game}"])


def fresh_weights(experiment: ExperimentConfig) -> bytes:
    return weights_to_bytes(make_network(make_game(experiment.game.name, {}), experiment.network, 0))


def ignore(_: Contest, __: int) -> None:
    pass


def play(contests: Iterator[Contest]) -> list[Contest]:
    return list(contests)


def test_in_a_game_for_one_everybody_plays_the_same_seeds() -> None:
    """Baselines, the policy, and the search with as many simulations as were asked for; no ratings."""
    experiment = config("triangle")
    evaluation = Evaluation(experiment, 6, ["random", "greedy"], [2, 4, 8])
    ended: dict[Contest, int] = {}

    def count(contest: Contest, games: int) -> None:
        ended[contest] = ended.get(contest, 0) + games

    play(evaluation.measure_baselines(count))
    assert list(evaluation.report().scores) == ["random", "greedy"]
    play(evaluation.measure_network(fresh_weights(experiment), count))
    report = evaluation.report()
    assert list(report.scores) == ["random", "greedy", "policy", "search-2", "search", "search-8"]
    assert {contest: score.num_games for contest, score in report.contests.items()} == ended
    assert all(score.num_games == 6 for score in report.scores.values())
    assert report.ratings == {}
    assert len({score.mean for score in report.scores.values()}) == 6


def test_in_a_game_for_two_everybody_meets_everybody() -> None:
    """Each pair once; scores are over the games against baselines; ratings hang on the first baseline."""
    experiment = config("tic_tac_toe")
    evaluation = Evaluation(experiment, 20, ["random", "perfect"])
    play(evaluation.measure_baselines(ignore))
    first = evaluation.report()
    assert list(first.contests) == [Contest("perfect", "random")]
    assert first.scores["random"].mean == -first.scores["perfect"].mean < 0
    play(evaluation.measure_network(fresh_weights(experiment), ignore))
    report = evaluation.report()
    pairs = {frozenset((contest.player, contest.opponent)) for contest in report.contests}
    assert len(pairs) == len(report.contests) == 6
    policy = [report.contests[Contest("policy", baseline)].mean for baseline in ("random", "perfect")]
    assert report.scores["policy"].mean == pytest.approx(np.mean(policy))
    assert report.scores["policy"].num_games == 40
    assert report.scores["random"] == first.scores["random"]
    assert report.ratings["random"].elo == 0
    assert report.ratings["perfect"].elo > 100
    assert set(report.ratings) == {"random", "perfect", "policy", "search"}


def test_only_players_of_the_network_meet_after_random_openings(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would repeat one game else; baselines do not, and shall be met from the start."""
    experiment = config("tic_tac_toe")
    evaluation = Evaluation(experiment, 4, ["random", "greedy"])
    schedules: list[Schedule] = []

    def note(game: Game, player: Player, opponent: Player, schedule: Schedule, on_move: object) -> np.ndarray:
        schedules.append(schedule)
        return play_games(game, player, opponent, schedule)

    monkeypatch.setattr(contests, "play_games", note)
    play(evaluation.measure_baselines(ignore))
    play(evaluation.measure_network(fresh_weights(experiment), ignore))
    assert [schedule.opening_moves for schedule in schedules] == [0] * 5 + [OPENING_MOVES]
    assert {(schedule.num_games, schedule.seed, schedule.max_moves) for schedule in schedules} == {(4, 1_000_000, 50)}


def test_new_weights_replace_what_earlier_ones_did() -> None:
    """The baselines' games stay."""
    experiment = config("tic_tac_toe")
    evaluation = Evaluation(experiment, 4, ["random", "greedy"])
    play(evaluation.measure_baselines(ignore))
    baselines = evaluation.report().contests[Contest("greedy", "random")]
    for _ in range(2):
        play(evaluation.measure_network(fresh_weights(experiment), ignore))
    report = evaluation.report()
    assert report.scores["search"].num_games == 8
    assert report.contests[Contest("greedy", "random")] == baselines


def test_every_contest_can_be_seen_when_it_is_over() -> None:
    """The report after each knows it, and nothing of those to come."""
    evaluation = Evaluation(config("tic_tac_toe"), 4, ["random", "greedy", "perfect"])
    seen = [(contest, evaluation.report()) for contest in evaluation.measure_baselines(ignore)]
    assert [len(report.contests) for _, report in seen] == [1, 2, 3]
    assert all(list(report.contests)[-1] == contest for contest, report in seen)
    # greedy - random, perfect - random, perfect - greedy: a score against some baselines would mislead.
    assert [set(report.scores) for _, report in seen] == [set(), {"random"}, {"random", "greedy", "perfect"}]


def test_what_is_called_after_every_move_can_end_the_evaluation() -> None:
    """What it raises comes through, and no contest is left half played."""
    evaluation = Evaluation(config("tic_tac_toe"), 4, ["random", "greedy"])

    def stop(_: Contest, __: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(evaluation.measure_baselines(stop))
    assert evaluation.report().contests == {}


def test_the_game_decides_who_can_be_asked() -> None:
    """An unknown baseline is refused before anything is played, and so is a game for two without an opponent."""
    with pytest.raises(GameError, match="no baseline 'gnu'"):
        Evaluation(config("triangle"), 4, ["gnu"])
    with pytest.raises(GameError, match="name at least one"):
        Evaluation(config("tic_tac_toe"), 4, [])
    assert list(Evaluation(config("triangle"), 4, []).report().scores) == []


def test_metrics_show_the_report() -> None:
    """Scores, their errors and medians by player, results by pair, ratings; nothing of whom was not measured."""
    experiment = config("tic_tac_toe")
    evaluation = Evaluation(experiment, 4, ["random", "greedy"])
    metrics = EvaluatorMetrics()
    play(evaluation.measure_baselines(ignore))
    metrics.show(evaluation.report())
    value = metrics.registry.get_sample_value
    assert value("zero_evaluator_score", {"player": "search"}) is None
    play(evaluation.measure_network(fresh_weights(experiment), ignore))
    report = evaluation.report()
    metrics.show(report)
    score, player = report.scores["search"], {"player": "search"}
    assert value("zero_evaluator_score", player) == score.mean
    assert value("zero_evaluator_score_standard_error", player) == score.standard_error
    assert value("zero_evaluator_score_median", player) == score.median
    pair = {"player": "search", "opponent": "greedy"}
    assert value("zero_evaluator_result", pair) == report.contests[Contest("search", "greedy")].mean
    assert value("zero_evaluator_rating_elo", player) == report.ratings["search"].elo
    assert value("zero_evaluator_rating_standard_error_elo", player) == report.ratings["search"].standard_error
