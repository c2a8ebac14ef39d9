"""Runs a whole training run: starts all roles, shows how it goes, ends it in order, says what came of it."""

import json
import math
import socket
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from deploy.errors import FAILED, DeployError
from deploy.figures import Figures, RunFigures
from deploy.interrupts import Interrupts
from deploy.live import LiveView, PlainView, Status, View, in_order
from deploy.ray_fleet import RayFleet
from deploy.roles import Addresses, Assignment, Role
from deploy.run_context import DEFAULT_APPLICATION, RunContext
from deploy.run_folder import RunFolder, locked
from deploy.run_records import RunState
from deploy.scrape import Scrape, Scraper
from deploy.statistics.run_statistics import EventSource, StatisticsSettings, run_statistics
from deploy.supervisor import Supervisor
from replay_server.credentials import Credentials, SecuritySettings
from replay_server.ports import DEFAULT_METRICS_PORT
from zero.config import ExperimentConfig
from zero.seeds import entropy_of

POLL_SECONDS = 0.5
SCRAPE_INTERVAL_SECONDS = 1.0
METRICS_LINE_INTERVAL_SECONDS = 5.0
SEARCH = "search"
"""The player whose evaluation score is that of the run."""


@dataclass(frozen=True)
class TrainOptions:
    """How a run is run; nothing of it affects what is learned.

    Attributes:
        minutes: how long at most; None for no end of its own.
        max_steps: training steps of the run, earlier sessions included, at which it is finished; None for any number.
        target_score: mean score of the search, as the evaluator measures it, at which it is finished; None for any.
        application: whose run it is.
        num_actors: how many actors; None for one per core, less one for the learner.
        num_reanalysers: how many roles search stored positions again.
        ray_address: a Ray cluster to join; None starts Ray here.
        redis_url: a Redis to keep the replay data in; None starts a private one.
        redis_url_file: holds the same.
        security: what the replay server shows and asks for.
        credentials: what the other roles trust and show.
        metrics_port: of the replay server; None for DEFAULT_METRICS_PORT, or any if that is taken.
        live: draw a panel instead of writing lines.
        evaluator: whether a role measures the agent meanwhile.
        statistics: where numbers of the run go.
        log_level: of the log files.
        program: how `zero` was called, for the commands that are suggested in the end.
    """

    minutes: float | None = 10.0
    max_steps: int | None = None
    target_score: float | None = None
    application: str = DEFAULT_APPLICATION
    num_actors: int | None = None
    num_reanalysers: int = 0
    ray_address: str | None = None
    redis_url: str | None = field(default=None, repr=False)  # may hold a password
    redis_url_file: Path | None = None
    security: SecuritySettings = SecuritySettings()  # noqa: RUF009 -- frozen
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    metrics_port: int | None = None
    live: bool = True
    evaluator: bool = True
    statistics: StatisticsSettings = StatisticsSettings()  # noqa: RUF009 -- frozen
    log_level: str = "info"
    program: str = "zero"


@dataclass(frozen=True)
class Ending:
    """How training ended.

    Attributes:
        state: finished, or interrupted.
        reason: in a few words.
    """

    state: RunState
    reason: str


@dataclass
class _Session:
    """A stretch of training under way.

    Attributes:
        number: counts those of the run.
        ending: how it ended, once it has.
    """

    number: int
    ending: Ending = Ending(RunState.INTERRUPTED, "a signal")


def train(config: ExperimentConfig, folder: RunFolder, options: TrainOptions, console: Console) -> Ending:
    """Train until the run is finished or somebody interrupts it, then save and stop.

    Raises:
        DeployError: a role could not be started or kept alive, or the last state could not be saved.
    """
    footer = [f"run {folder.path}"]
    view: View = LiveView(console, lambda: footer[0]) if options.live else PlainView(console)
    with locked(folder), Interrupts() as interrupts:
        view.event(f"==> Training {config.name}{_limits(options)} (Ctrl-C saves and stops)")
        view.event(f"    run      {folder.path}")
        place = f"joining Ray at {options.ray_address}" if options.ray_address else "on this machine"
        view.event(f"    starting {place}")
        with closing(
            RayFleet(config, options.ray_address, options.num_actors, options.num_reanalysers, options.log_level)
        ) as fleet:
            # Ray sets a handler of its own.
            interrupts.install()
            supervisor = Supervisor(fleet, lambda text: view.event(f"    {text}"))
            addresses = supervisor.start_replay_server(
                _replay_assignment(fleet, folder, options), lambda: interrupts.count > 0
            )
            if addresses is None:
                supervisor.stop(lambda: True)
                return Ending(RunState.INTERRUPTED, "a signal")
            source = EventSource(addresses.grpc, addresses.metrics, options.credentials)
            with run_statistics(source, folder, config, options.statistics, view.event) as statistics:
                with _noted_session(config, folder, options) as session, Following(addresses, folder) as following:
                    footer[0] = (
                        f"metrics http://{addresses.metrics}/metrics  processes http://{addresses.metrics}/sd\n"
                        f"{footer[0]}"
                    )
                    view.event(f"    replay   {addresses.grpc}, metrics http://{addresses.metrics}/metrics and …/sd")
                    _start_others(
                        supervisor, fleet, _Assigning(folder.context(), fleet, options, addresses, session.number)
                    )
                    run = _TrainingRun(
                        config, folder, options, supervisor, following, view, interrupts, fleet.num_actors
                    )
                    session.ending = run.train_and_stop(statistics.drain)
                # Only now is there the manifest of what the session has left.
                statistics.state = session.ending.state
        for line in closing_lines(folder, following.run_figures, following.figures, options.program):
            view.event(line)
        return session.ending


