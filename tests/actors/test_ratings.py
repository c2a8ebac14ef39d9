"""Ratings are the most likely ones, and their errors are those of repeated experiments."""

import numpy as np
import pytest

from actors import ratings
from actors.ratings import MatchResult, rate


def expected(elo: float) -> float:
    """Points per game of a player who is `elo` stronger."""
    return 1 / (1 + 10 ** (-elo / 400))


def test_odds_of_ten_to_one_are_400_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the prior, expected results give back the ratings that they were made from, over any path of matches."""
    monkeypatch.setattr(ratings, "PRIOR_GAMES", 0.0)
    assert rate([MatchResult("a", "b", 10, 11)], "b")["a"].elo == pytest.approx(400)
    true = {"random": 0.0, "greedy": 150.0, "mcts": 700.0, "search": 650.0}
    pairs = [("greedy", "random"), ("mcts", "greedy"), ("search", "mcts"), ("random", "search")]
    results = [MatchResult(one, two, 50 * expected(true[one] - true[two]), 50) for one, two in pairs]
    found = rate(results, "random")
    assert {name: rating.elo for name, rating in found.items()} == pytest.approx(true, abs=1e-6)


def test_who_wins_everything_has_a_finite_rating() -> None:
    """One drawn game is added to every match; more games say more."""
    few, many = (rate([MatchResult("strong", "weak", games, games)], "weak")["strong"] for games in (10, 1000))
    assert few.elo == pytest.approx(400 * np.log10(10.5 / 0.5))
    assert few.elo < many.elo < 2000
    assert rate([MatchResult("weak", "strong", 0, 10)], "weak")["strong"].elo == pytest.approx(few.elo)


def test_extreme_results_are_rated_too() -> None:
    """A long chain of one-sided matches, where full steps of Newton's method run away: the points come out as given."""
    table = (
        *(("e", "d", 0, 10), ("z", "d", 5, 10), ("a", "c", 0, 1000), ("b", "e", 0, 10), ("b", "e", 200, 200)),
        *(("a", "z", 0, 1), ("z", "b", 1, 1), ("z", "d", 1, 1), ("z", "d", 10, 10), ("z", "d", 0, 100)),
        *(("d", "z", 0.5, 1), ("c", "z", 0, 1000), ("a", "b", 1, 1)),
    )
    results = [MatchResult(*row) for row in table]
    found = rate(results, "z")
    for name in "abcde":
        surplus = 0.0
        for result in results:
            if name in (result.player, result.opponent):
                odds = expected(found[result.player].elo - found[result.opponent].elo)
                more = result.points + 0.5 - (result.num_games + 1) * odds
                surplus += more if name == result.player else -more
        assert surplus == pytest.approx(0, abs=1e-6)


def test_the_error_is_that_of_repeated_experiments() -> None:
    """Ratings of 400 random tournaments scatter as their standard errors say."""
    rng = np.random.default_rng(0)
    true = {"anchor": 0.0, "a": 100.0, "b": 250.0}
    pairs = [("a", "anchor"), ("b", "anchor"), ("b", "a")]
    found = [
        rate(
            [MatchResult(one, two, rng.binomial(100, expected(true[one] - true[two])), 100) for one, two in pairs],
            "anchor",
        )
        for _ in range(400)
    ]
    for name in ("a", "b"):
        elos = np.array([ratings[name].elo for ratings in found])
        errors = np.array([ratings[name].standard_error for ratings in found])
        assert elos.mean() == pytest.approx(true[name], abs=8)
        assert elos.std() == pytest.approx(errors.mean(), rel=0.12)
    assert found[0]["anchor"] == ratings.Rating(0.0, 0.0)


def test_players_who_met_nobody_else_cannot_be_rated() -> None:
    """The text names them."""
    results = [MatchResult("a", "anchor", 1, 2), MatchResult("b", "c", 1, 2)]
    with pytest.raises(ValueError, match="no matches connect b, c with anchor"):
        rate(results, "anchor")
    with pytest.raises(ValueError, match="no matches connect anybody with anchor"):
        rate([], "anchor")
