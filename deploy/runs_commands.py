"""`zero runs`: lists, shows, compares, forks, packs and deletes runs; and `zero status`, `zero scale`, `zero stop`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.confirmation import Yes, confirm_deletion
from deploy.options import AsJson, Root, RunName, complete_run
from deploy.resume import find_run
from deploy.run_context import DEFAULT_ROOT

runs = typer.Typer(no_args_is_help=True, help="Look after runs: what there is, what became of it, what may go.")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Another value of the new run's config; repeatable."),
]


@runs.command("list")
def list_runs(root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """List the runs in ROOT, the one that was used last first.

    Example: `zero runs list --root runs`
    """
    from deploy.runs_views import print_list  # noqa: PLC0415

    print_list(root, Console(), as_json=as_json)


@runs.command()
def show(
    run: RunName,
    root: Root = DEFAULT_ROOT,
    verify: Annotated[bool, typer.Option(help="Also hold every file against the hashes of the last session.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run: its sessions, checkpoints, figures, and where everything is.

    Example: `zero runs show latest --verify`
    """
    from deploy.runs_views import print_run  # noqa: PLC0415

    print_run(find_run(run, root), Console(), verify=verify, as_json=as_json)


@runs.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Two runs or more.", autocompletion=complete_run)
    ],
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Say in which settings and figures runs differ.

    Example: `zero runs compare runs/one runs/other`
    """
    from deploy.runs_views import print_comparison  # noqa: PLC0415

    print_comparison([find_run(name, root) for name in names], Console(), as_json=as_json)


@runs.command()
def fork(
    run: RunName,
    to: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new run.")],
    step: Annotated[int | None, typer.Option(min=0, help="Of which checkpoint; by default the newest.")] = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Begin a new run from any checkpoint of another, with its data; the other stays as it is.

    Example: `zero runs fork latest runs/cooler --set learner.learning_rate=1e-4`
    """
    from deploy.runs_operations import fork_run  # noqa: PLC0415

    forked = fork_run(find_run(run, root), to, step, overrides or [])
    typer.echo(f"{forked.path} begins at training step {forked.newest_step():,}: zero train --resume {forked.path}")


@runs.command("export")
def export_run(
    run: RunName,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="A new .tar.gz file.")],
    root: Root = DEFAULT_ROOT,
    data: Annotated[bool, typer.Option(help="Also pack the replay server's data, which are large.")] = True,
) -> None:
    """Pack a run into one file, to be unpacked anywhere by `tar xf` and gone on with there.

    Example: `zero runs export latest run.tar.gz --no-data`
    """
    from deploy.runs_operations import pack_run  # noqa: PLC0415

    size = pack_run(find_run(run, root), to, with_data=data)
    typer.echo(f"{to} holds the run in {size / 1e6:,.1f} MB")


@runs.command()
def delete(
    run: RunName,
    root: Root = DEFAULT_ROOT,
    yes: Yes = False,
) -> None:
    """Delete a run with everything in its folder.

    Data in a Redis of your own stay there, under the name that is printed.

    Example: `zero runs delete runs/old --yes`
    """
    from deploy.runs_operations import delete_run  # noqa: PLC0415

    folder = find_run(run, root)
    confirm_deletion(f"Delete {folder.path} for good?", yes)
    run_id = delete_run(folder)
    typer.echo(f"deleted {folder.path}; keys of an external Redis begin with zero:{run_id}:")


def stop(
    run: RunName,
    root: Root = DEFAULT_ROOT,
    wait: Annotated[bool, typer.Option(help="Return when it has saved and stopped.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 120.0,
) -> None:
    """Let whoever trains a run save and stop, here or on another machine that shares the folder.

    Of roles that were started by hand it is the learner.

    Example: `zero stop latest`
    """
    from deploy.runs_operations import stop_run  # noqa: PLC0415

    folder = find_run(run, root)
    typer.echo(stop_run(folder, timeout if wait else 0.0))


def status(run: RunName, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show how a run stands: its roles, their machines and weights, and how fast it goes.

    Example: `zero status latest --json`
    """
    from deploy.fleet_views import print_status  # noqa: PLC0415

    print_status(find_run(run, root), Console(), as_json=as_json)


def scale(
    run: RunName,
    actors: Annotated[int, typer.Option(min=0, help="How many actors the run shall have.")],
    root: Root = DEFAULT_ROOT,
    wait: Annotated[bool, typer.Option(help="Return when it has them.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 120.0,
) -> None:
    """Change how many actors a run has while it goes on, here or on another machine that shares the folder.

    Actors that leave deliver what they hold; new ones begin with the newest weights. Learning goes on meanwhile.

    Example: `zero scale latest --actors 8`
    """
    from deploy.fleet_operations import scale_run  # noqa: PLC0415

    typer.echo(scale_run(find_run(run, root), actors, timeout if wait else 0.0))