@contextmanager
def _noted_session(config: ExperimentConfig, folder: RunFolder, options: TrainOptions) -> Generator[_Session]:
    """Let the folder hold the run, and note in its record that a session begins and how it ends.

    Not before something can be stored: a start that fails leaves the folder for the next one.
    """
    folder.begin(config, options.application)
    session = _Session(folder.begin_session(config).seeds.session)
    try:
        yield session
    except BaseException as error:
        folder.end_session(RunState.FAILED, " ".join(str(error).split()) or type(error).__name__)
        raise
    folder.end_session(session.ending.state, session.ending.reason)


def _limits(options: TrainOptions) -> str:
    """When a run ends by itself, in words."""
    limits = [
        *([f"for {options.minutes:g} minutes"] if options.minutes is not None else []),
        *([f"up to training step {options.max_steps:,}"] if options.max_steps is not None else []),
        *([f"up to a score of {options.target_score:g}"] if options.target_score is not None else []),
    ]
    return f" {', '.join(limits)}" if limits else ""


class Following:
    """Scrapes a run in the background and notes its figures in the run's folder.

    Args:
        addresses: of the replay server.
        folder: the run's.
        clock: monotonic seconds.

    Attributes:
        run_figures: all that was seen.
        figures: the newest; None before the first scrape.
    """

    def __init__(self, addresses: Addresses, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self.run_figures = RunFigures()
        self.figures: Figures | None = None
        self._clock = clock
        self._file = MetricsFile(folder.metrics_file)
        self._scraper = Scraper(addresses.metrics)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="following")
        self._pending: Future[Scrape] | None = None
        self._next_scrape = clock()
        self._next_line = clock()

    def poll(self) -> None:
        """Take in a scrape that has arrived, and ask for the next one when it is time; returns at once."""
        now = self._clock()
        if self._pending is None and now >= self._next_scrape:
            self._next_scrape = now + SCRAPE_INTERVAL_SECONDS
            self._pending = self._executor.submit(self._scraper.scrape)
        if self._pending is not None and self._pending.done():
            self.figures = self.run_figures.update(self._pending.result())
            self._pending = None
            if now >= self._next_line:
                self._next_line = now + METRICS_LINE_INTERVAL_SECONDS
                self._file.append(self.figures)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)
        self._scraper.close()
        if self.figures is not None:
            self._file.append(self.figures)


