"""Loads what numba has compiled before the first call needs it, which would be held up by it for seconds."""

import numpy as np

from replay_server.selectors import SELECTORS
from replay_server.slots import Slots
from zero.tables import TableConfig
from zero.trajectories import ColumnSpec
from zero.wire.insert_parts import take_apart

_STEPS = 2


def load_compiled() -> None:
    """Call once whatever of a table is compiled; takes seconds, or half a minute where nothing is compiled yet."""
    take_apart(b"")
    slots = Slots(_STEPS)
    held = slots.reserve(_STEPS)
    slots.fill(held, [_STEPS], np.zeros(1, np.int64))
    slots.walk(held, _STEPS)
    config = TableConfig("loading", (ColumnSpec("value", "uint8"),), _STEPS)
    allowed = np.ones(_STEPS, np.bool_)
    for create in SELECTORS.values():
        selector = create(config)
        selector.insert(held, np.ones(_STEPS, np.float32))
        selector.draw(np.zeros(1))
        selector.draw(np.zeros(1), allowed)
        selector.remove(held)
