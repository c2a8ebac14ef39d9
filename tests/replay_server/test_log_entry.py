"""Headers of log entries: what goes in comes out, and not one byte of them changes unnoticed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_server.log_entry import EntryHeader, LogError, pack_header, unpack_header

digests = st.binary(min_size=16, max_size=16)
slots = st.lists(st.integers(0, 2**31 - 2), min_size=1, max_size=30)


@st.composite
def headers(draw: st.DrawFn) -> EntryHeader:
    """Any header; the slots are of any order, often in runs."""
    number = draw(st.integers(1, 5))
    lists = {"min_size": number, "max_size": number}
    runs = [np.arange(start, min(start + draw(st.integers(1, 9)), 2**31 - 1)) for start in draw(slots)]
    return EntryHeader(
        np.array(draw(st.lists(st.integers(0, 2**62), **lists)), np.int64),
        np.array(draw(st.lists(st.floats(0, 4e9), **lists))),
        draw(st.lists(digests, **lists)),
        draw(st.one_of(st.just(()), st.lists(digests, **lists))),
        np.concatenate(runs).astype(np.int32),
    )


@given(headers())
def test_what_was_packed_is_unpacked(header: EntryHeader) -> None:
    """Every field, of every header."""
    found = unpack_header(pack_header(header))
    assert (list(found.digests), list(found.written_digests)) == (list(header.digests), list(header.written_digests))
    for name in ("ordinals", "stored_at", "slots"):
        np.testing.assert_array_equal(getattr(found, name), getattr(header, name))
        assert getattr(found, name).dtype == getattr(header, name).dtype


@given(headers(), st.data())
def test_a_changed_or_missing_byte_is_noticed(header: EntryHeader, data: st.DataObject) -> None:
    """One flipped bit anywhere, or an end that is cut off."""
    packed = bytearray(pack_header(header))
    place = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(LogError):
        unpack_header(bytes(packed[:place]))
    packed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(LogError):
        unpack_header(bytes(packed))
