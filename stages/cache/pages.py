"""The page cache under every single-page read: table pages, and small structures.

Long sequential copies never come here. `PageCache.get_many` is the one entry: it takes all pages
that a step of a walk needs, so that misses become few, large reads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.flow.items import PageState
from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from stages.reader.image import Image


@dataclass(slots=True)
class CacheStats:
    """Counted in pages."""

    hits: int = 0
    misses: int = 0
    reads: int = 0
    """Requests to the source."""
    bytes_read: int = 0
    evicted: int = 0

    @property
    def hit_ratio(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)


class PageReader(Protocol):
    """Answers reads of single pages by pfn; what translator and friends depend on."""

    page_size: int

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        """Contents of `pfns` (uint64[n], any order, repeats allowed).

        Returns:
            uint8[n, page_size], and bool[n]: False where the page can't be read (row is zero).
        """


class PageCache:
    """Least recently used pages, up to a capacity in bytes."""

    def __init__(self, image: Image, *, capacity_bytes: int) -> None:
        self.page_size = image.info.page_size
        self.stats = CacheStats()
        self._image = image
        self._capacity = max(capacity_bytes // self.page_size, 1)
        self._pages: OrderedDict[int, ByteArray | None] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        return len(self._pages) * self.page_size

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        wanted, inverse = np.unique(pfns, return_inverse=True)
        rows = np.zeros((len(wanted), self.page_size), dtype=np.uint8)
        good = np.zeros(len(wanted), dtype=np.bool_)
        missing: list[int] = []
        for row, pfn in enumerate(wanted.tolist()):
            if pfn not in self._pages:
                missing.append(row)
                continue
            self._pages.move_to_end(pfn)
            page = self._pages[pfn]
            if page is not None:
                rows[row] = page
                good[row] = True
        self.stats.misses += len(missing)
        self.stats.hits += len(pfns) - len(missing)
        if missing:
            self._fill(wanted, rows, good, np.array(missing, dtype=np.intp))
        return rows[inverse], good[inverse]

    def _fill(
        self, wanted: PfnArray, rows: ByteArray, good: BoolArray, missing: np.ndarray
    ) -> None:
        fresh = np.empty((len(missing), self.page_size), dtype=np.uint8)
        states = self._image.read_pages(wanted[missing], fresh)
        self.stats.reads += 1
        self.stats.bytes_read += fresh.nbytes
        usable = states != PageState.MISSING
        good[missing] = usable
        rows[missing[usable]] = fresh[usable]
        for row, ok, page in zip(missing.tolist(), usable.tolist(), fresh, strict=True):
            self._pages[int(wanted[row])] = page.copy() if ok else None
        while len(self._pages) > self._capacity:
            self._pages.popitem(last=False)
            self.stats.evicted += 1
