"""Tests of files that training can do without."""

from pathlib import Path

from deploy.figures import RunFigures
from deploy.following import Following
from deploy.roles import Addresses
from deploy.run_folder import RunFolder
from deploy.scrape import Scrape
from deploy.side_file import SideFile


def test_a_full_disk_is_told_of_once_and_so_is_its_end(tmp_path: Path) -> None:
    """Written and replaced; the file is whole or as it was."""
    for write in (SideFile.append, SideFile.replace):
        told: list[str] = []
        path = tmp_path / f"{write.__name__}.json"
        file = SideFile(path, told.append)
        full = path if write is SideFile.append else path.with_name(f".{path.name}.tmp")
        full.symlink_to("/dev/full")
        for text in ("one", "two"):
            write(file, text)
        assert told == [f"    cannot write {path}: No space left on device; training goes on without it"]
        full.unlink(missing_ok=True)
        write(file, "three")
        assert told[1:] == [f"    {path} is written again"]
        assert path.read_text() == "three"


def test_figures_that_cannot_be_noted_are_followed_all_the_same(tmp_path: Path) -> None:
    """A run does not end for them, nor does its end fail."""
    told: list[str] = []
    folder = RunFolder(tmp_path)
    folder.metrics_file.symlink_to("/dev/full")
    with Following(Addresses("127.0.0.1:1", "127.0.0.1:1"), folder, told.append) as following:
        following.figures = RunFigures().update(Scrape(0.0, {}))
    assert told == [f"    cannot write {folder.metrics_file}: No space left on device; training goes on without it"]
