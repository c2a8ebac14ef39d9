"""A ledger of what a replay server acknowledged, kept outside of it, and the check that it has all of that, once."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from types import TracebackType
from typing import Self

from replay_server.client import ReplayClient, ReplayError, ReplayTimeout
from tests.replay_server.played import played
from zero.trajectories import Trajectory
from zero.wire import codec

TRAJECTORIES_PER_CALL = 3
STEPS_PER_TRAJECTORY = 2
NUMBERS_PER_WRITER = 1_000_000


@dataclass(frozen=True)
class Entry:
    """An acknowledged trajectory.

    Attributes:
        number: from which it can be made again.
        sha256: hex digest of its content as it was sent.
    """

    number: int
    sha256: str


class Ledger:
    """One writer: inserts small trajectories from a thread until closed, and notes what was acknowledged, only then.

    Args:
        address: of the replay server, which may come and go.
        table: of the signature of `tests.replay_server.played`, with room for everything.
        writer: its number; each writer of a table needs its own.
        pause_seconds: between calls.

    Attributes:
        sent: numbers of all trajectories sent, whatever became of them.
        acknowledged: what the server has promised to keep.
    """

    def __init__(self, address: str, table: str, writer: int = 0, pause_seconds: float = 0.0) -> None:
        self.sent: list[int] = []
        self.acknowledged: list[Entry] = []
        self._address = address
        self._table = table
        self._first = writer * NUMBERS_PER_WRITER
        self._pause_seconds = pause_seconds
        self._stop = Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"ledger-{writer}")
        self._writing = self._executor.submit(self._write)

    def close(self) -> None:
        """Finish the call under way; an error of the writer is raised."""
        self._stop.set()
        self._executor.shutdown()
        self._writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        with ReplayClient(self._address, client_name="ledger") as client:
            while not self._stop.wait(self._pause_seconds):
                first = self._first + len(self.sent)
                numbers = range(first, first + TRAJECTORIES_PER_CALL)
                trajectories = [_trajectory(number) for number in numbers]
                self.sent += numbers
                try:
                    client.insert(self._table, trajectories, timeout=60)
                except ReplayTimeout:
                    continue  # stored or not: nothing was promised
                self.acknowledged += [
                    Entry(number, _sha256(trajectory)) for number, trajectory in zip(numbers, trajectories, strict=True)
                ]


def check_that_nothing_is_lost(client: ReplayClient, table: str, ledgers: Sequence[Ledger]) -> None:
    """Hold a table against the closed ledgers of all its writers; stores what was sent and never answered.

    Raises:
        AssertionError: an acknowledged trajectory is lost, has other content, or a trajectory is stored twice.
    """
    acknowledged = [entry for ledger in ledgers for entry in ledger.acknowledged]
    sent = [number for ledger in ledgers for number in ledger.sent]
    stored = client.server_info().tables[table].num_trajectories
    lost = 0
    for entries in _hundreds(acknowledged):
        trajectories = [_trajectory(entry.number) for entry in entries]
        assert [_sha256(trajectory) for trajectory in trajectories] == [entry.sha256 for entry in entries]
        lost += client.insert(table, trajectories).stored
    assert lost == 0, f"{lost} of {len(acknowledged)} acknowledged trajectories are lost"
    assert len(acknowledged) <= stored <= len(sent), f"{stored} stored, {len(acknowledged)} to {len(sent)} sent"
    for entry in acknowledged:
        forged = replace(_trajectory(entry.number + 1), trajectory_id=_trajectory(entry.number).trajectory_id)
        assert _refusal(client, table, forged) == "CONTENT_CONFLICT", f"{forged.trajectory_id} has other content"
    unanswered = sorted(set(sent) - {entry.number for entry in acknowledged})
    if unanswered:
        client.insert(table, [_trajectory(number) for number in unanswered])
    info = client.server_info().tables[table]
    assert (info.num_trajectories, info.num_steps) == (len(sent), len(sent) * STEPS_PER_TRAJECTORY), "stored twice"


def _refusal(client: ReplayClient, table: str, trajectory: Trajectory) -> str:
    """Why the server does not take it; empty if it does."""
    try:
        client.insert(table, [trajectory])
    except ReplayError as error:
        return error.reason
    return ""


def _trajectory(number: int) -> Trajectory:
    return played(number, STEPS_PER_TRAJECTORY, weights_version=1)


def _sha256(trajectory: Trajectory) -> str:
    return hashlib.sha256(codec.encode_trajectory(trajectory).SerializeToString(deterministic=True)).hexdigest()


def _hundreds(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    for start in range(0, len(entries), 100):
        yield entries[start : start + 100]
