"""Actors under Ray find the code that was compiled before: no slow first minute."""

import shutil

import numpy as np
import pytest
import ray

from deploy.private_ray import start_private_ray
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.networks import winograd
from zero.networks.inference import InferenceNetwork
from zero.networks.make_network import make_network
from zero.search import gumbel_kernels, kernels
from zero.search.make_search import make_search


def search_once() -> list[int]:
    """Search a few positions; returns how many functions of each kind were compiled anew for it."""
    game, config = make_game("triangle", {}), ExperimentConfig()
    search = make_search(game, InferenceNetwork(make_network(game, config.network, 0)), config, 2)
    search.run(game.initial(game.draw_chance(np.random.default_rng(0), 2)), np.arange(2, dtype=np.uint64))
    compiled = (gumbel_kernels.select, kernels.expand_and_back_up, winograd.convolve)
    return [sum(function.stats.cache_misses.values()) for function in compiled]  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray itself
def test_a_ray_process_compiles_nothing_anew() -> None:
    """What this process has compiled, another one started by Ray loads from disk."""
    search_once()
    folder = start_private_ray(num_cpus=1)
    try:
        assert ray.get(ray.remote(search_once).remote()) == [0, 0, 0]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
