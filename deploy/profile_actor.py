"""Says where the time of self-play goes, by some seconds of it in this process."""

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actors.self_play import SelfPlay
from actors.tuning import Tuning, tune
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.networks.inference import make_inference
from zero.networks.make_network import make_network
from zero.search.make_search import make_search
from zero.search.tree_search import TreeSearch
from zero.self_play_table import TABLE_NAME
from zero.wire.frames import encode_insert_request

P = ParamSpec("P")
R = TypeVar("R")

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


class Stopwatch:
    """Shares time out among phases; while an inner phase lasts, the outer one rests.

    Attributes:
        seconds: per phase.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._clock = clock
        self._phases: list[str] = []
        self._since = 0.0

    def reset(self) -> None:
        """Forget all time so far."""
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """What happens inside belongs to this phase."""
        self._charge()
        self._phases.append(name)
        try:
            yield
        finally:
            self._charge()
            self._phases.pop()

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with all its time in a phase."""

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.phase(name):
                return function(*args, **kwargs)

        return run

    def _charge(self) -> None:
        now = self._clock()
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now


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
    stopwatch = Stopwatch(time.perf_counter)
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


def watch(stopwatch: Stopwatch, phase: str, owner: object, methods: tuple[str, ...]) -> None:
    """Have the stopwatch time these methods of one object."""
    for name in methods:
        setattr(owner, name, stopwatch.timed(phase, getattr(owner, name)))


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


def print_profile(config: ExperimentConfig, seconds: float, console: Console, *, as_json: bool) -> None:
    """Profile and print, as a table or as one JSON object."""
    profile = profile_actor(config, seconds)
    if as_json:
        console.print_json(json.dumps(asdict(profile)))
    else:
        console.print(_table(profile))


def _table(profile: ActorProfile) -> Table:
    """Shares, the largest first, then rates."""
    table = Table(title=f"Self-play of {profile.games} games at once, network in {profile.dtype}", title_justify="left")
    table.add_column("part")
    table.add_column("share of the time", justify="right")
    for name, share in sorted(profile.shares.items(), key=lambda entry: -entry[1]):
        table.add_row(name, f"{share:.1%}")
    table.add_section()
    for name, per_second, per_cpu_second in (
        ("simulations/s", profile.simulations_per_second, profile.simulations_per_cpu_second),
        ("moves/s", profile.moves_per_second, profile.moves_per_cpu_second),
    ):
        table.add_row(name, f"{per_second:,.0f}")
        table.add_row(f"{name} of processor time", f"{per_cpu_second:,.0f}")
    table.add_row("games finished", f"{profile.finished_games:,}")
    return table
