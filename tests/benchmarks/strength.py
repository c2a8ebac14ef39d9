"""How strong an agent gets per second of processor time: self-play and learning in one thread, without a server.

Run it: `nice .venv/bin/python tests/benchmarks/strength.py [--seconds 240] [--seeds 0 1] [--set KEY=VALUE]
[--experiment FILE]`. Actor and learner take turns, so that each gets half of the seconds, and are the project's own but
for the replay, which is an array. With `--reanalyse 0.25` a reanalyser takes a quarter of the actor's half. With
`--moves 6000` only so many are played, as where play is dear; the actor's half goes on with reanalysing, or idles.

Seconds are of the processor, so that another program beside it disturbs little; compiling is not counted. Prints one
JSON object per seed.
"""

import argparse
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from actors.baselines import make_baseline
from actors.evaluation import MAX_SLOTS, EvaluationScore, FixedWidthPlayer, Schedule, play_games
from actors.players import Player, PolicyPlayer, SearchPlayer
from actors.reanalyser import LOOKED_AT
from actors.reanalysis import WINDOWS, Reanalysed, Reanalysis, choose_positions
from actors.self_play import SelfPlay
from actors.tuning import tune
from learner.learner import Learner
from replay_server.sum_tree import SumTree
from zero.config import ExperimentConfig, parse_config
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.search.make_search import make_search
from zero.search.tree_search import TreeSearch
from zero.search_ages import SEARCH_WINDOWS
from zero.self_play_table import self_play_signature
from zero.trajectories import SequenceBatch, Trajectory

RECENT_GAMES = 200
IDLE_SECONDS = 0.01


class Buffer:
    """The newest steps of self-play in rings, drawn by priority."""

    def __init__(self, game: Game, config: ExperimentConfig, rng: np.random.Generator) -> None:
        self._capacity = config.replay.capacity
        self._columns = {
            spec.name: np.zeros((self._capacity, *spec.shape), spec.dtype) for spec in self_play_signature(game)
        }
        self._remaining = np.zeros(self._capacity, np.int32)  # steps to the end of the game, this one included
        self._tree = SumTree(self._capacity)
        self._exponent = config.replay.priority_exponent if config.replay.selector == "prioritized" else 0.0
        self._highest = 1.0
        self._rng = rng
        self.num_inserted = 0

    def add(self, trajectory: Trajectory) -> None:
        """Store a game over the oldest steps."""
        slots = (self.num_inserted + np.arange(trajectory.num_steps)) % self._capacity
        for name, column in self._columns.items():
            column[slots] = trajectory.columns[name]
        self._remaining[slots] = np.arange(trajectory.num_steps, 0, -1)
        self._tree.set(slots, np.full(len(slots), self._highest**self._exponent))
        self.num_inserted += trajectory.num_steps

    def sample(self, batch_size: int, windows: dict[str, int]) -> SequenceBatch:
        """Draw positions and gather their windows."""
        slots = self._tree.draw(self._rng.random(batch_size))
        reach = max(windows.values())
        rows = (slots[:, None] + np.arange(reach)) % self._capacity
        return SequenceBatch(
            columns={name: self._columns[name][rows[:, :length]] for name, length in windows.items()},
            keys=slots.astype(np.uint64),
            probabilities=self._tree.leaves[slots] / self._tree.total,
            lengths=np.minimum(self._remaining[slots], reach),
            weights_versions=np.zeros(batch_size, np.uint64),
            terminated=np.zeros(batch_size, np.bool_),
            table_size=min(self.num_inserted, self._capacity),
        )

    def peek(self, number: int) -> SequenceBatch:
        """Look at positions, each equally likely."""
        slots = self._rng.integers(0, min(self.num_inserted, self._capacity), number)
        return SequenceBatch(
            columns={name: self._columns[name][slots][:, None] for name in WINDOWS},
            keys=slots.astype(np.uint64),
            probabilities=np.full(number, 1 / min(self.num_inserted, self._capacity)),
            lengths=np.ones(number, np.int32),
            weights_versions=np.zeros(number, np.uint64),
            terminated=np.zeros(number, np.bool_),
            table_size=min(self.num_inserted, self._capacity),
        )

    def update_searches(self, found: Reanalysed, version: int) -> None:
        """Replace what searches of positions found."""
        slots = found.keys.astype(np.int64)
        self._columns["search_policy"][slots] = found.policies
        self._columns["search_value"][slots] = found.values
        self._columns["search_version"][slots] = version
        self._columns["reanalysed_at"][slots] = 1.0  # at some time

    def update_priorities(self, keys: NDArray[np.uint64], priorities: NDArray[np.float32]) -> None:
        """Set the priorities of drawn positions."""
        self._highest = max(self._highest, float(priorities.max()))
        self._tree.set(keys.astype(np.int64), priorities.astype(np.float64) ** self._exponent)


