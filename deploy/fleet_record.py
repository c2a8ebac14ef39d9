"""What a run's fleet is and shall be: two small files in the run's folder, one that it writes and one that it obeys."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, JsonValue

from deploy.run_records import FileRecord, Record


class RoleState(StrEnum):
    """How a role stands."""

    RUNS = "runs"
    STARTS = "starts"
    WAITS = "waits for a machine"
    RESTARTS = "restarts"
    LEAVES = "leaves"
    DONE = "done"


class FleetRole(Record):
    """One role of a run.

    Attributes:
        name: unique within the run.
        role: which one.
        state: how it stands.
        node: address of its machine; None while there is no process.
        pid: of the process there.
        restarts: how often it was restarted.
        weights_version: of the weights that it has; None if it has none or does not answer.
        rate: its moves, if it is an actor, or training steps per second; None if it counts neither or does not answer.
    """

    name: str
    role: str
    state: RoleState
    node: str | None
    pid: int | None
    restarts: int
    weights_version: float | None = None
    rate: float | None = None


class FleetRecord(FileRecord):
    """The file `fleet.json`: how the fleet stands, written every second while the run goes on.

    Attributes:
        written_at: when.
        elapsed_seconds: since the roles were started.
        actors_wanted: how many actors there shall be.
        replay_address: of the replay server.
        metrics_address: of its /metrics and /sd.
        roles: all of them.
        figures: rates and versions of the run, as JSON data; None before the first are known.
        total_seconds: how long the session takes at most; None for any time.
        max_steps: the training step at which the run is finished; None for any number.
    """

    written_at: datetime
    elapsed_seconds: float
    actors_wanted: int
    replay_address: str
    metrics_address: str
    roles: tuple[FleetRole, ...]
    figures: dict[str, JsonValue] | None = None
    total_seconds: float | None = None
    max_steps: int | None = None

    @property
    def actors(self) -> Sequence[FleetRole]:
        """The actors, those that leave among them."""
        return [role for role in self.roles if role.role == "actor"]

    def age_seconds(self) -> float:
        """How long ago it was written."""
        return (datetime.now(UTC) - self.written_at).total_seconds()


class ScaleRequest(FileRecord):
    """The file `scale.json`: what `zero scale` wants; until there is one it is as the run was started.

    Attributes:
        actors: how many actors there shall be.
    """

    actors: Annotated[int, Field(ge=0)]
