"""Headers of log entries: what goes in comes out, and not one byte of them changes unnoticed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_server.log_entry import EntryHeader, LogError, pack_header, runs_of, slots_of, unpack_header


@st.composite
def headers(draw: st.DrawFn) -> EntryHeader:
    """Any header."""
    number = draw(st.integers(1, 5))
    lists = {"min_size": number, "max_size": number}
    runs = st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1))
    return EntryHeader(
        draw(st.lists(st.integers(0, 2**62), **lists)),
        draw(st.lists(st.floats(0, 4e9), **lists)),
        draw(st.lists(st.binary(min_size=16, max_size=16), **lists)),
        draw(st.lists(runs, min_size=1, max_size=20)),
    )


@settings(deadline=None)
@given(headers(), st.binary())
def test_what_was_packed_is_unpacked(header: EntryHeader, message: bytes) -> None:
    """Every field, of every header."""
    found = unpack_header(pack_header(header, message), message)
    assert [list(field) for field in found] == [list(field) for field in header]


@settings(deadline=None)
@given(headers(), st.binary(min_size=1), st.data())
def test_a_changed_or_missing_byte_is_noticed(header: EntryHeader, message: bytes, data: st.DataObject) -> None:
    """One flipped bit anywhere in the header or the message, or an end that is cut off."""
    packed = pack_header(header, message)
    for whole in (packed, message):
        place = data.draw(st.integers(0, len(whole) - 1))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << data.draw(st.integers(0, 7))
        for damaged in (whole[:place], bytes(flipped)):
            with pytest.raises(LogError):
                unpack_header(*((damaged, message) if whole is packed else (packed, damaged)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 9)), min_size=1, max_size=20))
def test_runs_stand_for_their_slots(runs: list[tuple[int, int]]) -> None:
    """In their order, whatever it is."""
    slots = np.concatenate([np.arange(first, first + length) for first, length in runs]).astype(np.int32)
    np.testing.assert_array_equal(slots_of(runs), slots)
    np.testing.assert_array_equal(slots_of(runs_of(slots)), slots)
    assert slots_of(runs).dtype == np.int32
    assert len(runs_of(slots)) <= len(runs)
