"""Serves an agent with Ray Serve: collects the requests of many clients into batches, and changes to newer weights."""

import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Annotated

import numpy as np
import ray
import typer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from deploy.errors import BAD_INPUT, DeployError
from deploy.interrupts import POLL_SECONDS, Interrupts
from deploy.private_ray import start_private_ray
from deploy.published_weights import PublishedWeights
from deploy.roles import check_experiment, checked_device
from deploy.run_folder import RunFolder
from deploy.run_weights import RunWeights, WeightsWatch, WhichWeights, read_weights
from deploy.serving_agent import Agent
from deploy.serving_batches import Gathering
from deploy.serving_http import AgentCalls, AgentHttp, Answer, Asked, Evaluated, Identity
from deploy.serving_metrics import ServeMetrics
from replay_server.client import ReplayClient, registered_process
from replay_server.credentials import Credentials, CredentialsError, is_loopback
from zero.config import ExperimentConfig
from zero.games.registry import make_game

logger = logging.getLogger(__name__)

MAX_REQUESTS_PER_BATCH = 64
MAX_ONGOING_REQUESTS = 256
"""Those above wait in the web server, and get 503 once MAX_QUEUED_REQUESTS wait."""
MAX_QUEUED_REQUESTS = 1024

FIRST_CONTACT_SECONDS = 5.0
"""A replay server that does not answer the command within this time is not there."""
FIRST_WEIGHTS_SECONDS = 1.0
"""How often a replica looks for weights where none are published yet."""


