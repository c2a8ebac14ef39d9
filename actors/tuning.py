"""How an actor plays fastest on its processor: games in lock step and dtype, by a measurement at start."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.networks.inference import DTYPES, fastest_dtype, make_inference
from zero.networks.residual import ResidualNetwork
from zero.search.make_search import make_search

GAMES = (16, 32, 64, 128, 256)
"""Games in lock step that may be chosen; with more, finished games come later and from older weights."""
_GAMES_FOR_DTYPE = 32
_SIMULATIONS = 4
_GOOD_ENOUGH = 0.95
_BUDGET_SECONDS = 1.0

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Clock = Callable[[], float]


class Tuning(NamedTuple):
    """How to play.

    Attributes:
        games: in lock step, and so the batch of the network.
        dtype: of the network.
        simulations_per_second: as measured with these, in short searches of first positions.
        seconds: that the measurement took.
    """

    games: int
    dtype: torch.dtype
    simulations_per_second: float
    seconds: float


def tune(game: Game, network: ResidualNetwork, config: ExperimentConfig, clock: Clock) -> Tuning:
    """Choose what the config leaves open: the fastest dtype, then the least games that are nearly as fast as any.

    More games are tried while about a second lasts: where that is not enough the network is so slow that more of them
    gain nothing. Code that is compiled for the first time is not counted.

    Args:
        game: the rules.
        network: what will be evaluated.
        config: of the experiment.
        clock: seconds, for example time.process_time: what other processes take must not decide.
    """
    games = None if config.self_play.games_per_actor == "auto" else config.self_play.games_per_actor
    dtype = None if config.self_play.dtype == "auto" else _DTYPES[config.self_play.dtype]
    _start_rate(game, network, config, DTYPES[0], 1, clock)  # compiles
    start = clock()
    sizes = GAMES if games is None else (games,)
    if dtype is None:
        dtype = fastest_dtype(network, games or _GAMES_FOR_DTYPE, clock)
    rates: dict[int, float] = {}
    for size in sizes:
        rates[size] = _start_rate(game, network, config, dtype, size, clock)
        if clock() - start > _BUDGET_SECONDS:
            break
    enough = _GOOD_ENOUGH * max(rates.values())
    chosen = next(size for size, rate in rates.items() if rate >= enough)
    return Tuning(chosen, dtype, rates[chosen], clock() - start)


def _start_rate(
    game: Game,
    network: ResidualNetwork,
    config: ExperimentConfig,
    dtype: torch.dtype,
    games: int,
    clock: Clock,
) -> float:
    """Simulations per second of short searches of first positions; the faster one of two, after one to warm up."""
    search = make_search(game, make_inference(network, dtype), config, games)
    states = game.initial(game.draw_chance(np.random.default_rng(0), games))
    seeds = np.arange(games, dtype=np.uint64)
    num_simulations = min(_SIMULATIONS, config.search.num_simulations)
    times: list[float] = []
    for _ in range(3):
        start = clock()
        search.run(states, seeds, num_simulations=num_simulations)
        times.append(clock() - start)
    # The evaluation of the roots is one of the network, too.
    return games * (num_simulations + 1) / max(min(times[1:]), 1e-9)
