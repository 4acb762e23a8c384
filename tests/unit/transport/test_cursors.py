"""Cursors: a dump as the writer makes it fits, everything else is refused before it is written."""

from __future__ import annotations

import pytest

from pipeline.flow.items import ChunkKind
from stages.transport.cursors import MAX_GAP, MAX_HEAD, Cursors
from stages.transport.errors import ProtocolError

HEAD, BITMAP, DESCRIPTORS, DATA = ChunkKind
MIB = 1 << 20


def cursors(*chunks: tuple[ChunkKind, int, int], data_start: int = 20_000) -> Cursors:
    """After `chunks`, each kind, offset and length."""
    made = Cursors(data_start, 10 * MIB)
    for chunk in chunks:
        made.advance(*chunk)
    return made


def test_a_dump() -> None:
    """Head twice, bitmaps, descriptors in step with data, gaps of alignment."""
    made = cursors(
        (HEAD, 0, 5_000),
        (BITMAP, 8_192, 4_096),
        (DATA, 20_000, 700),
        (DESCRIPTORS, 12_288, 7_000),
        (DATA, 20_700, 1),
        (HEAD, 0, 5_000),
    )
    made.finish()

    assert made.size == 20_701


def test_large_head_in_two_chunks() -> None:
    """A head goes on where its first chunk ended."""
    made = cursors((HEAD, 0, 3_000), (HEAD, 3_000, 2_000), (BITMAP, 5_000, 15_000))
    made.finish()

    assert made.size == 20_000


@pytest.mark.parametrize(
    ("before", "chunk"),
    [
        ([], (DATA, 19_999, 1)),
        ([], (DATA, 20_001, 1)),
        ([(DATA, 20_000, 10)], (DATA, 20_005, 10)),
        ([], (DATA, 20_000, 10 * MIB)),
        ([], (BITMAP, 19_000, 1_001)),
        ([(BITMAP, 4_096, 100)], (DESCRIPTORS, 4_100, 100)),
        ([], (HEAD, 0, 20_001)),
        ([], (HEAD, 4, 10)),
        ([(HEAD, 0, 10)], (HEAD, 9, 10)),
    ],
)
def test_out_of_place(
    before: list[tuple[ChunkKind, int, int]], chunk: tuple[ChunkKind, int, int]
) -> None:
    """Gaps, overlaps and areas left are all refused."""
    with pytest.raises(ProtocolError, match="out of place"):
        cursors(*before, chunk)


def test_gaps_are_bounded() -> None:
    """What reads as zeros costs the receiver hashing, so there cannot be much of it."""
    with pytest.raises(ProtocolError, match="out of place"):
        cursors((BITMAP, 0, 1), (BITMAP, MAX_GAP + 2, 1), data_start=8 * MIB)


def test_head_is_bounded() -> None:
    """A head is kept in memory until the end."""
    with pytest.raises(ProtocolError, match="out of place"):
        Cursors(64 * MIB, 100 * MIB).advance(HEAD, 0, MAX_HEAD + 1)


@pytest.mark.parametrize(
    "chunks",
    [
        [(BITMAP, 3_000_000, 1_000_000), (HEAD, 0, 100)],
        [(BITMAP, 4_096, 100), (HEAD, 0, 5_000)],
        [(HEAD, 0, 4_096), (BITMAP, 4_096, 100)],
        [],
    ],
    ids=["gap after the head", "head over the bitmaps", "gap before the data", "nothing"],
)
def test_ends_that_are_no_dump(chunks: list[tuple[ChunkKind, int, int]]) -> None:
    """The areas must meet."""
    with pytest.raises(ProtocolError, match="that is no dump"):
        cursors(*chunks, data_start=4_000_000).finish()
