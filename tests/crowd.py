"""A crowd of actors that do not think: all that a server sees of real ones, hundreds of them in one process.

Every actor has a connection of its own and makes the calls of `actors.actor`, with its pace, deadlines and pauses:
it registers, sends games and events, and asks for newer weights. The calls are asynchronous, since the threads of so
many real clients would keep a machine busy by themselves.
"""

import asyncio
import hashlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import grpc
import numpy as np

from actors.actor import MAX_INSERTS_IN_FLIGHT
from actors.metrics import ActorMetrics
from actors.self_play import MoveReport
from actors.weights_client import REQUEST_SECONDS, poll_pause
from replay_server.answers import ReplayTimeout
from replay_server.connection import Backoff, channel_options
from replay_server.event_sender import REQUEST_SECONDS as EVENTS_SECONDS
from replay_server.event_sender import send_pause
from replay_server.malloc import tune_malloc
from replay_server.trajectory_buffer import CALLS_IN_FLIGHT, INSERT_SECONDS, MAX_INSERT_SECONDS
from zero.config import ExperimentConfig
from zero.events import EVENTS_TABLE, batches, to_trajectory
from zero.games.registry import make_game
from zero.self_play_table import TABLE_NAME, self_play_signature
from zero.trajectories import SampleSpec, Trajectory
from zero.wire import frames, replay_pb2, replay_pb2_grpc, weights_pb2, weights_pb2_grpc
from zero.wire.codec import MESSAGE_BYTES_METADATA_KEY, REASON_METADATA_KEY

SAMPLED_STEPS = 6
SAMPLED = SampleSpec(
    128,
    dict.fromkeys(("observation", "action", "reward", "discount", "search_policy", "search_value"), SAMPLED_STEPS),
)
"""What a learner beside the crowd draws."""
_GAMES_AT_ONCE = 64
"""In lock step: an actor reports a move of all of them at once."""
_REGISTRATION_SECONDS = 5.0
_REPEATED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class CrowdSettings:
    """What a crowd does; plain values, so that it travels.

    Attributes:
        address: of the replay server.
        actors: the indices of the actors in this process.
        num_steps: of a game.
        games_per_second: of one actor; 0 for as many as the server takes.
        starts_at: on the monotonic clock of the machine, when all begin to play; they connect before.
        ends_at: when they stop.
    """

    address: str
    actors: range
    num_steps: int
    games_per_second: float
    starts_at: float
    ends_at: float


@dataclass
class ActorLog:
    """What one actor saw.

    Attributes:
        index: which one.
        acknowledged: games.
        duplicates: of these, whose first acknowledgement was lost or too late.
        repeated: calls and reasons to how often they were made again: the server was too busy or did not answer.
        latencies: seconds from sending a game to its acknowledgement, all attempts together.
        arrivals: version of weights to when they had arrived whole, on the monotonic clock.
        errors: what no repetition mends.
    """

    index: int
    acknowledged: int = 0
    duplicates: int = 0
    repeated: dict[str, int] = field(default_factory=dict[str, int])
    latencies: list[float] = field(default_factory=list[float])
    arrivals: dict[int, float] = field(default_factory=dict[int, float])
    errors: list[str] = field(default_factory=list[str])


def games_of_the_puzzle(num_steps: int, count: int = 16) -> list[Trajectory]:
    """Games in the columns of self-play, of the puzzle's real size."""
    rng = np.random.default_rng(0)
    config = ExperimentConfig(name="crowd")
    signature = self_play_signature(make_game(config.game.name, config.game.options))

    def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.random((num_steps, *shape)) if dtype.startswith("f") else rng.integers(0, 200, (num_steps, *shape))
        return drawn.astype(dtype)

    stats = {"score": 59.0, "num_moves": float(num_steps), "lines": 9.0}
    return [
        Trajectory("", "", 0, 0, True, False, {spec.name: values(spec.dtype, spec.shape) for spec in signature}, stats)
        for _ in range(count)
    ]


