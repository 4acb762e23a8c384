"""SPARSEMEM: the sections of physical memory, and the struct pages of each.

References:
    include/linux/mmzone.h (section_mem_map, sparse_decode_mem_map), mm/sparse.c

With SPARSEMEM_EXTREME a page of `struct mem_section` hangs below each root::

    mem_section ─▶ root[0] root[1] ...      n_roots pointers, 0 where no section was ever present
                     └▶ section[0..per_root)
                          └▶ section_mem_map = (memmap - start_pfn * SIZE(page)) | flags

Classic SPARSEMEM has all sections in one array at `mem_section`. The symbol means two things: up
to v4.14 it is the array of roots, and since Linux commit 83e3c48729d9 ("mm/sparsemem: Allocate
mem_section at runtime for CONFIG_SPARSEMEM_EXTREME=y") (in v4.15) a pointer to it, of which
VMCOREINFO gives the address in some releases and the value in others. Both readings are tried: in
the wrong one what should be a root is a section's odd word, or no section at all is present.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from typing import Final

import numpy as np
from msgspec import Struct, field

from pipeline.errors import DumpError, FormatError, MissingInfoError
from pipeline.memory.addresses import AddrArray
from pipeline.memory.arrays import distinct
from stages.filter.kernel_words import KernelWords
from stages.filter.memory_model import MemmapRegion, MemoryModel, join_regions
from stages.filter.page_layout import PageLayout
from stages.formats.vmcoreinfo import VmcoreInfo

PRESENT: Final = 1
FLAG_BITS: Final = 0x3F
"""Six flag bits since v6.15; the kernel guarantees that at least six low bits are free."""
MAX_SECTIONS: Final = 1 << 21
"""256 TiB of x86_64's 128 MiB sections."""
_MASK64: Final = (1 << 64) - 1
_CHUNK_ROOTS: Final = 64
"""Pages of sections that are read at once where they lie side by side: 256 KiB."""
_MAX_PROBES: Final = 256


