"""From raw struct pages to a class for each page by itself: makedumpfile's rules, vectorised.

What comes out is not final: `runs` then hides the pages inside free blocks and compound pages. So
windows can be classified anywhere and in any order.

The rules, first match wins; only the head decides for a compound page, tails are skipped::

    level 16   buddy (2^private pages), unaccepted (largest block)                  FREE
    level 2    cache without PG_private and not anonymous                           CACHE
    level 4    cache and not anonymous                                  CACHE or CACHE_PRIVATE
    level 8    anonymous and not slab, or hugetlb                                   USER
    any        PG_hwpoison                                                          HWPOISON
    any        page type offline                                                    OFFLINE
"""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray, ByteArray
from stages.filter.columns import Columns, is_set
from stages.filter.levels import DumpLevel, PageClass
from stages.filter.page_layout import PageLayout

BATCH_PAGES: Final = 512
"""makedumpfile reads struct pages in batches of 512 pfns and never looks at page1 across the end
of one, so the last page of a batch has no order. A valid head is never there."""
_MAX_COMPOUND_ORDER: Final = 30
"""1 TiB of 1 KiB pages, beyond any gigantic page; larger orders are corrupt and read as 0."""


class PageCodes(Struct):
    """What each page says by itself; tails and kept pages are 0.

    Attributes:
        codes: uint8[n_pages] of `PageClass`.
        orders: uint8[n_pages]; > 0 where a run of 2^order pages starts that `codes` names.
        n_bad_orders: buddy pages whose order cannot be; they are kept.
    """

    codes: NDArray[np.uint8]
    orders: NDArray[np.uint8]
    n_bad_orders: int = 0


