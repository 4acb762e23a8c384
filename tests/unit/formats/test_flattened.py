"""The flattened form: its fixed bytes, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FormatError, TruncatedError
from stages.formats import flattened
from tests.support.kdump_writer import flatten


def test_header_and_end_agree_with_the_test_writer() -> None:
    """A stream without records is the header and the end record, byte for byte."""
    assert flatten(b"") == flattened.HEADER + flattened.END_RECORD


def test_record_header_is_big_endian() -> None:
    """Offset, then size, as the format's description says."""
    assert flattened.record_header(0x0102, 0x03) == bytes(6) + b"\1\2" + bytes(7) + b"\3"


@settings(deadline=None)
@given(offset=st.integers(0, 2**62), size=st.integers(1, 2**40))
def test_record_header_round_trip(offset: int, size: int) -> None:
    """A record's place and size survive packing."""
    packed = flattened.record_header(offset, size)

    assert flattened.RECORD.unpack(packed) == (offset, size)


@pytest.mark.parametrize(("at", "field"), [(23, "type"), (31, "version")])
def test_other_types_and_versions_are_refused(at: int, field: str) -> None:
    """A stream of a kind that nobody has defined yet is not guessed at."""
    head = bytearray(flattened.HEADER)
    head[at] = 2

    with pytest.raises(FormatError, match=f"{field} at file offset"):
        flattened.check_header(head, 5000)


def test_cut_header_is_refused() -> None:
    """A stream shorter than its header is cut."""
    with pytest.raises(TruncatedError, match="cut at 100 bytes"):
        flattened.check_header(flattened.HEADER[:100], 100)
