"""Who is measured against whom: baselines and a network's players on one schedule, and what came of it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from actors.baselines import default_baselines, make_baseline
from actors.evaluation import EvaluationScore, FixedWidthPlayer, Schedule, batch_width, play_games
from actors.players import Player, PolicyPlayer, SearchPlayer
from actors.ratings import MatchResult, Rating, rate
from zero.config import ExperimentConfig
from zero.games.game import Game, GameError
from zero.games.registry import make_game
from zero.networks.inference import fastest_dtype, make_inference
from zero.networks.make_network import make_network
from zero.networks.weights import load_weights
from zero.search.make_search import make_search

POLICY, SEARCH = "policy", "search"
"""The network's policy alone, and under search as the experiment configures it."""
OPENING_MOVES = 2
"""Of games between two players of a network, who would repeat one game else."""


@dataclass(frozen=True)
class Contest:
    """What is played: a player alone, or a player and an opponent.

    Attributes:
        player: whose scores these are.
        opponent: the other side of a two-player game; None in games for one.
    """

    player: str
    opponent: str | None = None

    def __str__(self) -> str:
        return self.player if self.opponent is None else f"{self.player} - {self.opponent}"


@dataclass(frozen=True)
class EvaluationReport:
    """What came of the contests so far.

    Attributes:
        scores: of every player by name; in two-player games over all games against baselines, of those who have met
            all of them.
        contests: of every contest; in games for one player the same again.
        ratings: of every player of a two-player game, with 0 for the first baseline; empty in games for one.
    """

    scores: Mapping[str, EvaluationScore]
    contests: Mapping[Contest, EvaluationScore]
    ratings: Mapping[str, Rating]


OnGames = Callable[[Contest, int], None]
"""Called after every move with the number of games that ended with it; what it raises ends the evaluation."""


class Evaluation:
    """Measures the players of one experiment on its fixed seeds.

    Args:
        config: the experiment.
        num_games: per contest.
        baselines: names of players that need no network, as `make_baseline` takes them; None for the experiment's, or
            else those of the game that are quick.
        simulations: besides those of the experiment, numbers of simulations per move to search with; the players are
            called "search-N".

    Raises:
        GameError: the game cannot be built, or a baseline does not play it.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        num_games: int,
        baselines: Sequence[str] | None = None,
        simulations: Sequence[int] = (),
    ) -> None:
        self._config = config
        self._game: Game = make_game(config.game.name, config.game.options)
        self._num_games = num_games
        self._simulations = (*config.evaluation.simulations, *simulations)
        if baselines is None:
            baselines = config.evaluation.baselines or default_baselines(self._game)
        names = tuple(dict.fromkeys(baselines))
        if not names and self._game.num_players == 2:
            raise GameError("a game for two players is evaluated against baselines: name at least one")
        self._baselines = {name: make_baseline(name, self._game) for name in names}
        self._results: dict[Contest, NDArray[np.float64]] = {}

    @property
    def opponents(self) -> tuple[str, ...]:
        """The baselines that scores are against; none in a game for one."""
        return tuple(self._baselines) if self._game.num_players == 2 else ()

    @property
    def network_names(self) -> tuple[str, ...]:
        """Names of the network's players, the weakest first."""
        own = self._config.search.num_simulations
        counts = sorted({*self._simulations, own})
        return (POLICY, *(SEARCH if count == own else f"{SEARCH}-{count}" for count in counts))

    def measure_baselines(self, on_games: OnGames) -> Iterator[Contest]:
        """Play the contests that need no network; gives each when it is over."""
        names = list(self._baselines)
        if self._game.num_players == 1:
            contests = [Contest(name) for name in names]
        else:
            contests = [Contest(stronger, weaker) for weaker, stronger in combinations(names, 2)]
        return self._play(contests, self._baselines, on_games)

    def measure_network(self, payload: bytes, on_games: OnGames) -> Iterator[Contest]:
        """Play the contests of some weights, instead of those of earlier ones; gives each when it is over.

        Raises:
            WeightsMismatchError: the weights are of another network.
        """
        players = self._network_players(payload)
        if self._game.num_players == 1:
            contests = [Contest(name) for name in players]
        else:
            contests = [Contest(name, baseline) for name in players for baseline in self._baselines]
            contests += [Contest(stronger, weaker) for weaker, stronger in combinations(players, 2)]
        return self._play(contests, self._baselines | players, on_games)

    def report(self) -> EvaluationReport:
        """What came of all contests so far."""
        contests = {contest: EvaluationScore.of(scores) for contest, scores in self._results.items()}
        if self._game.num_players == 1:
            return EvaluationReport({contest.player: score for contest, score in contests.items()}, contests, {})
        against_baselines: dict[str, dict[str, NDArray[np.float64]]] = {}
        matches = list[MatchResult]()
        for contest, scores in self._results.items():
            opponent = contest.opponent or ""
            if opponent in self._baselines:
                against_baselines.setdefault(contest.player, {})[opponent] = scores
            if contest.player in self._baselines:
                against_baselines.setdefault(opponent, {})[contest.player] = -scores
            matches.append(MatchResult(contest.player, opponent, float((1 + scores).sum() / 2), len(scores)))
        scores = {
            name: EvaluationScore.of(np.concatenate(list(parts.values())))
            for name, parts in against_baselines.items()
            if self._baselines.keys() - {name} == parts.keys()
        }
        anchor = next(iter(self._baselines))
        return EvaluationReport(scores, contests, rate(matches, anchor) if matches else {})

    def _play(self, contests: Sequence[Contest], players: Mapping[str, Player], on_games: OnGames) -> Iterator[Contest]:
        for contest in contests:
            both_of_network = not {contest.player, contest.opponent} & set(self._baselines)
            schedule = Schedule(
                num_games=self._num_games,
                seed=self._config.evaluation.seed,
                max_moves=self._config.self_play.max_moves,
                opening_moves=OPENING_MOVES if both_of_network and self._game.num_players == 2 else 0,
            )
            player = players[contest.player]
            opponent = player if contest.opponent is None else players[contest.opponent]
            self._results[contest] = play_games(
                self._game, player, opponent, schedule, lambda ended, contest=contest: on_games(contest, ended)
            )
            yield contest

    def _network_players(self, payload: bytes) -> dict[str, Player]:
        """The network's players by name, the weakest first."""
        network = make_network(self._game, self._config.network, self._config.seed)
        load_weights(network, payload)
        width = batch_width(self._game, self._num_games)
        inference = make_inference(network, fastest_dtype(network, width, time.perf_counter))
        players: dict[str, Player] = {POLICY: PolicyPlayer(self._game, inference)}
        for name in self.network_names[1:]:
            search = make_search(self._game, inference, self._with_simulations(name), width)
            players[name] = FixedWidthPlayer(SearchPlayer(search), width)
        return players

    def _with_simulations(self, name: str) -> ExperimentConfig:
        """The experiment with as many simulations per move as the name of a searching player says."""
        if name == SEARCH:
            return self._config
        simulations = int(name.removeprefix(f"{SEARCH}-"))
        search = self._config.search.model_copy(update={"num_simulations": simulations})
        return self._config.model_copy(update={"search": search})
