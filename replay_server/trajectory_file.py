"""A table's trajectories in a file, to take along and to put back anywhere; checked whole before any of it is used.

The format, version 1; numbers are little-endian:

    file  = "ZEROTRAJ", version u32, blocks
    block = kind u8, count u64, size u64, checksum [16], data [size]

The checksum is the xxh3_128 of kind, count, size and data. The kinds, in this order:

    1  one block: a zstd frame with the zero.v1.TableConfig of the table; count is 1
    2  any number: a zstd frame with `count` zero.v1.Trajectory messages, each after its length as a varint, which is
       what protobuf calls delimited
    3  one block, nothing follows it: no data; count is that of all trajectories
"""

import io
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import xxhash
import zstandard
from google.protobuf import proto
from google.protobuf.message import DecodeError

from zero.tables import TableConfig
from zero.trajectories import Trajectory
from zero.wire import codec, replay_pb2, trajectory_pb2
from zero.wire.codec import CodecError

FORMAT_VERSION = 1

_MAGIC = b"ZEROTRAJ"
_START = struct.Struct("<8sI")
_HEAD = struct.Struct("<BQQ16s")
_COUNTED = struct.Struct("<BQQ")
_CONFIG, _TRAJECTORIES, _END = 1, 2, 3
_BLOCK_BYTES = 4 << 20
_MAX_UNPACKED_BYTES = 1 << 30
_LEVEL = 3


class TrajectoryFileError(Exception):
    """The file cannot be written or used; one line that names the place and the remedy."""


class _Block(NamedTuple):
    """Part of a file; place is where it begins, in bytes."""

    place: int
    kind: int
    number: int
    data: bytes


