"""`zero serve` with the real Ray Serve: asked over HTTP, and played against in a browser."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Browser
from tests.deploy.served_runs import make_run, offer_best
from tests.integration.processes import Command, wait_until

START_SECONDS = 180.0

pytestmark = pytest.mark.slow


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[Command, str]]:
    """The command and its address, once it answers."""
    with Command(folder, "serve", *arguments, "--port=0", "--poll-seconds=0.2") as command:
        yield command, command.wait_for(r"==> (http://[\d.:]+) is a page", START_SECONDS)[1]


def ask(address: str, path: str, sent: object = None) -> tuple[int, Any]:
    """Status and body of the answer: to a POST, or without anything to send to a GET."""
    body = None if sent is None else json.dumps(sent).encode()
    try:
        with urllib.request.urlopen(f"{address}{path}", body, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_an_agent_is_served_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """One and many positions, refusals, health, better weights without a restart; SIGTERM ends it with 0."""
    folder = make_run(tmp_path / "run", "tic_tac_toe")
    offer_best(folder, 3, 0.25)
    with served(tmp_path, str(folder.path)) as (command, address):
        assert ask(address, "/health") == (200, {"status": "ok"})
        assert ask(address, "/version")[1]["training_step"] == 3
        status, answer = ask(address, "/act", {"observation": [1, 0, 0, 0, 2, 0, 0, 0, 0]})
        [decision] = answer["decisions"]
        assert (status, answer["training_step"]) == (200, 3)
        assert decision["legal_actions"] == [1, 2, 3, 5, 6, 7, 8]
        assert decision["action"] in decision["legal_actions"]
        assert sum(decision["policy"]) == pytest.approx(1, abs=1e-5)
        with ThreadPoolExecutor(16) as clients:
            openings = [{"positions": [{"moves": [cell]}, {"moves": []}]} for cell in range(9)] * 4
            for opening, (status, answer) in zip(
                openings, clients.map(lambda sent: ask(address, "/act", sent), openings), strict=True
            ):
                assert status == 200
                first, second = answer["decisions"]
                taken = opening["positions"][0]["moves"]
                assert first["legal_actions"] == [cell for cell in range(9) if cell not in taken]
                assert second["legal_actions"] == list(range(9))
        assert ask(address, "/act", {"moves": [4, 4]})[0] == 400
        assert ask(address, "/nowhere")[0] == 404

        offer_best(folder, 4, 0.125)
        offer_best(folder, 5, 0.5)
        wait_until(lambda: ask(address, "/version")[1]["training_step"] == 5, "better weights decide")
        assert ask(address, "/act", {"moves": []})[1]["training_step"] == 5

        os.kill(command.pid, signal.SIGTERM)
        assert command.wait() == 0
        wait_until(lambda: not command.survivors(), "all processes end")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_is_played_on_in_a_browser(tmp_path: Path) -> None:
    """A person places shapes by clicks, is shown what the agent would do, and watches it play to the end."""
    folder = make_run(tmp_path / "run", "triangle")
    profile = tmp_path / "profile"
    with served(tmp_path, str(folder.path), "--weights=latest") as (_, address), Browser(profile) as browser:
        browser.open(f"{address}/")
        browser.wait_for("document.querySelectorAll('[data-piece]').length === 3")
        assert "Choose a shape" in browser.evaluate("document.getElementById('status').textContent")
        for moves in (1, 2):
            browser.click("[data-piece]:not(.spent) polygon")
            # Any of the cells that the chosen piece covers somewhere: the page finds the place.
            cell = browser.evaluate(
                "(() => { const piece = document.querySelector('.chosen');"
                " const legal = game.shown.legal_actions.map((action) => action - piece.dataset.piece);"
                " return [...document.querySelectorAll('[data-target]')].map((cell) => Number(cell.dataset.target))"
                ".find((target) => legal.includes(target)); })()"
            )
            browser.move_to(f"[data-target='{cell}']")
            browser.wait_for("document.querySelectorAll('.ghost').length > 0")
            browser.click(f"[data-target='{cell}']")
            browser.wait_for(f"game.moves.length === {moves} && game.shown.stats.pieces_placed === {moves}")
        browser.click("#hint")
        browser.wait_for("document.querySelectorAll('#view .bar').length > 1")
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        browser.click("#undo")
        browser.wait_for("game.shown.stats.pieces_placed === 1")
        browser.evaluate("document.getElementById('seat').value = WATCH; start()")
        browser.wait_for("game.shown.over || game.moves.length >= 5")
        assert browser.evaluate("document.getElementById('error').textContent") == ""
