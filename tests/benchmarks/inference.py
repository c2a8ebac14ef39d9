"""What a leaf costs evaluated where the actor is, through a handle of Ray Serve, and by HTTP, by leaves per request.

Run it: `.venv/bin/python tests/benchmarks/inference.py [--seconds 3] [--set KEY=VALUE] [--gpus 1]`. It starts a replay
server, publishes fresh weights of the triangle puzzle's network, which are as fast as trained ones, and serves them as
`zero serve --weights published` does, all on this machine. Callers are threads of this process, each with one request
under way: two of them are the halves of one actor's games. The last lines play: simulations per second of one actor.
"""

import argparse
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Event

import numpy as np
import ray
import torch
from positions import observations_of_play
from ray import serve

from actors.actor import SearchFactory
from actors.inference_client import Address, InferenceClient
from actors.metrics import ActorMetrics
from actors.self_play import SelfPlay
from actors.served_play import GAMES, HALVES, Half
from actors.tuning import tune
from deploy.experiment_files import load_experiment
from deploy.private_ray import start_private_ray
from deploy.run_folder import RunFolder, open_or_create_run_folder
from deploy.serving import MAX_ONGOING_REQUESTS, AgentReplica, ServeOptions
from replay_server.client import ReplayClient
from zero.config import ExperimentConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.networks.inference import fastest_dtype, make_inference
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes
from zero.search.make_search import make_search
from zero.wire.leaves import pack_observations, unpack_evaluation

LEAVES = (1, 16, 64, 128, 256, 1024)
CALLERS = (1, 2, 4)

Evaluate = Callable[[np.ndarray], object]