class SparseGeometry(Struct, frozen=True):
    """Attributes:
    pages_per_section: pfns a section.
    section_bytes: SIZE(mem_section).
    map_off: where section_mem_map is in it.
    per_root: sections a root; 1 for classic SPARSEMEM.
    n_sections: of the pfns that are looked at.
    """

    pages_per_section: int
    section_bytes: int
    map_off: int
    per_root: int
    n_sections: int

    @property
    def n_roots(self) -> int:
        return -(-self.n_sections // self.per_root)

    @classmethod
    def from_vmcoreinfo(
        cls,
        info: VmcoreInfo,
        word: int,
        max_mapnr: int,
        usual_bits: tuple[tuple[int, int], ...] = (),
    ) -> SparseGeometry:
        """Build and check; `usual_bits` are pairs for kernels that do not tell theirs.

        Raises:
            MissingInfoError: a key is absent.
            FormatError: a number that no kernel can have.
        """
        needed = "struct pages (SPARSEMEM)"
        page_shift = info.page_size.bit_length() - 1
        size = info.need_size("mem_section", needed)
        map_off = info.need_offset("mem_section.section_mem_map", needed)
        _check("SIZE(mem_section)", size, word, info.page_size)
        bits, physmem_bits = _section_bits(info, info.page_size // size, usual_bits)
        _check("NUMBER(SECTION_SIZE_BITS)", bits, page_shift + 7, 40)
        _check("NUMBER(MAX_PHYSMEM_BITS)", physmem_bits, bits, 64)
        _check("OFFSET(mem_section.section_mem_map)", map_off, 0, size - word)
        pages_per_section = 1 << (bits - page_shift)
        n_possible = 1 << (physmem_bits - bits)
        n_sections = min(-(-max_mapnr // pages_per_section), n_possible)
        _check("number of sections", n_sections, 0, MAX_SECTIONS)
        per_root = _per_root(info.length("mem_section"), info.page_size // size, n_possible)
        return cls(pages_per_section, size, map_off, per_root, n_sections)


def _per_root(length: int | None, per_root: int, n_possible: int) -> int:
    """`per_root` if LENGTH(mem_section) is the number of roots, 1 if it is that of sections.

    Raises:
        FormatError: it is neither, so one of the numbers is wrong; sections that are not found for
            that would be cut off the dump as memory that the kernel does not use.
    """
    n_roots = -(-n_possible // per_root)
    if length in (None, n_roots):
        return per_root
    if length != n_possible:
        wanted = f"{n_roots:#x} roots of {per_root} sections, or {n_possible:#x} sections"
        raise FormatError("vmcoreinfo", None, "LENGTH(mem_section)", length, wanted)
    return 1


def _section_bits(
    info: VmcoreInfo, per_root: int, usual_bits: tuple[tuple[int, int], ...]
) -> tuple[int, int]:
    """SECTION_SIZE_BITS and MAX_PHYSMEM_BITS: as exported, else those that fit LENGTH(mem_section).

    That length is the number of roots, or of sections where there are no roots, and differs from
    one pair to the next.

    Raises:
        MissingInfoError: neither exported nor told by the length.
    """
    bits, physmem_bits = info.number("SECTION_SIZE_BITS"), info.number("MAX_PHYSMEM_BITS")
    if bits is not None and physmem_bits is not None:
        return bits, physmem_bits
    fits = [
        (section, physmem)
        for section, physmem in usual_bits
        if bits in (None, section) and physmem_bits in (None, physmem)
    ]
    length = info.length("mem_section")
    for each in (per_root, 1):
        for section, physmem in fits:
            if length == -(-(1 << (physmem - section)) // each):
                return section, physmem
    raise MissingInfoError("VMCOREINFO NUMBER(SECTION_SIZE_BITS)", "struct pages (SPARSEMEM)")


def _check(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise FormatError("vmcoreinfo", None, name, value, f"{lowest} to {highest}")


class _Sections(Struct):
    """What one reading of the symbol gives: present sections, ascending."""

    numbers: AddrArray
    maps: AddrArray
    """section_mem_map of each, flags included."""
    warnings: list[str] = field(default_factory=list)
    unread_stop: int = 0
    """As in `MemoryModel`."""


class _SectionReader(Struct, frozen=True):
    words: KernelWords
    geometry: SparseGeometry

    async def extreme(self, base: int) -> _Sections:
        """Sections below the roots at `base`.

        Raises:
            FormatError: roots that cannot be pointers, or that share a page.
            TranslationError, MissingPageError: the roots are not readable.
        """
        roots = await self.words.read(base, self.geometry.n_roots)
        used = np.flatnonzero(roots)
        pointers = roots[used]
        odd = pointers[pointers % np.uint64(self.words.word) != 0]
        if len(odd):
            raise FormatError("kernel", None, "mem_section root", int(odd[0]), "a pointer")
        if len(distinct(pointers)) < len(pointers):
            raise FormatError("kernel", None, "mem_section", base, "roots that differ")
        out = _Sections(pointers[:0], pointers[:0])
        for first in range(0, len(used), _CHUNK_ROOTS):
            part = slice(first, first + _CHUNK_ROOTS)
            await self._add_roots(out, used[part], pointers[part])
        return out

    async def classic(self, base: int) -> _Sections:
        """Sections of the one array at `base`."""
        out = _Sections(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        per_read = _CHUNK_ROOTS * (self.words.kernel.page_size // self.geometry.section_bytes)
        for first in range(0, self.geometry.n_sections, per_read):
            n_sections = min(per_read, self.geometry.n_sections - first)
            await self._add(out, first, base + first * self.geometry.section_bytes, n_sections)
        return out

    async def _add_roots(self, out: _Sections, used: np.ndarray, pointers: AddrArray) -> None:
        """Roots that lie side by side, in number and in memory, are one read."""
        per_root = self.geometry.per_root
        n_bytes = per_root * self.geometry.section_bytes
        steps = (np.diff(used) != 1) | (np.diff(pointers) != np.uint64(n_bytes))
        edges = [0, *(np.flatnonzero(steps) + 1).tolist(), len(used)]
        for first, last in itertools.pairwise(edges):
            start = int(used[first]) * per_root
            n_sections = min((last - first) * per_root, self.geometry.n_sections - start)
            await self._add(out, start, int(pointers[first]), n_sections)

    async def _add(self, out: _Sections, first: int, vaddr: int, n_sections: int) -> None:
        size, word = self.geometry.section_bytes, self.words.word
        try:
            raw = await self.words.kernel.read(vaddr & _MASK64, n_sections * size)
        except DumpError as error:
            stop = (first + n_sections) * self.geometry.pages_per_section
            start = first * self.geometry.pages_per_section
            out.warnings.append(
                f"mem_section of pfns {start:#x}-{stop:#x} is not readable, they are kept: {error}"
            )
            out.unread_stop = max(out.unread_stop, stop)
            return
        maps = np.ndarray(
            (n_sections,),
            dtype=f"{self.words.byte_order}u{word}",
            buffer=raw,
            offset=self.geometry.map_off,
            strides=(size,),
        ).astype(np.uint64)
        found = np.flatnonzero((maps & np.uint64(PRESENT) != 0) & (maps > FLAG_BITS))
        out.numbers = np.concatenate((out.numbers, (found + first).astype(np.uint64)))
        out.maps = np.concatenate((out.maps, maps[found]))


async def read_sections(words: KernelWords, layout: PageLayout, max_mapnr: int) -> MemoryModel:
    """Regions of all present sections below `max_mapnr`.

    Raises:
        MissingInfoError, FormatError: see `SparseGeometry`; or no reading of the symbol holds.
    """
    usual_bits = words.kernel.arch.sparse_bits
    geometry = SparseGeometry.from_vmcoreinfo(words.kernel.info, words.word, max_mapnr, usual_bits)
    symbol = words.kernel.info.need_symbol("mem_section", "struct pages")
    reader = _SectionReader(words, geometry)
    name = "sparsemem" if geometry.per_root == 1 else "sparsemem extreme"
    read = reader.classic if geometry.per_root == 1 else reader.extreme
    regions, sections = await _first_that_holds(words, layout, geometry, read, symbol)
    joined = join_regions(regions, layout.size, max_mapnr)
    return MemoryModel(name, joined, tuple(sections.warnings), sections.unread_stop)


async def _first_that_holds(
    words: KernelWords,
    layout: PageLayout,
    geometry: SparseGeometry,
    read: Callable[[int], Coroutine[None, None, _Sections]],
    symbol: int,
) -> tuple[list[MemmapRegion], _Sections]:
    """The symbol read as a pointer, then as the array itself."""
    problems: list[str] = []
    for reading in ("pointer", "array"):
        try:
            base = int((await words.read(symbol, 1))[0]) if reading == "pointer" else symbol
            sections = await read(base)
        except DumpError as error:
            problems.append(f"as {reading}: {error}")
            continue
        regions = _regions(sections, layout, geometry)
        if await _any_mapped(words, regions):
            return regions, sections
        problems.append(f"as {reading}: {len(regions)} sections present, none of them mapped")
    raise FormatError("kernel", None, "mem_section", "; ".join(problems), "sections")


def _regions(
    sections: _Sections, layout: PageLayout, geometry: SparseGeometry
) -> list[MemmapRegion]:
    n_pages = geometry.pages_per_section
    mask = _MASK64 if layout.word == 8 else 0xFFFFFFFF
    out: list[MemmapRegion] = []
    for number, encoded in zip(sections.numbers.tolist(), sections.maps.tolist(), strict=True):
        start = number * n_pages
        memmap = ((encoded & ~FLAG_BITS) + start * layout.size) & mask
        out.append(MemmapRegion(start, start + n_pages, memmap))
    return out


async def _any_mapped(words: KernelWords, regions: list[MemmapRegion]) -> bool:
    """Whether struct pages are where the sections say, by a sample of them."""
    step = max(len(regions) // _MAX_PROBES, 1)
    vaddrs = np.array([region.memmap_vaddr for region in regions[::step]], dtype=np.uint64)
    if not len(vaddrs):
        return False
    _, mapped = await words.kernel.translator.translate(vaddrs)
    return bool(mapped.any())
