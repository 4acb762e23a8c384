"""Both bitmaps as chunks, unpacked block by block so that no flat bitmap is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.flow.items import Chunk, ChunkKind
from pipeline.memory.bitmap import PageBitmap
from stages.formats.kdump import KdumpLayout

_CHUNK_BLOCKS = 64
"""Bitmap blocks a chunk: 256 KiB."""


def bitmap_chunks(layout: KdumpLayout, ram: PageBitmap, kept: PageBitmap) -> Iterator[Chunk]:
    """Chunks of bitmap 1 (pages that exist), then of bitmap 2 (pages that are dumped)."""
    for start, bitmap in ((layout.bitmap1_start, ram), (layout.bitmap2_start, kept)):
        at = start
        left = layout.bitmap_bytes
        for first in range(0, bitmap.n_blocks, _CHUNK_BLOCKS):
            last = min(first + _CHUNK_BLOCKS, bitmap.n_blocks)
            data = b"".join(bitmap.packed(index) for index in range(first, last))[:left]
            yield Chunk(ChunkKind.BITMAP, at, data)
            at += len(data)
            left -= len(data)
        if left:  # the area is rounded up to whole blocks of the dump
            yield Chunk(ChunkKind.BITMAP, at, bytes(left))
