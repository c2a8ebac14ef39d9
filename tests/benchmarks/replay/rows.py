"""What is compared with what: each row is one question, put to each of its contenders in turn."""

from dataclasses import dataclass

UNITS = {
    "insert": "trajectories/s",
    "insert_one": "trajectories/s",
    "insert_one_stream": "trajectories/s",
    "insert_stream": "trajectories/s",
    "sample": "sequences/s",
    "sample_stream": "sequences/s",
    "loop": "keys/s",
    "loop_stream": "keys/s",
    "update": "keys/s",
    "update_stream": "keys/s",
}
"""Of each measure."""


@dataclass(frozen=True)
class Part:
    """What one client process does.

    Attributes:
        measure: a key of UNITS.
        variant: the side's own.
        process: the client's number; parts of different processes run at once.
        server: the server's number.
        threads: that do it at once.
        apart: each of them with a connection of its own.
        pace: units per second to start; 0 for flat out.
    """

    measure: str
    variant: str
    process: int = 0
    server: int = 0
    threads: int = 1
    apart: bool = False
    pace: float = 0.0


@dataclass(frozen=True)
class Contender:
    """One side's way to answer a row."""

    side: str
    label: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Row:
    """A question; ours come first, and the ratios are theirs to each of ours."""

    name: str
    title: str
    contenders: tuple[Contender, ...]


def one(side: str, label: str, measure: str, variant: str, threads: int = 1) -> Contender:
    """A contender that is a single client process."""
    return Contender(side, label, (Part(measure, variant, threads=threads),))


def pair(side: str, label: str, sampling: Part, inserting: Part) -> Contender:
    """A learner and a writer at once, in two processes where there is a server between them."""
    return Contender(side, label, (sampling, inserting))


def crowd(side: str, label: str, sample: str, insert: str, variant: str) -> Contender:
    """4 learners in two processes and 64 writers in two others, each with a connection of its own."""
    learners = tuple(Part(sample, variant, process=i, threads=2, apart=True) for i in (0, 1))
    writers = tuple(Part(insert, variant, process=i, threads=32, apart=True) for i in (2, 3))
    return Contender(side, label, learners + writers)


MEMORY_ONLY = "[memory only]"
IN_PROCESS = "[in process]"

