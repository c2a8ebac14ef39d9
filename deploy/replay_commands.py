"""The commands of `zero replay`, which look into a running replay server and look after it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, NamedTuple, ParamSpec, cast

import typer
from rich.console import Console

from deploy.confirmation import Yes, confirm_deletion
from deploy.errors import BAD_INPUT, DeployError
from deploy.options import AsJson, ClientTokenFile, PlaintextToken, ReplayAddress, TlsCa
from replay_server.command import TlsCertificate, TlsKey
from replay_server.credentials import Credentials
from replay_server.ports import DEFAULT_ADDRESS

_PIPED_WIDTH = 160

replay = typer.Typer(no_args_is_help=True, help="Look into a running replay server, and look after it.")
Options = ParamSpec("Options")


class Server(NamedTuple):
    """The server that a command is about."""

    address: str
    credentials: Credentials


def _server(
    replay_address: ReplayAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
) -> Server:
    """These parameters are options of every command."""
    return Server(replay_address, Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure))


def _command(
    name: str,
) -> Callable[[Callable[Concatenate[Server, Options], None]], Callable[Concatenate[Server, Options], None]]:
    """Register a function as a command; its first parameter comes from the options of `_server`, not from its own."""
    shared = inspect.signature(_server).parameters

    def register(
        function: Callable[Concatenate[Server, Options], None],
    ) -> Callable[Concatenate[Server, Options], None]:
        _, *own = inspect.signature(function).parameters.values()

        def run(**values: Any) -> None:
            server = _server(**{option: values.pop(option) for option in shared})
            cast("Callable[..., None]", function)(server, **values)

        parameters = [*own, *shared.values()]
        typed = cast(Any, run)
        typed.__signature__ = inspect.Signature(parameters)
        typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        replay.command(name, help=function.__doc__)(run)
        return function

    return register


def _operations(server: Server):
    """A connection; its type is left to be inferred, since to name it would be to import gRPC for `zero --help`."""
    from deploy.replay_operations import ReplayOperations  # noqa: PLC0415

    console = Console(markup=False, emoji=False, highlight=False)  # names and ids are anybody's
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)  # nobody's lines are cut because a pipe has no width
    return ReplayOperations(server.address, server.credentials, console)


TableName = Annotated[str, typer.Argument(metavar="TABLE", help="The table's name.")]


@_command("info")
def info(server: Server, as_json: AsJson = False) -> None:
    """Show tables and their sizes, why calls wait, durability, recovery.

    Example: `zero replay info --replay-address 127.0.0.1:8470`
    """
    with _operations(server) as operations:
        operations.info(as_json=as_json)


@_command("tables")
def tables(server: Server, as_json: AsJson = False) -> None:
    """Show what the tables are: columns, strategies, limits.

    Example: `zero replay tables`
    """
    with _operations(server) as operations:
        operations.tables(as_json=as_json)


@_command("peek")
def peek(
    server: Server,
    table: TableName,
    trajectory_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The trajectory's id; the newest without.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one trajectory, the newest or by id.

    Example: `zero replay peek games`
    """
    with _operations(server) as operations:
        operations.peek(table, trajectory_id, as_json=as_json)


@_command("export")
def export(
    server: Server,
    table: TableName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
) -> None:
    """Write the trajectories of a table to a file.

    Example: `zero replay export games games.zerotraj`
    """
    with _operations(server) as operations:
        operations.export(table, file)


@_command("import")
def import_file(
    server: Server,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that was exported.")],
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="The table to fill, made if need be; its old name without.")
    ] = None,
) -> None:
    """Insert the trajectories of a file; none is stored twice.

    Example: `zero replay import games.zerotraj`
    """
    with _operations(server) as operations:
        operations.import_file(file, table)


@_command("verify")
def verify(server: Server, table: TableName, as_json: AsJson = False) -> None:
    """Check the log of a table, and memory against it.

    Example: `zero replay verify games`
    """
    with _operations(server) as operations:
        operations.verify(table, as_json=as_json)


@_command("reset")
def reset(server: Server, table: TableName, yes: Yes = False) -> None:
    """Delete everything that a table holds and remembers.

    Example: `zero replay reset games`
    """
    with _operations(server) as operations:
        confirm_deletion(f"Delete {operations.what_would_go(table)}?", yes)
        operations.reset(table)


@_command("delete")
def delete(server: Server, table: TableName, yes: Yes = False) -> None:
    """Delete a table.

    Example: `zero replay delete games --yes`
    """
    with _operations(server) as operations:
        confirm_deletion(f"Delete {operations.what_would_go(table)}, and the table?", yes)
        operations.delete(table)


@_command("limit")
def limit(
    server: Server,
    table: TableName,
    min_size: Annotated[int | None, typer.Option(help="No sample before so many items were inserted.")] = None,
    samples_per_insert: Annotated[
        float | None, typer.Option(help="Samples per insert to aim for; 0 uncouples the two.")
    ] = None,
    error_buffer: Annotated[
        float | None, typer.Option(help="How many samples the two may be apart, either way.")
    ] = None,
    queue_size: Annotated[
        int | None, typer.Option(help="Inserts wait while the table holds so many items; 0 for no such bound.")
    ] = None,
) -> None:
    """Change when calls wait, at once and for good.

    What is not given stays.

    Example: `zero replay limit games --samples-per-insert 8 --error-buffer 1000`
    """
    given = {
        "min_size_to_sample": min_size,
        "samples_per_insert": samples_per_insert,
        "error_buffer": error_buffer,
        "queue_size": queue_size,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise DeployError("give at least one limit to change; `zero replay tables` shows what they are", BAD_INPUT)
    with _operations(server) as operations:
        operations.limit(table, changes)
