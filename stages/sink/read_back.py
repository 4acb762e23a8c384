"""Reads parts of a finished dump back from where it is kept, and compares their digests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal

import anyio

from pipeline.errors import SinkError, first_of
from stages.sink.digest import Piece
from stages.sink.manifest import ReadRange, wrong_pieces

Extent = Literal["samples", "all", "none"]

_SAMPLE_BYTES: Final = 8 << 20
"""What the random samples may cost beside the first and the last piece."""
_AT_ONCE: Final = 3
"""Head, end and one between: a far line then costs one round trip, and is full meanwhile."""
_READ_BYTES: Final = 4 << 20
"""Of one read; the client holds each twice for a moment, so all of them take 24 MiB."""


def choose_samples(pieces: Sequence[Piece], extent: Extent) -> list[Piece]:
    """Which of `pieces` to read back: the head, the end, and some at random between them."""
    if extent == "none":
        return []
    if extent == "all" or len(pieces) <= 2:
        return list(pieces)
    chosen = [pieces[0], pieces[-1]]
    left = _SAMPLE_BYTES
    for piece in random.sample(pieces[1:-1], len(pieces) - 2):
        left -= piece.length
        if left < 0:
            break
        chosen.append(piece)
    return sorted(chosen)


async def check_read_back(
    target: str, pieces: Sequence[Piece], read: ReadRange, extent: Extent
) -> None:
    """See that what is kept at `target` is what was sent; asks for several pieces at once.

    Raises:
        SinkError: it is not, and where.
    """
    chosen = choose_samples(pieces, extent)

    async def check(some: Sequence[Piece]) -> None:
        async for piece in wrong_pieces(some, read, _READ_BYTES):
            raise SinkError(
                f"{target}: the {piece.length} bytes at offset {piece.offset:#x} read back "
                "differently from what was sent"
            )

    try:
        async with anyio.create_task_group() as group:
            for first in range(min(_AT_ONCE, len(chosen))):
                group.start_soon(check, chosen[first::_AT_ONCE])
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
