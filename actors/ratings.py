"""Elo ratings from the results of matches, with their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ELO_PER_LOGIT = 400 / np.log(10)
"""Elo points in which the odds of winning change by e."""
PRIOR_GAMES = 1.0
"""Games that every two players who met are taken to have drawn besides, so that nobody's rating is infinite."""

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class MatchResult:
    """Games between two players.

    Attributes:
        player: one of them.
        opponent: the other one.
        points: of the player, 1 for a game won and a half for a draw.
        num_games: games played.
    """

    player: str
    opponent: str
    points: float
    num_games: int


@dataclass(frozen=True)
class Rating:
    """How strong a player is.

    Attributes:
        elo: against 0 for the anchor; 400 points are odds of ten to one.
        standard_error: of the difference to the anchor. It counts a draw as half a game won and half a game lost, so
            with many draws the true one is smaller.
    """

    elo: float
    standard_error: float


def rate(results: Sequence[MatchResult], anchor: str) -> dict[str, Rating]:
    """Ratings of all players, the most likely ones given the results (Bradley and Terry 1952).

    Args:
        results: of matches; players who met often may occur often.
        anchor: whose rating is 0.

    Raises:
        ValueError: the anchor played nobody, or somebody is connected with the anchor by no matches.
    """
    names = sorted({name for result in results for name in (result.player, result.opponent)} - {anchor})
    _refuse_unconnected(results, anchor, names)
    index = {name: number for number, name in enumerate(names)}
    design = np.zeros((len(results), len(names)))  # +1 for the player, -1 for the opponent, nothing for the anchor
    for row, result in enumerate(results):
        for name, sign in ((result.player, 1.0), (result.opponent, -1.0)):
            if name != anchor:
                design[row, index[name]] += sign
    games = np.array([result.num_games + PRIOR_GAMES for result in results])
    points = np.array([result.points + PRIOR_GAMES / 2 for result in results])
    logits, covariance = _maximise_likelihood(design, games, points)
    errors = np.sqrt(covariance.diagonal())
    ratings = {
        name: Rating(float(ELO_PER_LOGIT * logits[number]), float(ELO_PER_LOGIT * errors[number]))
        for name, number in index.items()
    }
    return {anchor: Rating(0.0, 0.0)} | ratings


def _maximise_likelihood(
    design: NDArray[np.float64], games: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Strengths [P] in logits and their covariance [P, P], by Newton's method on a concave function."""
    logits = np.zeros(design.shape[1])
    while True:
        expected, information = _expect(design, games, logits)
        step = np.linalg.solve(information, design.T @ (points - expected))
        # A long step can overshoot where the odds are extreme.
        logits = logits + np.clip(step, -1.0, 1.0)
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            return logits, np.asarray(np.linalg.inv(information), np.float64)


def _expect(
    design: NDArray[np.float64], games: NDArray[np.float64], logits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected points of each match, and the Fisher information [P, P] of the results."""
    probabilities = 1 / (1 + np.exp(-design @ logits))
    weights = games * probabilities * (1 - probabilities)
    return games * probabilities, design.T @ (weights[:, None] * design)


def _refuse_unconnected(results: Sequence[MatchResult], anchor: str, names: list[str]) -> None:
    connected, grown = {anchor}, True
    while grown:
        met = {
            name
            for result in results
            if {result.player, result.opponent} & connected
            for name in (result.player, result.opponent)
        }
        grown, connected = not met <= connected, connected | met
    lost = [name for name in names if name not in connected]
    if lost or not names:
        raise ValueError(
            f"no matches connect {', '.join(lost) or 'anybody'} with {anchor}: nothing can be said of them"
        )
