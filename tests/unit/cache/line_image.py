"""An image behind a line, in memory: reads can be held, made to fail, and are recorded."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import ByteArray, PfnArray
from stages.cache.blocks import BlockCache
from stages.cache.pages import CacheOptions
from stages.reader.remote_link import Link
from tests.support.memory_image import PAGE_SIZE, MemoryImage

BLOCK_PAGES = 4
BLOCK = BLOCK_PAGES * PAGE_SIZE


class LineImage(MemoryImage):
    """Pages that say their pfn; `gate` is open unless a test closes it."""

    def __init__(self, n_pages: int = 4096, missing: frozenset[int] = frozenset()) -> None:
        super().__init__(n_pages, missing=missing)
        self.link = Link(max_in_flight=4, part_bytes=1 << 20)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.reads: list[list[int]] = []
        """First pfn of each block, for each read."""

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        self.reads.append(pfns[::BLOCK_PAGES].tolist())
        assert self.gate.wait(10), "nobody opened the gate"
        if self.error is not None:
            raise self.error
        return super().read_pages(pfns, out)


def cache_of(image: LineImage, *, blocks: int = 64, prefetch: bool = True) -> BlockCache:
    """A cache of so many blocks of four pages, with a window of sixteen blocks."""
    options = CacheOptions(
        capacity_bytes=blocks * BLOCK,
        block_bytes=BLOCK,
        prefetch=prefetch,
        depth=4,
        window_bytes=16 * BLOCK,
    )
    return BlockCache(image, image.link, options)


def pfns_of(*pfns: int) -> PfnArray:
    return np.array(pfns, dtype=np.uint64)


def told(image: LineImage, *pfns: int) -> list[bytes]:
    """What the rows of `pfns` should hold."""
    return [image.page(pfn) for pfn in pfns]