class _Classifier:
    """One call of `page_codes`; the methods are the rules."""

    def __init__(
        self, raw: ByteArray, n_pages: int, first_pfn: int, layout: PageLayout, level: int
    ) -> None:
        self._layout = layout
        self._level = level
        self._first_pfn = first_pfn
        self._n_pages = n_pages
        self._columns = Columns(raw, n_pages, layout)
        self._flags = self._columns.flags(layout.masks.all)
        self._mapcount: NDArray[np.unsignedinteger] | None = None
        if layout.mapcount_off is not None:
            self._mapcount = np.ascontiguousarray(self._columns.u32(layout.mapcount_off))
        self._slab = self._find_slab()
        self._heads = self._find_heads()
        self._not_tail: BoolArray | None = None
        if layout.compound_off is not None:
            self._not_tail = ~self._columns.bit0(layout.compound_off)
        self.codes = np.zeros(n_pages, dtype=np.uint8)
        self.orders = np.zeros(n_pages, dtype=np.uint8)
        self.n_bad_orders = 0

    def run(self) -> PageCodes:
        self._mark_broken()
        if self._not_tail is not None:
            self._mark_user_and_cache()
            self.codes *= self._not_tail
        self._measure_compound()
        if self._level & DumpLevel.FREE:
            self._mark_unaccepted()
            self._mark_buddy()
        return PageCodes(self.codes, self.orders, self.n_bad_orders)

    def _has_type(self, value: int | None) -> BoolArray | None:
        if value is None or self._mapcount is None:
            return None
        found: BoolArray = self._mapcount == np.uint32(value)
        return found

    def _find_slab(self) -> BoolArray | None:
        by_type = self._has_type(self._layout.types.slab)
        mask = self._layout.masks.slab
        if not mask:
            return by_type
        by_flag = is_set(self._flags, mask)
        return by_flag if by_type is None else by_type | by_flag

    def _mark(self, where: BoolArray | None, page_class: PageClass) -> None:
        """Higher classes win; arithmetic, because masked assignment stumbles over mixed pages."""
        if where is not None:
            marks = where.view(np.uint8) * np.uint8(page_class)
            np.maximum(self.codes, marks, out=self.codes)

    def _mark_broken(self) -> None:
        self._mark(self._has_type(self._layout.types.offline), PageClass.OFFLINE)
        if self._layout.masks.hwpoison:
            self._mark(is_set(self._flags, self._layout.masks.hwpoison), PageClass.HWPOISON)

    def _find_heads(self) -> NDArray[np.intp]:
        """Indexes of compound heads whose page1 may be looked at."""
        if not self._layout.masks.head:
            return np.zeros(0, dtype=np.intp)
        heads = np.flatnonzero(is_set(self._flags, self._layout.masks.head))
        last = (heads + self._first_pfn) % BATCH_PAGES == BATCH_PAGES - 1
        usable: NDArray[np.intp] = heads[~last & (heads + 1 < self._n_pages)]
        return usable

    def _hugetlb(self) -> NDArray[np.intp]:
        """Those heads that are hugetlb pages."""
        rule, heads = self._layout.compound, self._heads
        value = self._layout.types.hugetlb
        found = np.zeros(len(heads), dtype=np.bool_)
        if value is not None and self._mapcount is not None:
            found = self._mapcount[heads] == np.uint32(value)
        elif rule.hugetlb_flag:
            found = is_set(self._columns.word(self._layout.flags_off)[heads + 1], rule.hugetlb_flag)
        elif rule.dtor_off is not None:
            found = self._columns.byte(rule.dtor_off)[heads + 1] == np.uint8(rule.dtor_value)
        hugetlb: NDArray[np.intp] = heads[found]
        return hugetlb

    def _mark_user_and_cache(self) -> None:
        wants_cache = self._level & (DumpLevel.CACHE | DumpLevel.CACHE_PRIVATE)
        wants_user = self._level & DumpLevel.USER
        if not wants_cache and not wants_user:
            return
        anon = self._columns.bit0(self._layout.mapping_off)
        if self._slab is not None:
            anon &= ~self._slab
        if wants_user:
            if self._layout.knows_slab:
                self._mark(anon, PageClass.USER)
            self.codes[self._hugetlb()] = PageClass.USER
        if wants_cache and self._layout.masks.lru:
            self._mark_cache(anon)

    def _mark_cache(self, anon: BoolArray) -> None:
        masks = self._layout.masks
        cache = is_set(self._flags, masks.lru)
        if masks.swapcache:
            cache |= is_set(self._flags, masks.swapcache)
        cache &= ~anon
        private = is_set(self._flags, masks.private)
        if self._level & DumpLevel.CACHE_PRIVATE:
            self._mark(cache & private, PageClass.CACHE_PRIVATE)
        self._mark(cache & ~private, PageClass.CACHE)

    def _measure_compound(self) -> None:
        """Orders of the heads that are left out."""
        order_off = self._layout.compound.order_off
        heads = self._heads[self.codes[self._heads] != PageClass.KEPT]
        if order_off is None or not len(heads):
            return
        orders = self._columns.byte(order_off)[heads + 1]
        self.orders[heads] = np.where(orders <= _MAX_COMPOUND_ORDER, orders, 0)

    def _mark_unaccepted(self) -> None:
        found = self._has_type(self._layout.types.unaccepted)
        if found is not None:
            where = self._untailed(found)
            self.codes[where] = PageClass.FREE
            self.orders[where] = (self._layout.n_orders or 1) - 1

    def _mark_buddy(self) -> None:
        found = self._has_type(self._layout.types.buddy)
        private_off, n_orders = self._layout.private_off, self._layout.n_orders
        if found is None or private_off is None or n_orders is None:
            return
        if self._slab is not None:
            found &= ~self._slab
        where = self._untailed(found)
        orders = self._columns.word(private_off)[where]
        good = orders < n_orders
        self.n_bad_orders = len(where) - int(np.count_nonzero(good))
        self.codes[where] = good * np.uint8(PageClass.FREE)
        self.orders[where] = np.where(good, orders, 0)

    def _untailed(self, found: BoolArray) -> NDArray[np.intp]:
        return np.flatnonzero(found if self._not_tail is None else found & self._not_tail)


def page_codes(
    raw: ByteArray, n_pages: int, first_pfn: int, layout: PageLayout, level: int
) -> PageCodes:
    """Classify `n_pages` struct pages, each by itself.

    Args:
        raw: uint8[>= n_pages * layout.size], C-contiguous, struct pages of consecutive pfns, or of
            stretches of consecutive pfns that each start and end at a multiple of `BATCH_PAGES`.
        n_pages: how many of them count.
        first_pfn: pfn of the first; only its place inside a batch matters.
        layout: of the kernel that they belong to.
        level: bits of `DumpLevel`; classes that it keeps are not looked for.
    """
    return _Classifier(raw, n_pages, first_pfn, layout, level).run()
