"""The client hides what a call can survive."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.replay_server.played import played, table_config
from tests.roles import wait_until


@pytest.mark.parametrize("grace", [0.0, 2.0])
def test_a_held_sample_survives_a_restart_of_the_server(tmp_path: Path, grace: float) -> None:
    """A call that the rate limiter holds when the server stops is answered by the next one."""
    config = table_config("held")
    settings = ReplayServerSettings(tmp_path)
    first = ReplayServer(settings)
    address = first.start().address
    windows = {config.signature[0].name: 1}
    with ReplayClient(address) as client, ThreadPoolExecutor(1) as executor:
        client.create_table(config)
        held = executor.submit(client.sample, "held", 2, windows, timeout=30)
        wait_until(lambda: bool(client.server_info().tables["held"].sample_blocked_because))
        first.stop(grace)
        with ReplayServer(replace(settings, port=int(address.rpartition(":")[2]))):
            client.insert("held", [played(1)])
            assert held.result(timeout=30).keys.shape == (2,)
