"""Says where the time of self-play goes, by some seconds of it in this process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from actors.self_play import SelfPlay
from actors.tuning import Tuning, tune
from deploy.profile_tables import rate_rows, shares_table
from deploy.stopwatch import Stopwatch, watch
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.networks.make_network import make_network
from zero.search.make_search import make_search
from zero.search.tree_search import TreeSearch
from zero.self_play_table import TABLE_NAME
from zero.wire.frames import encode_insert_request

NETWORK, TREE, RULES, ENCODING, RECORDING, SENDING = "network", "tree", "rules", "encoding", "recording", "sending"
PHASES = (NETWORK, TREE, RULES, ENCODING, RECORDING, SENDING)

RULES_METHODS = (
    "apply",
    "chance_codes",
    "chance_from_uniforms",
    "initial",
    "legal_action_mask",
    "resolve",
    "search_action_mask",
    "settle",
    "stats",
    "step",
    "terminated",
    "to_play",
)
ENCODING_METHODS = ("encode", "observation")


@dataclass(frozen=True)
class ActorProfile:
    """Where the time of some self-play went.

    Attributes:
        games: in lock step.
        dtype: of the network.
        wall_seconds: that self-play lasted.
        cpu_seconds: of this process meanwhile; much less than wall_seconds on a busy machine.
        simulations_per_second: in all games together.
        simulations_per_cpu_second: the same, as on a machine that does nothing else.
        moves_per_second: in all games together.
        moves_per_cpu_second: the same, as on a machine that does nothing else.
        finished_games: that ended meanwhile.
        shares: of wall_seconds, per phase of PHASES; what is missing to 1 is this measurement itself.
    """

    games: int
    dtype: str
    wall_seconds: float
    cpu_seconds: float
    simulations_per_second: float
    simulations_per_cpu_second: float
    moves_per_second: float
    moves_per_cpu_second: float
    finished_games: int
    shares: Mapping[str, float]


def profile_actor(config: ExperimentConfig, seconds: float) -> ActorProfile:
    """Play with fresh weights for some seconds, on one thread, after a warm-up; nothing is sent to a server.

    Of sending, what the playing process does itself is in it: to write the message.

    Raises:
        GameError: the game cannot be built.
    """
    torch.set_num_threads(1)
    game = make_game(config.game.name, config.game.options)
    network = make_network(game, config.network, config.seed)
    tuning = tune(game, network, config, time.process_time)
    stopwatch = Stopwatch(PHASES, time.perf_counter)
    watch(stopwatch, RULES, game, RULES_METHODS)
    watch(stopwatch, ENCODING, game, ENCODING_METHODS)
    inference = make_inference(network, tuning.dtype)
    watch(stopwatch, NETWORK, inference, inference.evaluations)
    search = make_search(game, inference, config, tuning.games)
    watch(stopwatch, TREE, search, ("run",))
    seeds = np.random.SeedSequence(config.seed)
    self_play = SelfPlay(game, config.self_play, config.search.num_simulations, "actor-0", seeds, tuning.games)
    watch(stopwatch, RECORDING, self_play, ("play_move",))
    self_play.play_move(search, 0)
    return _measure(self_play, search, tuning, stopwatch, seconds)


def _measure(
    self_play: SelfPlay, search: TreeSearch, tuning: Tuning, stopwatch: Stopwatch, seconds: float
) -> ActorProfile:
    send = stopwatch.timed(SENDING, encode_insert_request)
    moves, simulations, finished = 0, 0, 0
    stopwatch.reset()
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    while (wall_seconds := time.perf_counter() - wall_start) < seconds:
        trajectories, report = self_play.play_move(search, 0)
        for trajectory in trajectories:
            send((TABLE_NAME,), [trajectory], compress=True)
        moves += report.num_moves
        simulations += report.num_simulations
        finished += len(trajectories)
    cpu_seconds = time.process_time() - cpu_start
    return ActorProfile(
        games=tuning.games,
        dtype=str(tuning.dtype).removeprefix("torch."),
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        simulations_per_second=simulations / wall_seconds,
        simulations_per_cpu_second=simulations / cpu_seconds,
        moves_per_second=moves / wall_seconds,
        moves_per_cpu_second=moves / cpu_seconds,
        finished_games=finished,
        shares={name: spent / wall_seconds for name, spent in stopwatch.seconds.items()},
    )


def actor_table(profile: ActorProfile) -> Table:
    """Shares, the largest first, then rates."""
    rows = (
        *rate_rows("simulations", profile.simulations_per_second, profile.simulations_per_cpu_second),
        *rate_rows("moves", profile.moves_per_second, profile.moves_per_cpu_second),
        ("games finished", f"{profile.finished_games:,}"),
    )
    return shares_table(f"Self-play of {profile.games} games at once, network in {profile.dtype}", profile.shares, rows)