class MetricsFile:
    """Appends figures as JSON lines.

    Args:
        path: the file; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, figures: Figures) -> None:
        """Write one line: unix time and all figures, null for what is not known."""
        values = {"time": time.time(), **asdict(figures)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_known(values)) + "\n")


class _TrainingRun:
    """The time between all roles being started and all being stopped."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: RunFolder,
        options: TrainOptions,
        supervisor: Supervisor,
        following: Following,
        view: View,
        interrupts: Interrupts,
        num_actors: int,
    ) -> None:
        self._config = config
        self._folder = folder
        self._options = options
        self._supervisor = supervisor
        self._following = following
        self._view = view
        self._interrupts = interrupts
        self._num_actors = num_actors
        self._started = time.monotonic()
        self._learning = False

    def train_and_stop(self, before_replay_server_stops: Callable[[], None]) -> Ending:
        """Supervise until the run ends; then stop all roles, also if one cannot live.

        Raises:
            DeployError: a role cannot be kept alive, or the learner could not save what it had in the end.
        """
        failed: dict[Role, str] = {}
        with self._view:
            try:
                while (ending := self._ending()) is None:
                    self._supervisor.poll(POLL_SECONDS)
                    self._following.poll()
                    self._announce_learning()
                    self._view.show(self._status(stopping=False))
            finally:
                self._view.show(self._status(stopping=True))
                self._view.event("==> Stopping: actors, evaluator, learner (saves), replay server; Ctrl-C hurries")
                signals = self._interrupts.count
                failed = self._supervisor.stop(lambda: self._interrupts.count > signals, before_replay_server_stops)
        if Role.LEARNER in failed:
            raise DeployError(f"the learner did not end well: {failed[Role.LEARNER]}", FAILED)
        return ending

    def _ending(self) -> Ending | None:
        """How the run ends now; None if it goes on."""
        options, figures = self._options, self._following.figures
        if self._interrupts.count > 0:
            return Ending(RunState.INTERRUPTED, "a signal")
        if self._folder.stop_file.exists():
            return Ending(RunState.INTERRUPTED, "`zero stop`")
        if self._supervisor.is_finished:
            return Ending(RunState.FINISHED, "the training steps were made")
        score = math.nan if figures is None else figures.evaluation_scores.get(SEARCH, math.nan)
        if options.target_score is not None and score >= options.target_score:
            return Ending(RunState.FINISHED, f"the target score was reached: {score:g}")
        if time.monotonic() - self._started >= self._total_seconds:
            return Ending(RunState.FINISHED, "the time was over")
        return None

    @property
    def _total_seconds(self) -> float:
        return math.inf if self._options.minutes is None else 60 * self._options.minutes

    def _announce_learning(self) -> None:
        figures = self._following.figures
        if not self._learning and figures is not None and figures.training_step >= 1:
            self._learning = True
            self._view.event(f"    learning since {time.monotonic() - self._started:.0f} s after the roles started")

    def _status(self, *, stopping: bool) -> Status:
        return Status(
            figures=self._following.figures,
            scores=self._following.run_figures.scores,
            elapsed_seconds=time.monotonic() - self._started,
            total_seconds=self._total_seconds,
            num_actors=self._num_actors,
            capacity=self._config.replay.capacity,
            restarts=self._supervisor.restarts,
            stopping=stopping,
        )


def _replay_assignment(fleet: RayFleet, folder: RunFolder, options: TrainOptions) -> Assignment:
    is_shared = options.redis_url is not None or options.redis_url_file is not None
    port = options.metrics_port
    if port is None:
        port = DEFAULT_METRICS_PORT if _is_free(DEFAULT_METRICS_PORT) else 0
    return Assignment(
        Role.REPLAY_SERVER,
        RunContext.of(folder.path, options.application),
        host=fleet.host,
        metrics_port=port,
        redis_url=options.redis_url,
        redis_url_file=options.redis_url_file,
        security=options.security,
        redis_prefix=f"zero:{folder.run_id() if is_shared else folder.replay_id()}",
    )


@dataclass(frozen=True)
class _Assigning:
    """Makes the assignments of the roles beside the replay server.

    Attributes:
        context: of the run.
        fleet: that starts them.
        options: of the command.
        addresses: of the replay server.
        session: counts those of the run.
    """

    context: RunContext
    fleet: RayFleet
    options: TrainOptions
    addresses: Addresses
    session: int

    def to(self, role: Role, index: int = 0) -> Assignment:
        """One assignment."""
        return Assignment(
            role,
            self.context,
            index=index,
            host=self.fleet.host,
            replay_address=self.addresses.grpc,
            credentials=self.options.credentials,
            entropy=entropy_of(self.session, 0),
            max_steps=self.options.max_steps,
        )


def _start_others(supervisor: Supervisor, fleet: RayFleet, assigning: _Assigning) -> None:
    supervisor.start(assigning.to(Role.LEARNER))
    for index in range(fleet.num_actors):
        supervisor.start(assigning.to(Role.ACTOR, index))
    for index in range(assigning.options.num_reanalysers):
        supervisor.start(assigning.to(Role.REANALYSER, index))
    if assigning.options.evaluator:
        supervisor.start(assigning.to(Role.EVALUATOR))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def closing_lines(folder: RunFolder, run_figures: RunFigures, figures: Figures | None, program: str) -> list[str]:
    """What came of a run, where it is, and what to do next."""
    lines = ["==> Done"]
    first, now = run_figures.scores.first(), run_figures.scores.now()
    if not math.isnan(now):
        lines.append(f"    self-play score   {first:.1f} at the beginning, {now:.1f} now")
    if figures is not None and figures.evaluation_scores:
        scores = ", ".join(f"{player} {score:.1f}" for player, score in in_order(figures.evaluation_scores))
        lines.append(f"    evaluation score  {scores}")
    if figures is not None:
        lines.append(f"    games             {figures.games:,.0f}")
    checkpoints = sorted(folder.checkpoints.glob("step-*"))
    lines += [
        f"    run               {folder.path}",
        f"    metrics           {folder.metrics_file}",
        f"    checkpoint        {checkpoints[-1] if checkpoints else 'none yet'}",
        *([f"    best weights      {folder.best}"] if folder.best.exists() else []),
        "==> Next",
        f"    {program} evaluate --run {folder.path}    measures it on fixed seeds",
        f"    {program} train --resume {folder.path}    goes on from here",
    ]
    return lines


def _known(value: object) -> object:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _known(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
