"""A replay server in a process of its own on this machine, for as long as a command needs one."""

import multiprocessing
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from deploy.errors import DeployError
from replay_server.server import ReplayServer, ReplayServerError, ReplayServerSettings


@contextmanager
def private_replay_server(data_dir: Path) -> Generator[str]:
    """A replay server in a process of its own, by its address; it ends with this block, or with this process.

    Raises:
        DeployError: it cannot start.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(data_dir, theirs), name="replay-server", daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
        if isinstance(answer, ReplayServerError):
            raise DeployError(str(answer))
        yield answer
    except EOFError:
        raise DeployError("the replay server ended before it was there: there may be too little memory") from None
    finally:
        ours.close()
        process.join()


def _serve(data_dir: Path, asker: Connection) -> None:
    """Serve until the asker goes, whatever else happens to it: Ctrl-C reaches this process, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ReplayServer(ReplayServerSettings(data_dir)) as bound:
            asker.send(bound.address)
            with suppress(EOFError):
                asker.recv()
    except ReplayServerError as error:
        asker.send(error)
