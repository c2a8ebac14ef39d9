"""How fast the search is on one core: its trees alone, with the puzzle's rules, beside networks, by a learned model.

Run it: `.venv/bin/python tests/benchmarks/search.py [--games 64] [--simulations 32]`. Every figure is the median of
five rounds, per second of processor time of the one thread that works. Rounds of the variants take turns, so that a
busy spell of the machine falls on all of them.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from zero.config import NetworkConfig, SearchConfig
from zero.games.game import Game, States
from zero.games.random_play import random_legal_actions
from zero.games.triangle import Triangle
from zero.networks.inference import InferenceModel, InferenceNetwork, make_inference
from zero.networks.learned import LearnedModelNetwork
from zero.networks.make_network import make_network
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.gumbel import GumbelSearch
from zero.search.learned_model import LearnedModel
from zero.search.model import RootOutput, SearchModel, StepOutput

SEED = 0
ROUNDS = 5
MANY_SIMULATIONS = 128
LEARNED = f"learned, {MANY_SIMULATIONS} simulations"
WITH_CHANCE = "learned, chance everywhere"
OPEN_TREES = "trees alone, all legal"
TARGETS = {"trees alone": 300_000, "float32": 15_000, "bfloat16": 20_000, "64 x 4, float32": 2_500, LEARNED: 3_000}
OPEN_TREE_SHARE = 0.1
MOVES_TARGET = 100
"""Moves per second of the learned model at the simulations given, 32 by default."""
TREE_SHARE = 0.06


class PreparedModel:
    """A model that costs nothing: random outputs made beforehand, in turns, with as many legal actions as given."""

    def __init__(self, batch_size: int, mask: NDArray[np.bool_], max_legal_actions: int) -> None:
        self.num_actions = mask.shape[1]
        self.max_legal_actions = max_legal_actions
        self.chance_size = 3
        self._mask = mask
        self._turn = 0
        rng = np.random.default_rng(SEED)
        self._steps = [self._random_step(batch_size, rng) for _ in range(16)]

    def root(self, positions: NDArray[np.generic]) -> RootOutput:
        """The first output."""
        step = self._steps[0]
        return RootOutput(positions, step.logits, step.values, self._mask)

    def step(
        self,
        embeddings: NDArray[np.generic],  # noqa: ARG002
        actions: NDArray[np.int64],  # noqa: ARG002
        uniforms: NDArray[np.float64],  # noqa: ARG002
    ) -> StepOutput:
        """The next output."""
        self._turn = (self._turn + 1) % len(self._steps)
        return self._steps[self._turn]

    def _random_step(self, batch_size: int, rng: np.random.Generator) -> StepOutput:
        return StepOutput(
            embeddings=np.zeros((batch_size, 1), np.uint64),
            rewards=rng.random(batch_size, np.float32),
            chance_rewards=np.zeros(batch_size, np.float32),
            discounts=np.full(batch_size, 0.99, np.float32),
            values=rng.random(batch_size, np.float32),
            logits=rng.standard_normal((batch_size, self.num_actions), np.float32),
            legal_action_mask=self._mask[rng.permutation(batch_size)],
            terminated=np.zeros(batch_size, np.bool_),
            is_chance=np.zeros(batch_size, np.bool_),
        )


def positions_in_play(game: Game, batch_size: int, num_moves: int) -> States:
    """States [B, S] of games that random play left running."""
    rng = np.random.default_rng(SEED)
    states = game.initial(game.draw_chance(rng, batch_size))
    for _ in range(num_moves):
        actions = random_legal_actions(game.legal_action_mask(states), rng.random(batch_size))
        transition = game.step(states, actions, game.draw_chance(rng, batch_size))
        over = transition.terminated[:, None]
        states = np.where(over, game.initial(game.draw_chance(rng, batch_size)), transition.states)
    return states


def trivial_network(game: Game) -> Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Logits that are the same everywhere, and a value read off the input."""
    logits = np.random.default_rng(SEED).standard_normal(game.num_actions, np.float32)

    def evaluate(encoded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.tile(logits, (len(encoded), 1)), encoded[:, 40:60].sum(1)

    return evaluate


def learned_model(game: Game, *, expects_chance: bool) -> LearnedModel:
    """A fresh learned model, in which chance follows nothing, or everything: the most that it can cost."""
    network = make_network(game, NetworkConfig(model="learned"), SEED)
    assert isinstance(network, LearnedModelNetwork)
    assert network.chance_head is not None
    with torch.no_grad():
        network.chance_head.bias[-1] = 100 if expects_chance else -100
    inference = make_inference(network)
    assert isinstance(inference, InferenceModel)
    return LearnedModel(game, inference, 0.99)


def simulations_per_second(search: GumbelSearch, states: States, num_simulations: int, seconds: float) -> float:
    """Simulations of all games together per second of processor time, over at least `seconds` of it."""
    rng = np.random.default_rng(SEED)
    searches = 0
    start = time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        search.run(states, rng.integers(0, 2**64, len(states), dtype=np.uint64))
        searches += 1
    return searches * len(states) * num_simulations / elapsed


def encodings_per_second(game: Game, states: States, seconds: float) -> float:
    """Positions observed and encoded per second of processor time, over at least `seconds` of it."""
    encoded = 0
    start = time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        game.encode(game.observation(states))
        encoded += len(states)
    return encoded / elapsed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=64, help="games in lock step (default 64)")
    parser.add_argument("--simulations", type=int, default=32, help="simulations per search (default 32)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    game = Triangle()
    states = positions_in_play(game, arguments.games, 10)
    mask = game.search_action_mask(states)
    network = make_network(game, NetworkConfig(), SEED)
    larger = make_network(game, NetworkConfig(channels=64, blocks=4), SEED)
    models: dict[str, SearchModel] = {
        "trees alone": PreparedModel(arguments.games, mask, game.max_legal_actions),
        "with rules": AlphaZeroModel(game, trivial_network(game), 0.99),
        "float32": AlphaZeroModel(game, InferenceNetwork(network), 0.99),
        "bfloat16": AlphaZeroModel(game, InferenceNetwork(network, torch.bfloat16), 0.99),
        "64 x 4, float32": AlphaZeroModel(game, InferenceNetwork(larger), 0.99),
        "learned": learned_model(game, expects_chance=False),
        WITH_CHANCE: learned_model(game, expects_chance=True),
        LEARNED: learned_model(game, expects_chance=False),
        OPEN_TREES: PreparedModel(arguments.games, np.ones_like(mask), game.num_actions),
    }
    simulations = {name: MANY_SIMULATIONS if name == LEARNED else arguments.simulations for name in models}
    searches = {
        name: GumbelSearch(model, SearchConfig(num_simulations=simulations[name]), arguments.games)
        for name, model in models.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in models}
    for search in searches.values():
        search.run(states, np.arange(arguments.games, dtype=np.uint64))
    for _ in range(ROUNDS):
        for name, search in searches.items():
            rates[name].append(simulations_per_second(search, states, simulations[name], arguments.seconds))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{arguments.games} games, {arguments.simulations} simulations, {mask.sum(1).mean():.0f} legal actions on "
        f"average, seed {SEED}, one thread of {os.cpu_count()} cores; {platform.processor() or platform.machine()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, "
        f"torch {version('torch')}"
    )
    for name, median in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"{name:>26}: {median:>9,.0f} simulations/s (median of {ROUNDS}, {spread})")
    for name, target in TARGETS.items():
        verdict = "met" if medians[name] >= target else "missed"
        print(f"target for {name}: {target:,} simulations/s, {verdict}")
    encoding = medians["float32"] / statistics.median(
        encodings_per_second(game, states, arguments.seconds / ROUNDS) for _ in range(ROUNDS)
    )
    trees_and_rules = medians["float32"] / medians["with rules"] - encoding
    verdict = "met" if trees_and_rules <= TREE_SHARE else "missed"
    print(f"of the time in float32 trees and rules take {trees_and_rules:.1%} (target {TREE_SHARE:.0%}, {verdict}),")
    print(f"the network's input {encoding:.1%}")
    trees = medians["learned"] / medians[OPEN_TREES]
    verdict = "met" if trees <= OPEN_TREE_SHARE else "missed"
    print(f"of the time with a learned model trees take {trees:.1%} (target {OPEN_TREE_SHARE:.0%}, {verdict})")
    moves = medians[WITH_CHANCE] / arguments.simulations
    verdict = "met" if moves >= MOVES_TARGET else "missed"
    print(f"with a learned model at least {moves:,.0f} moves/s (target {MOVES_TARGET}, {verdict})")


if __name__ == "__main__":
    main()
