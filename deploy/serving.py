"""Serves an agent with Ray Serve: collects the requests of many clients into batches, and changes to newer weights."""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Annotated

import numpy as np
import ray
import typer
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from deploy.errors import DeployError
from deploy.interrupts import POLL_SECONDS, Interrupts
from deploy.private_ray import start_private_ray
from deploy.roles import check_experiment
from deploy.run_folder import RunFolder
from deploy.run_weights import WeightsWatch, WhichWeights, read_weights
from deploy.serving_agent import Agent
from deploy.serving_batches import Gathering
from deploy.serving_http import AgentHttp, Answer, Asked, Identity
from deploy.serving_metrics import ServeMetrics
from zero.config import ExperimentConfig
from zero.games.registry import make_game

logger = logging.getLogger(__name__)

MAX_REQUESTS_PER_BATCH = 64
MAX_ONGOING_REQUESTS = 256
"""Those above wait in the web server, and get 503 once MAX_QUEUED_REQUESTS wait."""
MAX_QUEUED_REQUESTS = 1024


class ServeOptions(BaseModel):
    """What to serve; also the `args` of this application in a config file of Ray Serve.

    Attributes:
        run: the run's folder.
        weights: its best or its latest.
        overrides: `section.key=value` of its config.
        poll_seconds: between looks for newer weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path
    weights: WhichWeights = WhichWeights.BEST
    overrides: tuple[str, ...] = ()
    poll_seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0


class AgentReplica:
    """One process that decides: takes requests, searches the positions of several together, watches for weights.

    Raises:
        DeployError: no run, or no weights of it that can be used.
    """

    def __init__(self, options: ServeOptions) -> None:
        folder, config = open_run(options)
        self._config = config
        self._game = make_game(config.game.name, config.game.options)
        self._metrics = ServeMetrics()
        self._watch = WeightsWatch(folder, config, options.weights)
        weights = self._watch.poll()
        if weights is None:
            raise DeployError(f"{folder.path} holds no weights")
        self._agent = Agent(config, self._game, weights)
        self._agent.warm_up()
        record = folder.record()
        self._http = AgentHttp(
            self._game,
            Identity(record.name, record.run_id, record.experiment, options.weights.value),
            Gathering(self._search, ThreadPoolExecutor(1, thread_name_prefix="decide"), MAX_REQUESTS_PER_BATCH).ask,
            lambda: self._agent.version,
            self._metrics,
        )
        self._watching: Future[None] = ThreadPoolExecutor(1, thread_name_prefix="weights-watch").submit(
            self._swap_until, Event(), options.poll_seconds, os.getppid()
        )

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

    def _swap_until(self, stop: Event, poll_seconds: float, parent: int) -> None:
        while not stop.wait(poll_seconds):
            if os.getppid() != parent:  # Ray does not always see to it
                os._exit(1)
            try:
                weights = self._watch.poll()
                if weights is None:
                    continue
                self._agent = Agent(self._config, self._game, weights, self._agent.dtype)
            except DeployError as error:
                # Those that decide are still good; what is wrong is for whoever looks after the run.
                logger.warning("went on with training step %d: %s", self._agent.version.training_step, error)
                self._metrics.refused_weights.inc()
            else:
                self._metrics.swaps.inc()


def open_run(options: ServeOptions) -> tuple[RunFolder, ExperimentConfig]:
    """The run to serve, and its config.

    Raises:
        DeployError: there is no run, or its game is missing.
    """
    folder = RunFolder(options.run.absolute())
    config = folder.config(options.overrides)
    check_experiment(config)
    return folder, config


def check_served(options: ServeOptions) -> int:
    """Make sure that there is something to serve; returns its training step.

    Raises:
        DeployError: no run, or no weights of it that can be used.
    """
    folder, config = open_run(options)
    return read_weights(folder, config, options.weights).training_step


def build(options: ServeOptions) -> Application:
    """The application of Ray Serve: `serve run deploy.serving:build run=DIR`, or the import path of a RayService."""
    make_deployment = serve.deployment(
        name="agent", max_ongoing_requests=MAX_ONGOING_REQUESTS, max_queued_requests=MAX_QUEUED_REQUESTS
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
