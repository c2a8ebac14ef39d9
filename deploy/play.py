"""Plays one game in the terminal: the agent of a run alone, or against or instead of it a human who types moves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from actors.players import Player, SearchPlayer
from deploy.errors import BAD_INPUT, DeployError
from deploy.roles import check_experiment
from deploy.run_folder import RunFolder
from deploy.run_weights import WhichWeights, read_weights
from zero.games.game import Game, States
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.networks.make_network import make_network
from zero.networks.weights import load_weights
from zero.search.make_search import make_search

QUIT = ("q", "quit")


@dataclass(frozen=True)
class PlayOptions:
    """What to play.

    Attributes:
        human: 0 or 1, the player whose moves are typed; None to watch the agent.
        overrides: `section.key=value`, of the run's config.
        weights: which of the run.
        seed: of chance and of the agent.
        max_moves: the game is broken off then.
    """

    human: int | None = None
    overrides: tuple[str, ...] = ()
    weights: WhichWeights = WhichWeights.LATEST
    seed: int = 0
    max_moves: int = 10_000


def play_run(run_dir: Path, options: PlayOptions, console: Console, ask: Callable[[str], str] = input) -> float:
    """Play one game; returns what the first player has got in the end.

    Args:
        run_dir: the run's folder.
        options: what to play.
        console: where positions are drawn.
        ask: shows a question and gives what was typed.

    Raises:
        DeployError: no run, no such weights, or no such player in the game.
        EOFError: nobody is there to type.
    """
    folder = RunFolder(run_dir.absolute())
    config = folder.config(options.overrides)
    check_experiment(config)
    game = make_game(config.game.name, config.game.options)
    if options.human is not None and options.human >= game.num_players:
        raise DeployError(f"{config.game.name} has {game.num_players} player(s): no player {options.human}", BAD_INPUT)
    torch.set_num_threads(1)
    weights = read_weights(folder, config, options.weights)
    network = make_network(game, config.network, config.seed)
    load_weights(network, weights.payload)
    agent = SearchPlayer(make_search(game, make_inference(network, torch.float32), config, 1))
    console.print(f"==> {config.game.name}, agent at training step {weights.training_step:,}", highlight=False)
    if options.human is not None:
        console.print("    type the number of a move, `?` for all legal ones, or `q` to leave", highlight=False)
    return _play(game, agent, options, console, ask)


def _play(game: Game, agent: Player, options: PlayOptions, console: Console, ask: Callable[[str], str]) -> float:
    rng = np.random.default_rng(options.seed)
    states = game.initial(game.draw_chance(rng, 1))
    score = 0.0
    for move in range(options.max_moves):
        console.print(game.render_ascii(states), markup=False, highlight=False)
        if game.terminated(states)[0]:
            break
        player = int(game.to_play(states)[0])
        if player == options.human:
            action = _asked(game, states, console, ask)
            if action is None:
                break
        else:
            action = int(agent.choose(states, rng.integers(0, 2**64, 1, dtype=np.uint64))[0])
        transition = game.step(states, np.array([action]), game.draw_chance(rng, 1))
        score += float(transition.rewards[0]) * (1 if player == 0 else -1)
        who = "you play" if player == options.human else "the agent plays"
        console.print(f"move {move + 1}: {who} {action}, score {score:g}", highlight=False)
        states = transition.states
    console.print(f"==> Score {score:g}{' of the first player' if game.num_players > 1 else ''}", highlight=False)
    return score


def _asked(game: Game, states: States, console: Console, ask: Callable[[str], str]) -> int | None:
    """A legal action that was typed; None to leave."""
    legal = np.flatnonzero(game.legal_action_mask(states)[0])
    while True:
        typed = ask("your move: ").strip().lower()
        if typed in QUIT:
            return None
        if typed.isdecimal() and int(typed) in legal:
            return int(typed)
        shown = ", ".join(str(action) for action in legal)
        console.print(f"legal moves: {shown}" if typed == "?" else f"not legal: {typed!r}; {shown}", markup=False)