def write_trajectory_file(path: Path, config: TableConfig, trajectories: Iterable[Trajectory]) -> int:
    """Write a new file, which is there when it is whole and not before; returns the number of trajectories.

    Raises:
        TrajectoryFileError: the file exists or cannot be written.
        CodecError: WRONG_SIGNATURE, a column has a dtype without a place on the wire.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        if path.exists():
            raise TrajectoryFileError(f"{path} exists; name a new file")
        with part.open("wb") as file:
            count = _write(file, config, trajectories)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise TrajectoryFileError(f"cannot write {path}: {error.strerror}; name another place") from None
    finally:
        part.unlink(missing_ok=True)
    return count


def _write(file: BinaryIO, config: TableConfig, trajectories: Iterable[Trajectory]) -> int:
    file.write(_START.pack(_MAGIC, FORMAT_VERSION))
    _write_block(file, _CONFIG, 1, codec.encode_table_config(config).SerializeToString())
    messages = io.BytesIO()
    held = total = 0
    for trajectory in trajectories:
        proto.serialize_length_prefixed(codec.encode_trajectory(trajectory), messages)
        held += 1
        total += 1
        if messages.tell() >= _BLOCK_BYTES:
            _write_block(file, _TRAJECTORIES, held, messages.getvalue())
            messages = io.BytesIO()
            held = 0
    if held:
        _write_block(file, _TRAJECTORIES, held, messages.getvalue())
    _write_block(file, _END, total, b"")
    return total


def _write_block(file: BinaryIO, kind: int, count: int, content: bytes) -> None:
    data = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(content) if content else b""
    file.write(_HEAD.pack(kind, count, len(data), _checksum(kind, count, data)))
    file.write(data)


def _checksum(kind: int, count: int, data: bytes) -> bytes:
    checksum = xxhash.xxh3_128(_COUNTED.pack(kind, count, len(data)))
    checksum.update(data)
    return checksum.digest()


class TrajectoryFile:
    """A file of trajectories; iterate over it to read them, as often as you like.

    Attributes:
        path: of the file.
        config: of the table that they come from.
        num_trajectories: in the file; a long one that came in chunks counts once for every chunk.

    Raises:
        TrajectoryFileError: it cannot be read, is none, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file once and checks all of it."""
        self.path = path
        try:
            with path.open("rb") as file:
                blocks = self._blocks(file)
                self.config = self._decode_config(next(blocks))
                *_, self.num_trajectories = (block.number for block in blocks)
        except OSError as error:
            raise TrajectoryFileError(f"cannot read {path}: {error.strerror}; name a file of trajectories") from None

    def __iter__(self) -> Iterator[Trajectory]:
        """The trajectories, in the order in which they were written.

        Raises:
            TrajectoryFileError: the file was changed meanwhile.
        """
        with self.path.open("rb") as file:
            for block in self._blocks(file):
                if block.kind == _TRAJECTORIES:
                    yield from self._decode_trajectories(block)

    def _blocks(self, file: BinaryIO) -> Iterator[_Block]:
        """All blocks in their order, checked one by one."""
        self._check_start(file.read(_START.size))
        size = os.fstat(file.fileno()).st_size
        expected, total = (_CONFIG,), 0
        while True:
            block = self._read_block(file, size)
            if block.kind not in expected:
                raise self._damaged(block.place, f"a block of kind {block.kind} is out of order")
            if block.kind == _END:
                break
            total += block.number if block.kind == _TRAJECTORIES else 0
            yield block
            expected = (_TRAJECTORIES, _END)
        if block.number != total:
            raise self._damaged(block.place, f"{block.number} trajectories were written, {total} are there")
        if file.tell() != size:
            raise self._damaged(file.tell(), "something follows the end")
        yield block

    def _check_start(self, start: bytes) -> None:
        magic, version = _START.unpack(start) if len(start) == _START.size else (start[:8], 0)
        if magic != _MAGIC:
            raise TrajectoryFileError(f"{self.path} is no file of trajectories; name one that was exported")
        if not 1 <= version <= FORMAT_VERSION:
            raise TrajectoryFileError(
                f"{self.path} has format {version}, this program knows 1 to {FORMAT_VERSION}; use a newer one"
            )

    def _read_block(self, file: BinaryIO, file_size: int) -> _Block:
        place = file.tell()
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise self._damaged(place, f"it ends after {file_size} bytes, before its last block")
        kind, count, size, checksum = _HEAD.unpack(head)
        if size > file_size - file.tell():
            raise self._damaged(place, f"the block has {size} bytes, the file ends after {file_size}")
        data = file.read(size)
        if _checksum(kind, count, data) != checksum:
            raise self._damaged(place, "the checksum of the block is wrong")
        return _Block(place, kind, count, data)

    def _decode_config(self, block: _Block) -> TableConfig:
        try:
            return codec.decode_table_config(replay_pb2.TableConfig.FromString(self._unpack(block)))
        except (CodecError, DecodeError) as error:
            raise self._damaged(block.place, f"the table's config: {error}") from None

    def _decode_trajectories(self, block: _Block) -> Iterator[Trajectory]:
        content = self._unpack(block)
        messages = io.BytesIO(content)
        for number in range(block.number):
            try:
                trajectory = codec.decode_trajectory(_next_message(messages), self.config.signature)
            except (CodecError, DecodeError, ValueError) as error:
                raise self._damaged(block.place, f"trajectory {number} of the block: {error}") from None
            yield trajectory
        if messages.tell() != len(content):
            raise self._damaged(block.place, f"more than {block.number} trajectories are there")

    def _unpack(self, block: _Block) -> bytes:
        try:
            size = zstandard.frame_content_size(block.data)
            if 0 <= size <= _MAX_UNPACKED_BYTES:
                return zstandard.ZstdDecompressor().decompress(block.data, size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self._damaged(block.place, f"no zstd frame: {error}") from None
        raise self._damaged(block.place, f"the block declares {size} bytes, at most {_MAX_UNPACKED_BYTES} are taken")

    def _damaged(self, place: int, what: str) -> TrajectoryFileError:
        return TrajectoryFileError(f"{self.path} is damaged at byte {place}: {what}; take another copy")


def _next_message(messages: io.BytesIO) -> trajectory_pb2.Trajectory:
    message = proto.parse_length_prefixed(trajectory_pb2.Trajectory, messages)
    if cast("trajectory_pb2.Trajectory | None", message) is None:  # at the end, whatever the stubs say
        raise ValueError("there is none")
    return message
