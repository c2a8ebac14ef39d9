"""`zero profile`: says where the time of a role goes on this machine."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import load_experiment
from deploy.json_text import json_text
from deploy.options import AsJson, Experiment, Overrides, Root, RunName, complete_run
from deploy.resume import find_run
from deploy.roles import check_experiment
from deploy.run_context import DEFAULT_ROOT
from deploy.run_folder import RunFolder
from zero.config import ExperimentConfig

profile = typer.Typer(no_args_is_help=True, help="Say where the time of a role goes.")

Seconds = Annotated[float, typer.Option(min=0.1, max=3600, help="How long to measure, after a warm-up.")]
Run = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        autocompletion=complete_run,
        help="Take the config of this run, by its folder, its name in ROOT, or `latest`, and keep the profile in its "
        "folder `profiles`.",
    ),
]


@profile.command("actor")
def profile_actor(
    context: typer.Context,
    experiment: Experiment = "triangle",
    overrides: Overrides = None,
    run: Run = None,
    root: Root = DEFAULT_ROOT,
    seconds: Seconds = 5.0,
    as_json: AsJson = False,
) -> None:
    """Play for some seconds in this process and print what share of the time every part of self-play takes.

    Network, tree and rules are the parts of the search. Rates are per second of the clock and of the processor; on a
    busy machine the second says what this one can do.

    Example: `zero profile actor --seconds 3 --set network.channels=64 --set network.blocks=4`
    """
    config, folder = _subject(context, experiment, overrides or [], run, root)
    from deploy.profile_actor import actor_table, profile_actor  # noqa: PLC0415 - imports torch

    measured = profile_actor(config, seconds)
    _show("actor", asdict(measured), actor_table(measured), folder, as_json=as_json)


@profile.command("learner")
def profile_learner(
    context: typer.Context,
    experiment: Experiment = "triangle",
    overrides: Overrides = None,
    run: Run = None,
    root: Root = DEFAULT_ROOT,
    seconds: Seconds = 5.0,
    as_json: AsJson = False,
) -> None:
    """Train for some seconds in this process and print what share of the time every part of learning takes.

    A replay server of its own serves games that were played with hardly any search; no run is touched.

    Example: `zero profile learner --seconds 10 --set learner.batch_size=512`
    """
    config, folder = _subject(context, experiment, overrides or [], run, root)
    from deploy.profile_learner import learner_table, profile_learner  # noqa: PLC0415 - imports torch

    measured = profile_learner(config, seconds)
    _show("learner", asdict(measured), learner_table(measured), folder, as_json=as_json)


@profile.command("show")
def show_profiles(
    run: RunName,
    root: Root = DEFAULT_ROOT,
    top: Annotated[int, typer.Option(min=1, help="How many functions of every role.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Show in which functions the roles of a run were that was trained with --profile, by a hundred looks a second.

    The files, `profiles/*.folded` in the run's folder, are what flame graphs are drawn from, for example by
    speedscope.app.

    Example: `zero profile show latest --top 30`
    """
    folder = find_run(run, root)
    from deploy.sampled_profiles import functions_table, newest_profiles  # noqa: PLC0415

    found = newest_profiles(folder)
    if as_json:
        typer.echo(
            json_text(
                {
                    role: {
                        "file": str(one.file),
                        "samples": one.samples,
                        "functions": [asdict(share) for share in one.functions[:top]],
                    }
                    for role, one in found.items()
                }
            )
        )
        return
    console = Console()
    for role, one in found.items():
        console.print(functions_table(role, one, top))


def _subject(
    context: typer.Context, experiment: str, overrides: list[str], run: str | None, root: Path
) -> tuple[ExperimentConfig, RunFolder | None]:
    """The config to measure, and the run it is of, if any."""
    if run is None:
        folder, config = None, load_experiment(experiment, overrides)
    else:
        source = context.get_parameter_source("experiment")
        if source is not None and source.name != "DEFAULT":
            raise DeployError("--experiment does not go with --run: a run is measured by the config it has", BAD_INPUT)
        folder = find_run(run, root)
        config = folder.config(overrides)
    check_experiment(config)
    return config, folder


def _show(
    role: Literal["actor", "learner"],
    measured: Mapping[str, Any],
    table: Table,
    folder: RunFolder | None,
    *,
    as_json: bool,
) -> None:
    """Keep the profile with its run, then print it."""
    from deploy.profile_files import save_profile  # noqa: PLC0415

    path = None if folder is None else save_profile(folder, role, dict(measured))
    if as_json:
        typer.echo(json_text(measured))
        return
    console = Console()
    console.print(table)
    if path is not None:
        console.print(f"kept in {path}", markup=False, highlight=False, soft_wrap=True)
