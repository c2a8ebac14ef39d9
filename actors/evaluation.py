"""Measures a player on fixed seeds: the same deals for everybody, no noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.players import Player
from zero.games.game import Game

MAX_SLOTS = 64
"""Games played at once; a finished one makes room for the next seed."""
SEED_STEP = np.uint64(0x9E3779B97F4A7C15)
"""An odd constant: multiples of it give every move of a game another search seed."""


@dataclass(frozen=True)
class EvaluationScore:
    """The result of an evaluation.

    Attributes:
        mean: mean score; in two-player games the mean result against the opponent, -1 to 1.
        standard_error: of the mean.
        num_games: games played.
    """

    mean: float
    standard_error: float
    num_games: int

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> "EvaluationScore":
        """Summarise scores [N]."""
        error = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else float("nan")
        return cls(float(scores.mean()), error, len(scores))


def num_slots(num_games: int) -> int:
    """How wide the batches of an evaluation of that many games are."""
    return min(num_games, MAX_SLOTS)


class _Slots:
    """Games under way and the scores of those that ended."""

    def __init__(self, game: Game, num_games: int, seed: int) -> None:
        self._game = game
        self._num_games = num_games
        self._seed = seed
        self._next = 0
        self.scores = np.zeros(num_games)
        count = num_slots(num_games)
        self.index = np.full(count, -1)
        self.move = np.zeros(count, np.int64)
        self.states = np.zeros((count, game.state_size), np.uint64)
        self._rngs: list[np.random.Generator] = [np.random.default_rng(0)] * count
        for slot in range(count):
            self.start_next(slot)

    @property
    def playing(self) -> NDArray[np.bool_]:
        """bool [slots], a game is under way."""
        return self.index >= 0

    def start_next(self, slot: int) -> None:
        """Begin the next game in a slot, or leave the slot empty with its finished position."""
        if self._next >= self._num_games:
            self.index[slot] = -1
            return
        self.index[slot] = self._next
        self.move[slot] = 0
        self._rngs[slot] = np.random.default_rng(self._seed + self._next)
        self.states[slot] = self._game.initial(self._game.draw_chance(self._rngs[slot], 1))[0]
        self._next += 1

    def seeds(self) -> NDArray[np.uint64]:
        """uint64 [slots], a function of game and move alone, so that packing does not matter."""
        return (self._seed + self.index + 1).astype(np.uint64) * SEED_STEP + self.move.astype(np.uint64)

    def outcomes(self) -> NDArray[np.int64]:
        """Chance outcomes [slots, chance_size], each from its game's own generator."""
        size = self._game.chance_size
        return self._game.chance_from_uniforms(np.stack([rng.random(size) for rng in self._rngs]))


def evaluate_player(
    game: Game,
    player: Player,
    opponent: Player,
    num_games: int,
    seed: int,
    max_moves: int,
    on_move: Callable[[int], None] = lambda _: None,
) -> EvaluationScore:
    """Play games with seeds `seed`, `seed` + 1, ... and summarise the scores.

    Args:
        game: the rules.
        player: whom to measure.
        opponent: the other side of a two-player game, where the player begins every other game; else not used.
        num_games: how many.
        seed: of the first game.
        max_moves: a longer game counts with the score it has.
        on_move: called after every move with the number of games that ended with it; what it raises ends the
            evaluation.
    """
    slots = _Slots(game, num_games, seed)
    while slots.playing.any():
        seat = np.where(slots.index % 2, 1, 0) if game.num_players == 2 else 0
        own_turn = game.to_play(slots.states) == seat
        seeds = slots.seeds()
        actions = player.choose(slots.states, seeds)
        if not own_turn.all():
            actions = np.where(own_turn, actions, opponent.choose(slots.states, seeds))
        transition = game.step(slots.states, actions, slots.outcomes())
        slots.states = transition.states
        slots.move += 1
        playing = slots.playing
        slots.scores[slots.index[playing]] += np.where(own_turn, transition.rewards, -transition.rewards)[playing]
        ended = np.flatnonzero(playing & (transition.terminated | (slots.move >= max_moves)))
        for slot in ended:
            slots.start_next(int(slot))
        on_move(len(ended))
    return EvaluationScore.of(slots.scores)
