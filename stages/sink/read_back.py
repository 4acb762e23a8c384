"""Reads parts of a finished dump back from where it is kept, and compares their digests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal

from pipeline.errors import SinkError
from stages.sink.digest import Piece
from stages.sink.manifest import ReadRange, wrong_pieces

Extent = Literal["samples", "all", "none"]

_SAMPLE_BYTES: Final = 8 << 20
"""What the random samples may cost beside the first and the last piece."""


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
    """See that what is kept at `target` is what was sent.

    Raises:
        SinkError: it is not, and where.
    """
    async for piece in wrong_pieces(choose_samples(pieces, extent), read):
        raise SinkError(
            f"{target}: the {piece.length} bytes at offset {piece.offset:#x} read back differently "
            "from what was sent"
        )
