"""Self-play: many games in lock step under one search, recorded as trajectories."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zero.config import SelfPlayConfig
from zero.games.game import Game
from zero.search.gumbel import GumbelSearch, SearchResult
from zero.self_play_table import self_play_signature
from zero.trajectories import Signature, Trajectory

Array = NDArray[np.generic]


class Recorder:
    """Columns of the games under way, [G, T, ...], in arrays that grow with the longest game."""

    def __init__(self, signature: Signature, num_games: int, capacity: int = 64) -> None:
        self._columns: dict[str, Array] = {
            spec.name: np.zeros((num_games, capacity, *spec.shape), spec.dtype) for spec in signature
        }
        self._capacity = capacity
        self.lengths = np.zeros(num_games, np.int64)

    def append(self, row: Mapping[str, Array]) -> None:
        """Add one step to every game; each column is [G, ...]."""
        if self.lengths.max() == self._capacity:
            self._columns = {
                name: np.concatenate((column, np.zeros_like(column)), axis=1) for name, column in self._columns.items()
            }
            self._capacity *= 2
        games = np.arange(len(self.lengths))
        for name, column in self._columns.items():
            column[games, self.lengths] = row[name]
        self.lengths += 1

    def take(self, game: int) -> dict[str, Array]:
        """The columns [T, ...] of one game, which starts anew."""
        length = self.lengths[game]
        self.lengths[game] = 0
        return {name: column[game, :length].copy() for name, column in self._columns.items()}


@dataclass(frozen=True)
class MoveReport:
    """What one move of all games was like, for metrics.

    Attributes:
        num_moves: games that moved.
        unique_leaf_ratio: nodes made per simulation, 0 to 1.
    """

    num_moves: int
    unique_leaf_ratio: float


class SelfPlay:
    """G games in lock step; a finished game is replaced at once.

    Every game has a seed of its own, from which its chance outcomes come. The search draws from another stream, so it
    never foresees them.

    Args:
        game: the rules.
        config: how to play.
        num_simulations: of the search, for the report.
        actor_id: stamped on the trajectories.
        seeds: the actor's seeds; every game spawns its own.
    """

    def __init__(
        self,
        game: Game,
        config: SelfPlayConfig,
        num_simulations: int,
        actor_id: str,
        seeds: np.random.SeedSequence,
    ) -> None:
        self._game = game
        self._config = config
        self._num_simulations = num_simulations
        self._actor_id = actor_id
        self._seeds = seeds
        games = config.games_per_actor
        self._search_rng = np.random.default_rng(seeds.spawn(1)[0])
        self._episode_seeds = np.zeros(games, np.uint64)
        self._rngs = [self._new_rng(index) for index in range(games)]
        self._first_versions = np.zeros(games, np.int64)
        self._scores = np.zeros(games)
        self._recorder = Recorder(self_play_signature(game), games)
        self._states = game.initial(self._draw_outcomes())

    def play_move(self, search: GumbelSearch, weights_version: int) -> tuple[list[Trajectory], MoveReport]:
        """Search and play one move in every game; returns the games that ended with it."""
        starting = self._recorder.lengths == 0
        self._first_versions[starting] = weights_version
        seeds = self._search_rng.integers(0, 2**64, len(self._states), dtype=np.uint64)
        result = search.run(self._states, seeds, self._config.gumbel_scale)
        actions = self._choose(result)
        transition = self._game.step(self._states, actions, self._draw_outcomes())
        to_play = self._game.to_play(self._states)
        same_player = to_play == self._game.to_play(transition.states)
        discounts = np.where(transition.terminated, 0, np.where(same_player, 1, -1))
        self._recorder.append(
            {
                "observation": self._game.observation(self._states),
                "action": actions,
                "reward": transition.rewards,
                "discount": discounts,
                "search_policy": result.search_policy,
                "search_value": result.search_value,
            }
        )
        # The score is the first player's; rewards are the mover's.
        self._scores += np.where(to_play == 0, transition.rewards, -transition.rewards)
        self._states = transition.states
        ended = transition.terminated | (self._recorder.lengths >= self._config.max_moves)
        finished = [self._finish(int(index), bool(transition.terminated[index])) for index in np.flatnonzero(ended)]
        ratio = float(result.num_unique_leaves.mean()) / self._num_simulations
        return finished, MoveReport(len(actions), ratio)

    def _choose(self, result: SearchResult) -> NDArray[np.int64]:
        """The search's action, or one drawn from its policy in the first moves of a game."""
        sampling = self._recorder.lengths < self._config.sampled_moves
        if not sampling.any():
            return result.actions
        cumulative = result.search_policy.astype(np.float64).cumsum(-1)
        draws = self._search_rng.random((len(cumulative), 1)) * cumulative[:, -1:]
        return np.where(sampling, (cumulative <= draws).sum(-1), result.actions)

    def _finish(self, index: int, terminated: bool) -> Trajectory:
        stats = {name: float(values[index]) for name, values in self._game.stats(self._states).items()}
        seed = int(self._episode_seeds[index])
        trajectory = Trajectory(
            trajectory_id=f"{self._actor_id}-{seed:016x}",
            actor_id=self._actor_id,
            weights_version=int(self._first_versions[index]),
            episode_seed=seed,
            terminated=terminated,
            truncated=not terminated,
            columns=self._recorder.take(index),
            stats=stats | {"score": float(self._scores[index])},
        )
        self._scores[index] = 0.0
        self._rngs[index] = self._new_rng(index)
        self._states[index] = self._game.initial(self._game.draw_chance(self._rngs[index], 1))[0]
        return trajectory

    def _new_rng(self, index: int) -> np.random.Generator:
        self._episode_seeds[index] = self._seeds.spawn(1)[0].generate_state(1, np.uint64)[0]
        return np.random.default_rng(int(self._episode_seeds[index]))

    def _draw_outcomes(self) -> NDArray[np.int64]:
        """One outcome per game from its own generator, [G, chance_size]."""
        size = self._game.chance_size
        return self._game.chance_from_uniforms(np.stack([rng.random(size) for rng in self._rngs]))
