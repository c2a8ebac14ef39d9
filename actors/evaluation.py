"""Measures players on fixed seeds: the same deals and openings for everybody, no noise, both sides played."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.players import Actions, Player, Seeds
from zero.games.game import Game, States
from zero.games.random_play import random_legal_actions, row_uniforms

MAX_SLOTS = 64
"""Games played at once; a finished one makes room for the next seed."""
SEED_STEP = np.uint64(0x9E3779B97F4A7C15)
"""An odd constant: multiples of it give every move of a game another search seed."""

_OPENING_STREAM = np.uint64(0xD1B54A32D192ED03)


@dataclass(frozen=True)
class EvaluationScore:
    """The result of an evaluation.

    Attributes:
        mean: mean score; in two-player games the mean result against the opponent, -1 to 1.
        standard_error: of the mean.
        median: of the scores.
        num_games: games played.
        num_won: games with a score above 0: in two-player games, games won.
        num_lost: games with a score below 0: in two-player games, games lost.
    """

    mean: float
    standard_error: float
    median: float
    num_games: int
    num_won: int
    num_lost: int

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> "EvaluationScore":
        """Summarise scores [N]."""
        return cls(
            mean=float(scores.mean()),
            standard_error=float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else float("nan"),
            median=float(np.median(scores)),
            num_games=len(scores),
            num_won=int((scores > 0).sum()),
            num_lost=int((scores < 0).sum()),
        )


def batch_width(game: Game, num_games: int) -> int:
    """How many positions a player is asked about at once, at most, in an evaluation of that many games."""
    slots = min(num_games, MAX_SLOTS)
    return slots if game.num_players == 1 else -(-slots // 2)


class FixedWidthPlayer:
    """Asks a player that takes batches of one width only, however many positions there are.

    Args:
        player: whom to ask.
        width: positions that it takes at once.
    """

    def __init__(self, player: Player, width: int) -> None:
        self._player = player
        self._width = width

    def choose(self, states: States, seeds: Seeds) -> Actions:
        """See Player."""
        count = len(states)
        # Filled up with the first position: rows are independent of each other.
        rows = np.concatenate([np.arange(count), np.zeros(-count % self._width, np.int64)]).reshape(-1, self._width)
        return np.concatenate([self._player.choose(states[part], seeds[part]) for part in rows])[:count]


class _Slots:
    """Games under way and the scores of those that ended."""

    def __init__(self, game: Game, num_games: int, seed: int) -> None:
        self._game = game
        self._num_games = num_games
        self._seed = seed
        self._next = 0
        self.scores = np.zeros(num_games)
        count = min(num_games, MAX_SLOTS)
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

    def seeds(self) -> Seeds:
        """uint64 [slots], a function of game and move alone, so that packing does not matter."""
        return (self._seed + self.index + 1).astype(np.uint64) * SEED_STEP + self.move.astype(np.uint64)

    def opening_actions(self) -> Actions:
        """Uniformly random actions [slots], the same in games 0 and 1, in games 2 and 3, and so on."""
        pair = (self._seed + self.index // 2 + 1).astype(np.uint64)
        seeds = (pair * SEED_STEP + self.move.astype(np.uint64)) ^ _OPENING_STREAM
        return random_legal_actions(self._game.legal_action_mask(self.states), row_uniforms(seeds, 0, 1)[:, 0].copy())

    def outcomes(self) -> NDArray[np.int64]:
        """Chance outcomes [slots, chance_size], each from its game's own generator."""
        size = self._game.chance_size
        return self._game.chance_from_uniforms(np.stack([rng.random(size) for rng in self._rngs]))


@dataclass(frozen=True)
class Schedule:
    """Which games are played.

    Attributes:
        num_games: how many.
        seed: of the first game; the others follow.
        max_moves: a longer game counts with the score it has.
        opening_moves: first moves of each game that are drawn at random, alike in every two games, where the players
            change sides. Without chance, two players without randomness would repeat one game else.
    """

    num_games: int
    seed: int
    max_moves: int
    opening_moves: int = 0


def play_games(
    game: Game,
    player: Player,
    opponent: Player,
    schedule: Schedule,
    on_move: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Scores [num_games] of a player.

    Args:
        game: the rules.
        player: whom to measure.
        opponent: the other side of a two-player game, where the player begins every other game; else not used.
        schedule: which games.
        on_move: called after every move with the number of games that ended with it; what it raises ends the
            evaluation.
    """
    slots = _Slots(game, schedule.num_games, schedule.seed)
    while slots.playing.any():
        seat = np.where(slots.index % 2, 1, 0) if game.num_players == 2 else 0
        own_turn = game.to_play(slots.states) == seat
        actions = _choose(slots, player, opponent, own_turn, schedule.opening_moves)
        transition = game.step(slots.states, actions, slots.outcomes())
        slots.states = transition.states
        slots.move += 1
        playing = slots.playing
        slots.scores[slots.index[playing]] += np.where(own_turn, transition.rewards, -transition.rewards)[playing]
        ended = np.flatnonzero(playing & (transition.terminated | (slots.move >= schedule.max_moves)))
        for slot in ended:
            slots.start_next(int(slot))
        on_move(len(ended))
    return slots.scores


def _choose(
    slots: _Slots, player: Player, opponent: Player, own_turn: NDArray[np.bool_], opening_moves: int
) -> Actions:
    """Actions [slots] of whoever moves in each game; an empty slot, whose position is finished, takes any."""
    opening = slots.move < opening_moves
    actions = slots.opening_actions() if opening.any() else np.zeros(len(own_turn), np.int64)
    seeds, free = slots.seeds(), slots.playing & ~opening
    for side, turn in ((player, own_turn), (opponent, ~own_turn)):
        rows = np.flatnonzero(free & turn)
        if len(rows):
            actions[rows] = side.choose(slots.states[rows], seeds[rows])
    return actions
