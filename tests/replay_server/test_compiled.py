"""No call waits for code to be compiled or loaded."""

import subprocess
import sys
from pathlib import Path

_CALLS = """
import sys
from pathlib import Path

import numpy as np

from replay_server import selectors, slots, sum_tree
from replay_server.client import ReplayClient
from replay_server.selectors import SELECTORS
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.replay_server.played import played, table_config
from zero.trajectories import PriorityUpdates, StepFilter, TrajectoryFilter

compiled = {
    name: value for module in (selectors, slots, sum_tree)
    for name, value in vars(module).items() if hasattr(value, "signatures")
}

with ReplayServer(ReplayServerSettings(Path(sys.argv[1]))) as bound, ReplayClient(bound.address) as client:
    before = {name: list(function.signatures) for name, function in compiled.items()}
    assert len(before) == 8, sorted(before)
    for selector in SELECTORS:
        client.create_table(table_config(selector, selector=selector, capacity=10))
        for number in range(1, 4):
            client.insert(selector, [played(number)])
        keys = client.sample(selector, 4, {"action": 2}).keys
        client.sample(selector, 4, {"action": 2}, filter=StepFilter(min_weights_version=3))
        client.update_priorities(selector, PriorityUpdates(np.unique(keys), np.ones(len(np.unique(keys)), np.float32)))
        client.delete_trajectories(selector, TrajectoryFilter(trajectory_ids=("t3",)))
    after = {name: list(function.signatures) for name, function in compiled.items()}
assert all(before.values()), before
assert after == before, (before, after)
"""


def test_what_is_compiled_is_loaded_before_the_server_takes_calls(tmp_path: Path) -> None:
    """In a process of its own, calls of every kind on tables with every selector need no more code."""
    subprocess.run([sys.executable, "-c", _CALLS, str(tmp_path)], check=True, timeout=60)
