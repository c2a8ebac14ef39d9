"""The roles by name: runs any of them from plain values, so that Ray and the command line start them alike."""

import errno
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Event

from deploy.errors import BAD_INPUT, FAILED, DeployError
from deploy.run_context import RunContext
from deploy.run_folder import RunFolder
from deploy.seeding import seed_process
from replay_server.credentials import Credentials, CredentialsError, SecuritySettings
from zero.config import ConfigError, ExperimentConfig
from zero.seeds import process_seeds

logger = logging.getLogger(__name__)


class Role(StrEnum):
    """What a process can be."""

    REPLAY_SERVER = "replay-server"
    LEARNER = "learner"
    ACTOR = "actor"
    REANALYSER = "reanalyser"
    EVALUATOR = "evaluator"


NUMBERED = frozenset({Role.ACTOR, Role.REANALYSER})
"""Roles of which there may be several."""


@dataclass(frozen=True)
class Assignment:
    """Which role a process plays, and where; plain values, so that it travels.

    Attributes:
        role: what to be.
        context: the run.
        index: which of several actors or reanalysers.
        host: interface to serve on, also in what others are told.
        port: gRPC port of the replay server; 0 takes a free one.
        metrics_port: where /metrics is served; 0 takes a free one.
        replay_address: host:port of the replay server; unused by itself.
        credentials: for the replay server; unused by itself.
        data_dir: where the replay server keeps its data, if not in the run's folder.
        redis_url: the replay server's Redis; None starts a private one.
        redis_url_file: holds the same, so that a password stays in its file.
        redis_prefix: of the replay server's keys, so that runs can share a Redis.
        security: what the replay server shows and asks for.
        baselines: whom an evaluator measures too, by name; None for the game's own.
        simulations: how deep an evaluator searches, besides as the experiment says; per move.
        health_port: where the replay server serves health alone; None for nowhere, 0 takes a free one.
        device: what the learner computes on: "auto" for a GPU if there is one, "cpu", "cuda".
        max_steps: training steps after which the learner is done; None for never.
        entropy: tells this process from all that had this role before, as `zero.seeds.entropy_of`; None draws it.
        profile: keep in the run's folder where the role's time goes.
        inference: URL of a served agent that evaluates an actor's leaves; None evaluates them where the actor is.
    """

    role: Role
    context: RunContext
    index: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int = 0
    replay_address: str = ""
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    data_dir: Path | None = None
    redis_url: str | None = field(default=None, repr=False)  # may hold a password
    redis_url_file: Path | None = None
    redis_prefix: str = "zero"
    security: SecuritySettings = SecuritySettings()  # noqa: RUF009 -- frozen
    baselines: tuple[str, ...] | None = None
    simulations: tuple[int, ...] = ()
    health_port: int | None = None
    device: str = "auto"
    max_steps: int | None = None
    entropy: int | None = None
    profile: bool = False
    inference: str | None = None

    @property
    def run_dir(self) -> Path:
        """The run's folder; on another machine it may be missing."""
        return self.context.path

    @property
    def name(self) -> str:
        """Unique within a run: "learner", "actor-3"."""
        return f"{self.role.value}-{self.index}" if self.role in NUMBERED else self.role.value


@dataclass(frozen=True)
class Addresses:
    """Where a replay server answers.

    Attributes:
        grpc: host:port of its services.
        metrics: host:port of /metrics and /sd.
        health: host:port of health alone; None for nowhere.
    """

    grpc: str
    metrics: str
    health: str | None = None


