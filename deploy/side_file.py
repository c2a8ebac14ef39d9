"""A file beside a run that training can do without: a disk that refuses it is told of, and nothing else happens."""

from collections.abc import Callable
from pathlib import Path


class SideFile:
    """Writes one file in the folder of a run.

    Args:
        path: of the file.
        tell: told in one line when the disk begins to refuse, and when it takes the file again.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._is_refused = False

    def append(self, text: str) -> None:
        """Add to its end; makes it when first written to."""
        self._try(lambda: self._append(text))

    def replace(self, text: str) -> None:
        """Put this in its place, as a whole; not onto the disk: it is of no use after a crash of the machine."""
        self._try(lambda: self._replace(text))

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _replace(self, text: str) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._is_refused:
                self._tell(f"    cannot write {self._path}: {error.strerror}; training goes on without it")
            self._is_refused = True
            return
        if self._is_refused:
            self._tell(f"    {self._path} is written again")
        self._is_refused = False