class WithHandle(AgentReplica):
    """A replica that is also asked without HTTP."""

    async def evaluate(self, body: bytes) -> bytes:
        """The body of the answer to POST /evaluate."""
        return (await self._http.answer("POST", "/evaluate", body)).body


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def replay_server(folder: Path) -> Iterator[str]:
    """The address of one with a private Redis."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "replay_server", f"--port={address.rpartition(':')[2]}", "--metrics-port=0"]
    with subprocess.Popen([*command, f"--data-dir={folder}"], stderr=subprocess.DEVNULL) as server:
        try:
            yield address
        finally:
            server.terminate()


@contextmanager
def served(folder: RunFolder, replay_address: str, gpus: float) -> Iterator[tuple[str, object]]:
    """The URL and the handle of the deployment."""
    port = free_port()
    temp_dir = start_private_ray(num_cpus=os.cpu_count() or 1)
    try:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        options = ServeOptions(run=folder.path, replay_address=replay_address, gpus=gpus)
        deployment = serve.deployment(
            name="agent", max_ongoing_requests=MAX_ONGOING_REQUESTS, ray_actor_options={"num_gpus": gpus}
        )
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        yield f"http://127.0.0.1:{port}", serve.run(deployment(WithHandle).bind(options), logging_config=quiet)
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


def report(way: str, ways: list[Evaluate], leaves: np.ndarray, seconds: float) -> None:
    """Let each caller ask by a way of its own for so long; print what came of it."""

    def ask(evaluate: Evaluate, deadline: float) -> list[float]:
        taken: list[float] = []
        while (start := time.perf_counter()) < deadline:
            evaluate(leaves)
            taken.append(time.perf_counter() - start)
        return taken

    start = time.perf_counter()
    with ThreadPoolExecutor(len(ways)) as executor:
        asking = [executor.submit(ask, evaluate, start + seconds) for evaluate in ways]
        taken = np.concatenate([one.result() for one in asking])
    rate = len(taken) * len(leaves) / (time.perf_counter() - start)
    p50, p99 = 1e3 * np.quantile(taken, (0.5, 0.99))
    print(f"{way:>8} {len(leaves):>7} {len(ways):>8} {rate:>10.0f} {p50:>8.2f} {p99:>8.2f}", flush=True)


def simulations_per_second(plays: list[Callable[[], int]], seconds: float) -> float:
    """Of plays that return how many simulations they made, each in a thread, after a move to warm up."""

    def play(move: Callable[[], int], deadline: float) -> int:
        made = 0
        while time.perf_counter() < deadline:
            made += move()
        return made

    for move in plays:
        move()
    start = time.perf_counter()
    with ThreadPoolExecutor(len(plays)) as executor:
        made = sum(executor.map(lambda move: play(move, start + seconds), plays))
    return made / (time.perf_counter() - start)


def play_here(config: ExperimentConfig, game: Game, seconds: float) -> None:
    """One actor with the network where it is."""
    network = make_network(game, config.network, 0)
    tuning = tune(game, network, config, time.process_time)
    search = SearchFactory(config, game, network, tuning).build(weights_to_bytes(network))
    seeds = np.random.SeedSequence(0)
    self_play = SelfPlay(game, config.self_play, config.search.num_simulations, "a", seeds, tuning.games)
    rate = simulations_per_second([lambda: self_play.play_move(search, 0)[1].num_simulations], seconds)
    print(f"one actor, {tuning.games} games, local: {rate:.0f} simulations/s", flush=True)


def play_served(config: ExperimentConfig, game: Game, url: str, seconds: float) -> None:
    """One actor that is served, its games in one part and in halves."""
    num_simulations = config.search.num_simulations
    for parts in (1, HALVES):
        clients = [InferenceClient(Address(url), game, ActorMetrics(), Event()) for _ in range(parts)]
        size = GAMES // parts
        halves = [
            Half(
                SelfPlay(game, config.self_play, num_simulations, "a", np.random.SeedSequence(index), size),
                make_search(game, client, config, size),
                client,
            )
            for index, client in enumerate(clients)
        ]
        rate = simulations_per_second(
            [lambda half=half: half.move().report.num_simulations for half in halves], seconds
        )
        print(f"one actor, {parts} x {size} games, served: {rate:.0f} simulations/s", flush=True)
        for client in clients:
            client.close()


def measure(config: ExperimentConfig, game: Game, url: str, handle: object, seconds: float) -> None:
    """Print the table."""
    network = make_network(game, config.network, 0)
    local = make_inference(network, fastest_dtype(network, 64, time.perf_counter))
    print(f"{'way':>8} {'leaves':>7} {'callers':>8} {'leaves/s':>10} {'p50 ms':>8} {'p99 ms':>8}")
    for count in LEAVES:
        leaves = observations_of_play(game, count)

        def by_handle(sent: np.ndarray) -> object:
            answer = handle.evaluate.remote(pack_observations(sent)).result()  # type: ignore[attr-defined]
            return unpack_evaluation(answer, len(sent), game.num_actions)

        report("local", [lambda sent: local(game.encode(sent))], leaves, seconds)
        for callers in CALLERS:
            report("handle", [by_handle] * callers, leaves, seconds)
            clients = [InferenceClient(Address(url), game, ActorMetrics(), Event()) for _ in range(callers)]
            report("HTTP", [client.evaluate_observations for client in clients], leaves, seconds)
            for client in clients:
                client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--gpus", type=float, default=0.0)
    parser.add_argument("--experiment", default="triangle")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_experiment(options.experiment, options.set)
    game = make_game(config.game.name, config.game.options)
    with tempfile.TemporaryDirectory() as temporary, replay_server(Path(temporary) / "replay") as address:
        folder = open_or_create_run_folder(Path(temporary) / "run", config)
        with closing(ReplayClient(address)) as client:
            client.publish_weights(weights_to_bytes(make_network(game, config.network, 0)), 0)
        with served(folder, address, options.gpus) as (url, handle):
            print(
                f"{config.name}, {config.network.blocks} blocks of {config.network.channels} channels, "
                f"{os.cpu_count()} cores, {platform.machine()}, Ray {version('ray')}, load {os.getloadavg()[0]:.1f}"
            )
            measure(config, game, url, handle, options.seconds)
            play_served(config, game, url, 3 * options.seconds)
    play_here(config, game, 3 * options.seconds)


if __name__ == "__main__":
    main()
