"""Scores of players in tests."""

from actors.evaluation import EvaluationScore, Schedule, play_games
from actors.players import Player
from zero.games.game import Game


def score_of(game: Game, player: Player, opponent: Player, schedule: Schedule) -> EvaluationScore:
    """Play games and summarise the scores of the player."""
    return EvaluationScore.of(play_games(game, player, opponent, schedule))
