"""An entry of the log as bytes: a header that says what the chunks are and where they live, then the message."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from replay_server.block import DIGEST_BYTES

_PREFIX = struct.Struct("<BQII")  # layout, checksum of the message, chunks, runs of slots
_LAYOUT = 3
_CHECK = struct.Struct("<Q")


class LogError(Exception):
    """The log holds what this server did not write; one line."""


class EntryHeader(NamedTuple):
    """What an entry holds besides its message.

    Attributes:
        ordinals: of its chunks.
        stored_at: of each chunk, Unix time.
        digests: of each chunk, as it was inserted.
        runs: first slot and number of slots of every run of slots in which the steps of the chunks live, in order.
    """

    ordinals: Sequence[int]
    stored_at: Sequence[float]
    digests: Sequence[bytes]
    runs: Sequence[tuple[int, int]]


def pack_header(header: EntryHeader, message: bytes) -> bytes:
    """The bytes of a header, which tell by themselves whether they and the message are whole."""
    number, num_runs = len(header.ordinals), len(header.runs)
    prefix = _PREFIX.pack(_LAYOUT, xxhash.xxh3_64_intdigest(message), number, num_runs)
    numbers = struct.pack(f"<{number}q{number}d", *header.ordinals, *header.stored_at)
    runs = struct.pack(f"<{2 * num_runs}I", *(value for run in header.runs for value in run))
    data = b"".join((prefix, numbers, runs, *header.digests))
    return data + _CHECK.pack(xxhash.xxh3_64_intdigest(data))


def unpack_header(data: bytes, message: bytes) -> EntryHeader:
    """The header that the bytes hold.

    Raises:
        LogError: they or the message are damaged, or of another layout.
    """
    body = data[: -_CHECK.size]
    if len(body) < _PREFIX.size or data[-_CHECK.size :] != _CHECK.pack(xxhash.xxh3_64_intdigest(body)):
        raise LogError("its header does not have the checksum that it was written with")
    layout, check, number, num_runs = _PREFIX.unpack_from(body)
    if layout != _LAYOUT:
        raise LogError(f"it has layout {layout}, this version reads layout {_LAYOUT}")
    if xxhash.xxh3_64_intdigest(message) != check:
        raise LogError("its message does not have the checksum that it was written with")
    values = struct.unpack_from(f"<{number}q{number}d{2 * num_runs}I", body, _PREFIX.size)
    runs = values[2 * number :]
    first = _PREFIX.size + 16 * number + 8 * num_runs
    digests = [body[i : i + DIGEST_BYTES] for i in range(first, len(body), DIGEST_BYTES)]
    return EntryHeader(
        values[:number], values[number : 2 * number], digests, list(zip(runs[::2], runs[1::2], strict=True))
    )


def runs_of(slots: NDArray[np.int32]) -> list[tuple[int, int]]:
    """First slot and number of slots of every run of ascending neighbours."""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(slots) != 1) + 1))
    lengths = np.diff(np.append(starts, len(slots)))
    return list(zip(slots[starts].tolist(), lengths.tolist(), strict=True))


def slots_of(runs: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """The slots of runs, one after the other."""
    starts, lengths = np.array(runs, np.int64).reshape(-1, 2).T
    ends = np.cumsum(lengths)
    return (np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)).astype(np.int32)
