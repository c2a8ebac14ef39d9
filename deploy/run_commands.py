"""`zero play` and `zero export`: what can be done with the agent of a run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.errors import BAD_INPUT, DeployError
from deploy.options import AsJson, Root, RunName, latest_or_best
from deploy.resume import find_run
from deploy.run_context import DEFAULT_ROOT

Weights = Annotated[
    str,
    typer.Option(callback=latest_or_best, metavar="latest|best", help="The newest checkpoint, or what scored highest."),
]


def play(
    run: RunName,
    human: Annotated[
        int | None, typer.Option(min=0, max=1, help="Type the moves of this player, 0 or 1; without, watch the agent.")
    ] = None,
    weights: Weights = "latest",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Another value of the run's config.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one deals another game.")] = 0,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Play a game in the terminal: watch the agent of a run, or type moves yourself.

    Example: `zero play runs/manual --human 0 --set search.num_simulations=64`
    """
    folder = find_run(run, root)
    from deploy.play import PlayOptions, play_run  # noqa: PLC0415 - imports torch
    from deploy.run_weights import WhichWeights  # noqa: PLC0415

    options = PlayOptions(human, tuple(overrides or ()), WhichWeights(weights), seed)
    try:
        play_run(folder.path, options, Console())
    except EOFError:
        raise DeployError("there is nobody to type a move: leave out --human to watch", BAD_INPUT) from None


def export(
    run: RunName,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to; by default exports/step-N in the run's folder.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="safetensors|torch|onnx", help="What to write; repeatable; by default all."),
    ] = None,
    weights: Weights = "latest",
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Export the network of a run with a model card: safetensors, a torch.export program, ONNX; checked on positions.

    Example: `zero export runs/manual --weights best --format onnx`
    """
    folder = find_run(run, root)
    from deploy.export import FORMATS, export_run  # noqa: PLC0415 - imports torch
    from deploy.run_weights import WhichWeights  # noqa: PLC0415

    exported = export_run(folder.path, output, tuple(formats or FORMATS), WhichWeights(weights))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "folder": str(exported.folder),
                    "files": exported.files,
                    "training_step": exported.training_step,
                    "deviation": exported.deviation,
                }
            )
        )
        return
    typer.echo(f"==> Exported training step {exported.training_step:,} to {exported.folder}")
    for name in exported.files:
        typer.echo(f"    {name}")
    typer.echo(f"    outputs differ from PyTorch's by at most {exported.deviation:.1e}")