@dataclass(frozen=True)
class Progress:
    """What training came to.

    Attributes:
        games: finished.
        moves: inserted.
        training_steps: made.
        samples_per_insert: drawn over inserted steps.
        simulations_per_second: of the actor's processor time.
        recent_scores: mean of the last self-play games, noise included, at each quarter of the budget; None before any.
        optimism: mean of search value less discounted return in the last games.
        reanalysed: positions searched again.
        reanalysed_ratio: share of the drawn positions that had been.
    """

    games: int
    moves: int
    training_steps: int
    samples_per_insert: float
    simulations_per_second: float
    recent_scores: list[float | None]
    optimism: float | None
    reanalysed: int
    reanalysed_ratio: float


@dataclass(frozen=True)
class Sharing:
    """How the actor's half of the time is shared.

    Attributes:
        reanalyse: part of it that a reanalyser gets, 0 to below 1.
        most_moves: played at most; 0 for any number.
    """

    reanalyse: float = 0.0
    most_moves: int = 0


def _mean(values: deque[float]) -> float | None:
    return round(float(np.mean(values)), 2) if values else None


class Training:
    """An actor, a learner and maybe a reanalyser that take turns."""

    def __init__(self, config: ExperimentConfig, game: Game, sharing: Sharing) -> None:
        self._config, self._game, self._sharing = config, game, sharing
        self.learner = Learner(config, game, torch.device("cpu"))
        self._buffer = Buffer(game, config, np.random.default_rng((config.seed, 1)))
        self._tuning = tune(game, self.learner.network, config, time.process_time)
        self._self_play = self._make_self_play(np.random.SeedSequence(config.seed))
        self._search, self._built_at = self._build_search(), 0
        self._reanalysis = Reanalysis(game, config, np.random.default_rng((config.seed, 2)))
        self._games = self._simulations = self._reanalysed = 0
        self._drawn_reanalysed: list[float] = []
        self._scores: deque[float] = deque(maxlen=RECENT_GAMES)
        self._optimism: deque[float] = deque(maxlen=RECENT_GAMES)

    def run(self, seconds: float) -> Progress:
        """Until both sides have had half of the seconds of processor time."""
        # Compiles what an actor needs, on games of its own.
        self._make_self_play(np.random.SeedSequence((self._config.seed, 1))).play_move(self._search, 0)
        played = learned = reanalysed = began = 0.0  # the actor's half has `played`, of it the reanalyser's part
        quarters: list[float | None] = []
        while played < seconds / 2:
            may_learn = self._buffer.num_inserted >= self._config.replay.min_size_to_sample
            started = time.process_time()
            if may_learn and learned < played:
                self._learn()
                learned += time.process_time() - started
                continue
            due = self._is_full or reanalysed < self._sharing.reanalyse * (played - began)
            if may_learn and self._sharing.reanalyse and due:
                self._reanalyse()
                reanalysed += time.process_time() - started
            elif self._is_full:
                played += IDLE_SECONDS
            else:
                self._play()
            played += time.process_time() - started
            if not may_learn:
                learned = began = played  # the others wait
            if played >= (len(quarters) + 1) * seconds / 8:
                quarters.append(_mean(self._scores))
        moves, steps = self._buffer.num_inserted, self.learner.training_step
        return Progress(
            games=self._games,
            moves=moves,
            training_steps=steps,
            samples_per_insert=round(steps * self._config.learner.batch_size / moves, 2),
            simulations_per_second=round(self._simulations / played),
            recent_scores=quarters,
            optimism=_mean(self._optimism),
            reanalysed=self._reanalysed,
            reanalysed_ratio=round(float(np.mean(self._drawn_reanalysed or [0.0])), 3),
        )

    @property
    def _is_full(self) -> bool:
        return 0 < self._sharing.most_moves <= self._buffer.num_inserted

    def _make_self_play(self, seeds: np.random.SeedSequence) -> SelfPlay:
        config = self._config
        return SelfPlay(
            self._game, config.self_play, config.search.num_simulations, "actor-0", seeds, self._tuning.games
        )

    def _build_search(self) -> TreeSearch:
        network = make_inference(self.learner.network, self._tuning.dtype)
        return make_search(self._game, network, self._config, self._tuning.games)

    def _take_weights(self) -> None:
        if self.learner.training_step - self._built_at >= self._config.learner.publish_interval_steps:
            self._search, self._built_at = self._build_search(), self.learner.training_step

    def _reanalyse(self) -> None:
        """One batch of the positions that were searched longest ago, as the reanalyser chooses them."""
        self._take_weights()
        seen = self._buffer.peek(LOOKED_AT * self._tuning.games)
        positions = choose_positions(seen, self._built_at + 1, self._tuning.games)
        if positions is None:
            raise RuntimeError("no version is newer than the learner's")
        found = self._reanalysis.search(self._search, positions)
        self._buffer.update_searches(found, self._built_at)
        self._reanalysed += len(found.keys)

    def _play(self) -> None:
        """One move of all games, with new weights if there are any."""
        self._take_weights()
        trajectories, report = self._self_play.play_move(self._search, self._built_at)
        self._simulations += report.num_simulations
        self._optimism.extend(report.search_optimism)
        self._games += len(trajectories)
        for trajectory in trajectories:
            self._buffer.add(trajectory)
            self._scores.append(trajectory.stats["score"])

    def _learn(self) -> None:
        batch = self._buffer.sample(self._config.learner.batch_size, self.learner.windows() | SEARCH_WINDOWS)
        self._drawn_reanalysed.append(float((batch.columns["reanalysed_at"][:, 0] > 0).mean()))
        loss, _ = self.learner.train(self.learner.prepare(batch))
        self._buffer.update_priorities(batch.keys, loss.priorities.numpy())


