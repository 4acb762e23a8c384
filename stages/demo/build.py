"""Builds the demo image: one ELF vmcore with a small but whole kernel in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray
from stages.demo.address_map import ROM_PAGES, AddressMap, plan_addresses
from stages.demo.contents import fill_contents
from stages.demo.elf_file import N_CPUS, elf_head, ram_end
from stages.demo.kernel_data import (
    KernelData,
    LogLine,
    log_lines,
    pack_utsname,
    place_printk_ring,
)
from stages.demo.kernel_tables import KernelTables, SectionForm
from stages.demo.kernels import KERNELS, DemoKernel
from stages.demo.kinds import PageKind
from stages.demo.memory import PAGE, SECTION_PAGES, DemoMemory, PageAllocator
from stages.demo.page_tables import LEAF_2M
from stages.demo.population import CHUNK_PAGES, populate
from stages.demo.struct_pages import Pfns, StructPages
from stages.demo.vmcoreinfo_text import UTS_NAME_OFF_5_10, MemoryModelKeys, vmcoreinfo_text

KernelName = Literal["5.10", "6.1", "6.6", "6.12", "7.1"]
ModelName = Literal["sparse_extreme", "sparse_classic", "flat"]
_CLASSIC_PHYSMEM_BITS: Final = 36
_ROM_BYTE: Final = 0x5A


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """What is in the image, by those who built it.

    Attributes:
        max_mapnr: as a dump of the image should have it: cut to the last section.
        kinds: uint8[max_mapnr] of `PageKind`, ABSENT where there is no RAM.
        zero: bool[max_mapnr], pages whose content is all zero.
        utsname: the kernel's struct new_utsname, 390 bytes.
        log: the kernel log.
        symbols: run-time addresses, as VMCOREINFO has them.
        vmalloc_pfns: what backs the vmalloc area, page by page.
    """

    path: Path
    kernel: str
    release: str
    levels: int
    memory_model: str
    addresses: AddressMap
    max_mapnr: int
    kinds: NDArray[np.uint8]
    zero: BoolArray
    utsname: bytes
    log: tuple[LogLine, ...]
    symbols: dict[str, int]
    vmalloc_pfns: tuple[int, ...]
    n_cpus: int = N_CPUS

    @property
    def ram(self) -> BoolArray:
        """bool[max_mapnr]: pages that exist."""
        present: BoolArray = self.kinds != PageKind.ABSENT
        return present

    def kept(self, level: int) -> BoolArray:
        """bool[max_mapnr]: pages that a dump of `level` must have; zero pages among them."""
        left_out = [kind.label(level) is not None for kind in PageKind]
        kept: BoolArray = self.ram & ~np.array(left_out)[self.kinds]
        return kept

    def counts(self, level: int) -> dict[str, int]:
        """Pages that `level` leaves out, by class; classes without pages are absent."""
        out: dict[str, int] = {}
        for kind, n_pages in zip(*np.unique(self.kinds, return_counts=True), strict=True):
            label = PageKind(int(kind)).label(level)
            if label is not None:
                out[label] = out.get(label, 0) + int(n_pages)
        return out


def build_demo_image(
    path: str | Path,
    *,
    n_mib: int = 64,
    kernel: KernelName = "6.1",
    levels: int = 4,
    memory_model: ModelName = "sparse_extreme",
    mem_section_is_pointer: bool = False,
    small_memmap_pages: bool = False,
    preinit_section: bool = False,
    kaslr: bool = True,
    device_rom: bool = False,
    seed: int = 0,
) -> DemoFacts:
    """Write the image to `path`, which is replaced.

    Args:
        path: the file; its holes are pages that nobody wrote.
        n_mib: RAM, 64 to 2048 in steps of 8.
        kernel: generation of struct page, flags and VMCOREINFO keys.
        levels: of page tables, 4 or 5.
        memory_model: what VMCOREINFO and memory say about struct pages.
        mem_section_is_pointer: SYMBOL(mem_section) is a pointer's address, as in v4.15.
        small_memmap_pages: struct pages are mapped in 4 KiB pages, and those of hugetlb pages
            share one page, as hugetlb vmemmap optimisation does.
        preinit_section: the last section has SECTION_IS_VMEMMAP_PREINIT set, as since v6.15 those
            with gigantic pages reserved at boot: a sixth flag bit beside the memmap's address.
        kaslr: move everything, by `seed`.
        device_rom: a PT_LOAD below 4 GiB that no struct page describes, as QEMU writes it.
        seed: for everything random; the same arguments give the same bytes.

    Raises:
        ValueError: arguments that do not go together.
        OSError: the file cannot be written.
    """
    if device_rom and memory_model == "flat":
        raise ValueError("a flat memory map has struct pages up to the ROM")
    path = Path(path)
    rng = np.random.default_rng(seed)
    addresses = plan_addresses(n_mib, levels, rng if kaslr else None)
    size = ram_end(addresses) + (ROM_PAGES * PAGE if device_rom else 0)
    with path.open("wb") as file:
        file.truncate(size)
    form = _Form(
        kernel=KERNELS[kernel],
        levels=levels,
        model=_model_keys(memory_model, levels),
        sections=SectionForm(symbol_is_pointer=mem_section_is_pointer, preinit=preinit_section),
        memmap_leaf=PAGE if small_memmap_pages else LEAF_2M,
        device_rom=device_rom,
    )
    return _build(path, np.memmap(path, dtype=np.uint8, mode="r+"), form, addresses, rng)


@dataclass(frozen=True, slots=True)
class _Form:
    """What the image looks like, beside where things are."""

    kernel: DemoKernel
    levels: int
    model: MemoryModelKeys
    sections: SectionForm
    memmap_leaf: int
    device_rom: bool


def _model_keys(name: str, levels: int) -> MemoryModelKeys:
    bits = 52 if levels == 5 else 46
    return MemoryModelKeys(name, _CLASSIC_PHYSMEM_BITS if name == "sparse_classic" else bits)


def _build(
    path: Path,
    image: NDArray[np.uint8],
    form: _Form,
    addresses: AddressMap,
    rng: np.random.Generator,
) -> DemoFacts:
    memory = DemoMemory(addresses.ranges, image)
    pages = _struct_pages(form.kernel, addresses, rng)
    fill_contents(memory, pages)
    utsname, log = pack_utsname(form.kernel.release), log_lines(form.kernel.release)
    tables = _build_kernel(memory, pages, form, addresses, utsname, log)
    text = vmcoreinfo_text(form.kernel, addresses, form.model, tables.symbols, form.levels)
    head = elf_head(addresses, text, device_rom=form.device_rom)
    image[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    max_mapnr = addresses.end_pfn
    if form.device_rom:
        image[ram_end(addresses) :] = _ROM_BYTE
        max_mapnr = (addresses.sections[-1] + 1) * SECTION_PAGES
    return DemoFacts(
        path=path,
        kernel=form.kernel.name,
        release=form.kernel.release,
        levels=form.levels,
        memory_model=form.model.name,
        addresses=addresses,
        max_mapnr=max_mapnr,
        kinds=pages.kinds[:max_mapnr],
        zero=_zero_pages(memory, max_mapnr),
        utsname=utsname,
        log=log,
        symbols=tables.symbols,
        vmalloc_pfns=tuple(tables.vmalloc_backing()),
    )


def _build_kernel(
    memory: DemoMemory,
    pages: StructPages,
    form: _Form,
    addresses: AddressMap,
    utsname: bytes,
    log: tuple[LogLine, ...],
) -> KernelTables:
    """The kernel's own memory: variables first, then what refers to them."""
    heap = PageAllocator(addresses.heap_pfn, addresses.system_end)
    data = KernelData(memory, addresses)
    tables = KernelTables(memory, addresses, pages, data, heap)
    gap = 0 if form.kernel.exports_uts_offset else UTS_NAME_OFF_5_10
    tables.symbols["init_uts_ns"] = data.place(bytes(gap) + utsname)
    tables.symbols["prb"] = place_printk_ring(data, log)
    tables.symbols["clear_seq"] = data.place(bytes(24))
    tables.build_memory_model(form.model, form.sections)
    tables.build_node(numa=form.model.name != "flat")
    tables.build_paging(form.levels, form.memmap_leaf)
    tables.store_memmap()
    return tables


def _struct_pages(
    kernel: DemoKernel, addresses: AddressMap, rng: np.random.Generator
) -> StructPages:
    pages = StructPages(kernel, addresses.end_pfn, addresses.vmemmap_start)
    chunks: list[Pfns] = []
    for ram in reversed(addresses.ranges):  # the second half is all ours: it comes first
        pages.set(slice(ram.start, ram.stop), PageKind.KERNEL)
        first = -(-ram.start // CHUNK_PAGES) * CHUNK_PAGES
        starts = np.arange(first, ram.stop - CHUNK_PAGES + 1, CHUNK_PAGES, dtype=np.int64)
        system = (starts + CHUNK_PAGES > addresses.kernel_pfn) & (starts < addresses.system_end)
        chunks.append(starts[~system])
    populate(pages, np.concatenate(chunks), rng)
    return pages


def _zero_pages(memory: DemoMemory, max_mapnr: int) -> BoolArray:
    zero = np.zeros(max_mapnr, dtype=np.bool_)
    for ram in memory.ranges:
        for start in range(ram.start, ram.stop, CHUNK_PAGES):
            stop = min(start + CHUNK_PAGES, ram.stop)
            zero[start:stop] = ~memory.rows(start, stop).any(axis=1)
    return zero
