"""How many requests and positions per second `zero serve` answers, by positions per request and clients at once.

Run it: `.venv/bin/python tests/benchmarks/serve.py [RUN] [--simulations 32] [--seconds 5]`. Without a run it serves
fresh weights of the triangle puzzle's default network, which are as fast as trained ones. The clients are threads of
this process, with a connection each, on the same machine as the server. Positions are sent as observations.
"""

import argparse
import http.client
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
from positions import observations_of_play

from deploy.experiment_files import load_experiment
from deploy.run_folder import RunFolder, open_or_create_run_folder
from learner.checkpoint import Checkpoint, CheckpointStore
from zero.games.registry import make_game
from zero.networks.make_network import make_network
from zero.networks.weights import weights_to_bytes

POSITIONS = (1, 4, 16, 64, 256)
CLIENTS = (1, 4, 16)


def fresh_run(path: Path) -> RunFolder:
    """A run whose only checkpoint is not trained."""
    config = load_experiment("triangle", [])
    folder = open_or_create_run_folder(path, config)
    weights = weights_to_bytes(make_network(make_game(config.game.name, {}), config.network, 0))
    CheckpointStore(folder.checkpoints).save(Checkpoint(0, weights, {}), config)
    return folder


def latencies(address: str, body: bytes, deadline: float) -> list[float]:
    """Seconds that each request of one client took, one after the other, until the deadline."""
    taken: list[float] = []
    connection = http.client.HTTPConnection(address, timeout=120)
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        connection.request("POST", "/act", body)
        response = connection.getresponse()
        answer = response.read()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(answer.decode())
        taken.append(time.perf_counter() - start)
    connection.close()
    return taken


def measure(address: str, body: bytes, clients: int, seconds: float) -> tuple[float, np.ndarray]:
    """Seconds of the clock, and those that each request took."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as executor:
        each = [executor.submit(latencies, address, body, start + seconds) for _ in range(clients)]
        taken = np.array([one for client in each for one in client.result()])
    return time.perf_counter() - start, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--simulations", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(options.run.absolute()) if options.run else fresh_run(Path(temporary) / "run")
        config = folder.config()
        game = make_game(config.game.name, config.game.options)
        sent = observations_of_play(game, max(POSITIONS)).tolist()
        command = [
            str(Path(sys.executable).with_name("zero")),
            *("serve", str(folder.path), "--port=0", "--weights=latest"),
            *("--set", f"search.num_simulations={options.simulations}"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            address = next(found[1] for line in server.stdout if (found := re.search(r"http://([\d.:]+) is", line)))
            print(
                f"{config.name}, {options.simulations} simulations, {os.cpu_count()} cores, {platform.machine()}, "
                f"Ray {version('ray')}, load {os.getloadavg()[0]:.1f}"
            )
            print(f"{'positions':>9} {'clients':>8} {'requests/s':>11} {'positions/s':>12} {'p50 ms':>8} {'p99 ms':>8}")
            for count in POSITIONS:
                body = json.dumps({"positions": [{"observation": one} for one in sent[:count]]}).encode()
                for clients in CLIENTS:
                    elapsed, taken = measure(address, body, clients, options.seconds)
                    p50, p99 = 1e3 * np.quantile(taken, (0.5, 0.99))
                    rate = len(taken) / elapsed
                    print(f"{count:>9} {clients:>8} {rate:>11.1f} {rate * count:>12.0f} {p50:>8.1f} {p99:>8.1f}")
            server.terminate()


if __name__ == "__main__":
    main()
