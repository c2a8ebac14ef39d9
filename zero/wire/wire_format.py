"""The protobuf wire format by hand: fields written as bytes, messages walked without copying what they hold.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zero.wire.codec import CodecError, Reason

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_MOST_FIELDS = 100_000  # of one message: far more than any that makes sense

Piece = bytes | memoryview


def varint(value: int) -> bytes:
    """A number as a varint.

    Raises:
        ValueError: it is negative or has more than 64 bits.
    """
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} is not within 0 to 2^64 - 1")
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def number(field: int, value: int) -> bytes:
    """A varint field; nothing for 0, which is what its absence means."""
    return varint(field << 3) + varint(value) if value else b""


def head(field: int, size: int) -> bytes:
    """What comes before the `size` bytes of a length-delimited field."""
    return varint(field << 3 | BYTES) + varint(size)


def delimited(field: int, value: bytes) -> bytes:
    """A length-delimited field; nothing if it is empty."""
    return head(field, len(value)) + value if value else b""


def packed(field: int, values: Sequence[int]) -> bytes:
    """A repeated field of varints; nothing if it is empty."""
    return delimited(field, b"".join(map(varint, values)))


class Pieces:
    """A message in pieces, to be joined once: a large piece is copied once, however deep it stands.

    Attributes:
        pieces: in their order.
        size: of all in bytes.
    """

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.size = 0

    def add(self, *pieces: Piece) -> None:
        """Append pieces."""
        for piece in pieces:
            self.pieces.append(piece)
            self.size += len(piece)

    def add_message(self, field: int, message: "Pieces") -> None:
        """Append another message as a field."""
        self.add(head(field, message.size))
        self.pieces += message.pieces
        self.size += message.size

    def join(self) -> bytes:
        """The message."""
        return b"".join(self.pieces)


class Field(NamedTuple):
    """A field as it stands in a message.

    Attributes:
        number: of the .proto.
        kind: its wire type.
        value: of a varint; else 0.
        start: where the bytes of any other begin.
        stop: where they end.
    """

    number: int
    kind: int
    value: int
    start: int
    stop: int

    def of_kind(self, kind: int) -> "Field":
        """The field itself.

        Raises:
            CodecError: BAD_MESSAGE, it has another wire type.
        """
        if self.kind != kind:
            raise malformed(f"field {self.number} has wire type {self.kind}, not {kind}")
        return self


def malformed(what: str) -> CodecError:
    """BAD_MESSAGE."""
    return CodecError(Reason.BAD_MESSAGE, f"malformed message: {what}")


def _read_varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = shift = 0
    while at < stop:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise malformed("a varint of more than ten bytes")
    raise malformed("cut short inside of a varint")


def read_fields(data: bytes, at: int, stop: int) -> Iterator[Field]:
    """The fields of the message that stands at `at` to `stop`, in their order.

    Raises:
        CodecError: BAD_MESSAGE.
    """
    for _ in range(_MOST_FIELDS):
        if at == stop:
            return
        tag, at = _read_varint(data, at, stop)
        field, kind = tag >> 3, tag & 7
        value, start = 0, at
        if kind == VARINT:
            value, at = _read_varint(data, at, stop)
        else:
            size, start = _size(data, at, stop, kind)
            at = start + size
        if not field or at > stop:
            raise malformed(f"field {field} goes beyond the end")
        yield Field(field, kind, value, start, at)
    raise malformed(f"more than {_MOST_FIELDS} fields")


def _size(data: bytes, at: int, stop: int, kind: int) -> tuple[int, int]:
    """How many bytes a field has that is no varint, and where they begin."""
    if kind == BYTES:
        return _read_varint(data, at, stop)
    if kind == FIXED64:
        return 8, at
    if kind == FIXED32:
        return 4, at
    raise malformed(f"wire type {kind}")


def signed(value: int) -> int:
    """The int32 or int64 that a varint stands for."""
    return value - (1 << 64) if value >> 63 else value


def read_text(data: bytes, field: Field) -> str:
    """A string field.

    Raises:
        CodecError: BAD_MESSAGE.
    """
    field.of_kind(BYTES)
    try:
        return str(data[field.start : field.stop], "utf-8")
    except UnicodeDecodeError:
        raise malformed(f"field {field.number} is no text") from None


def read_numbers(data: bytes, field: Field) -> list[int]:
    """The int32 or int64 values of a repeated field: one, or packed ones.

    Raises:
        CodecError: BAD_MESSAGE.
    """
    if field.kind == VARINT:
        return [signed(field.value)]
    field.of_kind(BYTES)
    values: list[int] = []
    at = field.start
    while at < field.stop:
        value, at = _read_varint(data, at, field.stop)
        values.append(signed(value))
    return values
