"""Files that hold the state of buffers: written whole or not at all, versioned, checksummed, nothing in them is run.

A file is MAGIC, the version and the sha256 of all that follows: the length of a JSON tree, the tree, and the bytes of
its arrays. JSON values stand for themselves; whatever else a sample may hold is an object with one key that names it.
"""

import hashlib
import json
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zero.trajectories import DTYPES

MAGIC = b"ZERODATA"
VERSION = 1
_HEADER = struct.Struct("<8sI32s")
_LENGTH = struct.Struct("<Q")
_PLAIN = (bool, int, float, str, type(None))
_FEWEST_TO_STACK = 4


class StateError(RuntimeError):
    """A state that is damaged, of another version or of another kind; one line with the reason."""


def write_state(path: Path, kind: str, state: Mapping[str, Any]) -> None:
    """Write a state; a crash at any moment leaves the file as it was before, or as it is now.

    Args:
        path: of the file; its folder is created if need be.
        kind: what it is the state of; `read_state` asks for the same.
        state: values of None, bool, int, float, str, bytes, list, tuple, dict, NumPy arrays and numbers, tensors.

    Raises:
        TypeError: a value of another type; the text says where.
        OSError: the disk refused.
    """
    buffers: list[bytes] = []
    tree = json.dumps({"kind": kind, "state": _Encoder(buffers).encode(dict(state), kind)}).encode()
    body = b"".join((_LENGTH.pack(len(tree)), tree, *buffers))
    header = _HEADER.pack(MAGIC, VERSION, hashlib.sha256(body).digest())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def read_state(path: Path, kind: str) -> dict[str, Any]:
    """The state in a file.

    Raises:
        StateError: it is no such file, damaged, or of another version or kind.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if len(content) < _HEADER.size + _LENGTH.size or not content.startswith(MAGIC):
        raise StateError(f"{path} is no state of a buffer")
    _, version, digest = cast("tuple[bytes, int, bytes]", _HEADER.unpack_from(content))
    if version != VERSION:
        raise StateError(f"{path} is of version {version}, this program reads {VERSION}")
    body = memoryview(content)[_HEADER.size :]
    if hashlib.sha256(body).digest() != digest:
        raise StateError(f"{path} is damaged: its content does not match its checksum")
    (length,) = cast("tuple[int]", _LENGTH.unpack_from(body))
    tree = json.loads(bytes(body[_LENGTH.size : _LENGTH.size + length]))
    if tree["kind"] != kind:
        raise StateError(f"{path} is the state of a {tree['kind']}, not of a {kind}")
    return _Decoder(body[_LENGTH.size + length :]).decode(tree["state"])


def flush_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Encoder:
    """Makes a JSON tree of values, and notes the bytes beside it."""

    def __init__(self, buffers: list[bytes]) -> None:
        self._buffers = buffers
        self._size = 0

    def encode(self, value: Any, where: str) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, bytes):
            return {"bytes": [self._note(value), len(value)]}
        if isinstance(value, list):
            return self._encode_list(cast("list[Any]", value), where)
        if type(value) is tuple:
            return {"tuple": [self.encode(inner, where) for inner in cast("tuple[Any, ...]", value)]}
        if isinstance(value, Mapping):
            pairs = cast("Mapping[Any, Any]", value).items()
            return {"dict": [[self.encode(k, where), self.encode(v, f"{where}[{k!r}]")] for k, v in pairs]}
        return self._encode_array(value, where)

    def _encode_list(self, values: list[Any], where: str) -> Any:
        """Arrays of one shape go together: one of each would be mostly words about it."""
        first = values[0] if len(values) >= _FEWEST_TO_STACK else None
        if isinstance(first, np.ndarray) and first.dtype.name in DTYPES:
            form = (first.dtype, first.shape)
            if all(isinstance(one, np.ndarray) and (one.dtype, one.shape) == form for one in values):
                return {"stack": self._describe(np.stack(values))}
        return [self.encode(inner, f"{where}[{i}]") for i, inner in enumerate(values)]

    def _encode_array(self, value: Any, where: str) -> Any:
        tag = "array" if isinstance(value, np.ndarray) else "number" if isinstance(value, np.generic) else "tensor"
        tensor = cast(Any, value)
        if tag == "tensor":
            if not (hasattr(value, "detach") and hasattr(value, "numpy")):
                raise TypeError(f"{where} is a {type(value).__name__}, which is not saved: collect arrays or numbers")
            value = tensor.detach().cpu().numpy()
        array = np.asarray(value)
        if array.dtype.name not in DTYPES:
            raise TypeError(f"{where} is an array of {array.dtype}, which is not saved: give it a dtype of numbers")
        return {tag: self._describe(array)}

    def _describe(self, array: NDArray[np.generic]) -> list[Any]:
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        return [array.dtype.name, list(array.shape), self._note(data)]

    def _note(self, data: bytes) -> int:
        start = self._size
        self._buffers.append(data)
        self._size += len(data)
        return start


class _Decoder:
    """Makes values of a JSON tree and the bytes beside it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def decode(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.decode(inner) for inner in cast("list[Any]", tree)]
        if not isinstance(tree, dict):
            return tree
        ((tag, content),) = cast("dict[str, Any]", tree).items()
        if tag == "dict":
            return {self.decode(key): self.decode(value) for key, value in content}
        if tag == "tuple":
            return tuple([self.decode(inner) for inner in content])
        if tag == "bytes":
            start, length = content
            return bytes(self._data[start : start + length])
        return self._decode_array(tag, content)

    def _decode_array(self, tag: str, content: list[Any]) -> Any:
        name, shape, start = content
        dtype = np.dtype(name).newbyteorder("<")
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(self._data, dtype, count, start) if count else np.empty(0, dtype)
        array = flat.reshape(shape).astype(name, copy=True)
        if tag == "stack":
            return list(array)
        if tag == "number":
            return array[()]
        return _tensor(array) if tag == "tensor" else array


def _tensor(array: NDArray[np.generic]) -> Any:
    """A tensor, by the PyTorch that the program has loaded: the replay server itself has none."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        raise StateError("the state holds tensors: import torch before loading it")
    return torch.from_numpy(array)
