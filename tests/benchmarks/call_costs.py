"""What a call costs the replay server: processor time and bytes, the constants of `deploy/SCALE.md`.

    python tests/benchmarks/call_costs.py              # random values, of the puzzle's real size
    python tests/benchmarks/call_costs.py RUN          # also the games that a run has stored: bytes of a real step

Processor time hardly depends on what else the machine does, unlike calls per second.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import redis

sys.path.insert(0, str(Path(__file__).parents[2]))

from deploy.run_folder import RunFolder
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.crowd import SAMPLED, SAMPLED_STEPS, games_of_the_puzzle
from tests.procfs import cpu_seconds
from tests.replay_server.killable import killable_server
from zero.config import ExperimentConfig
from zero.games.registry import make_game
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.tables import RateLimiterConfig
from zero.trajectories import PriorityUpdates, Trajectory
from zero.wire import frames

_BATCH = SAMPLED.batch_size


def report_costs(steps: int) -> None:
    """Print the server's processor time per call, of every kind that a run makes often."""
    config = ExperimentConfig(name="costs")
    table = self_play_table(config, make_game(config.game.name, config.game.options))
    games = games_of_the_puzzle(steps)
    numbers = iter(range(1 << 30))

    def fresh(count: int) -> list[Trajectory]:
        return [replace(games[i % len(games)], trajectory_id=f"game-{next(numbers)}") for i in range(count)]

    with tempfile.TemporaryDirectory() as folder, killable_server(Path(folder)) as server:
        redis_pid = int((Path(folder) / "redis" / "redis.pid").read_text())
        with ReplayClient(server.address) as client:
            client.create_table(replace(table, rate_limiter=RateLimiterConfig()))
            client.insert(TABLE_NAME, fresh(64))
            stream = client.sample_stream(TABLE_NAME, SAMPLED)
            over_grpc = client.sample_stream(TABLE_NAME, SAMPLED, shared_memory=False)

            def draw(batches: object) -> None:
                batch = next(batches)  # pyright: ignore -- a stream
                batches.update_priorities(batch.keys, np.ones(_BATCH, np.float32))  # pyright: ignore -- a stream

            updates = PriorityUpdates(next(stream).keys, np.ones(_BATCH, np.float32))
            kinds: Sequence[tuple[str, int, Callable[[], object]]] = (
                ("RegisterProcess", 2000, lambda: client.register_process("actor", "one", "127.0.0.1:1", 1)),
                ("GetWeights, none newer", 2000, lambda: client.get_weights(0)),
                (f"Insert, 1 game of {steps} moves", 2000, lambda: client.insert(TABLE_NAME, fresh(1))),
                (f"Insert, 8 games of {steps} moves", 500, lambda: client.insert(TABLE_NAME, fresh(8))),
                (f"UpdatePriorities, {_BATCH}", 1000, lambda: client.update_priorities(TABLE_NAME, updates)),
                (f"a batch of {_BATCH} x {SAMPLED_STEPS}, shared memory", 1000, lambda: draw(stream)),
                (f"a batch of {_BATCH} x {SAMPLED_STEPS}, over gRPC", 1000, lambda: draw(over_grpc)),
            )
            print(f"{'call':<40} {'server':>9} {'Redis':>9}   microseconds of a core")
            for name, times, call in kinds:
                report_cost(name, times, call, (server.pid, redis_pid))
            client.publish_weights(np.random.default_rng(0).bytes(3 << 20), 1)
            report_cost("GetWeights, 3 MiB", 200, lambda: client.get_weights(0), (server.pid, redis_pid))
            stream.close()
            over_grpc.close()


def report_cost(name: str, times: int, call: Callable[[], object], pids: Sequence[int]) -> None:
    """Print what one kind of call costs."""
    for _ in range(max(times // 20, 3)):
        call()
    before = [cpu_seconds(pid) for pid in pids]
    for _ in range(times):
        call()
    time.sleep(0.1)  # what the server does after its answer
    costs = [1e6 * (cpu_seconds(pid) - begun) / times for pid, begun in zip(pids, before, strict=True)]
    print(f"{name:<40} {costs[0]:>9.0f} {costs[1]:>9.0f}")


def report_bytes(games: Sequence[Trajectory], what: str) -> None:
    """Print the bytes of a step on the wire, plain and as zstd, and in Redis."""
    num_steps = sum(game.num_steps for game in games)
    plain, packed = (
        sum(len(frames.encode_insert_request((TABLE_NAME,), [game], compress=compress)) for game in games) / num_steps
        for compress in (False, True)
    )
    config = ExperimentConfig(name="bytes")
    table = self_play_table(config, make_game(config.game.name, config.game.options))
    with tempfile.TemporaryDirectory() as folder:
        redis_bytes = []
        for compress in (False, True):
            settings = ReplayServerSettings(Path(folder) / str(compress))
            with ReplayServer(settings) as bound, ReplayClient(bound.address, compress=compress) as client:
                client.create_table(replace(table, capacity=num_steps, rate_limiter=RateLimiterConfig()))
                with redis.Redis(unix_socket_path=str(next(settings.data_dir.rglob("*.sock")))) as store:
                    empty = store.info("memory")["used_memory_dataset"]
                    for start in range(0, len(games), 8):
                        client.insert(TABLE_NAME, games[start : start + 8])
                    redis_bytes.append((store.info("memory")["used_memory_dataset"] - empty) / num_steps)
                held = client.server_info().tables[TABLE_NAME].memory_bytes / num_steps
    print(
        f"{what}: {len(games)} games, {num_steps / len(games):.1f} moves each; bytes of a step: {plain:.0f} on the "
        f"wire, {packed:.0f} as zstd; {redis_bytes[0]:.0f} in Redis, {redis_bytes[1]:.0f} as zstd; {held:.0f} in memory"
    )


def stored_games(folder: RunFolder, limit: int = 1000) -> list[Trajectory]:
    """The newest games of a run that does not go on."""
    settings = ReplayServerSettings(folder.replay, redis_prefix=f"zero:{folder.replay_id()}")
    with ReplayServer(settings) as bound, ReplayClient(bound.address) as client:
        return list(client.read_trajectories(TABLE_NAME, limit=limit, newest_first=True))


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, gRPC {version('grpcio')}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    report_costs(options.steps)
    random = [replace(game, trajectory_id=f"{i}") for i, game in enumerate(games_of_the_puzzle(options.steps, 64))]
    report_bytes(random, "random values")
    if options.run is not None:
        report_bytes(stored_games(RunFolder(options.run.absolute())), options.run.name)


if __name__ == "__main__":
    main()
