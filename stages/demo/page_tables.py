"""x86_64 page tables of the demo kernel, 4 or 5 levels, leaves of 4 KiB and 2 MiB."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.memory.addresses import AddrArray
from stages.demo.memory import PAGE, DemoMemory, PageAllocator

LEAF_2M: Final = 2 << 20
_TABLE_FLAGS: Final = 0x063
"""Present, writable, accessed, dirty."""
_LEAF_FLAGS: Final = 0x063 | 1 << 63
_HUGE: Final = 0x080


class DemoPageTables:
    """Tables are kept as arrays and stored once all mappings are made."""

    def __init__(self, root_pfn: int, levels: int, heap: PageAllocator) -> None:
        self.root_pfn = root_pfn
        self._levels = levels
        self._heap = heap
        self._tables: dict[int, AddrArray] = {root_pfn: np.zeros(512, dtype="<u8")}

    def map(self, vaddr: int, paddr: int, n_bytes: int, leaf: int) -> None:
        """Map the range with leaves of `leaf` bytes, 4 KiB or 2 MiB; all aligned to that."""
        depth = 1 if leaf == LEAF_2M else 0
        flags = _LEAF_FLAGS | (_HUGE if leaf == LEAF_2M else 0)
        for offset in range(0, n_bytes, leaf):
            table = self._table_for(vaddr + offset, depth)
            index = (vaddr + offset) >> (12 + 9 * depth) & 511
            table[index] = np.uint64(paddr + offset | flags)

    def _table_for(self, vaddr: int, depth: int) -> AddrArray:
        """The table at `depth` (0: page table) that maps `vaddr`, made where it is missing."""
        pfn = self.root_pfn
        for above in range(self._levels - 1, depth, -1):
            table = self._tables[pfn]
            index = vaddr >> (12 + 9 * above) & 511
            if not table[index]:
                fresh = self._heap.take()
                self._tables[fresh] = np.zeros(512, dtype="<u8")
                table[index] = np.uint64(fresh * PAGE | _TABLE_FLAGS)
            pfn = (int(table[index]) & (1 << 52) - 1) // PAGE
        return self._tables[pfn]

    @property
    def pfns(self) -> list[int]:
        return sorted(self._tables)

    def store(self, memory: DemoMemory) -> None:
        for pfn, table in self._tables.items():
            memory.write(pfn * PAGE, table.view(np.uint8))
