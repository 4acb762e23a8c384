"""The page cache under every single-page read: table pages, and small structures.

Long sequential copies never come here. `PageCache.get_many` is the one entry: it takes all pages
that a step of a walk needs, so that misses become few, large reads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
        """Contents of `pfns` (uint64[n], any order, repeats allowed; cheapest when ascending).

        Returns:
            uint8[n, page_size], C-contiguous, which the caller owns, and bool[n]: False where the
            page can't be read (row is zero).
        """


class PageCache:
    """Least recently used pages, up to a capacity in bytes.

    Pages lie in the rows of one array, whose memory is taken as it fills. Pages that could not be
    read are not kept: the next request tries again.
    """

    def __init__(self, image: Image, *, capacity_bytes: int) -> None:
        self.page_size = image.info.page_size
        self.stats = CacheStats()
        self._image = image
        self._capacity = max(capacity_bytes // self.page_size, 1)
        self._rows = np.empty((self._capacity, self.page_size), dtype=np.uint8)
        self._row_of: OrderedDict[int, int] = OrderedDict()  # by pfn, least recently used first

    @property
    def n_bytes(self) -> int:
        return len(self._row_of) * self.page_size

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        if bool((pfns[1:] > pfns[:-1]).all()):
            return self._get_ascending(pfns)
        wanted, inverse = np.unique(pfns, return_inverse=True)
        rows, good = self._get_ascending(wanted)
        self.stats.hits += len(pfns) - len(wanted)
        return rows[inverse], good[inverse]

    def _get_ascending(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        cached = self._touch(pfns.tolist())
        missing = np.flatnonzero(cached < 0)
        self.stats.misses += len(missing)
        self.stats.hits += len(pfns) - len(missing)
        if not len(missing):
            return self._rows[cached], np.ones(len(pfns), dtype=np.bool_)
        rows = np.empty((len(pfns), self.page_size), dtype=np.uint8)
        good = cached >= 0
        rows[good] = self._rows[cached[good]]
        fresh, usable = self._read(pfns[missing])
        rows[missing], good[missing] = fresh, usable
        self._keep(pfns[missing[usable]], fresh[usable])
        return rows, good

    def _touch(self, pfns: list[int]) -> NDArray[np.intp]:
        """The row of each page, -1 if it is not there; those that are become the newest."""
        row_of, renew = self._row_of, self._row_of.move_to_end
        found = [row_of.get(pfn, -1) for pfn in pfns]
        for pfn, row in zip(pfns, found, strict=True):
            if row >= 0:
                renew(pfn)
        return np.array(found, dtype=np.intp)

    def _read(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        fresh = np.empty((len(pfns), self.page_size), dtype=np.uint8)
        states = self._image.read_pages(pfns, fresh)
        self.stats.reads += 1
        self.stats.bytes_read += fresh.nbytes
        usable: BoolArray = states != PageState.MISSING
        fresh[~usable] = 0
        return fresh, usable

    def _keep(self, pfns: PfnArray, pages: ByteArray) -> None:
        """Take in pages that are not there, the last `_capacity` of them if they are more."""
        pfns, pages = pfns[-self._capacity :], pages[-self._capacity :]
        n_used = len(self._row_of)  # rows are first taken in order, and never given back
        n_evicted = max(n_used + len(pfns) - self._capacity, 0)
        freed = [self._row_of.popitem(last=False)[1] for _ in range(n_evicted)]
        rows = [*freed, *range(n_used, n_used + len(pfns) - n_evicted)]
        self.stats.evicted += n_evicted
        self._rows[rows] = pages
        self._row_of.update(zip(pfns.tolist(), rows, strict=True))
