"""What a replay table is: a signature, a selector, a rate limiter, a capacity and a durability, as plain values."""

import re
from dataclasses import dataclass
from enum import Enum

from zero.trajectories import Signature


class Selector(Enum):
    """How positions are drawn."""

    UNIFORM = "uniform"
    PRIORITIZED = "prioritized"


class Durability(Enum):
    """How durable an acknowledged insert is."""

    MEMORY = "memory"
    REDIS = "redis"


@dataclass(frozen=True)
class RateLimiterConfig:
    """When inserts and samples wait; one sample is one drawn position, one insert is one inserted step.

    Attributes:
        min_size_to_sample: no sample before the table holds this many steps.
        samples_per_insert: samples per insert to aim for; 0 uncouples the two.
        error_buffer: how many samples they may be apart, either way, counted from the moment when the table first
            reached min_size_to_sample.

    Raises:
        ValueError: a value out of range.
    """

    min_size_to_sample: int = 1
    samples_per_insert: float = 0.0
    error_buffer: float = 0.0

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


@dataclass(frozen=True)
class TableConfig:
    """A replay table; eviction is first in, first out, by trajectory.

    Attributes:
        name: 1 to 64 characters out of a-z, 0-9, '-', '_' and '.'.
        signature: the columns of every trajectory.
        capacity: the most steps kept.
        selector: how positions are drawn.
        priority_exponent: the exponent of priorities, 0 to 1.
        rate_limiter: when calls wait.
        durability: what an acknowledgement means.

    Raises:
        ValueError: a config that cannot work; the text names the field.
    """

    name: str
    signature: Signature
    capacity: int
    selector: Selector = Selector.UNIFORM
    priority_exponent: float = 0.6
    rate_limiter: RateLimiterConfig = RateLimiterConfig()
    durability: Durability = Durability.REDIS

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9._-]{1,64}", self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 64 characters out of a-z, 0-9, '-', '_' and '.'")
        names = [spec.name for spec in self.signature]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"signature must hold at least one column and no name twice, got {names}")
        if not 1 <= self.capacity < 2**31:
            raise ValueError(f"capacity is {self.capacity}, must be at least 1 and below 2^31 steps")
        if not 0 <= self.priority_exponent <= 1:
            raise ValueError(f"priority_exponent is {self.priority_exponent}, must be within 0 to 1")
        if self.rate_limiter.min_size_to_sample > self.capacity:
            raise ValueError(
                f"min_size_to_sample {self.rate_limiter.min_size_to_sample} exceeds capacity {self.capacity}: "
                "no sample could ever be drawn"
            )
