"""Memory of a client on this machine, mapped so that answers are written there."""

import hmac
import mmap
import os
import re
import stat
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from replay_server.credentials import is_loopback
from replay_server.offered_memory import FOLDER, MOST_SLOTS, SECRET_BYTES
from zero.wire import replay_pb2

_NAME = re.compile(r"zero-[0-9a-f]{32}")
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class MappedMemory:
    """The slots that the requests of one call name; to be used in one thread."""

    def __init__(self, peer: str, most_bytes: int) -> None:
        """Nothing is mapped yet.

        Args:
            peer: of the call, in gRPC's words; what others than those on loopback offer is not mapped.
            most_bytes: of a file.
        """
        self._is_local = _is_local(peer)
        self._most_bytes = most_bytes
        self._offer = replay_pb2.SharedMemory()
        self._memory: mmap.mmap | None = None

    def slot(self, request: replay_pb2.SampleStreamRequest) -> NDArray[np.uint8] | None:
        """The memory uint8 [slot_bytes] for an answer; None if it is to go over gRPC."""
        if not request.slot or not self._is_local:
            return None
        offer = request.shared_memory
        if self._memory is None or offer != self._offer:
            memory = _claim(offer, self._most_bytes)
            if memory is None:
                return None
            self._offer, self._memory = offer, memory
        if not 1 <= request.slot <= offer.slots:
            return None
        return np.frombuffer(self._memory, np.uint8, offer.slot_bytes, (request.slot - 1) * offer.slot_bytes)

    def close(self) -> None:
        """Unmap; nothing may be written to a slot any more."""
        self._memory = None


def _is_local(peer: str) -> bool:
    kind, _, address = peer.partition(":")
    return kind == "unix" or (kind in ("ipv4", "ipv6") and is_loopback(unquote(address).rpartition(":")[0]))


def _claim(offer: replay_pb2.SharedMemory, most_bytes: int) -> mmap.mmap | None:
    """Map a file and remove it: no other call can map it, and nothing of it is left when both processes have ended."""
    size = offer.slot_bytes * offer.slots
    if not _NAME.fullmatch(offer.name) or not 1 <= offer.slots <= MOST_SLOTS or not SECRET_BYTES <= size <= most_bytes:
        return None
    try:
        file = os.open(FOLDER / offer.name, _FILE)
    except OSError:
        return None
    try:
        return _map(file, offer, size)
    except OSError:  # no more mappings, or another call was faster
        return None
    finally:
        os.close(file)


def _map(file: int, offer: replay_pb2.SharedMemory, size: int) -> mmap.mmap | None:
    status = os.fstat(file)
    # Writing into a hole would take room that /dev/shm may not have, and end this process with SIGBUS.
    whole = status.st_size == size and status.st_blocks * 512 >= size
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or not whole or status.st_nlink != 1:
        return None
    # Other users see the names of files, not what is in them.
    if not hmac.compare_digest(os.pread(file, SECRET_BYTES, 0), offer.secret):
        return None
    (FOLDER / offer.name).unlink()
    return mmap.mmap(file, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
