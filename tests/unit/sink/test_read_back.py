"""Reading a finished dump back: several pieces at once, in bounded reads, errors as they were."""

from __future__ import annotations

import hashlib

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pipeline.errors import SinkError
from stages.sink.digest import Piece
from stages.sink.read_back import check_read_back
from stages.sink.retry import TransientError
from tests.support.chunk_stream import content

pytestmark = pytest.mark.anyio

MIB = 1 << 20
SIZE = 1000
STORED = content(0, 6 * SIZE)
PIECES = [
    Piece(at, SIZE, hashlib.sha256(STORED[at : at + SIZE]).digest())
    for at in range(0, len(STORED), SIZE)
]


async def test_head_end_and_one_between_are_read_at_once() -> None:
    """Three reads are under way before the first is answered, and no more."""
    asked: list[int] = []
    may_answer = anyio.Event()

    async def read(offset: int, n_bytes: int) -> bytes:
        asked.append(offset)
        await may_answer.wait()
        return STORED[offset : offset + n_bytes]

    async with anyio.create_task_group() as group:
        group.start_soon(check_read_back, "there", PIECES, read, "all")
        await anyio.wait_all_tasks_blocked()
        under_way = len(asked)
        may_answer.set()

    assert under_way == 3
    assert sorted(asked) == [piece.offset for piece in PIECES]


@pytest.mark.parametrize("wrong", range(len(PIECES)))
async def test_a_wrong_piece_is_one_error_that_says_where(wrong: int) -> None:
    """Whichever it is, and although others are being read."""

    async def read(offset: int, n_bytes: int) -> bytes:
        await checkpoint()
        return STORED[offset : offset + n_bytes] if offset != wrong * SIZE else bytes(n_bytes)

    with pytest.raises(SinkError, match=rf"there: the 1000 bytes at offset {wrong * SIZE:#x} read"):
        await check_read_back("there", PIECES, read, "all")


async def test_a_lost_connection_stays_one_that_may_be_tried_again() -> None:
    """Callers that try again look at the type of the error."""

    async def read(_offset: int, _n_bytes: int) -> bytes:
        await checkpoint()
        raise TransientError("there: reset")

    with pytest.raises(TransientError, match="there: reset"):
        await check_read_back("there", PIECES, read, "all")


async def test_a_large_piece_is_read_in_steps() -> None:
    """What is in memory at once does not grow with the pieces."""
    stored = bytes(9 * MIB)
    piece = Piece(0, len(stored), hashlib.sha256(stored).digest())
    sizes: list[int] = []

    async def read(offset: int, n_bytes: int) -> bytes:
        sizes.append(n_bytes)
        return stored[offset : offset + n_bytes]

    await check_read_back("there", [piece], read, "all")

    assert max(sizes) <= 4 * MIB
    assert sum(sizes) == len(stored)