def run_role(
    assignment: Assignment,
    config: ExperimentConfig | None,
    stop: Event,
    on_ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Be the role until `stop`.

    Args:
        assignment: which role, and where.
        config: the experiment; the replay server needs none.
        stop: ends the role.
        on_ready: called by a replay server once it answers.

    Raises:
        DeployError: everything that a user or an operator can do something about.
    """
    if assignment.role is Role.REPLAY_SERVER:
        _run_replay_server(assignment, stop, on_ready)
        return
    if config is None:
        raise ValueError(f"{assignment.name} needs a config")
    from deploy.game_files import register_game_file  # noqa: PLC0415 - loads the compiled games

    with _user_errors(f"{assignment.host}:{assignment.metrics_port}"):
        seed_process(process_seeds(config.seed, assignment.role.value, assignment.index, assignment.entropy or 0))
        register_game_file(config)
        _RUNNERS[assignment.role](assignment, config, stop)


def check_experiment(config: ExperimentConfig) -> None:
    """Build what the config names once, before anything is started.

    Raises:
        DeployError: an unknown or broken game, a wrong option, a table that cannot work.
    """
    from deploy.game_files import register_game_file  # noqa: PLC0415
    from zero.games.game import GameError  # noqa: PLC0415
    from zero.games.registry import make_game  # noqa: PLC0415 - loads the compiled games
    from zero.self_play_table import self_play_table  # noqa: PLC0415

    try:
        register_game_file(config)
        self_play_table(config, make_game(config.game.name, config.game.options))
    except GameError as error:
        raise DeployError(str(error), BAD_INPUT) from None
    except ValueError as error:
        raise DeployError(f"replay: {error}", BAD_INPUT) from None


def _run_replay_server(assignment: Assignment, stop: Event, on_ready: Callable[[Addresses], None] | None) -> None:
    from replay_server.security import SecurityError  # noqa: PLC0415
    from replay_server.server import (  # noqa: PLC0415 - a role imports what it needs, and no other role's libraries
        BoundAddresses,
        ReplayServerError,
        ReplayServerSettings,
        run_replay_server,
    )

    def forward(bound: BoundAddresses) -> None:
        if on_ready is not None:
            on_ready(Addresses(bound.address, bound.metrics_address, bound.health_address))

    settings = ReplayServerSettings(
        host=assignment.host,
        port=assignment.port,
        metrics_port=assignment.metrics_port,
        health_port=assignment.health_port,
        security=assignment.security,
        data_dir=assignment.data_dir or RunFolder(assignment.run_dir).replay,
        redis_url=_redis_url(assignment),
        redis_prefix=assignment.redis_prefix,
    )
    try:
        run_replay_server(settings, stop, forward)
    except SecurityError as error:
        raise DeployError(str(error), BAD_INPUT) from error
    except ReplayServerError as error:
        raise DeployError(str(error), FAILED) from error


def _redis_url(assignment: Assignment) -> str | None:
    from replay_server.command import CommandError, read_redis_url  # noqa: PLC0415

    if assignment.redis_url_file is None:
        return assignment.redis_url
    try:
        return read_redis_url(assignment.redis_url_file)
    except CommandError as error:
        raise DeployError(str(error), error.exit_code) from None


def _run_learner(assignment: Assignment, config: ExperimentConfig, stop: Event) -> None:
    from learner.checkpoint import CheckpointError  # noqa: PLC0415
    from learner.learner import LearnerSettings, run_learner  # noqa: PLC0415

    settings = LearnerSettings(
        device=checked_device(assignment.device, "--device cuda, --place learner:gpu", "--device auto, gpu=0"),
        replay_address=assignment.replay_address,
        run_dir=assignment.run_dir,
        metrics_host=assignment.host,
        metrics_port=assignment.metrics_port,
        credentials=assignment.credentials,
        max_steps=assignment.max_steps,
        best_step=lambda: _best_step(RunFolder(assignment.run_dir)),
        statistics=RunFolder(assignment.run_dir).kept_statistics,
    )
    try:
        run_learner(config, settings, stop)
    except CheckpointError as error:
        raise DeployError(str(error), BAD_INPUT) from error


def checked_device(name: str, given: str, otherwise: str) -> str:
    """The device, "auto", "cpu" or "cuda".

    Args:
        name: of the device.
        given: the option that asks for a GPU.
        otherwise: the option that asks for none.

    Raises:
        DeployError: it is a GPU, and PyTorch finds none.
    """
    import torch  # noqa: PLC0415

    if name == "cuda" and not torch.cuda.is_available():
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
        raise DeployError(f"{given}: {why}; give {otherwise}, or a machine and an image with CUDA", BAD_INPUT)
    return name


def _best_step(folder: RunFolder) -> int | None:
    """The training step of the weights that the evaluator scored highest; None before any, or if they are damaged."""
    from actors.best_weights import BestWeightsError, best_training_step  # noqa: PLC0415

    try:
        return best_training_step(folder.best)
    except BestWeightsError as error:
        logger.warning("no checkpoint is kept for being the best: %s", error)
        return None


def _run_actor(assignment: Assignment, config: ExperimentConfig, stop: Event) -> None:
    from actors.actor import ActorSettings, run_actor  # noqa: PLC0415
    from actors.inference_client import InferenceError  # noqa: PLC0415

    settings = ActorSettings(
        replay_address=assignment.replay_address,
        index=assignment.index,
        entropy=assignment.entropy,
        metrics_host=assignment.host,
        metrics_port=assignment.metrics_port,
        credentials=assignment.credentials,
        inference=assignment.inference,
    )
    try:
        run_actor(config, settings, stop)
    except InferenceError as error:
        raise DeployError(str(error), FAILED) from error


def _run_reanalyser(assignment: Assignment, config: ExperimentConfig, stop: Event) -> None:
    from actors.reanalyser import ReanalyserSettings, run_reanalyser  # noqa: PLC0415

    settings = ReanalyserSettings(
        replay_address=assignment.replay_address,
        index=assignment.index,
        entropy=assignment.entropy,
        metrics_host=assignment.host,
        metrics_port=assignment.metrics_port,
        credentials=assignment.credentials,
    )
    run_reanalyser(config, settings, stop)


def _run_evaluator(assignment: Assignment, config: ExperimentConfig, stop: Event) -> None:
    from actors.best_weights import BestWeightsError  # noqa: PLC0415
    from actors.evaluator import EvaluatorSettings, run_evaluator  # noqa: PLC0415

    settings = EvaluatorSettings(
        replay_address=assignment.replay_address,
        metrics_host=assignment.host,
        metrics_port=assignment.metrics_port,
        credentials=assignment.credentials,
        baselines=assignment.baselines,
        simulations=assignment.simulations,
        run_dir=assignment.run_dir,
    )
    try:
        run_evaluator(config, settings, stop)
    except BestWeightsError as error:
        raise DeployError(str(error), BAD_INPUT) from error


_RUNNERS: dict[Role, Callable[[Assignment, ExperimentConfig, Event], None]] = {
    Role.LEARNER: _run_learner,
    Role.ACTOR: _run_actor,
    Role.REANALYSER: _run_reanalyser,
    Role.EVALUATOR: _run_evaluator,
}


_DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def _user_errors(metrics_address: str) -> Generator[None]:
    """Turn the errors that every role shares into a DeployError."""
    from replay_server.client import ReplayError  # noqa: PLC0415
    from zero.games.game import GameError  # noqa: PLC0415
    from zero.networks.weights import WeightsMismatchError  # noqa: PLC0415 - imports torch

    try:
        yield
    except (ConfigError, GameError, CredentialsError) as error:
        raise DeployError(str(error), BAD_INPUT) from error
    except WeightsMismatchError as error:
        raise DeployError(str(error), BAD_INPUT) from error
    except ReplayError as error:
        raise DeployError(f"replay server: {error}", FAILED) from error
    except OSError as error:
        if error.errno in _DISK_REFUSALS:
            raise DeployError(f"cannot write {error.filename or 'to the disk'}: {error.strerror}", FAILED) from error
        if error.errno != errno.EADDRINUSE:
            raise
        raise DeployError(f"{metrics_address} is in use; choose another --metrics-port", FAILED) from error
