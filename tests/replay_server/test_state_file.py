"""Files of states: they bring back what was written, or say why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.state_file import StateError, read_state, write_state

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(SCALARS, inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=50)
@given(value=VALUES)
def test_values_come_back_as_they_were(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is nested of plain values, with the same types."""
    path = tmp_path_factory.mktemp("state") / "file"
    write_state(path, "k", {"value": value})
    back = read_state(path, "k")["value"]
    assert repr(back) == repr(value)


def test_arrays_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    """Dtype, shape and values, one by one and many of one form; what was read is the reader's own."""
    arrays: list[Any] = [np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 4)), np.array(3.5), np.float32(2.5)]
    many = [np.full(3, number, np.float16) for number in range(9)]
    tensor = torch.arange(4.0, requires_grad=True)
    write_state(tmp_path / "s", "k", {"arrays": arrays, "many": many, "tensor": tensor})
    back = read_state(tmp_path / "s", "k")
    for one, other in zip([*arrays, *many], [*back["arrays"], *back["many"]], strict=True):
        assert (one.dtype, one.shape, type(one)) == (other.dtype, other.shape, type(other))
        np.testing.assert_array_equal(one, other)
    back["many"][0][0] = 7
    assert torch.equal(back["tensor"], torch.arange(4.0))


class Runs:
    """What pickle would run."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize("value", [Runs(), np.array([Runs()]), {1, 2}, np.array(["text"])])
def test_what_would_need_code_is_refused(value: Any, tmp_path: Path) -> None:
    """With the place where it is, and nothing is left on the disk."""
    with pytest.raises(TypeError, match=r"k\['value'\]\[0\] is .* not saved"):
        write_state(tmp_path / "s", "k", {"value": [value]})
    assert list(tmp_path.iterdir()) == []


def test_damage_other_versions_and_other_kinds_are_refused(tmp_path: Path) -> None:
    """Every single flipped byte is noticed, and so is every truncation."""
    path = tmp_path / "s"
    write_state(path, "k", {"value": [1.5, b"abc"]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StateError):
            read_state(path, "k")
        path.write_bytes(whole[:place])
        with pytest.raises(StateError):
            read_state(path, "k")
    path.write_bytes(whole)
    with pytest.raises(StateError, match="of a k, not of a other"):
        read_state(path, "other")
    assert read_state(path, "k") == {"value": [1.5, b"abc"]}


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks on the way, the file is as it was and nothing lies beside it."""
    write_state(tmp_path / "s", "k", {"value": 1})

    def refuse(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="full"):
        write_state(tmp_path / "s", "k", {"value": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert read_state(tmp_path / "s", "k") == {"value": 1}
