"""What `zero watch` shows: figures from the run's folder, and the newest game of every actor from its server."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.experiment_files import load_experiment
from deploy.fleet_record import FleetRecord, FleetRole, RoleState
from deploy.run_folder import RunFolder, locked, open_or_create_run_folder
from deploy.watching import RunPage
from replay_server.client import ReplayClient
from replay_server.credentials import Credentials
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.browser import CHROMIUM, Browser
from tests.integration.processes import ZERO
from zero.games.registry import make_game
from zero.self_play_table import TABLE_NAME, self_play_table
from zero.trajectories import Trajectory

ROWS = [
    {"elapsed_seconds": 5.0 * n, "recent_score": float(n), "weights_version": float(n // 3), "training_step": 10.0 * n,
     "live_actors": 2, "games": 7.0 * n, "replay_steps": 100.0 * n, "policy_loss": 2.0 / n, "value_loss": None,
     "evaluation_scores": {"search": 2.0 * n, "policy": 1.0 * n}}
    for n in range(1, 101)
]  # fmt: skip


def game_of(actor: str, number: int) -> Trajectory:
    """Three moves of tic-tac-toe, of which the last one shall be seen."""
    game = make_game("tic_tac_toe", {})
    states = game.initial(np.zeros((1, game.chance_size), np.int64))
    columns: dict[str, list[Any]] = {}
    config = load_experiment("tic_tac_toe", [])
    for action in (0, 4, 8):
        for spec in self_play_table(config, game).signature:
            value = game.observation(states)[0] if spec.name == "observation" else np.zeros(spec.shape, spec.dtype)
            columns.setdefault(spec.name, []).append(value)
        states = game.apply(states, np.array([action])).states
    stacked = {name: np.stack(values) for name, values in columns.items()}
    return Trajectory(
        f"{actor}-{number}", actor, 3, 0, terminated=False, truncated=True, columns=stacked, stats={"score": number}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A run that goes on: three games of two actors on its server, figures, and a line that is being written."""
    config = load_experiment("tic_tac_toe", [])
    folder = open_or_create_run_folder(tmp_path / "run", config)
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    folder.metrics_file.write_text(lines + '{"elapsed_seconds": 50')
    with ReplayServer(ReplayServerSettings(tmp_path / "data")) as bound, ReplayClient(bound.address) as client:
        client.create_table(self_play_table(config, make_game("tic_tac_toe", {})))
        for actor, number in (("actor-0", 1), ("actor-1", 2), ("actor-0", 5)):
            client.insert(TABLE_NAME, [game_of(actor, number)])
        role = FleetRole(name="actor-0", role="actor", state=RoleState.RUNS, node="::1", pid=7, restarts=0, rate=12.5)
        with locked(folder):
            FleetRecord(
                written_at=datetime.now(UTC),
                elapsed_seconds=9.0,
                actors_wanted=2,
                replay_address=bound.address,
                metrics_address=bound.metrics_address,
                roles=(role,),
                total_seconds=600.0,
                max_steps=4_000,
            ).write(folder.fleet_file)
            yield folder


def told(page: RunPage, path: str, **query: str) -> Any:
    """What is answered, as data."""
    return json.loads(page.reply(path, query).body)


def test_the_page_is_told_figures_roles_and_the_newest_games(folder: RunFolder) -> None:
    """Every whole line of figures once, how the roles stand, and one board per actor: of its newest game."""
    with RunPage(folder, Credentials()) as page:
        first = told(page, "/figures")
        assert first["rows"] == ROWS
        assert told(page, "/figures", **{"from": str(first["next"])}) == {"next": first["next"], "rows": []}
        state = told(page, "/state")
        assert (state["name"], state["experiment"]) == ("run", "tic_tac_toe")
        assert [(role["name"], role["state"], role["rate"]) for role in state["roles"]] == [("actor-0", "runs", 12.5)]
        assert state["bounds"] == {
            "elapsed_seconds": 9.0,
            "total_seconds": 600.0,
            "max_steps": 4_000,
            "capacity": load_experiment("tic_tac_toe", []).replay.capacity,
        }
        boards = told(page, "/boards")["boards"]
        assert [(board["actor"], board["score"], board["num_steps"]) for board in boards] == [
            ("actor-0", 5, 3),
            ("actor-1", 2, 3),
        ]
        assert boards[0]["svg"].lstrip().startswith("<svg")
        assert page.reply("/figures", {"from": "-1"}).status == page.reply("/figures", {"from": "x"}).status == 400
        assert page.reply("/etc/passwd", {}).status == 404


def test_a_run_that_has_ended_shows_its_figures(folder: RunFolder, tmp_path: Path) -> None:
    """And says why there are no boards; a server that is away is said, too."""
    record = FleetRecord.read(folder.fleet_file)
    with RunPage(folder, Credentials()) as page:
        record.model_copy(update={"replay_address": "127.0.0.1:1"}).write(folder.fleet_file)
        assert "127.0.0.1:1" in told(page, "/boards")["why"]
    ended = open_or_create_run_folder(tmp_path / "ended", load_experiment("triangle", []))
    with RunPage(ended, Credentials()) as page:
        assert told(page, "/boards") == {"boards": [], "why": "nobody plays: the run is not going on"}
        assert told(page, "/figures") == {"next": 0, "rows": []}
        state = told(page, "/state")
        assert (state["roles"], state["bounds"]) == ([], {})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_plots_and_boards(folder: RunFolder, tmp_path: Path) -> None:
    """Lines of every figure that is known, with its mean; options redraw them; boards and roles are there."""
    with subprocess.Popen(
        [str(ZERO), "watch", str(folder.path), "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].split()[0]
        assert urllib.request.urlopen(url, timeout=30).status == 200
        with Browser(tmp_path / "profile") as browser:
            browser.open(url)
            browser.wait_for("document.querySelectorAll('#boards svg').length === 2")
            plots = "document.querySelectorAll('#plots .card')"
            assert browser.evaluate(f"{plots}.length") == 12
            assert browser.evaluate(f"{plots}[0].querySelector('b').textContent") == "95.5"
            assert browser.evaluate(f"{plots}[1].querySelectorAll('.mean').length") == 2
            assert browser.evaluate(f"{plots}[3].querySelectorAll('polyline').length") == 0  # value losses are unknown
            assert (
                browser.evaluate(f"{plots}[0].querySelector('.mean').getAttribute('points').split(' ').length") == 100
            )
            browser.evaluate("for (const id of ['log', 'trend', 'weights']) document.getElementById(id).click()")
            assert browser.evaluate(f"{plots}[0].querySelectorAll('.trend').length") == 1
            assert browser.evaluate(f"{plots}[0].querySelectorAll('.weights').length") == 33
            assert browser.evaluate("[...document.querySelectorAll('progress')].map(bar => bar.value).join()") == (
                "9,1000,10000"
            )
            assert "runs" in browser.evaluate("document.getElementById('roles').textContent")
            assert browser.evaluate("document.getElementById('note').textContent") == ""
            browser.screenshot(tmp_path / "page.png")
        process.terminate()
        assert process.wait(timeout=30) == 0
