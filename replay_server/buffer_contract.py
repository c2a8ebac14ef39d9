"""The contract of a buffer as a test that anyone can run on theirs: `check_buffer(MyBuffer, samples, folder)`."""

from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np

from replay_server.data_buffer import DataBuffer


class BufferContractError(AssertionError):
    """A buffer breaks a property that data users rely on; the text names it."""


def check_buffer(make: Callable[[], DataBuffer[Any, Any]], samples: Sequence[Any], folder: Path) -> None:
    """Fill a buffer and check what the interface promises.

    Args:
        make: a new, empty buffer; always the same, its generator's seed included.
        samples: different ones that it takes, more than it stores.
        folder: an empty one, for its state.

    Raises:
        BufferContractError: the first broken property.
    """
    buffer = make()
    _require(len(buffer) == 0, "a new buffer must be empty")
    _check_bounds(buffer)
    for number, sample in enumerate(samples, 1):
        buffer.check(sample)
        buffer.add(sample)
        _require(len(buffer) <= number, "a buffer must not hold more than was added")
        _require(buffer.max_size is None or len(buffer) <= buffer.max_size, "a buffer must not outgrow max_size")
    _check_reading(buffer, samples)
    _check_saving(make, buffer, samples, folder)


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise BufferContractError(broken)


def _check_bounds(buffer: DataBuffer[Any, Any]) -> None:
    bound = buffer.max_queue_size
    _require(bound is None or bound >= 0, "max_queue_size must be None or not negative")


def _check_reading(buffer: DataBuffer[Any, Any], samples: Sequence[Any]) -> None:
    before = len(buffer)
    data = buffer.get_data()
    _require(_same(data, buffer.get_data()), "get_data must change nothing")
    _require(len(buffer) == before, "get_data must change nothing, its length neither")
    _empty(data)
    _require(len(buffer) == before, "what get_data returned is the caller's: emptying it must not empty the buffer")
    whole = [value for piece in buffer.snapshot(max(1, before // 3)) for value in _listed(piece)]
    _require(_same(whole, _listed(buffer.get_data())), "a snapshot in pieces must be what get_data gives")
    for name in buffer.collecting_data_names or ():
        lacking = {key: value for key, value in samples[0].items() if key != name}
        try:
            buffer.check(lacking)
        except KeyError:
            continue
        raise BufferContractError(f"check must refuse a sample without {name!r}")


def _check_saving(
    make: Callable[[], DataBuffer[Any, Any]], buffer: DataBuffer[Any, Any], samples: Sequence[Any], folder: Path
) -> None:
    path = folder / "buffer"
    try:
        buffer.save_state(path)
    except NotImplementedError:
        _require(not path.exists(), "a buffer that cannot be saved must leave nothing behind")
        return
    loaded = make()
    loaded.load_state(path)
    _require(_same(buffer.get_data(), loaded.get_data()), "load_state must bring back what was saved")
    for sample in samples:
        buffer.add(sample)
        loaded.add(sample)
    _require(_same(buffer.get_data(), loaded.get_data()), "a loaded buffer must go on as the saved one does")


def _listed(data: Any) -> list[Any]:
    """The samples of a list, or of a dict of lists."""
    if isinstance(data, Mapping):
        columns = cast("Mapping[str, Sequence[Any]]", data)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return list(data)


def _empty(data: Any) -> None:
    """Empty whatever can be."""
    for values in cast("Mapping[Any, Any]", data).values() if isinstance(data, Mapping) else ():
        _empty(values)
    clear: Callable[[], None] | None = getattr(data, "clear", None)
    if clear is not None:
        clear()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        ours, theirs = cast("Mapping[Any, Any]", one), cast("Mapping[Any, Any]", other)
        return ours.keys() == theirs.keys() and all(_same(value, theirs[key]) for key, value in ours.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = cast("tuple[Sequence[Any], Sequence[Any]]", (one, other))
        return len(cast(Sized, one)) == len(cast(Sized, other)) and all(map(_same, *pairs))
    return bool(one == other)
