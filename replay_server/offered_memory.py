"""Memory that a client offers to a server on its machine, so that answers need not pass through gRPC."""

import mmap
import os
import secrets
import sys
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zero.wire import replay_pb2

FOLDER = Path("/dev/shm")  # noqa: S108 -- as the protocol has it
MOST_SLOTS = 256
SECRET_BYTES = 16

_SPARE_SLOTS = 6
"""More than there are answers in flight: for batches that the caller still has."""
_MOST_BYTES = 256 << 20  # what a server maps by default at most
_MOST_FAILURES = 3
_PAGE_BYTES = 4096


class Slot(NamedTuple):
    """A place for one answer, taken until nothing refers to its memory any more.

    Attributes:
        offer: what the server is to map.
        number: from 1 on.
        memory: uint8 [slot_bytes]; writable, as PyTorch wants views of it.
    """

    offer: replay_pb2.SharedMemory
    number: int
    memory: NDArray[np.uint8]


class OfferedMemory:
    """A file in /dev/shm with slots for answers, as long as an array over it lives.

    It is removed by the server when it maps it; also by this process when it ends or drops it before.
    """

    def __init__(self, slot_bytes: int, slots: int) -> None:
        """Make the file.

        Args:
            slot_bytes: of every slot; a multiple of the page size.
            slots: how many.

        Raises:
            OSError: there is no such folder, or not enough room in it.
        """
        size = slot_bytes * slots
        name = f"zero-{secrets.token_hex(16)}"
        path = FOLDER / name
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._remove = weakref.finalize(self, path.unlink, missing_ok=True)
        try:
            # Whoever writes where the folder has no room left dies of SIGBUS: all of it is taken now.
            os.posix_fallocate(file, 0, size)
            self._memory = mmap.mmap(file, size)
        except BaseException:
            self._remove()
            raise
        finally:
            os.close(file)
        secret = secrets.token_bytes(SECRET_BYTES)
        self._memory[:SECRET_BYTES] = secret
        self.offer = replay_pb2.SharedMemory(name=name, secret=secret, slot_bytes=slot_bytes, slots=slots)
        # Slots come back from the garbage collection, anywhere in any thread: no lock, and list methods are atomic. The
        # one that came back last is the next: caches still have it.
        self._free = list(range(slots, 0, -1))

    def take(self) -> Slot | None:
        """A free slot; None if all are taken."""
        if not self._free:
            return None
        number = self._free.pop()
        size = self.offer.slot_bytes
        memory = np.frombuffer(self._memory, np.uint8, size, (number - 1) * size)
        weakref.finalize(memory, self._free.append, number).atexit = False
        return Slot(self.offer, number, memory)

    def remove(self) -> None:
        """Remove the file, if the server has not; arrays over it stay as they are."""
        self._remove()


class AnswerSlots:
    """Slots for the answers of one stream: in new memory when a call has ended and another one has begun.

    One server's call maps a file, ever: so an answer that comes over gRPC although a slot was offered says that the
    memory is of no more use, and no belated write of a broken call can reach a slot that is used again.
    """

    def __init__(self, in_flight: int, *, enabled: bool) -> None:
        """For so many answers in flight; without `enabled` there are none."""
        self._slots = in_flight + _SPARE_SLOTS
        self._failures = 0 if enabled and sys.platform == "linux" else _MOST_FAILURES
        self._slot_bytes = 0
        self._memory: OfferedMemory | None = None

    def take(self) -> Slot | None:
        """A slot for the next answer; None if none is free, or the server takes none."""
        if self._memory is None and self._slot_bytes and self._failures < _MOST_FAILURES:
            slots = min(self._slots, MOST_SLOTS, _MOST_BYTES // self._slot_bytes)
            try:
                self._memory = OfferedMemory(self._slot_bytes, slots)
            except OSError:  # nothing like /dev/shm here, or it is full
                self._failures = _MOST_FAILURES
        return None if self._memory is None else self._memory.take()

    def was_used(self) -> None:
        """The server has answered in a slot."""
        self._failures = 0

    def was_not_used(self, slot: Slot | None, answer_bytes: int) -> None:
        """The server has answered over gRPC, or not at all (0 bytes)."""
        # Answers differ by some bytes. After a refusal nothing is offered until one tells how large they are.
        self._slot_bytes = (answer_bytes // _PAGE_BYTES + 2) * _PAGE_BYTES if answer_bytes else 0
        if slot is not None and self._memory is not None and slot.offer is self._memory.offer:
            self._failures += bool(answer_bytes)
            self.close()

    def close(self) -> None:
        """Take no more answers in this memory; those that came stay as they are."""
        if self._memory is not None:
            self._memory.remove()
            self._memory = None
