"""The page cache under every single-page read: table pages, and small structures.

Long sequential copies never come here. `PageReader.get_many` is the one entry: it takes all pages
that a step of a walk needs, so that misses become few, large reads.

`PageCache` serves images that answer at once, page by page and without a thread; images behind a
line are served by `blocks.BlockCache`. `make_cache` knows which is which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pipeline.flow.items import PageState
from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from stages.cache.policy import Policy, S3Fifo
from stages.cache.stats import CacheStats
from stages.reader.image import Image

if TYPE_CHECKING:
    from stages.cache.blocks import BlockCache
    from stages.cache.trace import TraceWriter

__all__ = ["CacheOptions", "CacheStats", "PageCache", "PageReader", "TablePages", "make_cache"]


class PageReader(Protocol):
    """Answers reads of single pages by pfn; what translator and friends depend on."""

    page_size: int

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        """Contents of `pfns` (uint64[n], any order, repeats allowed; cheapest when ascending).

        Returns:
            uint8[n, page_size], C-contiguous, which the caller owns, and bool[n]: False where the
            page can't be read (row is zero).
        """


class TablePages(Protocol):
    """A `PageReader` of page tables, which are kept longer than other pages."""

    page_size: int

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        """As `PageReader.get_many`."""

    def hint(self, pfns: PfnArray) -> None:
        """`pfns` (uint64[n]) will be asked for soon, the first ones first. May do nothing."""


class CacheOptions(Struct, frozen=True):
    """Attributes:
    capacity_bytes: of all blocks that are kept; one is kept however small this is.
    block_bytes: what a miss reads; only where the image is slow. A page, or a power of two pages.
    prefetch: follow hints and strides; only where the image is slow.
    depth: blocks that a stride is followed ahead.
    window_bytes: most bytes read ahead and not asked for yet.
    """

    capacity_bytes: int
    block_bytes: int = 64 << 10
    prefetch: bool = True
    depth: int = 8
    window_bytes: int = 16 << 20


def make_cache(image: Image, options: CacheOptions) -> PageCache | BlockCache:
    """The cache for `image`; to be closed before the image is."""
    if getattr(image, "link", None) is None:
        return PageCache(image, capacity_bytes=options.capacity_bytes)
    from stages.cache.blocks import BlockCache
    from stages.reader.remote_image import link_of

    link = link_of(image)
    assert link is not None, "an image has a Link, or none"
    return BlockCache(image, link, options)


class PageCache:
    """Pages by demand, up to a capacity in bytes.

    Pages lie in the rows of one array, whose memory is taken as it fills. Pages that could not be
    read are not kept: the next request tries again.
    """

    def __init__(
        self, image: Image, *, capacity_bytes: int, policy: Callable[[int], Policy] = S3Fifo
    ) -> None:
        self.page_size = image.info.page_size
        self.stats = CacheStats()
        self.tables: TablePages = _Tables(self)
        self.trace: TraceWriter | None = None
        self._image = image
        self._capacity = max(capacity_bytes // self.page_size, 1)
        self._policy = policy(self._capacity)
        self._rows = np.empty((self._capacity, self.page_size), dtype=np.uint8)
        self._row_of: dict[int, int] = {}

    @property
    def n_bytes(self) -> int:
        return len(self._row_of) * self.page_size

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        return self.get(pfns, preferred=False)

    def get(self, pfns: PfnArray, *, preferred: bool) -> tuple[ByteArray, BoolArray]:
        """`get_many` without a loop; `preferred` pages are page tables."""
        if self.trace is not None:
            self.trace.add(pfns, preferred=preferred)
        if bool((pfns[1:] > pfns[:-1]).all()):
            return self._get_ascending(pfns, preferred)
        wanted, inverse = np.unique(pfns, return_inverse=True)
        rows, good = self._get_ascending(wanted, preferred)
        self.stats.hits += len(pfns) - len(wanted)
        return rows[inverse], good[inverse]

    def close(self) -> None:
        """Nothing is under way here."""

    def _get_ascending(self, pfns: PfnArray, preferred: bool) -> tuple[ByteArray, BoolArray]:
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
        self._keep(pfns[missing[usable]], fresh[usable], preferred)
        return rows, good

    def _touch(self, pfns: list[int]) -> NDArray[np.intp]:
        """The row of each page, -1 if it is not there."""
        row_of = self._row_of
        found = [row_of.get(pfn, -1) for pfn in pfns]
        self._policy.touch([pfn for pfn, row in zip(pfns, found, strict=True) if row >= 0])
        return np.array(found, dtype=np.intp)

    def _read(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        fresh = np.empty((len(pfns), self.page_size), dtype=np.uint8)
        states = self._image.read_pages(pfns, fresh)
        self.stats.reads += 1
        self.stats.bytes_read += fresh.nbytes
        usable: BoolArray = states != PageState.MISSING
        fresh[~usable] = 0
        return fresh, usable

    def _keep(self, pfns: PfnArray, pages: ByteArray, preferred: bool) -> None:
        """Take in pages that are not there, the last `_capacity` of them if they are more."""
        pfns, pages = pfns[-self._capacity :], pages[-self._capacity :]
        rows = [self._admit(pfn, preferred) for pfn in pfns.tolist()]
        if len(set(rows)) == len(rows):
            self._rows[rows] = pages
            return
        for row, page in zip(rows, pages, strict=True):  # a page had to go for a later one
            self._rows[row] = page

    def _admit(self, pfn: int, preferred: bool) -> int:
        """The row that becomes `pfn`'s: the next free one, or that of the page that goes."""
        victim = self._policy.admit(pfn, preferred=preferred)
        row = len(self._row_of)
        if victim is not None:
            self.stats.evicted += 1
            row = self._row_of.pop(victim)
        self._row_of[pfn] = row
        return row


class _Tables:
    """`TablePages` of a cache that needs no hints."""

    def __init__(self, cache: PageCache) -> None:
        self.page_size = cache.page_size
        self._cache = cache

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        return self._cache.get(pfns, preferred=True)

    def hint(self, pfns: PfnArray) -> None:
        """Nothing: the image answers at once."""
