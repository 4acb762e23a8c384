"""A small x86_64 kernel made of a few pages: page tables, utsname, VMCOREINFO, and free memory.

Physical memory and what is mapped there, `PHYS_BASE` being 16 MiB::

    0         64 MiB    direct map, PAGE_OFFSET up
    16 MiB    + 8 MiB   kernel text window, TEXT up: utsname at + 2 MiB, page tables at + 4 MiB
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.flow.items import PageState
from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import EMPTY, ExtentSet
from stages.arch.paging import PagingForm
from stages.arch.x86_64 import FOUR_LEVELS, TEXT_START
from stages.reader.image import ImageInfo
from stages.translator.kernel import Kernel, open_kernel
from tests.support.pagetable_builder import DictPages, PageTableBuilder

PAGE: Final = 4096
PHYS_BASE: Final = 16 << 20
PAGE_OFFSET: Final = 0xFFFF888000000000
UTSNAME: Final = TEXT_START + (2 << 20)
TOP_TABLE: Final = TEXT_START + (4 << 20)
FREE: Final = TEXT_START + (6 << 20)
"""2 MiB of kernel memory for a test's own data."""
RELEASE: Final = "6.1.0-made"
_MEMORY: Final = 64 << 20


class MemoryImage:
    """An `Image` over pages in a dict. Pages outside `lost` and inside 64 MiB exist, zero if unset.

    Attributes:
        reads: the pfns of each `read_pages`.
    """

    path = "made"
    fork_safe = True

    def __init__(self, pages: dict[int, bytearray], info: ImageInfo) -> None:
        self.info = info
        self.lost: set[int] = set()
        self.reads: list[list[int]] = []
        self.max_mapnr = _MEMORY // PAGE
        self.ram = ExtentSet.from_pairs([(0, self.max_mapnr)])
        self.pages = pages

    @property
    def saved(self) -> ExtentSet:
        return self.ram.subtract(ExtentSet.from_pairs((pfn, pfn + 1) for pfn in self.lost))

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        wanted = pfns.tolist()
        self.reads.append(wanted)
        out[:] = 0xA5  # rows of missing pages are undefined
        states = np.full(len(wanted), PageState.DATA, dtype=np.uint8)
        for row, pfn in enumerate(wanted):
            if pfn in self.lost or pfn >= self.max_mapnr:
                states[row] = PageState.MISSING
            else:
                out[row] = np.frombuffer(self.pages.get(pfn, bytes(PAGE)), dtype=np.uint8)
        return states

    def holes(self, start: int, stop: int) -> ExtentSet:
        return EMPTY

    def read_ahead(self, start: int, stop: int) -> None:
        pass

    def saved_bitmap(self) -> PageBitmap:
        return PageBitmap.from_extents(self.saved, self.max_mapnr)

    def close(self) -> None:
        pass


class _ImagePages(DictPages):
    """Pages of memory that were never written read as zero, as RAM does.

    Attributes:
        error: what every request raises.
    """

    error: Exception | None = None

    def __init__(self, image: MemoryImage) -> None:
        zero = bytearray(PAGE)
        present = (pfn for pfn in range(image.max_mapnr) if pfn not in image.lost)
        super().__init__({pfn: image.pages.get(pfn, zero) for pfn in present}, page_size=PAGE)

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        if self.error is not None:
            raise self.error
        return await super().get_many(pfns)


@dataclass
class MadeKernel:
    """Change `vmcoreinfo`, `image` or memory before `open`."""

    form: PagingForm = FOUR_LEVELS
    page_offset: int = PAGE_OFFSET
    vmcoreinfo: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = PageTableBuilder(self.form, TOP_TABLE - TEXT_START + PHYS_BASE)
        for at in range(0, 8 << 20, 2 << 20):
            self.tables.map(TEXT_START + at, PHYS_BASE + at, 21)
        for at in range(0, _MEMORY, 2 << 20):
            self.tables.map(self.page_offset + at, at, 21)
        self.image = MemoryImage(self.tables.pages, ImageInfo("elf", "x86_64", PAGE))
        self.write_utsname(UTSNAME)
        self.vmcoreinfo = {
            "OSRELEASE": RELEASE,
            "PAGESIZE": PAGE,
            "SYMBOL(init_uts_ns)": f"{UTSNAME:x}",
            "OFFSET(uts_namespace.name)": 0,
            "SYMBOL(init_top_pgt)": f"{TOP_TABLE:x}",
            "NUMBER(phys_base)": PHYS_BASE,
            "NUMBER(pgtable_l5_enabled)": int(len(self.form.levels) == 5),
        } | self.vmcoreinfo

    def write(self, vaddr: int, data: bytes) -> None:
        """Write to memory through the text window."""
        paddr = vaddr - TEXT_START + PHYS_BASE
        for at in range(paddr, paddr + len(data)):
            page = self.tables.pages.setdefault(at // PAGE, bytearray(PAGE))
            page[at % PAGE] = data[at - paddr]

    def write_utsname(self, vaddr: int, release: str = RELEASE) -> None:
        """A struct new_utsname at `vaddr`."""
        words = ("Linux", "made", release, "#1", "x86_64", "(none)")
        self.write(vaddr, b"".join(word.encode().ljust(65, b"\0") for word in words))

    def lose(self, vaddr: int) -> int:
        """Take the page of a text address out of the image; returns its pfn."""
        pfn = (vaddr - TEXT_START + PHYS_BASE) // PAGE
        self.image.lost.add(pfn)
        return pfn

    async def open(self) -> Kernel:
        """The kernel as the product finds it."""
        lines = [f"{key}={value}" for key, value in self.vmcoreinfo.items() if value is not None]
        self.image.info.vmcoreinfo = "\n".join([*lines, ""]).encode()
        self.reader = _ImagePages(self.image)
        return await open_kernel(self.image, self.reader)
