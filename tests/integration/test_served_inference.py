"""An actor whose leaves a served agent evaluates, all of them real: replay server, Ray Serve, Prometheus."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from replay_server.client import ReplayClient
from tests.deploy.served_runs import fresh_weights, make_run
from tests.integration.processes import SMALL, Command, free_port, wait_until
from tests.integration.prometheus import Prometheus
from tests.integration.test_serve import START_SECONDS, ask
from tests.integration.test_watching import without_figures
from zero.self_play_table import TABLE_NAME

pytestmark = pytest.mark.slow

ALIKE = ["--set=network.channels=4", "--set=network.blocks=1", "--set=replay.samples_per_insert=0"]
"""The network of `make_run`; and nothing waits for a learner, for there is none."""


@contextmanager
def replay_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Its address, and that of its metrics."""
    data = f"--data-dir={folder / 'replay'}"
    with Command(folder, "replay-server", "--port=0", "--metrics-port=0", data) as server:
        found = server.wait_for(r"replay server at (\S+), metrics http://(\S+)/metrics")
        yield found[1], found[2]


def versions_played(client: ReplayClient) -> set[int]:
    """Those that steps were searched with; nothing yet before there is a step."""
    tables = client.server_info().tables
    if TABLE_NAME not in tables or tables[TABLE_NAME].num_items < 256:
        return set()
    batch = client.sample(TABLE_NAME, 256, {"search_version": 1})
    return {int(version) for version in np.unique(batch.columns["search_version"])}


def test_an_actor_plays_with_what_is_served(tmp_path: Path) -> None:
    """Games come from the served weights, from newer ones as they are published, and wait while nobody serves.

    The dashboard of it has figures in every panel.
    """
    folder = make_run(tmp_path / "run", "tic_tac_toe")
    port = free_port()
    with ExitStack() as stack:
        address, metrics = stack.enter_context(replay_server(tmp_path))
        client = stack.enter_context(ReplayClient(address))
        client.publish_weights(fresh_weights(folder, 1), 10)
        url = f"http://127.0.0.1:{port}"
        to_server = f"--replay-address={address}"
        actor = stack.enter_context(Command(tmp_path, "actor", *SMALL, *ALIKE, to_server, f"--inference={url}"))
        actor.wait_for("waiting for inference at")
        served = ["serve", str(folder.path), f"--port={port}", "--weights=published", "--poll-seconds=0.2", to_server]
        with Command(tmp_path, *served) as service:
            service.wait_for("is a page to play on", START_SECONDS)
            wait_until(lambda: versions_played(client) == {1}, "games by the first weights")
            client.publish_weights(fresh_weights(folder, 2), 20)
            wait_until(lambda: 2 in versions_played(client), "games by newer weights")
            assert ask(url, "/version")[1]["weights_version"] == 2
            assert ask(url, "/act", {"moves": []})[0] == 200
            if shutil.which("prometheus"):
                expect_figures(stack, tmp_path, metrics, url, client, fresh_weights(folder, 3))
        actor.wait_for(r"(?s)waiting for inference at.*waiting for inference at")
        actor.interrupt()
        assert actor.wait(30) == 0, actor.output
        assert "Traceback" not in actor.output


def expect_figures(stack: ExitStack, folder: Path, metrics: str, url: str, client: ReplayClient, newer: bytes) -> None:
    """Every panel of the dashboard shows something, found by what the replay server lists."""
    prometheus = stack.enter_context(Prometheus(folder, {"run": metrics}, folder / "no-ray.json"))
    client.publish_weights(newer, 30)
    empty: list[str] = []

    def all_show_figures() -> bool:
        ask(url, "/act", {"moves": []})
        empty[:] = without_figures(prometheus, "inference")
        return not empty

    try:
        wait_until(all_show_figures, "figures in every panel")
    except AssertionError:
        raise AssertionError(f"no figures: {empty}") from None