def measure(
    config: ExperimentConfig, game: Game, learner: Learner, num_games: int, opponent: Player
) -> dict[str, float]:
    """Scores on fixed seeds, of the search and of the policy alone, with their standard errors and games lost."""
    network = make_inference(learner.network)
    schedule = Schedule(num_games, config.evaluation.seed, config.self_play.max_moves)
    width = min(num_games, MAX_SLOTS)
    players = {
        "search": FixedWidthPlayer(SearchPlayer(make_search(game, network, config, width)), width),
        "policy": PolicyPlayer(game, network),
    }
    scores: dict[str, float] = {}
    for name, player in players.items():
        score = EvaluationScore.of(play_games(game, player, opponent, schedule))
        scores[name], scores[f"{name}_standard_error"] = round(score.mean, 2), round(score.standard_error, 2)
        scores[f"{name}_lost"] = score.num_lost
    return scores


def main() -> None:
    """Print one line per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="of processor time, both sides together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--games", type=int, default=256, help="evaluation seeds")
    parser.add_argument("--opponent", default="random", help="in games for two: a baseline, such as perfect")
    parser.add_argument("--experiment", type=Path, help="a TOML file; the defaults of the config without")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--simulations", type=int, default=32, help="per move in the evaluation; training has its own")
    parser.add_argument("--reanalyse", type=float, default=0.0, help="part of the actor's half for a reanalyser")
    parser.add_argument("--moves", type=int, default=0, help="played at most; 0 for any number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = options.experiment.read_text() if options.experiment else ""
    for seed in options.seeds:
        overrides = [f"seed={seed}", *options.overrides]
        config = parse_config(text, overrides)
        game = make_game(config.game.name, config.game.options)
        training = Training(config, game, Sharing(options.reanalyse, options.moves))
        progress = training.run(options.seconds)
        evaluated = parse_config(text, [*overrides, f"search.num_simulations={options.simulations}"])
        scores = measure(evaluated, game, training.learner, options.games, make_baseline(options.opponent, game))
        print(json.dumps({"seed": seed, "overrides": options.overrides} | scores | asdict(progress)), flush=True)


if __name__ == "__main__":
    main()
