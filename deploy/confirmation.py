"""Asks before something is deleted for good."""

import sys
from typing import Annotated

import typer

from deploy.errors import BAD_INPUT, FAILED, DeployError

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm_deletion(question: str, yes: bool) -> None:
    """Return if it may be done.

    Raises:
        DeployError: the answer was no, or there is nobody to answer.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise DeployError("nobody is there to confirm it: give --yes", BAD_INPUT)
    if not typer.confirm(question):
        raise DeployError("nothing was deleted", FAILED)
