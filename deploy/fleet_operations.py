"""What can be done to the fleet of a run that goes on: look at it, change how many actors it has."""

import time

from deploy.errors import BAD_INPUT, DeployError
from deploy.fleet_record import FleetRecord, RoleState, ScaleRequest
from deploy.run_folder import RunFolder

SILENCE_SECONDS = 15.0
"""A fleet that has written nothing for so long is not supervised."""
POLL_SECONDS = 0.2


def fleet_of(folder: RunFolder, patience_seconds: float = SILENCE_SECONDS) -> FleetRecord:
    """How the fleet of a run stands; waits for one that is about to start.

    Raises:
        DeployError: the run does not go on, or nobody supervises it.
    """
    deadline = time.monotonic() + patience_seconds
    first = record = _newest(folder)
    while True:
        # Written again while we look: alive, whatever the clock of its machine says.
        if record is not None and (record.age_seconds() < SILENCE_SECONDS or record != first):
            return record
        if record is None and not folder.is_in_use():
            raise DeployError(
                f"{_how_it_ended(folder)}: go on with it by `zero train --resume {folder.path}`", BAD_INPUT
            )
        if time.monotonic() > deadline:
            raise DeployError(_why_silent(folder, record))
        time.sleep(POLL_SECONDS)
        record = _newest(folder)


def scale_run(folder: RunFolder, actors: int, timeout: float) -> str:
    """Let a run have so many actors, and wait until it has; says in words what came of it.

    Raises:
        DeployError: the run does not go on, or nobody supervises it.
    """
    fleet_of(folder)
    ScaleRequest(actors=actors).write(folder.scale_file)
    if not timeout:
        return f"{folder.path} was asked for {_count(actors)}"
    deadline = time.monotonic() + timeout
    while True:
        record = fleet_of(folder)
        running = sum(role.state == RoleState.RUNS for role in record.actors)
        if record.actors_wanted == actors and running == len(record.actors) == actors:
            return f"{folder.path} has {_count(actors)}"
        if time.monotonic() > deadline:
            leaving = sum(role.state == RoleState.LEAVES for role in record.actors)
            raise DeployError(
                f"{folder.path} shall have {_count(actors)}; after {timeout:g} s {running} run and {leaving} still "
                f"leave: `zero status {folder.path}` says why, and `ray status` what the cluster has room for"
            )
        time.sleep(POLL_SECONDS)


def _newest(folder: RunFolder) -> FleetRecord | None:
    try:
        return FleetRecord.read(folder.fleet_file)
    except FileNotFoundError:
        return None


def _how_it_ended(folder: RunFolder) -> str:
    sessions = folder.record().sessions
    if not sessions or not sessions[-1].reason:
        return f"{folder.path} does not go on"
    return f"{folder.path} does not go on, it is {sessions[-1].state.value} ({sessions[-1].reason})"


def _why_silent(folder: RunFolder, record: FleetRecord | None) -> str:
    if record is None:
        return f"{folder.path} is trained without a fleet, by `zero learner` or a command that just starts: try again"
    if not folder.is_in_use():
        return (
            f"the supervisor of {folder.path} has died and nobody starts it again: see that its cluster lives "
            f"(`ray status`), or go on with the run by `zero train --resume {folder.path}`"
        )
    return (
        f"the supervisor of {folder.path} has not answered for {record.age_seconds():.0f} s: see `ray status` and "
        f"{folder.logs}/supervisor.log"
    )


def _count(actors: int) -> str:
    return "1 actor" if actors == 1 else f"{actors} actors"
