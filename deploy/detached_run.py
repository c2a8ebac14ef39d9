"""A run that lives in a Ray cluster by itself: a Ray actor that supervises it, whoever started it is there or not."""

import logging
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.errors import FAILED, DeployError
from deploy.live import Status, View
from deploy.placement import SUPERVISOR, Placement
from deploy.ray_fleet import NAMESPACE, RayFleet, Supplies, placement_options
from deploy.ray_process import end_with_ray, log_to_run_folder
from deploy.run_folder import RunFolder, locked
from deploy.run_records import RunState
from deploy.session import Ending, Parts, SessionOptions, run_session
from zero.config import ExperimentConfig

logger = logging.getLogger(__name__)

TAKE_OVER_SECONDS = 30.0
"""The process of a supervisor that has died holds its run's folder at most this much longer."""
LINGER_SECONDS = 10.0
"""So long the end of a run is told to whoever follows it."""
GAME_PIECE_BYTES = 64_000
"""What Ray keeps with an actor itself; what is larger dies with the process that has sent it."""


@dataclass(frozen=True)
class Plan:
    """What a run is started with, again whenever its supervisor has died.

    Attributes:
        run_dir: the run's folder.
        config: the experiment, as JSON data.
        options: of the session.
        placements: what roles ask of machines.
        log_level: of the log files.
        num_sessions: of the run before this one.
    """

    run_dir: Path
    config: dict[str, Any]
    options: SessionOptions
    placements: Mapping[str, Placement]
    log_level: str
    num_sessions: int


@dataclass(frozen=True)
class Progress:
    """What has happened since somebody asked last.

    Attributes:
        incarnation: names the supervisor's process; another one counts events anew.
        events: lines, oldest first.
        status: how the run stands; None while it does not train.
        ending: how it has ended; None while it has not, or has failed.
        error: why it has failed, and the exit code; None if it has not.
    """

    incarnation: str
    events: list[str]
    status: Status | None
    ending: Ending | None
    error: tuple[str, int] | None


class _Kept(View):
    """Keeps what there is to show for whoever asks."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.status: Status | None = None

    def event(self, text: str) -> None:
        """Keep a line, in the log too."""
        self.events.append(text)
        logger.info(text.strip())

    def show(self, status: Status) -> None:
        """Keep how the run stands."""
        self.status = status

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status = None


class DetachedRun:
    """The inside of the Ray actor: a session in a thread of its own, and answers about it from Ray's event loop.

    Args:
        plan: of the run.
        game: pieces of the experiment's game, packed, if the command registered it.
    """

    def __init__(self, plan: Plan, *game: bytes) -> None:
        context = ray.get_runtime_context()
        self._plan = plan
        self._game = b"".join(game) or None
        self._goes_on = bool(context.was_current_actor_reconstructed)
        self._handle: Any = context.current_actor
        self._incarnation = secrets.token_hex(8)
        self._kept = _Kept()
        self._signals = 0
        self._ending: Ending | None = None
        self._error: tuple[str, int] | None = None
        self._told = Event()
        log_to_run_folder(plan.run_dir, SUPERVISOR, plan.log_level)
        ThreadPoolExecutor(1, thread_name_prefix="session").submit(self._run)
        end_with_ray(SUPERVISOR, lambda: None)

    async def progress(self, incarnation: str, seen: int) -> Progress:
        """What has happened after the first `seen` events of that incarnation."""
        ending, error = self._ending, self._error  # before the events, of which there are none afterwards
        events = self._kept.events[seen if incarnation == self._incarnation else 0 :]
        return Progress(self._incarnation, events, self._kept.status, ending, error)

    async def release(self) -> None:
        """Whoever follows knows how the run has ended."""
        self._told.set()

    async def stop(self) -> None:
        """Let the run save and stop; a second time hurries."""
        self._signals += 1

    def _run(self) -> None:
        try:
            self._ending = self._train()
        except DeployError as error:
            logger.exception("the run has failed")
            self._error = str(error), error.exit_code
        except Exception as error:
            logger.exception("the run has failed")
            self._error = f"{type(error).__name__}: {error}; see {SUPERVISOR}.log", FAILED
        self._told.wait(LINGER_SECONDS)
        ray.kill(self._handle)

    def _train(self) -> Ending:
        plan, folder = self._plan, RunFolder(self._plan.run_dir)
        ending = ending_of(folder, plan.num_sessions)
        if ending is not None:
            return ending
        config = ExperimentConfig.model_validate(plan.config)
        supplies = Supplies(folder.run_id(), config, self._game, plan.placements, plan.log_level, is_local=False)
        with locked(folder, TAKE_OVER_SECONDS), closing(RayFleet(supplies)) as fleet:
            if self._goes_on:
                self._kept.event("==> The supervisor has died and goes on")
            parts = Parts(config, folder, plan.options, fleet, self._kept, lambda: self._signals)
            return run_session(parts, goes_on=self._goes_on)


def start_detached(plan: Plan, run_id: str, game: bytes | None) -> Any:
    """Start a run in the cluster that this process has joined, beside its folder; returns its Ray actor.

    Raises:
        DeployError: it is there already.
    """
    asked = plan.placements.get(SUPERVISOR, Placement())
    options = placement_options(asked, 0.0, 0.0)
    if not asked.resources:
        node_id = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    packed = game or b""
    pieces = [packed[start : start + GAME_PIECE_BYTES] for start in range(0, len(packed), GAME_PIECE_BYTES)]
    try:
        return (
            ray.remote(DetachedRun)
            .options(
                name=f"{run_id}:{SUPERVISOR}", namespace=NAMESPACE, lifetime="detached", max_restarts=-1, **options
            )
            .remote(plan, *pieces)
        )
    except ValueError:  # the name is taken
        raise DeployError(
            f"{plan.run_dir} is trained on this cluster already: see `zero status {plan.run_dir}`"
        ) from None


def ending_of(folder: RunFolder, num_sessions: int) -> Ending | None:
    """How the session after so many has ended, by the run's record; None if it has not."""
    if not folder.config_file.exists():
        return None
    record = folder.record()
    if len(record.sessions) <= num_sessions or record.state is RunState.RUNNING:
        return None
    return Ending(record.state, record.sessions[-1].reason)
