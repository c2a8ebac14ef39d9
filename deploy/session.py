"""One session of training, wherever it runs: starts all roles, keeps them as they are wanted, ends them in order."""

import math
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from deploy.errors import FAILED, DeployError
from deploy.figures import Figures, RunFigures
from deploy.fleet_metrics import FleetMetrics
from deploy.fleet_record import FleetRecord, FleetRole, RoleState, ScaleRequest
from deploy.following import Following, known_values
from deploy.live import Status, View, in_order
from deploy.ray_fleet import RayFleet
from deploy.roles import Addresses, Assignment, Role
from deploy.run_context import DEFAULT_APPLICATION, RunContext
from deploy.run_folder import RunFolder
from deploy.run_records import RunState
from deploy.side_file import SideFile
from deploy.statistics.run_statistics import EventSource, StatisticsSettings, run_statistics
from deploy.supervisor import Supervisor
from replay_server.client import ReplayClient, registered_process
from replay_server.credentials import Credentials, SecuritySettings
from replay_server.ports import DEFAULT_METRICS_PORT
from zero.config import ExperimentConfig
from zero.seeds import entropy_of

POLL_SECONDS = 0.5
FLEET_RECORD_SECONDS = 1.0
SEARCH = "search"
"""The player whose evaluation score is that of the run."""


@dataclass(frozen=True)
class SessionOptions:
    """How a session is run; nothing of it affects what is learned.

    Attributes:
        num_actors: how many actors, until `zero scale` says otherwise.
        minutes: how long at most; None for no end of its own.
        max_steps: training steps of the run, earlier sessions included, at which it is finished; None for any number.
        target_score: mean score of the search, as the evaluator measures it, at which it is finished; None for any.
        application: whose run it is.
        num_reanalysers: how many roles search stored positions again.
        redis_url: a Redis to keep the replay data in; None starts a private one.
        redis_url_file: holds the same.
        security: what the replay server shows and asks for.
        credentials: what the other roles trust and show.
        inference: URL of a served agent that evaluates the leaves of all actors; None evaluates them where they are.
        metrics_port: of the replay server; None for DEFAULT_METRICS_PORT, or any if that is taken.
        evaluator: whether a role measures the agent meanwhile.
        statistics: where numbers of the run go.
        program: how `zero` was called, for the commands that are suggested in the end.
        profile: whether every role keeps where its time goes.
    """

    num_actors: int = 1
    minutes: float | None = 10.0
    max_steps: int | None = None
    target_score: float | None = None
    application: str = DEFAULT_APPLICATION
    num_reanalysers: int = 0
    redis_url: str | None = field(default=None, repr=False)  # may hold a password
    redis_url_file: Path | None = None
    security: SecuritySettings = SecuritySettings()  # noqa: RUF009 -- frozen
    credentials: Credentials = Credentials()  # noqa: RUF009 -- frozen
    inference: str | None = None
    metrics_port: int | None = None
    evaluator: bool = True
    statistics: StatisticsSettings = StatisticsSettings()  # noqa: RUF009 -- frozen
    program: str = "zero"
    profile: bool = False


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
class _Noted:
    """A session as the run's record has it.

    Attributes:
        number: counts those of the run.
        ending: how it ended, once it has.
    """

    number: int
    ending: Ending = Ending(RunState.INTERRUPTED, "a signal")


@dataclass(frozen=True)
class Parts:
    """What a session is made of.

    Attributes:
        config: the experiment.
        folder: the run's, in which nobody else trains.
        options: how.
        fleet: places the roles.
        view: where it is shown.
        signals: how often it was told to save and stop, so far; a second time hurries.
    """

    config: ExperimentConfig
    folder: RunFolder
    options: SessionOptions
    fleet: RayFleet
    view: View
    signals: Callable[[], int]


def run_session(parts: Parts, *, goes_on: bool = False) -> Ending:
    """Train until the run is finished or told to stop, then save and stop.

    Args:
        parts: of the session.
        goes_on: whoever ran it before has died; its roles, its time and what was asked of it are taken over.

    Raises:
        DeployError: a role could not be started or kept alive, or the last state could not be saved.
    """
    folder, options, view = parts.folder, parts.options, parts.view
    supervisor = Supervisor(parts.fleet, lambda text: view.event(f"    {text}"))
    elapsed_seconds = 0.0
    if goes_on:
        elapsed_seconds = _elapsed_seconds(folder)
        supervisor.adopt()
    else:
        folder.forget_requests()
        parts.fleet.end_others()
    addresses = supervisor.start_replay_server(_replay_assignment(parts), lambda: parts.signals() > 0)
    if addresses is None:
        supervisor.stop(lambda: True)
        return Ending(RunState.INTERRUPTED, "a signal")
    view.event(f"    replay   {addresses.grpc}, metrics http://{addresses.metrics}/metrics and …/sd")
    source = EventSource(addresses.grpc, addresses.metrics, options.credentials, parts.fleet.own_host)
    with run_statistics(source, folder, parts.config, options.statistics, view.event) as statistics:
        with _noted_session(parts) as noted, Following(addresses, folder, view.event) as following:
            training = _Training(parts, supervisor, addresses, following, noted.number)
            noted.ending = training.run(statistics.drain, elapsed_seconds)
        # Only now is there the manifest of what the session has left.
        statistics.state = noted.ending.state
    for line in closing_lines(folder, following.run_figures, following.figures, options.program):
        view.event(line)
    return noted.ending