class _Calls:
    """The calls of an actor over a connection of its own, repeated as the client of the replay server repeats them."""

    def __init__(self, address: str, log: ActorLog) -> None:
        self._log = log
        self.channel = grpc.aio.insecure_channel(address, options=channel_options(f"actor-{log.index}", 64 << 20))
        self._insert = self.channel.unary_unary("/zero.v1.ReplayService/Insert")
        self._replay = replay_pb2_grpc.ReplayServiceStub(self.channel)
        self._weights = weights_pb2_grpc.WeightsServiceStub(self.channel)

    async def insert(self, table: str, trajectories: Sequence[Trajectory], seconds: float) -> replay_pb2.InsertResponse:
        """Until it is acknowledged."""
        request = frames.encode_insert_request((table,), trajectories)
        size = ((MESSAGE_BYTES_METADATA_KEY, str(len(request))),)
        deadlines = _deadlines(seconds)
        answer = await self._repeat("Insert", lambda: self._insert(request, timeout=next(deadlines), metadata=size))
        return replay_pb2.InsertResponse.FromString(answer)

    async def register(self) -> None:
        """Say that the actor is alive."""
        request = replay_pb2.RegisterProcessRequest(
            role="actor",
            process_id=f"actor-{self._log.index}",
            metrics_address=f"127.0.0.1:{10_000 + self._log.index}",
            pid=1,
        )
        await self._repeat("RegisterProcess", lambda: self._replay.RegisterProcess(request, timeout=10.0))

    async def newer_weights(self, than: int) -> int:
        """Fetch weights that are newer; the version that the actor has then."""
        deadlines = _deadlines(REQUEST_SECONDS)
        return await self._repeat("GetWeights", lambda: self._collect(than, next(deadlines)))

    async def _collect(self, than: int, seconds: float) -> int:
        call = self._weights.GetWeights(weights_pb2.GetWeightsRequest(newer_than=than), timeout=seconds)
        header, digest, size = None, hashlib.sha256(), 0
        async for part in call:
            header = header or part.header
            digest.update(part.chunk)
            size += len(part.chunk)
        if header is None or size != header.total_bytes:
            raise ValueError(f"{size} bytes of weights came")
        if not size:
            return than
        if digest.digest() != header.sha256:
            raise ValueError(f"weights {header.weights_version} arrived damaged")
        self._log.arrivals[header.weights_version] = time.monotonic()
        return header.weights_version

    async def _repeat(self, name: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        backoff = Backoff()
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _REPEATED:
                    raise
                reason = dict(error.trailing_metadata()).get(REASON_METADATA_KEY, error.code().name)
                why = f"{name}: {reason}, {error.details()}"[:120]
            self._log.repeated[why] = self._log.repeated.get(why, 0) + 1
            await asyncio.sleep(backoff.pause_after(ReplayTimeout(str(reason), "")))


def _deadlines(seconds: float) -> Iterator[float]:
    """Of one attempt after the other."""
    return itertools.chain((seconds, 2 * seconds), itertools.repeat(MAX_INSERT_SECONDS))


class _Actor:
    """One actor."""

    def __init__(self, settings: CrowdSettings, games: list[Trajectory], log: ActorLog) -> None:
        self._settings = settings
        self._games = games
        self._log = log
        self._name = f"actor-{log.index}"
        self._metrics = ActorMetrics()
        self._rng = np.random.default_rng(log.index)
        self._version = 0
        self._told = asyncio.Event()
        self._room = asyncio.Condition()
        self._unsent: list[tuple[Trajectory, float]] = []
        self._unacknowledged = 0
        self._ended = False

    async def run(self) -> None:
        """Until the crowd ends; what is in flight then is delivered."""
        calls = _Calls(self._settings.address, self._log)
        try:
            # Processes of a cluster do not start in the same moment either.
            await asyncio.sleep(self._rng.uniform(0, 0.5 * (self._settings.starts_at - time.monotonic())))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._again(calls.register, lambda _: _REGISTRATION_SECONDS))
                group.create_task(self._again(lambda: self._ask(calls), poll_pause, self._told))
                group.create_task(self._again(lambda: self._send_events(calls), send_pause))
                group.create_task(self._play())
                for _ in range(CALLS_IN_FLIGHT):
                    group.create_task(self._send(calls))
        except* (grpc.aio.AioRpcError, ValueError) as errors:
            self._log.errors += [f"{self._name}: {error}" for error in errors.exceptions]
        finally:
            await calls.channel.close()

    async def _again(
        self, act: Callable[[], Awaitable[None]], pause: Callable[[float], float], now: asyncio.Event | None = None
    ) -> None:
        """Act until the crowd ends, with pauses by how long it took, which are cut short by `now`."""
        while (started := time.monotonic()) < self._settings.ends_at:
            await act()
            ended = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause(ended - started), max(self._settings.ends_at - ended, 0))):
                    await (now or asyncio.Event()).wait()

    async def _ask(self, calls: _Calls) -> None:
        self._told.clear()
        self._version = await calls.newer_weights(self._version)

    async def _insert(
        self, calls: _Calls, table: str, trajectories: Sequence[Trajectory], seconds: float
    ) -> replay_pb2.InsertResponse:
        answer = await calls.insert(table, trajectories, seconds)
        if answer.weights_version > self._version:
            self._told.set()
        return answer

    async def _send_events(self, calls: _Calls) -> None:
        for batch in batches(self._metrics.registry.events.take(), self._name, f"{self._name}-{time.monotonic_ns()}"):
            await self._insert(calls, EVENTS_TABLE, [to_trajectory(batch)], EVENTS_SECONDS)

    async def _play(self) -> None:
        """Games end at their pace and are sent as `TrajectoryInlet` sends them: what waits goes together."""
        settings = self._settings
        pause = 1 / settings.games_per_second if settings.games_per_second else 0.0
        due = settings.starts_at + pause * self._rng.random()
        number = 0
        while True:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            async with self._room:
                await self._room.wait_for(lambda: self._unacknowledged < MAX_INSERTS_IN_FLIGHT)
                if time.monotonic() >= settings.ends_at:
                    self._ended = True
                    self._room.notify_all()
                    return
                self._unsent.append((self._game(number), time.monotonic()))
                self._unacknowledged += 1
                self._room.notify_all()
            number += 1
            due += pause * self._rng.uniform(0.5, 1.5)

    async def _send(self, calls: _Calls) -> None:
        """One of the calls that may be in flight at once."""
        while True:
            async with self._room:
                await self._room.wait_for(lambda: self._unsent or self._ended)
                taken, self._unsent = self._unsent, []
            if not taken:
                return
            answer = await self._insert(calls, TABLE_NAME, [game for game, _ in taken], INSERT_SECONDS)
            self._log.latencies += [time.monotonic() - sent for _, sent in taken]
            self._log.acknowledged += len(taken)
            self._log.duplicates += answer.duplicates
            async with self._room:
                self._unacknowledged -= len(taken)
                self._room.notify_all()

    def _game(self, number: int) -> Trajectory:
        game = self._games[number % len(self._games)]
        self._metrics.report_game(game)
        self._metrics.report_move(MoveReport(_GAMES_AT_ONCE, _GAMES_AT_ONCE * 32, 3.0, 0.9, 1.0, 0.1, (0.5,)))
        return replace(game, trajectory_id=f"{self._name}-{number}", actor_id=self._name, weights_version=self._version)


async def _run(settings: CrowdSettings) -> list[ActorLog]:
    games = games_of_the_puzzle(settings.num_steps)
    logs = [ActorLog(index) for index in settings.actors]
    await asyncio.gather(*(_Actor(settings, games, log).run() for log in logs))
    return logs


def run_crowd(settings: CrowdSettings) -> list[ActorLog]:
    """Be a crowd; returns what its actors saw."""
    tune_malloc()
    return asyncio.run(_run(settings))
