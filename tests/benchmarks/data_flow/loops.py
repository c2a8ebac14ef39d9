"""What both sides do: an agent that collects, paced or flat out, and a trainer that keeps a core busy in Python."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def small_sample(number: int) -> dict[str, Any]:
    """Four floats, an action and a reward."""
    return {"observation": np.full(4, number, np.float32), "action": number, "reward": 1.0}


def collected_per_second(collect: Callable[[dict[str, Any]], None], seconds: float, pause: float) -> float:
    """The rate of an agent that waits `pause` seconds for its world at every step; 0 for one that never waits."""
    started = time.perf_counter()
    number = 0
    while time.perf_counter() - started < seconds:
        if pause:
            time.sleep(pause)
        collect(small_sample(number))
        number += 1
    return number / (time.perf_counter() - started)


def train(update: Callable[[], object], seconds: float) -> int:
    """Compute in Python without a pause, and take new data in ten times a second; returns how often it did."""
    started = updated = time.perf_counter()
    updates = total = 0
    while (now := time.perf_counter()) - started < seconds:
        for i in range(2000):
            total += i * i
        if now - updated > 0.1:
            update()
            updated = now
            updates += 1
    return updates
