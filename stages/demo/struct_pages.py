"""The demo kernel's struct pages, and beside each the kind it was built as."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.demo.kernels import HUGETLB_DTOR, DemoKernel
from stages.demo.kinds import PageKind
from stages.demo.memory import SECTION_PAGES

STRUCT_PAGE: Final = np.dtype(
    {
        "names": [
            "flags", "compound", "dtor", "order", "mapping", "index", "private", "mapcount",
            "refcount",
        ],
        "formats": ["<u8", "<u8", "u1", "u1", "<u8", "<u8", "<u8", "<u4", "<u4"],
        "offsets": [0, 8, 16, 17, 24, 32, 40, 48, 52],
        "itemsize": 64,
    }
)  # fmt: skip
ZONE_FLAGS: Final = 0x000F_FFFF_C000_0000
"""Node, zone and last CPU, above all flag bits."""
UNMAPPED: Final = 0xFFFF_FFFF
"""_mapcount -1."""
FILE_MAPPING: Final = 0xFFFF_8880_0123_4560
ANON_MAPPING: Final = 0xFFFF_8880_0765_4321
KSM_MAPPING: Final = 0xFFFF_8880_0AAA_0003
MOVABLE_MAPPING: Final = 0xFFFF_8880_0BBB_0002
_TAIL_MAPPING: Final = 0xDEAD_0000_0000_0400
_MASK_TAIL_MAPPING: Final = 0xFFFF_FFFF
"""Since v7.1 tails share one content, in which this word looks anonymous."""

Pfns = NDArray[np.int64]


class StructPages:
    """Struct pages of pfns [0, end_pfn); at first all are reserved, and no RAM."""

    def __init__(self, kernel: DemoKernel, end_pfn: int, memmap_vaddr: int) -> None:
        self.kernel = kernel
        n_pages = -(-end_pfn // SECTION_PAGES) * SECTION_PAGES
        self.rows = np.zeros(n_pages, dtype=STRUCT_PAGE)
        self.kinds = np.zeros(n_pages, dtype=np.uint8)
        self._memmap_vaddr = memmap_vaddr
        self.rows["flags"] = ZONE_FLAGS | 1 << kernel.bits.reserved
        self.rows["mapcount"] = UNMAPPED
        self.rows["refcount"] = 1

    def set(
        self,
        pfns: Pfns | slice,
        kind: PageKind,
        *bits: int,
        mapping: int = 0,
        mapcount: int = UNMAPPED,
        private: int = 0,
    ) -> None:
        """Single pages with flag `bits` set."""
        rows = np.zeros((), dtype=STRUCT_PAGE)
        rows["flags"] = ZONE_FLAGS | sum(1 << bit for bit in bits)
        rows["mapping"], rows["mapcount"], rows["private"] = mapping, mapcount, private
        rows["refcount"] = 1
        self.rows[pfns] = rows
        self.kinds[pfns] = kind

    def free(self, starts: Pfns, order: int) -> None:
        """Buddy blocks at `starts`, which are aligned to 2^order."""
        inside = starts[:, None] + np.arange(1 << order)
        self.set(inside.reshape(-1), PageKind.FREE)
        self.rows["refcount"][inside] = 0
        self.rows["mapcount"][starts] = self.kernel.types.buddy
        self.rows["private"][starts] = order

    def compound(
        self,
        starts: Pfns,
        order: int,
        kind: PageKind,
        *bits: int,
        mapping: int = 0,
        mapcount: int = UNMAPPED,
        tail_mapping: int | None = None,
    ) -> None:
        """Compound pages at `starts`, which are aligned to 2^order; order 1 or more."""
        kernel = self.kernel
        self.set(starts, kind, *bits, kernel.bits.head, mapping=mapping, mapcount=mapcount)
        tails = starts[:, None] + np.arange(1, 1 << order)
        default = _MASK_TAIL_MAPPING if kernel.mask_tails else _TAIL_MAPPING
        flat = tails.reshape(-1)
        self.set(flat, kind, mapping=default if tail_mapping is None else tail_mapping)
        self.rows["refcount"][flat] = 0
        owners = np.uint64(self._memmap_vaddr) + (starts * STRUCT_PAGE.itemsize).astype(np.uint64)
        if kernel.mask_tails:
            owners[:] = (1 << 64) - (STRUCT_PAGE.itemsize << order)
        self.rows["compound"][tails] = (owners | np.uint64(1))[:, None]
        if kernel.order_in_flags:
            self.rows["flags"][starts + 1] |= np.uint64(order)
        else:
            self.rows["order"][starts + 1] = order
        if kind is PageKind.HUGETLB:
            self._mark_hugetlb(starts)

    def _mark_hugetlb(self, starts: Pfns) -> None:
        kernel = self.kernel
        if kernel.types.hugetlb is not None:
            self.rows["mapcount"][starts] = kernel.types.hugetlb
        elif kernel.bits.hugetlb is not None:
            self.rows["flags"][starts + 1] |= np.uint64(1 << kernel.bits.hugetlb)
        else:
            self.rows["dtor"][starts + 1] = HUGETLB_DTOR

    def slab(self, starts: Pfns, order: int) -> None:
        """Slab pages, whose mapping words hold something that looks anonymous."""
        bits = () if self.kernel.bits.slab is None else (self.kernel.bits.slab,)
        mapcount = UNMAPPED if self.kernel.types.slab is None else self.kernel.types.slab
        if not order:
            self.set(starts, PageKind.SLAB, *bits, mapping=ANON_MAPPING, mapcount=mapcount)
            return
        self.compound(
            starts,
            order,
            PageKind.SLAB,
            *bits,
            mapping=ANON_MAPPING,
            mapcount=mapcount,
            tail_mapping=ANON_MAPPING,
        )
