"""Positions that benchmarks measure on."""

import numpy as np

from zero.games.game import Game
from zero.games.random_play import random_legal_actions

MOVES = 6


def observations_of_play(game: Game, count: int) -> np.ndarray:
    """Observations [count, ...] some random moves after the start."""
    rng = np.random.default_rng(0)
    states = game.initial(game.draw_chance(rng, count))
    for _ in range(MOVES):
        actions = random_legal_actions(game.legal_action_mask(states), rng.random(count))
        after = game.step(states, actions, game.draw_chance(rng, count)).states
        states = np.where(game.terminated(after)[:, None], states, after)
    return game.observation(states)
