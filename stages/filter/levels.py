"""Dump levels, and the classes of pages that they leave out."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class DumpLevel(IntFlag):
    """makedumpfile's five bits, as they stand in a kdump sub header."""

    ZERO = 1
    """Pages full of zeros; they stay in the bitmap and share one descriptor."""
    CACHE = 2
    """Page cache without private data."""
    CACHE_PRIVATE = 4
    """All page cache, with private data and without."""
    USER = 8
    """Anonymous and hugetlb pages."""
    FREE = 16
    """Pages in the buddy allocator, and memory that a guest never accepted."""


MAX_LEVEL: Final = 31


def needs_struct_pages(level: int, left_out: int) -> bool:
    """Whether `level` leaves out pages that only their struct pages tell apart.

    Args:
        level: asked for.
        left_out: level of the source; what it lacks need not be found again.
    """
    return bool(level & ~left_out & ~DumpLevel.ZERO)


class PageClass(IntEnum):
    """What a struct page says its page is; values of the `classes` arrays (uint8).

    In ascending order of precedence: of all rules that fit a page, the highest class wins. KEPT is
    everything else; HWPOISON and OFFLINE are left out at every level.
    """

    KEPT = 0
    OFFLINE = 1
    HWPOISON = 2
    USER = 3
    CACHE_PRIVATE = 4
    CACHE = 5
    FREE = 6

    @property
    def label(self) -> str:
        """The name that counts go by."""
        return self.name.lower()


EXCLUDED_CLASSES: Final = tuple(PageClass)[1:]