class ServeOptions(BaseModel):
    """What to serve; also the `args` of this application in a config file of Ray Serve.

    Attributes:
        run: the run's folder.
        weights: its best or its latest.
        overrides: `section.key=value` of its config.
        poll_seconds: between looks for newer weights.
        replay_address: host:port of the run's replay server, to take the weights that are published there instead, and
            to evaluate leaves for actors; None takes those of the folder.
        credentials: for the replay server.
        gpus: to compute on, as Ray counts them; 0 computes on the CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path
    weights: WhichWeights = WhichWeights.BEST
    overrides: tuple[str, ...] = ()
    poll_seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
    replay_address: str | None = None
    credentials: Credentials = Credentials()
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def weights_name(self) -> str:
        """Which weights decide, in a word."""
        return self.weights.value if self.replay_address is None else "published"

    @property
    def device(self) -> str:
        """Where the network is computed."""
        return "cuda" if self.gpus else "cpu"


class AgentReplica:
    """One process that decides: takes requests, searches the positions of several together, watches for weights.

    Raises:
        DeployError: no run, or no weights of it that can be used.
    """

    def __init__(self, options: ServeOptions) -> None:
        folder, config = open_run(options)
        self._config = config
        self._device = options.device
        self._game = make_game(config.game.name, config.game.options)
        self._metrics = ServeMetrics()
        self._registered = ExitStack()
        self._watch = self._follow(options, folder)
        self._agent = Agent(config, self._game, self._first_weights(options), device=self._device)
        self._agent.warm_up()
        record = folder.record()
        executor = ThreadPoolExecutor(1, thread_name_prefix="decide")  # one thread: there is one network
        self._http = AgentHttp(
            self._game,
            Identity(record.name, record.run_id, record.experiment, options.weights_name, config.game),
            AgentCalls(
                Gathering(self._search, executor, MAX_REQUESTS_PER_BATCH).ask,
                Gathering(self._evaluate, executor, MAX_REQUESTS_PER_BATCH).ask,
                lambda: self._agent.version,
            ),
            self._metrics,
        )
        self._watching: Future[None] = ThreadPoolExecutor(1, thread_name_prefix="weights-watch").submit(
            self._swap_until, Event(), options.poll_seconds, os.getppid()
        )

    def _follow(self, options: ServeOptions, folder: RunFolder) -> WeightsWatch | PublishedWeights:
        """Where newer weights come from; with a replay server, be one of its processes, so that Prometheus finds it."""
        if options.replay_address is None:
            return WeightsWatch(folder, self._config, options.weights)
        client = ReplayClient(options.replay_address, credentials=options.credentials)
        is_here = is_loopback(options.replay_address.rpartition(":")[0])
        host = "127.0.0.1" if is_here else ray.util.get_node_ip_address()
        name = f"inference-{secrets.token_hex(4)}"
        self._registered.enter_context(registered_process(client, "inference", name, self._metrics.registry, host, 0))
        return PublishedWeights(client)

    def _first_weights(self, options: ServeOptions) -> RunWeights:
        """The weights to begin with; waits until some are published.

        Raises:
            DeployError: the run has none.
        """
        while (weights := self._watch.poll()) is None:
            if options.replay_address is None:
                raise DeployError(f"{options.run} holds no weights")
            time.sleep(FIRST_WEIGHTS_SECONDS)
        return weights

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        reply = await self._http.answer(request.method, request.url.path, await request.body())
        return Response(reply.body, reply.status, media_type=reply.content_type)

    def check_health(self) -> None:
        """Let Ray replace this process when it no longer looks for weights."""
        if self._watching.done():
            self._watching.result()

    def _search(self, asked: Sequence[Asked]) -> list[Answer]:
        agent = self._agent  # the same for all, whatever comes meanwhile
        states = np.concatenate([one.states for one in asked])
        decisions = agent.decide(states, np.concatenate([one.seeds for one in asked]))
        self._metrics.batch_positions.observe(len(states))
        ends = np.cumsum([len(one.states) for one in asked])
        return [
            Answer(decisions[end - len(one.states) : end], agent.version)
            for one, end in zip(asked, ends.tolist(), strict=True)
        ]

    def _evaluate(self, asked: Sequence[NDArray[np.float32]]) -> list[Evaluated]:
        agent = self._agent
        logits, values = agent.evaluate(np.concatenate(asked))
        self._metrics.batch_leaves.observe(len(values))
        ends = np.cumsum([len(one) for one in asked])
        return [
            Evaluated(logits[end - len(one) : end], values[end - len(one) : end], agent.version)
            for one, end in zip(asked, ends.tolist(), strict=True)
        ]

    def _swap_until(self, stop: Event, poll_seconds: float, parent: int) -> None:
        while not stop.wait(poll_seconds):
            if os.getppid() != parent:  # Ray does not always see to it
                os._exit(1)
            try:
                weights = self._watch.poll()
                if weights is None:
                    continue
                self._agent = Agent(self._config, self._game, weights, self._agent.dtype, self._device)
            except DeployError as error:
                # Those that decide are still good; what is wrong is for whoever looks after the run.
                logger.warning("went on with training step %d: %s", self._agent.version.training_step, error)
                self._metrics.refused_weights.inc()
            else:
                self._metrics.swaps.inc()


def open_run(options: ServeOptions) -> tuple[RunFolder, ExperimentConfig]:
    """The run to serve, and its config.

    Raises:
        DeployError: there is no run, its game is missing, or there is no GPU that was asked for.
    """
    folder = RunFolder(options.run.absolute())
    config = folder.config(options.overrides)
    check_experiment(config)
    if options.gpus and config.network.model == "learned":
        raise DeployError('--gpus needs network.model "rules": a learned model is searched on CPUs', BAD_INPUT)
    checked_device(options.device, "--gpus", "--gpus 0")
    return folder, config


def check_served(options: ServeOptions) -> int:
    """Make sure that there is something to serve; returns its training step.

    Raises:
        DeployError: no run, or no weights of it that can be used.
    """
    folder, config = open_run(options)
    if options.replay_address is None:
        return read_weights(folder, config, options.weights).training_step
    try:
        with ReplayClient(options.replay_address, credentials=options.credentials) as client:
            published = PublishedWeights(client, FIRST_CONTACT_SECONDS).poll()
    except CredentialsError as error:
        raise DeployError(str(error), BAD_INPUT) from error
    if published is None:
        raise DeployError(
            f"the replay server at {options.replay_address} gives no weights: start it, and the learner of the run"
        )
    return published.training_step


def build(options: ServeOptions) -> Application:
    """The application of Ray Serve: `serve run deploy.serving:build run=DIR`, or the import path of a RayService."""
    make_deployment = serve.deployment(
        name="agent",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        ray_actor_options={"num_gpus": options.gpus},
    )
    return make_deployment(AgentReplica).bind(options)


def serve_until_interrupted(options: ServeOptions, host: str, port: int) -> None:
    """Serve from a Ray of this process's own until it is interrupted; then answer what was asked, and stop.

    Raises:
        DeployError: Ray Serve could not start.
    """
    with Interrupts() as interrupts:
        temp_dir = start_private_ray(num_cpus=len(os.sched_getaffinity(0)))
        try:
            interrupts.install()
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            serve.start(http_options={"host": host, "port": port})
            try:
                serve.run(build(options), logging_config={"enable_access_log": False, "log_level": "WARNING"})
            except RuntimeError as error:
                raise DeployError(f"Ray Serve did not start: {error}") from error
            typer.echo(f"==> http://{host}:{port} is a page to play on, POST /act decides (Ctrl-C stops)")
            while interrupts.count == 0:
                time.sleep(POLL_SECONDS)
            typer.echo("==> Stopping: answers what was asked")
            serve.delete("default")
        finally:
            ray.shutdown()
            shutil.rmtree(temp_dir, ignore_errors=True)
