"""Where the demo kernel lies: physical placement, and the virtual areas of x86_64.

References:
    Documentation/arch/x86/x86_64/mm.rst

Physical memory of the 64 MiB machine, pfns (larger machines stretch both ranges of RAM)::

    0      a0       100            1000+                            2000     10000       12000
    | low  | (hole) | use          | text data | memmap | heap | use |  ...   | use       |
                                   kernel image  2 MiB a section     section 1 absent
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.demo.memory import PAGE, SECTION_PAGES, RamRange

TEXT_BASE: Final = 0xFFFF_FFFF_8000_0000
KERNEL_PAGES: Final = 0x400
"""4 MiB: text in the first half, data in the second."""
HEAP_PAGES: Final = 0x400
STRUCT_PAGE_BYTES: Final = 64
MEMMAP_PAGES: Final = SECTION_PAGES * STRUCT_PAGE_BYTES // PAGE
"""Pages of struct pages, one section's."""
VMALLOC_PAGES: Final = 64
DATA_OFF: Final = 0x4000
"""File offset of RAM: what comes before is headers and notes."""
ROM_PADDR: Final = 0xFFFC_0000
ROM_PAGES: Final = 64
_KERNEL_PFN: Final = 0x1000
_LOW_END: Final = 0xA0
_LOW_HOLE_END: Final = 0x100
_GIB: Final = 1 << 30
_SHIFT_LIMITS: Final = (3, 400, 99, 99, 99)
"""Of the kernel in memory and of its text (2 MiB steps), and of three areas (1 GiB steps)."""


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Physical things are pfns, virtual ones byte addresses."""

    ranges: tuple[RamRange, ...]
    sections: tuple[int, ...]
    kernel_pfn: int
    kernel_offset: int
    """KASLR of the text."""
    page_offset: int
    vmalloc_start: int
    vmemmap_start: int

    @property
    def end_pfn(self) -> int:
        return self.ranges[-1].stop

    def file_off(self, paddr: int) -> int:
        """Where RAM at `paddr` is in the file.

        Raises:
            ValueError: there is no RAM.
        """
        pfn = paddr // PAGE
        for ram in self.ranges:
            if ram.start <= pfn < ram.stop:
                return ram.file_off + paddr - ram.start * PAGE
        raise ValueError(f"no RAM at {paddr:#x}")

    def memmap_paddr(self, pfn: int) -> int:
        """Where the struct page of `pfn`, which is in a present section, is stored."""
        section, inside = divmod(pfn, SECTION_PAGES)
        first = self.memmap_pfn + self.sections.index(section) * MEMMAP_PAGES
        return first * PAGE + inside * STRUCT_PAGE_BYTES

    @property
    def text_vaddr(self) -> int:
        return TEXT_BASE + 0x100_0000 + self.kernel_offset

    @property
    def phys_base(self) -> int:
        return self.kernel_pfn * PAGE - (self.text_vaddr - TEXT_BASE)

    @property
    def memmap_pfn(self) -> int:
        return self.kernel_pfn + KERNEL_PAGES

    @property
    def heap_pfn(self) -> int:
        return self.memmap_pfn + len(self.sections) * MEMMAP_PAGES

    @property
    def system_end(self) -> int:
        """One past the kernel's own memory."""
        return self.heap_pfn + HEAP_PAGES


def plan_addresses(n_mib: int, levels: int, rng: np.random.Generator | None) -> AddressMap:
    """Lay out `n_mib` MiB of RAM; with `rng`, everything that KASLR moves is moved.

    Raises:
        ValueError: a size or a number of levels that cannot be.
    """
    if not 64 <= n_mib <= 2048 or n_mib % 8 or levels not in (4, 5):
        raise ValueError(f"{n_mib} MiB and {levels} levels: 64 to 2048, in steps of 8; 4 or 5")
    half = n_mib * (1 << 20) // PAGE // 2
    second = (-(-half // SECTION_PAGES) + 1) * SECTION_PAGES
    ranges: list[RamRange] = []
    file_off = DATA_OFF
    for start, stop in ((0, _LOW_END), (_LOW_HOLE_END, half), (second, second + half)):
        ranges.append(RamRange(start, stop, file_off))
        file_off += (stop - start) * PAGE
    in_use = {pfn // SECTION_PAGES for start, stop, _ in ranges for pfn in (start, stop - 1)}
    in_use.update(range(second // SECTION_PAGES, -(-(second + half) // SECTION_PAGES)))
    in_use.update(range(-(-half // SECTION_PAGES)))
    bases = (0xFFFF8880 << 32, 0xFFFFC900 << 32, 0xFFFFEA00 << 32)
    if levels == 5:
        bases = (0xFF110000 << 32, 0xFFA00000 << 32, 0xFFD40000 << 32)
    shifts = (
        [0] * 5 if rng is None else [int(rng.integers(1, limit)) for limit in (3, 400, 99, 99, 99)]
    )
    return AddressMap(
        ranges=tuple(ranges),
        sections=tuple(sorted(in_use)),
        kernel_pfn=_KERNEL_PFN + shifts[0] * 0x200,
        kernel_offset=shifts[1] << 21,
        page_offset=bases[0] + shifts[2] * _GIB,
        vmalloc_start=bases[1] + shifts[3] * _GIB,
        vmemmap_start=bases[2] + shifts[4] * _GIB,
    )
