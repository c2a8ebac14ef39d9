"""Tests of the file of trajectories: what is written comes back, what is damaged is refused with the place."""

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay_server.trajectory_file import FORMAT_VERSION, TrajectoryFile, TrajectoryFileError, write_trajectory_file
from tests.replay_server.played import played, table_config
from zero.tables import EpisodeEnd, RateLimiterConfig, SequenceRule
from zero.trajectories import ColumnSpec, Trajectory

HEAD = struct.Struct("<BQQ16s")
CONFIG = table_config(
    "games",
    signature=(*table_config().signature[:3], ColumnSpec("policy", "float16", (4,), minimum=0.0, maximum=1.0)),
    selector="prioritized",
    remover="max_heap",
    max_times_sampled=3,
    rate_limiter=RateLimiterConfig(7, 2.0, 50.0),
    sequences=SequenceRule(4, 2, EpisodeEnd.TRUNCATE),
)


def assert_same(got: Trajectory, expected: Trajectory) -> None:
    """Bit by bit."""
    bare = {"columns": {}, "priorities": None}
    assert replace(got, **bare) == replace(expected, **bare)
    assert_same_arrays(got.columns, expected.columns)
    if expected.priorities is None:
        assert got.priorities is None
    else:
        assert got.priorities is not None
        assert_same_arrays({"p": got.priorities}, {"p": expected.priorities})


def assert_same_arrays(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Names, dtypes, shapes and bytes."""
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()


chunks = st.builds(
    lambda number, steps, first_step, is_open, prioritized: replace(
        played(number, steps),
        first_step=first_step,
        open=is_open,
        terminated=not is_open,
        priorities=np.random.default_rng(number).random(steps, np.float32) if prioritized else None,
        stats={"score": number / 3} if number % 2 else {},
    ),
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.integers(0, 2**63),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(chunks, max_size=8))
def test_what_is_written_comes_back(tmp_path: Path, trajectories: list[Trajectory]) -> None:
    """The table's config and every trajectory, in their order, bit by bit, as often as asked for."""
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    assert write_trajectory_file(path, CONFIG, trajectories) == len(trajectories)
    file = TrajectoryFile(path)
    assert (file.config, file.num_trajectories) == (CONFIG, len(trajectories))
    for _ in range(2):
        for got, expected in zip(file, trajectories, strict=True):
            assert_same(got, expected)


def test_many_blocks_come_back(tmp_path: Path) -> None:
    """More than one block holds is no less exact."""
    wide = (ColumnSpec("state", "float64", (1 << 16,)),)
    config = replace(CONFIG, signature=wide, sequences=SequenceRule())
    rng = np.random.default_rng(1)
    trajectories = [replace(played(n), columns={"state": rng.random((2, 1 << 16))}) for n in range(10)]
    write_trajectory_file(tmp_path / "file", config, trajectories)
    assert len(block_places((tmp_path / "file").read_bytes())) > 4
    for got, expected in zip(TrajectoryFile(tmp_path / "file"), trajectories, strict=True):
        assert_same(got, expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with 30 trajectories."""
    write_trajectory_file(tmp_path / "good", CONFIG, [played(n) for n in range(30)])
    return tmp_path / "good"


def block_places(data: bytes) -> list[int]:
    """Where blocks begin, and the end."""
    places = [12]
    while places[-1] < len(data):
        *_, size, _ = HEAD.unpack_from(data, places[-1])
        places.append(places[-1] + HEAD.size + size)
    return places


def refusal(path: Path, data: bytes) -> str:
    """Why a file with this content is refused."""
    path.write_bytes(data)
    with pytest.raises(TrajectoryFileError) as caught:
        TrajectoryFile(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_any_wrong_byte_is_found_with_its_place(path: Path) -> None:
    """Wherever a byte differs, the block is named in which it stands, before anything is read from the file."""
    good = path.read_bytes()
    places = block_places(good)
    rng = np.random.default_rng(0)
    for at in [*range(12, 60), *rng.integers(12, len(good), 100).tolist(), len(good) - 1]:
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(rng.integers(8))
        place = max(begin for begin in places[:-1] if begin <= at)
        assert f"damaged at byte {place}: " in refusal(path, bytes(damaged))


def test_a_cut_file_is_refused_wherever_it_was_cut(path: Path) -> None:
    """Also between two blocks."""
    good = path.read_bytes()
    for length in (*block_places(good)[:-1], len(good) - 1, len(good) - 40, 13, 30):
        assert re.search(r"damaged at byte \d+: .*ends after \d+", refusal(path, good[:length]))
    for length in (0, 7, 11):
        refusal(path, good[:length])


def test_what_is_added_taken_out_or_turned_round_is_found(path: Path) -> None:
    """Blocks that are right by themselves must be all there, in their order, with nothing behind them."""
    good = path.read_bytes()
    config, trajectories, end, _ = block_places(good)
    assert "follows the end" in refusal(path, good + b"x")
    assert "30 trajectories were written, 0 are there" in refusal(path, good[:trajectories] + good[end:])
    assert "60 are there" in refusal(path, good[:end] + good[trajectories:])
    assert "out of order" in refusal(path, good[:config] + good[trajectories:])
    assert "out of order" in refusal(path, good[:config] + good[end:])


def test_another_file_and_a_newer_version_are_told_apart(path: Path) -> None:
    """Each with its remedy."""
    good = path.read_bytes()
    assert "no file of trajectories" in refusal(path, b"PK\x03\x04" + good)
    assert "use a newer one" in refusal(path, good[:8] + struct.pack("<I", FORMAT_VERSION + 1) + good[12:])
    with pytest.raises(TrajectoryFileError, match="No such file"):
        TrajectoryFile(path.with_name("nowhere"))
    with pytest.raises(TrajectoryFileError, match="Is a directory"):
        TrajectoryFile(path.parent)


def test_a_frame_that_unpacks_to_too_much_is_not_unpacked(path: Path) -> None:
    """A block says how large it is before memory is taken for it."""
    good = path.read_bytes()
    _, trajectories, end, _ = block_places(good)
    compressor = zstandard.ZstdCompressor().compressobj(size=(1 << 30) + 1)
    bomb = compressor.compress(bytes(1000)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    checksum = xxhash.xxh3_128(struct.pack("<BQQ", 2, 30, len(bomb)) + bomb).digest()
    path.write_bytes(good[:trajectories] + HEAD.pack(2, 30, len(bomb), checksum) + bomb + good[end:])
    with pytest.raises(TrajectoryFileError, match="declares 1073741825 bytes"):
        list(TrajectoryFile(path))


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    """What fails while it is written leaves nothing; what is there is not overwritten."""

    def failing():
        yield played(1)
        raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="the server is gone"):
        write_trajectory_file(tmp_path / "file", CONFIG, failing())
    assert list(tmp_path.iterdir()) == []
    write_trajectory_file(tmp_path / "file", CONFIG, [])
    before = (tmp_path / "file").read_bytes()
    with pytest.raises(TrajectoryFileError, match="exists"):
        write_trajectory_file(tmp_path / "file", CONFIG, [played(1)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == before
    with pytest.raises(TrajectoryFileError, match="No such file"):
        write_trajectory_file(tmp_path / "nowhere" / "file", CONFIG, [])