ROWS = (
    Row(
        "insert",
        "insert so that every window can be sampled, one writer",
        (
            one("ours", "durable, stream, 16 per message", "insert_stream", "redis"),
            one("ours", f"memory, stream, 16 per message {MEMORY_ONLY}", "insert_stream", "memory"),
            one("ours", "durable, 16 per call", "insert", "redis"),
            one("ours", f"memory, 16 per call {MEMORY_ONLY}", "insert", "memory"),
            one("ours", "durable, 1 per call", "insert_one", "redis"),
            one("ours", f"memory, 1 per call {MEMORY_ONLY}", "insert_one", "memory"),
            one("reverb", f"TrajectoryWriter {MEMORY_ONLY}", "insert", "default"),
            one("reverb", f"StructuredWriter {MEMORY_ONLY}", "insert", "structured"),
            one("reverb", f"StructuredWriter, one packed column {MEMORY_ONLY}", "insert", "packed-structured"),
            one("torchrl", f"tensor storage {MEMORY_ONLY} {IN_PROCESS}", "insert", "memory"),
            one("torchrl", f"the same, torch on all cores {MEMORY_ONLY} {IN_PROCESS}", "insert", "memory-cores"),
            one("torchrl", f"memmap storage {IN_PROCESS}", "insert", "memmap"),
            one("torchrl", "Redis storage, flushed as ours", "insert", "redis"),
        ),
    ),
    Row(
        "sample",
        "sample windows, one learner",
        (
            one("ours", "stream, 2 batches ahead", "sample_stream", "redis"),
            one("ours", "one call after the other", "sample", "redis"),
            one("reverb", f"TrajectoryDataset {MEMORY_ONLY}", "sample", "default"),
            one("reverb", f"chunks of the window, 2 workers {MEMORY_ONLY}", "sample", "chunked"),
            one("reverb", f"the same, one packed column {MEMORY_ONLY}", "sample", "packed"),
            one("torchrl", f"tensor storage {MEMORY_ONLY} {IN_PROCESS}", "sample", "memory"),
            one("torchrl", f"the same, torch on all cores {MEMORY_ONLY} {IN_PROCESS}", "sample", "memory-cores"),
            one("torchrl", f"memmap storage {IN_PROCESS}", "sample", "memmap"),
            one("torchrl", "Redis storage, windows cut by hand", "sample", "redis"),
        ),
    ),
    Row(
        "loop",
        "sample, learn, update, one learner",
        (
            one("ours", "stream, 2 batches ahead", "loop_stream", "redis"),
            one("ours", "one call after the other", "loop", "redis"),
            one("reverb", f"TrajectoryDataset {MEMORY_ONLY}", "loop", "default"),
            one("reverb", f"chunks of the window, 2 workers {MEMORY_ONLY}", "loop", "chunked"),
            one("reverb", f"the same, one packed column {MEMORY_ONLY}", "loop", "packed"),
            one("torchrl", f"tensor storage {MEMORY_ONLY} {IN_PROCESS}", "loop", "memory"),
            one("torchrl", f"the same, torch on all cores {MEMORY_ONLY} {IN_PROCESS}", "loop", "memory-cores"),
            one("torchrl", "Redis storage, windows cut by hand", "loop", "redis"),
        ),
    ),
    Row(
        "update",
        "update 256 priorities per call",
        (
            one("ours", "stream, what waits goes together", "update_stream", "redis"),
            one("ours", "one call after the other", "update", "redis"),
            one("ours", "8 calls in flight", "update", "redis", 8),
            one("reverb", f"one call after the other {MEMORY_ONLY}", "update", "default"),
            one("reverb", f"8 calls in flight {MEMORY_ONLY}", "update", "default", 8),
            one("torchrl", f"tensor storage {MEMORY_ONLY} {IN_PROCESS}", "update", "memory"),
        ),
    ),
    Row(
        "both",
        "insert and sample at once, one writer and one learner, both flat out",
        (
            pair("ours", "durable, streams", Part("sample_stream", "redis"), Part("insert_stream", "redis", 1)),
            pair(
                "ours",
                f"memory, streams {MEMORY_ONLY}",
                Part("sample_stream", "memory"),
                Part("insert_stream", "memory", 1),
            ),
            pair("ours", "durable, 16 per call", Part("sample", "redis"), Part("insert", "redis", 1)),
            pair("reverb", f"default {MEMORY_ONLY}", Part("sample", "default"), Part("insert", "default", 1)),
            pair("reverb", f"packed {MEMORY_ONLY}", Part("sample", "packed"), Part("insert", "packed", 1)),
            pair(
                "torchrl",
                f"tensor storage {MEMORY_ONLY} {IN_PROCESS}",
                Part("sample", "memory"),
                Part("insert", "memory"),
            ),
            pair("torchrl", "Redis storage, windows cut by hand", Part("sample", "redis"), Part("insert", "redis")),
        ),
    ),
    Row(
        "paced",
        "2,000 durable inserts/s and sampling at once",
        (
            pair(
                "ours",
                "durable, streams, 2,000/s offered",
                Part("sample_stream", "redis"),
                Part("insert_stream", "redis", 1, pace=2000.0),
            ),
            pair(
                "ours",
                "durable, 16 per call, 2 writers, 2,000/s offered",
                Part("sample", "redis"),
                Part("insert", "redis", 1, threads=2, pace=2000.0),
            ),
        ),
    ),
    Row(
        "crowd",
        "64 writers and 4 learners at once",
        (
            crowd("ours", "durable, all with streams", "sample_stream", "insert_one_stream", "redis"),
            crowd("ours", f"memory, all with streams {MEMORY_ONLY}", "sample_stream", "insert_one_stream", "memory"),
            crowd("ours", "durable, 1 per call, learners with streams", "sample_stream", "insert_one", "redis"),
            crowd("ours", "durable, 1 per call, learners without", "sample", "insert_one", "redis"),
            crowd("reverb", f"default {MEMORY_ONLY}", "sample", "insert", "default"),
        ),
    ),
    Row(
        "shards",
        "2 learners and 2 writers, and 2 shards",
        tuple(
            Contender(
                "ours",
                label,
                (
                    *(Part("sample_stream", "redis", process=i, server=i * apart) for i in (0, 1)),
                    *(Part("insert_stream", "redis", process=2 + i, server=i * apart) for i in (0, 1)),
                ),
            )
            for apart, label in ((0, "one server"), (1, "two servers in two processes"))
        ),
    ),
)
