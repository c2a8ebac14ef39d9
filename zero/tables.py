"""What a replay table is: signature, sequences, selector, remover, rate limiter, capacity and durability, as values."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Self

from zero.trajectories import Signature


class Durability(Enum):
    """How durable an acknowledged insert is: in memory, in Redis, flushed by Redis to its disk."""

    MEMORY = "memory"
    REDIS = "redis"
    FSYNC = "fsync"


class EpisodeEnd(Enum):
    """What sequences do where a trajectory ends.

    PAD: they are zero beyond the end. TRUNCATE: they stop short of it, a position is drawn only if a whole sequence
    begins there. CONTINUE: they go on in the next stored trajectory of the same actor.
    """

    PAD = "pad"
    TRUNCATE = "truncate"
    CONTINUE = "continue"


@dataclass(frozen=True)
class SequenceRule:
    """Which stored steps are items, that is, positions that may be drawn.

    Attributes:
        length: steps of a whole sequence; matters to EpisodeEnd.TRUNCATE.
        period: every how many steps of a trajectory an item begins; 0 for the first step of a
            trajectory that is complete: whole trajectories.
        episode_end: what sequences do where a trajectory ends.

    Raises:
        ValueError: a value out of range.
    """

    length: int = 1
    period: int = 1
    episode_end: EpisodeEnd = EpisodeEnd.PAD

    def __post_init__(self) -> None:
        if not 1 <= self.length < 2**31:
            raise ValueError(f"sequences.length is {self.length}, must be at least 1 and below 2^31")
        if not 0 <= self.period < 2**31:
            raise ValueError(f"sequences.period is {self.period}, must not be negative, and be below 2^31")


@dataclass(frozen=True)
class RateLimiterConfig:
    """When inserts and samples wait; one sample is one drawn position, one insert is one item.

    Attributes:
        min_size_to_sample: no sample before this many items were inserted.
        samples_per_insert: samples per insert to aim for; 0 uncouples the two.
        error_buffer: how many samples they may be apart, either way, counted from the moment when the table first
            reached min_size_to_sample.
        queue_size: inserts wait while the table holds this many items; 0 for no such bound.

    Raises:
        ValueError: a value out of range.
    """

    min_size_to_sample: int = 1
    samples_per_insert: float = 0.0
    error_buffer: float = 0.0
    queue_size: int = 0

    def __post_init__(self) -> None:
        if self.min_size_to_sample < 1:
            raise ValueError(f"min_size_to_sample is {self.min_size_to_sample}, must be at least 1")
        if not 0 <= self.samples_per_insert < float("inf"):
            raise ValueError(f"samples_per_insert is {self.samples_per_insert}, must be finite and not negative")
        if self.samples_per_insert and not max(1.0, self.samples_per_insert) <= self.error_buffer < float("inf"):
            raise ValueError(
                f"error_buffer is {self.error_buffer}, must be finite and at least "
                f"max(1, samples_per_insert) = {max(1.0, self.samples_per_insert)}, or no call could ever pass"
            )
        if self.queue_size < 0 or 0 < self.queue_size < self.min_size_to_sample:
            raise ValueError(
                f"queue_size is {self.queue_size}, must be 0 or at least min_size_to_sample {self.min_size_to_sample}"
            )


@dataclass(frozen=True)
class TableConfig:
    """A replay table.

    Attributes:
        name: 1 to 64 characters out of a-z, 0-9, '-', '_' and '.'.
        signature: the columns of every trajectory.
        capacity: the most steps kept.
        selector: how items are drawn: "uniform", "prioritized", "fifo", "lifo", "max_heap" or "min_heap"; the server
            knows the names.
        priority_exponent: the exponent of "prioritized", 0 to 1.
        rate_limiter: when calls wait.
        durability: what an acknowledgement means.
        remover: which trajectory makes room: "fifo", "lifo", "random", "max_heap" or "min_heap".
        max_times_sampled: how often an item may be drawn before it is removed; 0 for any number of times.
        sequences: which steps are items.
        keep_steps: the most steps kept when an insert is over, at most the capacity; the rest of it is room for what is
            on its way. 0 for all of the capacity.
        replace_probability: with keep_steps, how likely a new trajectory of a full table is to take the place of
            another one; else it goes itself, although it is acknowledged and its id known.

    Raises:
        ValueError: a config that cannot work; the text names the field.
    """

    name: str
    signature: Signature
    capacity: int
    selector: str = "uniform"
    priority_exponent: float = 0.6
    rate_limiter: RateLimiterConfig = RateLimiterConfig()
    durability: Durability = Durability.REDIS
    remover: str = "fifo"
    max_times_sampled: int = 0
    sequences: SequenceRule = SequenceRule()
    keep_steps: int = 0
    replace_probability: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9._-]{1,64}", self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 64 characters out of a-z, 0-9, '-', '_' and '.'")
        names = [spec.name for spec in self.signature]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"signature must hold at least one column and no name twice, got {names}")
        if not 1 <= self.capacity < 2**31:
            raise ValueError(f"capacity is {self.capacity}, must be at least 1 and below 2^31 steps")
        if not self.selector or not self.remover:
            raise ValueError(f"selector {self.selector!r} and remover {self.remover!r} must be named")
        if not 0 <= self.priority_exponent <= 1:
            raise ValueError(f"priority_exponent is {self.priority_exponent}, must be within 0 to 1")
        if not 0 <= self.max_times_sampled < 2**31:
            raise ValueError(f"max_times_sampled is {self.max_times_sampled}, must not be negative, and be below 2^31")
        self._check_keeping()
        self.check_limits(self.rate_limiter)
        if self.sequences.episode_end is EpisodeEnd.TRUNCATE and self.sequences.length > self.capacity:
            raise ValueError(f"sequences.length {self.sequences.length} exceeds capacity {self.capacity}: no items")

    def _check_keeping(self) -> None:
        if not 0 <= self.keep_steps <= self.capacity:
            raise ValueError(f"keep_steps is {self.keep_steps}, must be within 0 to capacity {self.capacity}")
        if not 0 <= self.replace_probability <= 1:
            raise ValueError(f"replace_probability is {self.replace_probability}, must be within 0 to 1")
        if self.replace_probability < 1 and not self.keep_steps:
            raise ValueError("replace_probability needs keep_steps: a table is full when it holds so many")

    def check_limits(self, rate_limiter: RateLimiterConfig) -> None:
        """Refuse limits that cannot work for this table.

        Raises:
            ValueError: the text names the field.
        """
        for field, least in (
            ("min_size_to_sample", rate_limiter.min_size_to_sample),
            ("queue_size", rate_limiter.queue_size),
        ):
            if least > self.capacity:
                raise ValueError(f"{field} {least} exceeds capacity {self.capacity}: calls would wait for ever")

    @classmethod
    def queue(cls, name: str, signature: Signature, size: int, capacity: int) -> Self:
        """A queue of whole trajectories: each is drawn once, in the order of insertion; inserts wait while it is full.

        Args:
            name: of the table.
            signature: its columns.
            size: the most trajectories waiting.
            capacity: the most steps kept; must hold `size` trajectories, or the oldest are lost undrawn.
        """
        return cls(
            name,
            signature,
            capacity,
            "fifo",
            rate_limiter=RateLimiterConfig(queue_size=size),
            max_times_sampled=1,
            sequences=SequenceRule(period=0),
        )

    @classmethod
    def stack(cls, name: str, signature: Signature, size: int, capacity: int) -> Self:
        """As `queue`, the newest first."""
        return cls(
            name,
            signature,
            capacity,
            "lifo",
            rate_limiter=RateLimiterConfig(queue_size=size),
            remover="lifo",
            max_times_sampled=1,
            sequences=SequenceRule(period=0),
        )
