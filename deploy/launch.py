"""`zero train`: runs a training run here, or lets a Ray cluster keep it and follows it; shows how it goes."""

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import ray
from rich.console import Console

from deploy.detached_run import Plan, start_detached
from deploy.follower import Follower
from deploy.game_files import pack_game
from deploy.interrupts import Interrupts
from deploy.live import LiveView, PlainView, View
from deploy.placement import Placement
from deploy.private_ray import start_private_ray
from deploy.ray_cluster import joined_ray
from deploy.ray_fleet import RayFleet, Supplies
from deploy.run_folder import RunFolder, locked
from deploy.session import Ending, Parts, SessionOptions, run_session
from zero.config import ExperimentConfig


@dataclass(frozen=True)
class TrainOptions:
    """How and where a run is run, and how it is shown.

    Attributes:
        session: how it is run; its number of actors is set here.
        num_actors: how many actors; None for one per core, less one for the learner, and in a cluster less one for each
            reanalyser.
        ray_address: a Ray cluster to join; None starts Ray here.
        placements: what roles ask of the machines of a cluster, by role.
        detach: do not follow a run that a cluster keeps.
        live: draw a panel instead of writing lines.
        log_level: of the log files.
    """

    session: SessionOptions
    num_actors: int | None = None
    ray_address: str | None = None
    placements: Mapping[str, Placement] = field(default_factory=dict[str, Placement])
    detach: bool = False
    live: bool = True
    log_level: str = "info"


def train(config: ExperimentConfig, folder: RunFolder, options: TrainOptions, console: Console) -> Ending | None:
    """Train until the run is finished or somebody interrupts it, then save and stop.

    Returns:
        How it has ended; None if it goes on by itself.

    Raises:
        DeployError: a role could not be started or kept alive, or the last state could not be saved.
    """
    view: View = LiveView(console) if options.live else PlainView(console)
    place = f"joining Ray at {options.ray_address}" if options.ray_address else "on this machine"
    view.event(f"==> Training {config.name}{_limits(options.session)} (Ctrl-C saves and stops)")
    view.event(f"    run      {folder.path}")
    view.event(f"    config   {_main_settings(config)}; all of it: config.toml there")
    view.event(f"    starting {place}")
    with Interrupts() as interrupts:
        if options.ray_address is None:
            return _train_here(config, folder, options, view, interrupts)
        return _train_on_cluster(config, folder, options, options.ray_address, view, interrupts)


def _main_settings(config: ExperimentConfig) -> str:
    """What tells experiments apart at first sight, as it takes effect."""
    network, search, learner = config.network, config.search, config.learner
    model = ", which learns the rules" if network.model == "learned" else ""
    return (
        f"{config.game.name}, {network.blocks} blocks x {network.channels} channels{model}, "
        f"{search.num_simulations} simulations a move, "
        f"batches of {learner.batch_size}, {config.replay.samples_per_insert:g} samples per insert, seed {config.seed}"
    )


def _train_here(
    config: ExperimentConfig, folder: RunFolder, options: TrainOptions, view: View, interrupts: Interrupts
) -> Ending:
    num_actors = options.num_actors or max(1, len(os.sched_getaffinity(0)) - 1)
    session = replace(options.session, num_actors=num_actors)
    supplies = Supplies(folder.run_id(), config, pack_game(config), {}, options.log_level, is_local=True)
    # One for the learner and each role that computes all the time.
    with locked(folder), _private_ray(num_cpus=num_actors + session.num_reanalysers + 1):
        interrupts.install()  # Ray sets a handler of its own
        with closing(RayFleet(supplies)) as fleet:
            return run_session(Parts(config, folder, session, fleet, view, lambda: interrupts.count))


def _train_on_cluster(
    config: ExperimentConfig,
    folder: RunFolder,
    options: TrainOptions,
    ray_address: str,
    view: View,
    interrupts: Interrupts,
) -> Ending | None:
    with locked(folder):
        run_id = folder.run_id()
        num_sessions = len(folder.record().sessions) if folder.config_file.exists() else 0
    with joined_ray(ray_address):
        interrupts.install()
        room = int(ray.cluster_resources().get("CPU", 0)) - 1 - options.session.num_reanalysers
        session = replace(options.session, num_actors=options.num_actors or max(1, room))
        data = config.model_dump(mode="json")
        plan = Plan(folder.path, data, session, options.placements, options.log_level, num_sessions)
        run = start_detached(plan, run_id, pack_game(config))
        ending = Follower(run, plan, view, lambda: interrupts.count).follow(detach=options.detach)
    if ending is None:
        program, path = session.program, folder.path
        view.event("==> The run goes on by itself")
        view.event(f"    {program} status {path}              how it stands")
        view.event(f"    {program} scale {path} --actors 8    another number of actors")
        view.event(f"    {program} stop {path}                save and stop")
    return ending


@contextmanager
def _private_ray(num_cpus: int) -> Generator[None]:
    temp_dir = start_private_ray(num_cpus)
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _limits(session: SessionOptions) -> str:
    """When a run ends by itself, in words."""
    limits = [
        *([f"for {session.minutes:g} minutes"] if session.minutes is not None else []),
        *([f"up to training step {session.max_steps:,}"] if session.max_steps is not None else []),
        *([f"up to a score of {session.target_score:g}"] if session.target_score is not None else []),
    ]
    return f" {', '.join(limits)}" if limits else ""
