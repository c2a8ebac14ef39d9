"""Keeps profiles of roles in the folder of a run, each a JSON file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from deploy.environment import environment
from deploy.errors import BAD_INPUT, DeployError
from deploy.run_folder import RunFolder
from deploy.run_records import Environment, FileRecord


class ProfileRecord(FileRecord):
    """Where the time of a role went.

    Attributes:
        role: whose.
        measured_at: when.
        environment: where.
        profile: what was measured, as `zero profile ROLE --json` prints it.
    """

    role: Literal["actor", "learner"]
    measured_at: datetime
    environment: Environment
    profile: dict[str, JsonValue]


def save_profile(folder: RunFolder, role: Literal["actor", "learner"], profile: dict[str, JsonValue]) -> Path:
    """Write a profile into a new file of the run, and list it in the run's manifest.

    Raises:
        DeployError: the disk refused.
    """
    now = datetime.now(UTC)
    try:
        folder.profiles.mkdir(exist_ok=True)
    except OSError as error:
        raise DeployError(f"cannot make {folder.profiles}: {error.strerror}", BAD_INPUT) from None
    path = folder.profiles / f"{role}-{now:%Y%m%d-%H%M%S-%f}.json"
    ProfileRecord(role=role, measured_at=now, environment=environment(), profile=profile).write(path)
    folder.list_in_manifest(path)
    return path
