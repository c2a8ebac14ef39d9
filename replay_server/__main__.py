"""`python -m replay_server`: the replay server alone, without games, learners or a cluster."""

import os
import sys

import typer

from replay_server.command import as_one_line, serve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
app.command("replay-server")(serve)


def main() -> None:
    """Run the command; what goes wrong ends it with one line and no traceback."""
    # What gRPC would log comes as an error that says more; it can be told by the environment alone.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251
    try:
        exit_code = app(prog_name="python -m replay_server", standalone_mode=False)
    except typer.TyperException as error:
        text = as_one_line(error)
        if text:
            typer.echo(f"error: {text}", err=True)
        exit_code = error.exit_code
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
