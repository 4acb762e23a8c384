"""What each page of the demo image was built as, and what that means for each dump level.

This is the builder's own knowledge: the filter's code has no part in it, so that the two can be
held against each other.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

_CACHE: Final = 2 | 4
_ALWAYS: Final = 32


class PageKind(IntEnum):
    """Values of `DemoFacts.kinds` (uint8)."""

    ABSENT = 0
    """No RAM."""
    KERNEL = 1
    """The kernel's own: text, tables, struct pages, anything without a rule."""
    CACHE = 2
    CACHE_PRIVATE = 3
    SHMEM_SWAPCACHE = 4
    """In the swap cache and not on the LRU: cache only because PG_swapbacked is set too."""
    OWNER_PRIVATE = 5
    """PG_swapcache without PG_swapbacked: the bit means something else."""
    LARGE_FOLIO = 6
    """Page cache in one compound page."""
    ANON = 7
    KSM = 8
    MOVABLE = 9
    """Driver pages that can be migrated: mapping has bit 1 set, not bit 0."""
    THP = 10
    HUGETLB = 11
    SLAB = 12
    """With a mapping word that looks anonymous, in heads and tails."""
    TYPED = 13
    """Page tables, guards, large kmalloc."""
    FREE = 14
    STALE_FREE = 15
    """Inside a free block, with the struct page of the anonymous page that it once was."""
    BAD_BUDDY = 16
    """Says it is free with an order that cannot be."""
    UNACCEPTED = 17
    HWPOISON = 18
    OFFLINE = 19
    OFFLINE_TAGGED = 20
    """Since v6.12 the owner may use 24 bits beside the type; makedumpfile keeps such pages."""

    def label(self, level: int) -> str | None:
        """The class under which `level` leaves the page out, None when it is kept."""
        for mask, label in _RULES.get(self, ()):
            if (level | _ALWAYS) & mask:
                return label
        return None


_RULES: Final[dict[PageKind, tuple[tuple[int, str], ...]]] = {
    PageKind.CACHE: ((_CACHE, "cache"),),
    PageKind.CACHE_PRIVATE: ((4, "cache_private"),),
    PageKind.SHMEM_SWAPCACHE: ((_CACHE, "cache"),),
    PageKind.LARGE_FOLIO: ((_CACHE, "cache"),),
    PageKind.ANON: ((8, "user"),),
    PageKind.KSM: ((8, "user"),),
    PageKind.THP: ((8, "user"),),
    PageKind.HUGETLB: ((8, "user"),),
    PageKind.FREE: ((16, "free"),),
    PageKind.STALE_FREE: ((16, "free"), (8, "user")),
    PageKind.UNACCEPTED: ((16, "free"),),
    PageKind.HWPOISON: ((_ALWAYS, "hwpoison"),),
    PageKind.OFFLINE: ((_ALWAYS, "offline"),),
}
