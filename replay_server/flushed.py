"""A stream as a context: it ends with everything acknowledged, or at once where an error leaves it."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class FlushedStream(ABC):
    """What is flushed, then closed."""

    @abstractmethod
    def flush(self) -> object:
        """Wait until everything is acknowledged."""

    @abstractmethod
    def close(self) -> None:
        """End; what is not acknowledged fails or is dropped."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self.close()
