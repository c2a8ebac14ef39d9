"""An entry of the log as bytes: a header that says what the chunks are and where they live, then the message."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from replay_server.block import DIGEST_BYTES

_PREFIX = struct.Struct("<B?II")  # layout, whether written digests follow, chunks, runs of slots
_LAYOUT = 3
_CHECK_BYTES = 8
_INT64 = np.dtype("<i8")
_FLOAT64 = np.dtype("<f8")
_UINT32 = np.dtype("<u4")


class LogError(Exception):
    """The log holds what this server did not write; one line."""


@dataclass(frozen=True)
class EntryHeader:
    """What an entry holds besides its message.

    Attributes:
        ordinals: int64 [chunks].
        stored_at: float64 [chunks], Unix time.
        digests: of the chunks as they were inserted.
        written_digests: of the chunks as they are in the message, where it was written again after columns had been
            updated; else empty.
        slots: int32 [steps of all chunks], where they live.
    """

    ordinals: NDArray[np.int64]
    stored_at: NDArray[np.float64]
    digests: Sequence[bytes]
    written_digests: Sequence[bytes]
    slots: NDArray[np.int32]


def pack_header(header: EntryHeader) -> bytes:
    """The bytes of a header, which tell by themselves whether they are whole."""
    runs = _runs(header.slots)
    prefix = _PREFIX.pack(_LAYOUT, bool(header.written_digests), len(header.ordinals), len(runs))
    parts = (
        *(prefix, header.ordinals.astype(_INT64).tobytes(), header.stored_at.astype(_FLOAT64).tobytes()),
        *(*header.digests, *header.written_digests, runs.astype(_UINT32).tobytes()),
    )
    data = b"".join(parts)
    return data + xxhash.xxh3_64_digest(data)


def unpack_header(data: bytes) -> EntryHeader:
    """The header that the bytes hold.

    Raises:
        LogError: they are damaged, or of another layout.
    """
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(data) < _PREFIX.size + _CHECK_BYTES or xxhash.xxh3_64_digest(body) != check:
        raise LogError("its header does not have the checksum that it was written with")
    layout, again, number, num_runs = _PREFIX.unpack_from(body)
    if layout != _LAYOUT:
        raise LogError(f"it has layout {layout}, this version reads layout {_LAYOUT}")
    place = _PREFIX.size
    ordinals = np.frombuffer(body, _INT64, number, place).astype(np.int64)
    place += ordinals.nbytes
    stored_at = np.frombuffer(body, _FLOAT64, number, place).astype(np.float64)
    place += stored_at.nbytes
    digests = [body[i : i + DIGEST_BYTES] for i in range(place, len(body) - 8 * num_runs, DIGEST_BYTES)]
    runs = np.frombuffer(body, _UINT32, 2 * num_runs, len(body) - 8 * num_runs).reshape(num_runs, 2)
    return EntryHeader(ordinals, stored_at, digests[:number], digests[number:] if again else (), _slots(runs))


def _runs(slots: NDArray[np.int32]) -> NDArray[np.int64]:
    """First slot and number of slots of every run [runs, 2] of ascending slots."""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(slots) != 1) + 1))
    lengths = np.diff(np.append(starts, len(slots)))
    return np.stack((slots[starts].astype(np.int64), lengths), axis=1)


def _slots(runs: NDArray[np.uint32]) -> NDArray[np.int32]:
    starts, lengths = runs.astype(np.int64).T
    ends = np.cumsum(lengths)
    return (np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)).astype(np.int32)
