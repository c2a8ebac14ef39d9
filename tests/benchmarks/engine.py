"""How fast the triangle puzzle is on one core, through the public interface: `python tests/benchmarks/engine.py`."""

import argparse
import time
from collections.abc import Callable

import numpy as np

from zero.games.game import Game, States
from zero.games.random_play import random_legal_actions
from zero.games.registry import make_game

TARGET_MOVES_PER_SECOND = 2_000_000


def play(game: Game, states: States, rng: np.random.Generator, seconds: float) -> tuple[float, States]:
    """Play random games without pause, dealing a new one where one ends; moves per second, and the last positions."""
    size, moves = states.shape[0], 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(20):
            actions = random_legal_actions(game.legal_action_mask(states), rng.random(size))
            result = game.step(states, actions, game.draw_chance(rng, size))
            states = result.states
            over = np.flatnonzero(result.terminated)
            if over.size:
                states[over] = game.initial(game.draw_chance(rng, over.size))
        moves += 20 * size
    return moves / elapsed, states


def nanoseconds_per_row(call: Callable[[], object], rows: int) -> float:
    """The best of several rounds, after one call that may compile."""
    call()
    rounds: list[float] = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(50):
            call()
        rounds.append((time.perf_counter() - start) / (50 * rows) * 1e9)
    return min(rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=256, help="games in lock step (default 256)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long random play is measured (default 3)")
    arguments = parser.parse_args()
    game, rng = make_game("triangle", {}), np.random.default_rng(0)
    states = game.initial(game.draw_chance(rng, arguments.games))
    _, states = play(game, states, rng, 0.2)
    speed, states = play(game, states, rng, arguments.seconds)
    verdict = "met" if speed >= TARGET_MOVES_PER_SECOND else "missed"
    target = f"target {TARGET_MOVES_PER_SECOND:,}: {verdict}"
    print(f"random moves/s, one core, {arguments.games} games: {speed:,.0f} ({target})")

    mask = game.legal_action_mask(states)
    uniforms = rng.random(arguments.games)
    actions, outcomes = random_legal_actions(mask, uniforms), game.draw_chance(rng, arguments.games)
    applied, observations = game.apply(states, actions).states, game.observation(states)
    for name, call in (
        ("legal_action_mask", lambda: game.legal_action_mask(states)),
        ("search_action_mask", lambda: game.search_action_mask(states)),
        ("random_legal_actions", lambda: random_legal_actions(mask, uniforms)),
        ("apply", lambda: game.apply(states, actions)),
        ("resolve", lambda: game.resolve(applied, outcomes)),
        ("observation", lambda: game.observation(states)),
        ("decode", lambda: game.decode(observations)),
        ("encode", lambda: game.encode(observations)),
    ):
        print(f"  {name:<21}{nanoseconds_per_row(call, arguments.games):8.0f} ns per position")


if __name__ == "__main__":
    main()
