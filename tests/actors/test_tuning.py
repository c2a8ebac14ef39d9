"""The measurement at start chooses by the clock, within its budget, what the config leaves open."""

import itertools
import time

import pytest
import torch

from actors.metrics import ActorMetrics
from actors.tuning import GAMES, Tuning, tune
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.networks.make_network import make_network

CONFIG = ExperimentConfig.model_validate({"game": {"name": "tic_tac_toe"}, "network": {"channels": 8, "blocks": 1}})
GAME = make_game("tic_tac_toe", {})
NETWORK = make_network(GAME, CONFIG.network, 0)


def config_with(**self_play: object) -> ExperimentConfig:
    """CONFIG with such settings of self-play."""
    return ExperimentConfig.model_validate(CONFIG.model_dump() | {"self_play": self_play})


def test_what_is_fixed_is_not_chosen() -> None:
    """Given games and dtype are taken, and still measured."""
    tuning = tune(GAME, NETWORK, config_with(games_per_actor=3, dtype="bfloat16"), time.process_time)
    assert (tuning.games, tuning.dtype) == (3, torch.bfloat16)
    assert tuning.simulations_per_second > 0


def test_games_are_chosen_by_the_rate() -> None:
    """Where a search takes as long for any number of games, the rate grows with them and the most are chosen."""
    ticks = itertools.count()
    assert tune(GAME, NETWORK, config_with(dtype="float32"), lambda: next(ticks) * 1e-6).games == GAMES[-1]


def test_no_more_games_are_tried_when_time_is_up() -> None:
    """A search that takes a second is not repeated with more games."""
    ticks = itertools.count()
    tuning = tune(GAME, NETWORK, config_with(dtype="float32"), lambda: float(next(ticks)))
    assert tuning.games == GAMES[0]


def test_the_measurement_is_over_in_two_seconds() -> None:
    """With the default network, once code is compiled, on one thread."""
    game, config = make_game("triangle", {}), ExperimentConfig()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tuning = tune(game, make_network(game, config.network, 0), config, time.process_time)
    finally:
        torch.set_num_threads(threads)
    assert tuning.games in GAMES
    assert tuning.seconds < 2.0


def test_metrics_tell_how_the_actor_plays() -> None:
    """Games, dtype and measured rate are gauges."""
    metrics = ActorMetrics()
    metrics.report_tuning(Tuning(64, torch.bfloat16, 20_000.0, 1.0))
    value = metrics.registry.get_sample_value
    assert value("zero_actor_games_at_once") == pytest.approx(64)
    assert value("zero_actor_network_dtype", {"dtype": "bfloat16"}) == pytest.approx(1)
    assert value("zero_actor_measured_simulations_per_second") == pytest.approx(20_000)
