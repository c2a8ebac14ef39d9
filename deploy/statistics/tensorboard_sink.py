"""Writes points as TensorBoard event files."""

from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] -- made at run time
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from deploy.statistics.sinks import Outcome, Sink
from deploy.statistics.windows import Point


class TensorBoardSink(Sink):
    """One event file per process in a folder, as `tensorboard --logdir` reads them."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))

    def write(self, points: Sequence[Point]) -> None:
        """Write scalars, each at its step and time."""
        for point in points:
            summary = Summary(value=[Summary.Value(tag=point.name, simple_value=point.value)])
            self._writer.add_event(Event(wall_time=point.time, step=point.step, summary=summary))
        self._writer.flush()

    def close(self, outcome: Outcome) -> None:  # noqa: ARG002 -- event files know no outcome
        """Close the file."""
        self._writer.close()
