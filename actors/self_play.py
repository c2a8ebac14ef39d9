"""Self-play: many games in lock step under one search, recorded as trajectories."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zero.config import SelfPlayConfig
from zero.games.game import Game, Transition
from zero.search.tree import mean_depth
from zero.search.tree_search import SearchResult, TreeSearch
from zero.self_play_table import NO_CODE, self_play_signature
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
        num_simulations: made for it, in all games together.
        search_depth: mean depth at which simulations end, in moves.
        unique_leaf_ratio: nodes made per simulation, 0 to 1.
        policy_entropy: mean entropy of the search policies, in nats.
        policy_divergence: mean KL divergence of the search policies from the network's, in nats.
        search_optimism: per game that ended by the rules with this move, see `search_optimism`.
    """

    num_moves: int
    num_simulations: int
    search_depth: float
    unique_leaf_ratio: float
    policy_entropy: float
    policy_divergence: float
    search_optimism: tuple[float, ...]


def search_optimism(columns: Mapping[str, Array], discount: float) -> float:
    """Mean over the moves of a finished game of search value minus the discounted return that really followed.

    Args:
        columns: of the trajectory, up to the end of the game.
        discount: per step, as the search values have it.
    """
    rewards, discounts = columns["reward"].astype(np.float64), columns["discount"].astype(np.float64)
    following = 0.0
    returns = np.zeros(len(rewards))
    for step in range(len(rewards) - 1, -1, -1):
        following = rewards[step] + discount * discounts[step] * following
        returns[step] = following
    return float((columns["search_value"].astype(np.float64) - returns).mean())


class SelfPlay:
    """G games in lock step; a finished game is replaced at once.

    Every game has a seed of its own, from which its chance outcomes come. The search draws from another stream, so it
    never foresees them.

    Args:
        game: the rules.
        config: how to play.
        num_simulations: per move, unless it is searched cheaply.
        actor_id: stamped on the trajectories.
        seeds: the actor's seeds; every game spawns its own.
        num_games: G.
    """

    def __init__(
        self,
        game: Game,
        config: SelfPlayConfig,
        num_simulations: int,
        actor_id: str,
        seeds: np.random.SeedSequence,
        num_games: int,
    ) -> None:
        self._game = game
        self._config = config
        self._num_simulations = num_simulations
        self._actor_id = actor_id
        self._seeds = seeds
        self._search_rng = np.random.default_rng(seeds.spawn(1)[0])
        self._episode_seeds = np.zeros(num_games, np.uint64)
        self._rngs = [self._new_rng(index) for index in range(num_games)]
        self._first_versions = np.zeros(num_games, np.int64)
        self._scores = np.zeros(num_games)
        self._recorder = Recorder(self_play_signature(game), num_games)
        self._states = game.initial(self._draw_outcomes())

    def play_move(
        self, search: TreeSearch, weights_version: int | Callable[[], int]
    ) -> tuple[list[Trajectory], MoveReport]:
        """Search and play one move in every game; returns the games that ended with it.

        A policy that is not to be learned, because the move was searched cheaply, is recorded as zeros.

        Args:
            search: as wide as there are games.
            weights_version: of the weights that it searches with; a function, asked after the search, where the
                network is elsewhere and may change meanwhile.
        """
        is_cheap = self._is_cheap()
        num_simulations = self._config.cheap_simulations if is_cheap else self._num_simulations
        seeds = self._search_rng.integers(0, 2**64, len(self._states), dtype=np.uint64)
        noise_scale = 0.0 if is_cheap else self._config.noise_scale
        result = search.run(self._states, seeds, noise_scale, num_simulations)
        version = weights_version() if callable(weights_version) else weights_version
        self._first_versions[self._recorder.lengths == 0] = version
        actions = self._choose(result)
        applied = self._game.apply(self._states, actions)
        outcomes = self._draw_outcomes()
        transition = self._game.settle(applied, outcomes)
        to_play = self._game.to_play(self._states)
        same_player = to_play == self._game.to_play(transition.states)
        discounts = np.where(transition.terminated, 0, np.where(same_player, 1, -1))
        self._recorder.append(
            {
                "observation": self._game.observation(self._states),
                "action": actions,
                "reward": transition.rewards,
                "discount": discounts,
                "search_policy": np.zeros_like(result.search_policy) if is_cheap else result.search_policy,
                "search_value": result.search_value,
                "search_version": np.full(len(actions), version),
                "reanalysed_at": np.zeros(len(actions)),
                "chance_code": self._chance_codes(applied, outcomes),
            }
        )
        # The score is the first player's; rewards are the mover's.
        self._scores += np.where(to_play == 0, transition.rewards, -transition.rewards)
        self._states = transition.states
        ended = transition.terminated | (self._recorder.lengths >= self._config.max_moves)
        finished = [self._finish(int(index), bool(transition.terminated[index])) for index in np.flatnonzero(ended)]
        optimism = (search_optimism(game.columns, search.discount) for game in finished if game.terminated)
        return finished, MoveReport(
            num_moves=len(actions),
            num_simulations=len(actions) * num_simulations,
            search_depth=mean_depth(search.tree),
            unique_leaf_ratio=float(result.num_unique_leaves.mean()) / num_simulations,
            policy_entropy=float(result.policy_entropy.mean()),
            policy_divergence=float(result.policy_divergence.mean()),
            search_optimism=tuple(optimism),
        )

    def _chance_codes(self, applied: Transition, outcomes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What players see of what chance does after the actions, [G, number of codes]."""
        codes = self._game.chance_codes(applied.states, outcomes)
        return np.where(applied.chance_pending[:, None], codes, NO_CODE)

    def _is_cheap(self) -> bool:
        """Whether this move is searched cheaply: in all games or none, for they wait for each other."""
        fraction = self._config.cheap_move_fraction
        return fraction > 0 and self._search_rng.random() < fraction

    def _choose(self, result: SearchResult) -> NDArray[np.int64]:
        """The search's action, or one drawn from its policy at the temperature that the move has."""
        config = self._config
        early = self._recorder.lengths < config.sampled_moves
        temperatures = np.where(early, config.temperature, config.final_temperature)
        sampling = temperatures > 0
        if not sampling.any():
            return result.actions
        exponents = 1 / np.where(sampling, temperatures, 1.0)
        policy = result.search_policy.astype(np.float64)
        # As shares of the largest one, for then one power at least is not too small for a float.
        policy /= policy.max(-1, keepdims=True)
        cumulative = (policy ** exponents[:, None]).cumsum(-1)
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