def _elapsed_seconds(folder: RunFolder) -> float:
    """How long a session has trained, of which only its folder is left."""
    try:
        return FleetRecord.read(folder.fleet_file).elapsed_seconds
    except FileNotFoundError:
        return 0.0


@contextmanager
def _noted_session(parts: Parts) -> Generator[_Noted]:
    """Let the folder hold the run, and note in its record that a session begins and how it ends.

    Not before something can be stored: a start that fails leaves the folder for the next one.
    """
    folder = parts.folder
    folder.begin(parts.config, parts.options.application)
    noted = _Noted(folder.begin_session(parts.config).seeds.session)
    try:
        yield noted
    except BaseException as error:
        folder.end_session(RunState.FAILED, " ".join(str(error).split()) or type(error).__name__)
        raise
    folder.end_session(noted.ending.state, noted.ending.reason)


class _Training:
    """The time between the replay server's first answer and its end."""

    def __init__(
        self, parts: Parts, supervisor: Supervisor, addresses: Addresses, following: Following, number: int
    ) -> None:
        self._parts = parts
        self._supervisor = supervisor
        self._addresses = addresses
        self._following = following
        self._number = number
        self._context = parts.folder.context()
        self._num_actors = parts.options.num_actors
        self._request_noticed = 0
        self._started = time.monotonic()
        self._next_record = self._started
        self._learning = False
        self._fleet_file = SideFile(parts.folder.fleet_file, parts.view.event)

    def run(self, before_replay_server_stops: Callable[[], None], elapsed_seconds: float) -> Ending:
        """Supervise until the run ends; then stop all roles, also if one cannot live.

        Raises:
            DeployError: a role cannot be kept alive, or the learner could not save what it had in the end.
        """
        self._started -= elapsed_seconds
        view, signals = self._parts.view, self._parts.signals
        # Beside: while Ray's control service is away, placing a role waits for it.
        with ThreadPoolExecutor(1, thread_name_prefix="supervision") as executor, self._fleet_metrics(), view:
            supervising = executor.submit(self._start_all)
            try:
                while (ending := self._ending()) is None:
                    if wait([supervising], POLL_SECONDS).done:
                        supervising.result()
                        supervising = executor.submit(self._supervise)
                    self._following.poll()
                    self._announce_learning()
                    self._record_fleet()
                    view.show(self._status(stopping=False))
            finally:
                wait([supervising])
                view.show(self._status(stopping=True))
                view.event("==> Stopping: actors, evaluator, learner (saves), replay server; Ctrl-C hurries")
                before = signals()
                failed = self._supervisor.stop(lambda: signals() > before, before_replay_server_stops)
                self._parts.folder.forget_requests()
        if Role.LEARNER in failed:
            raise DeployError(f"the learner did not end well: {failed[Role.LEARNER]}", FAILED)
        return ending

    def _start_all(self) -> None:
        self._supervisor.start(self._assignment(Role.LEARNER))
        self._supervisor.want(Role.ACTOR, self._assignments(Role.ACTOR, self._num_actors))
        self._supervisor.want(Role.REANALYSER, self._assignments(Role.REANALYSER, self._parts.options.num_reanalysers))
        if self._parts.options.evaluator:
            self._supervisor.start(self._assignment(Role.EVALUATOR))

    def _supervise(self) -> None:
        self._supervisor.poll(POLL_SECONDS)
        self._heed_scaling()

    def _assignments(self, role: Role, count: int) -> list[Assignment]:
        return [self._assignment(role, index) for index in range(count)]

    def _assignment(self, role: Role, index: int = 0) -> Assignment:
        return Assignment(
            role,
            self._context,
            index=index,
            host=self._parts.fleet.host,
            replay_address=self._addresses.grpc,
            credentials=self._parts.options.credentials,
            entropy=entropy_of(self._number, 0),
            max_steps=self._parts.options.max_steps,
            profile=self._parts.options.profile,
            inference=self._parts.options.inference,
        )

    def _heed_scaling(self) -> None:
        """Let there be as many actors as was asked for last."""
        file = self._parts.folder.scale_file
        try:
            changed = file.stat().st_mtime_ns
            if changed == self._request_noticed:
                return
            wanted = ScaleRequest.read(file).actors
        except FileNotFoundError:
            return
        self._request_noticed = changed
        if wanted != self._num_actors:
            self._parts.view.event(f"    {wanted} actors are wanted now, {self._num_actors} were before")
            self._num_actors = wanted
            self._supervisor.want(Role.ACTOR, self._assignments(Role.ACTOR, wanted))

    def _ending(self) -> Ending | None:
        """How the run ends now; None if it goes on."""
        options, figures = self._parts.options, self._following.figures
        if self._parts.signals() > 0:
            return Ending(RunState.INTERRUPTED, "a signal")
        if self._parts.folder.stop_file.exists():
            return Ending(RunState.INTERRUPTED, "`zero stop`")
        if self._supervisor.is_finished:
            return Ending(RunState.FINISHED, "the training steps were made")
        score = math.nan if figures is None else figures.evaluation_scores.get(SEARCH, math.nan)
        # What fresh weights score is no result of training.
        if options.target_score is not None and self._learning and score >= options.target_score:
            return Ending(RunState.FINISHED, f"the target score was reached: {score:g}")
        if self._elapsed_seconds >= self._total_seconds:
            return Ending(RunState.FINISHED, "the time was over")
        return None

    @property
    def _elapsed_seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def _total_seconds(self) -> float:
        return math.inf if self._parts.options.minutes is None else 60 * self._parts.options.minutes

    def _announce_learning(self) -> None:
        figures = self._following.figures
        if not self._learning and figures is not None and figures.training_step >= 1:
            self._learning = True
            self._parts.view.event(f"    learning since {self._elapsed_seconds:.0f} s after the roles started")

    def _status(self, *, stopping: bool) -> Status:
        metrics = self._addresses.metrics
        return Status(
            figures=self._following.figures,
            scores=self._following.run_figures.scores.in_short(),
            elapsed_seconds=self._elapsed_seconds,
            total_seconds=self._total_seconds,
            num_actors=self._num_actors,
            capacity=self._parts.config.replay.capacity,
            restarts=self._supervisor.restarts,
            footer=f"metrics http://{metrics}/metrics  processes http://{metrics}/sd\nrun {self._parts.folder.path}",
            stopping=stopping,
            max_steps=self._parts.options.max_steps,
        )

    def _record_fleet(self) -> None:
        """Note how the fleet stands, where `zero status` and `zero scale` look."""
        if time.monotonic() < self._next_record:
            return
        self._next_record = time.monotonic() + FLEET_RECORD_SECONDS
        figures = self._following.figures
        versions, rates = self._following.process_figures.versions(), self._following.process_figures.rates()
        roles = tuple(
            FleetRole(
                name=report.name,
                role=report.role,
                state=report.state,
                node=report.place.node if report.place else None,
                pid=report.place.pid if report.place else None,
                restarts=report.restarts,
                weights_version=versions.get(report.name),
                rate=rates.get(report.name),
            )
            for report in self._supervisor.reports
        )
        minutes = self._parts.options.minutes
        record = FleetRecord(
            written_at=datetime.now(UTC),
            elapsed_seconds=self._elapsed_seconds,
            actors_wanted=self._num_actors,
            replay_address=self._addresses.grpc,
            metrics_address=self._addresses.metrics,
            roles=roles,
            figures=None if figures is None else known_values(asdict(figures)),
            total_seconds=None if minutes is None else 60 * minutes,
            max_steps=self._parts.options.max_steps,
        )
        self._fleet_file.replace(record.model_dump_json(indent=1))

    @contextmanager
    def _fleet_metrics(self) -> Generator[None]:
        """Let Prometheus see how many actors there shall be and how many there are."""
        metrics = FleetMetrics(lambda: self._num_actors, lambda: self._supervisor.count(Role.ACTOR, RoleState.RUNS))
        credentials, host = self._parts.options.credentials, self._parts.fleet.own_host
        with (
            ReplayClient(self._addresses.grpc, credentials=credentials) as client,
            registered_process(client, "fleet", "fleet", metrics.registry, host, 0),
        ):
            yield


def _replay_assignment(parts: Parts) -> Assignment:
    folder, options = parts.folder, parts.options
    is_shared = options.redis_url is not None or options.redis_url_file is not None
    port = options.metrics_port
    if port is None:
        port = DEFAULT_METRICS_PORT if _is_free(DEFAULT_METRICS_PORT) else 0
    return Assignment(
        Role.REPLAY_SERVER,
        RunContext.of(folder.path, options.application),
        host=parts.fleet.host,
        metrics_port=port,
        redis_url=options.redis_url,
        redis_url_file=options.redis_url_file,
        security=options.security,
        redis_prefix=f"zero:{folder.run_id() if is_shared else folder.replay_id()}",
        profile=options.profile,
    )


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
