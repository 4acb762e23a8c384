"""The demo kernel's tables: paging, sections, node and zones. They fill a map of symbols."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from stages.demo.address_map import KERNEL_PAGES, MEMMAP_PAGES, VMALLOC_PAGES, AddressMap
from stages.demo.kernel_data import KernelData
from stages.demo.kinds import PageKind
from stages.demo.memory import PAGE, SECTION_PAGES, DemoMemory, PageAllocator
from stages.demo.page_tables import LEAF_2M, DemoPageTables
from stages.demo.struct_pages import STRUCT_PAGE, StructPages
from stages.demo.vmcoreinfo_text import (
    MAX_NODES,
    MEM_SECTION_BYTES,
    NODE_BYTES,
    NODE_SPANNED_OFF,
    NODE_START_OFF,
    NR_ZONES_OFF,
    SECTIONS_PER_ROOT,
    ZONE_BYTES,
    ZONE_SPANNED_OFF,
    ZONE_STAT_OFF,
    MemoryModelKeys,
)

_SECTION_FLAGS: Final = 0b01111
"""Present, has a memmap, online, early."""
_SECTION_PREINIT: Final = 1 << 5
"""Since v6.15: the memmap was set up early, for gigantic pages."""
_HUGETLB_PAGES: Final = 512


@dataclass(frozen=True, slots=True)
class SectionForm:
    """Attributes:
    symbol_is_pointer: SYMBOL(mem_section) is where a pointer to the roots is, not the roots.
    preinit: the last section has the sixth flag bit.
    """

    symbol_is_pointer: bool = False
    preinit: bool = False


@dataclass(slots=True)
class KernelTables:
    """Builds one table after the other; `symbols` is what VMCOREINFO will export of them."""

    memory: DemoMemory
    addresses: AddressMap
    pages: StructPages
    data: KernelData
    heap: PageAllocator
    symbols: dict[str, int] = field(default_factory=dict)

    def direct(self, pfn: int) -> int:
        """Address of `pfn` in the direct map."""
        return self.addresses.page_offset + pfn * PAGE

    def build_paging(self, levels: int, memmap_leaf: int) -> None:
        """Text, direct map, struct pages and the vmalloc area."""
        addresses = self.addresses
        offset = self.data.reserve(PAGE, PAGE)
        tables = DemoPageTables(addresses.kernel_pfn + offset // PAGE, levels, self.heap)
        self.symbols["swapper_pg_dir"] = self.data.vaddr_of(offset)
        self.symbols["init_top_pgt"] = self.data.vaddr_of(offset)
        text = addresses.kernel_pfn * PAGE
        tables.map(addresses.text_vaddr, text, KERNEL_PAGES * PAGE, LEAF_2M)
        for ram in addresses.ranges:
            first = ram.start * PAGE // LEAF_2M * LEAF_2M
            n_bytes = -(-(ram.stop * PAGE - first) // LEAF_2M) * LEAF_2M
            tables.map(addresses.page_offset + first, first, n_bytes, LEAF_2M)
        self._map_memmap(tables, memmap_leaf)
        for index, pfn in enumerate(self.vmalloc_backing()):
            tables.map(addresses.vmalloc_start + index * PAGE, pfn * PAGE, PAGE, PAGE)
        tables.store(self.memory)

    def vmalloc_backing(self) -> range:
        """Pfns behind the vmalloc area in its order: the last of the heap, downwards."""
        last = self.addresses.system_end - 1
        return range(last, last - VMALLOC_PAGES, -1)

    def _map_memmap(self, tables: DemoPageTables, leaf: int) -> None:
        for section in self.addresses.sections:
            vaddr = self._memmap_vaddr(section * SECTION_PAGES)
            paddr = self.addresses.memmap_paddr(section * SECTION_PAGES)
            tables.map(vaddr, paddr, MEMMAP_PAGES * PAGE, leaf)
            if leaf == PAGE:
                self._share_hugetlb_memmap(tables, section, paddr)

    def _share_hugetlb_memmap(self, tables: DemoPageTables, section: int, paddr: int) -> None:
        """As hugetlb vmemmap optimisation does: one page of memmap serves the whole huge page."""
        first = section * SECTION_PAGES
        starts = np.arange(first, first + SECTION_PAGES, _HUGETLB_PAGES)
        size = STRUCT_PAGE.itemsize
        for start in starts[self.pages.kinds[starts] == PageKind.HUGETLB].tolist():
            own = paddr + (start - first) * size
            for offset in range(PAGE, _HUGETLB_PAGES * size, PAGE):
                tables.map(self._memmap_vaddr(start) + offset, own, PAGE, PAGE)

    def _memmap_vaddr(self, pfn: int) -> int:
        return self.addresses.vmemmap_start + pfn * STRUCT_PAGE.itemsize

    def store_memmap(self) -> None:
        for section in self.addresses.sections:
            first = section * SECTION_PAGES
            rows = self.pages.rows[first : first + SECTION_PAGES].view(np.uint8)
            self.memory.write(self.addresses.memmap_paddr(first), rows)

    def build_memory_model(self, model: MemoryModelKeys, form: SectionForm) -> None:
        """mem_section, or mem_map."""
        if model.name == "flat":
            start = struct.pack("<Q", self.addresses.vmemmap_start)
            self.symbols["mem_map"] = self.data.place(start)
            return
        if model.name == "sparse_classic":
            first = self.heap.take(-(-model.n_sections * MEM_SECTION_BYTES // PAGE))
            for section in self.addresses.sections:
                self._store_section(first, section, section, form)
        else:
            first = self._build_roots(model, form)
        base = self.direct(first)
        if form.symbol_is_pointer:
            base = self.data.place(struct.pack("<Q", base))
        self.symbols["mem_section"] = base

    def _build_roots(self, model: MemoryModelKeys, form: SectionForm) -> int:
        """First pfn of the array of roots."""
        first = self.heap.take(-(-model.length * 8 // PAGE))
        roots: dict[int, int] = {}
        for section in self.addresses.sections:
            root, inside = divmod(section, SECTIONS_PER_ROOT)
            if root not in roots:
                roots[root] = self.heap.take()
                pointer = struct.pack("<Q", self.direct(roots[root]))
                self.memory.write(first * PAGE + root * 8, pointer)
            self._store_section(roots[root], inside, section, form)
        return first

    def _store_section(self, first: int, slot: int, section: int, form: SectionForm) -> None:
        flags = _SECTION_FLAGS
        if form.preinit and section == self.addresses.sections[-1]:
            flags |= _SECTION_PREINIT
        encoded = self.addresses.vmemmap_start | flags
        usage = self.direct(self.addresses.heap_pfn)
        entry = struct.pack("<QQQQ", encoded, usage, 0, 0)
        self.memory.write(first * PAGE + slot * MEM_SECTION_BYTES, entry)

    def build_node(self, *, numa: bool) -> None:
        """One node, all memory in its second zone, and the zone's count of free pages."""
        kinds = self.pages.kinds
        free = (PageKind.FREE, PageKind.STALE_FREE, PageKind.UNACCEPTED)
        n_free = int(np.isin(kinds, free).sum())
        node = bytearray(NODE_BYTES)
        end = self.addresses.end_pfn
        struct.pack_into("<Q", node, ZONE_BYTES + ZONE_SPANNED_OFF, end)
        struct.pack_into("<q", node, ZONE_BYTES + ZONE_STAT_OFF, n_free)
        struct.pack_into("<i", node, NR_ZONES_OFF, 3)
        struct.pack_into("<Q", node, NODE_START_OFF, 0)
        struct.pack_into("<Q", node, NODE_SPANNED_OFF, end)
        if not numa:
            self.symbols["contig_page_data"] = self.data.place(bytes(node))
            return
        pfn = self.heap.take(-(-NODE_BYTES // PAGE))
        self.memory.write(pfn * PAGE, bytes(node))
        nodes = struct.pack("<Q", self.direct(pfn)) + bytes(8 * (MAX_NODES - 1))
        self.symbols["node_data"] = self.data.place(nodes)
