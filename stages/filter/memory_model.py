"""Which memory model a kernel has, and where the struct pages of each pfn are because of it.

References:
    include/linux/mmzone.h, include/asm-generic/memory_model.h, kernel/vmcore_info.c

Models are told apart by the VMCOREINFO keys that only they export, in this order::

    DISCONTIGMEM   one array of struct pages a node      OFFSET(pglist_data.node_mem_map), node_data
    SPARSEMEM      one array a section, see `sparse`     SYMBOL(mem_section)
    FLATMEM        one array                             SYMBOL(mem_map)
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct

from pipeline.errors import DumpError, FormatError, MissingInfoError
from stages.filter.kernel_words import KernelWords
from stages.filter.page_layout import PageLayout
from stages.translator.kernel import Kernel

MAX_NODES: Final = 1 << 16
"""NODES_SHIFT is 10 at most."""


class MemmapRegion(NamedTuple):
    """Pfns [start_pfn, stop_pfn), whose struct pages lie one after the other."""

    start_pfn: int
    stop_pfn: int
    memmap_vaddr: int | None
    """Of the first struct page; None for pfns without any (a hole, or memory taken away)."""


class MemoryModel(Struct, frozen=True):
    """Regions are ascending and disjoint; pfns between them have no struct pages.

    Attributes:
        unread_stop: one past the last pfn whose struct pages may be somewhere, where the kernel's
            own tables that would tell are not readable; 0 when all are.
    """

    name: str
    regions: tuple[MemmapRegion, ...]
    warnings: tuple[str, ...] = ()
    unread_stop: int = 0

    @property
    def end_pfn(self) -> int:
        """One past the last pfn that has a struct page, 0 when none has."""
        stops = [region.stop_pfn for region in self.regions if region.memmap_vaddr is not None]
        return max(stops, default=0)

    def lowered(self, max_mapnr: int) -> int:
        """`max_mapnr` cut to the last struct page, as makedumpfile does (kernels run with mem=).

        Pages that may have one that was not found are kept.
        """
        return min(max_mapnr, max(self.end_pfn, self.unread_stop)) if self.end_pfn else max_mapnr


def join_regions(
    regions: list[MemmapRegion], page_struct_size: int, max_mapnr: int
) -> tuple[MemmapRegion, ...]:
    """Sorted, cut at `max_mapnr`, without overlaps; neighbours whose arrays touch become one."""
    out: list[MemmapRegion] = []
    for region in sorted(regions):
        start, vaddr = region.start_pfn, region.memmap_vaddr
        stop = min(region.stop_pfn, max_mapnr)
        if out and start < out[-1].stop_pfn:  # nodes of DISCONTIGMEM may overlap
            skipped = out[-1].stop_pfn - start
            start += skipped
            vaddr = None if vaddr is None else vaddr + skipped * page_struct_size
        if start >= stop:
            continue
        if out and _continues(out[-1], start, vaddr, page_struct_size):
            out[-1] = out[-1]._replace(stop_pfn=stop)
            continue
        out.append(MemmapRegion(start, stop, vaddr))
    return tuple(out)


def _continues(last: MemmapRegion, start: int, vaddr: int | None, page_struct_size: int) -> bool:
    if last.stop_pfn != start or last.memmap_vaddr is None:
        return False
    return vaddr == last.memmap_vaddr + (start - last.start_pfn) * page_struct_size


async def read_memory_model(kernel: Kernel, layout: PageLayout, max_mapnr: int) -> MemoryModel:
    """Find the regions below `max_mapnr`.

    Raises:
        MissingInfoError: VMCOREINFO names none of the models.
        FormatError: what the kernel's memory says cannot be, such as no section at all.
        TranslationError, MissingPageError: the first table of the model is not readable.
    """
    info = kernel.info
    words = KernelWords(kernel, layout.byte_order, layout.word)
    if info.offset("pglist_data.node_mem_map") is not None and info.symbol("node_data"):
        return await _discontigmem(words, layout, max_mapnr)
    if info.symbol("mem_section") is not None:
        from stages.filter.sparse import read_sections

        return await read_sections(words, layout, max_mapnr)
    symbol = info.symbol("mem_map")
    if symbol is None:
        raise MissingInfoError("VMCOREINFO SYMBOL(mem_section) or SYMBOL(mem_map)", "struct pages")
    memmap = (await words.read(symbol, 1))[0]
    if not memmap:
        raise FormatError("kernel", None, "mem_map", int(memmap), "a kernel address")
    start = kernel.memory_start // kernel.page_size  # ARCH_PFN_OFFSET
    if start >= max_mapnr:
        raise FormatError(
            "vmcoreinfo", None, "start of memory", start, f"a pfn below {max_mapnr:#x}"
        )
    return MemoryModel("flatmem", (MemmapRegion(start, max_mapnr, int(memmap)),))


async def _discontigmem(words: KernelWords, layout: PageLayout, max_mapnr: int) -> MemoryModel:
    info = words.kernel.info
    needed = "struct pages (DISCONTIGMEM)"
    n_nodes = info.length("node_data")
    if n_nodes is None or not 1 <= n_nodes <= MAX_NODES:
        raise FormatError("vmcoreinfo", None, "LENGTH(node_data)", n_nodes, f"1 to {MAX_NODES}")
    offsets = [
        info.need_offset(f"pglist_data.{name}", needed)
        for name in ("node_mem_map", "node_start_pfn", "node_spanned_pages")
    ]
    nodes = await words.read(info.need_symbol("node_data", needed), n_nodes)
    regions: list[MemmapRegion] = []
    warnings: list[str] = []
    for node in sorted({int(node) for node in nodes if node}):
        try:
            memmap, start, n_pages = [int((await words.read(node + off, 1))[0]) for off in offsets]
        except DumpError as error:
            warnings.append(f"node at {node:#x} is not readable, its pages are kept: {error}")
            continue
        if memmap and n_pages and start < max_mapnr:
            regions.append(MemmapRegion(start, start + n_pages, memmap))
    joined = join_regions(regions, layout.size, max_mapnr)
    return MemoryModel("discontigmem", joined, tuple(warnings), max_mapnr if warnings else 0)
