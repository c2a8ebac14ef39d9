"""What the page about collecting and using data shows works as it stands, here and on a server."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from replay_server.table_buffer import on_server
from tests.test_readme import ROOT, snippets
from zero.trajectories import ColumnSpec

PAGE = ROOT / "replay_server/DATA.md"
CODE = [text for language, text in snippets(PAGE) if language == "python"]
SIGNATURE = (ColumnSpec("observation", "float32"), ColumnSpec("action", "int64"), ColumnSpec("reward", "float32"))
PRINTED = "training on 100 samples, 50 of them with action 1"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server for one test."""
    with ReplayServer(ReplayServerSettings(tmp_path / "replay")) as bound:
        yield bound.address


def test_the_page_runs_from_top_to_end(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every snippet, in order, on a server that differs by its port alone."""
    names: dict[str, Any] = {}
    for text in CODE:
        exec(compile(text.replace("127.0.0.1:8470", address), str(PAGE), "exec"), names)
    assert capsys.readouterr().out.strip() == PRINTED
    with names["client"] as client:
        tables = client.server_info().tables
    assert tables["experience"].inserted_steps == 1
    assert set(tables) == {"experience", "mine"}


def test_one_line_changes_for_a_server(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first example with that line prints the same, and the server has the samples."""
    (line,) = re.findall(r"^buffer = on_server\(.*\)$", PAGE.read_text(), flags=re.MULTILINE)
    changed, number = re.subn(r"^buffer = .*$", line, CODE[0], flags=re.MULTILINE)
    assert number == 1
    with ReplayClient(address) as client:
        exec(changed, {"client": client, "SIGNATURE": SIGNATURE, "on_server": on_server})
        assert client.server_info().tables["experience"].inserted_steps == 100
    assert capsys.readouterr().out.strip() == PRINTED


def test_links_lead_somewhere() -> None:
    """Every relative link names a file of the project."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()) if "://" not in link]
    assert len(links) > 2
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
