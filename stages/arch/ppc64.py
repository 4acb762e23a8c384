"""ppc64 and ppc64le with the radix MMU (POWER9 and later): pages of 4 and 64 KiB.

References:
    Power ISA 3.0, book III, chapter 5.7 (Radix Tree Translation)

Entries are big-endian whatever the kernel's own byte order is. Tables of the last level may be as
small as 256 bytes, so the address in an entry is finer than a page::

    pages      pgd   pud   pmd   pte
    64 KiB     13    9     9     5       leaves of 64 KiB, 2 MiB, 1 GiB
    4 KiB      13    9     9     9       leaves of 4 KiB, 2 MiB, 1 GiB
"""

from __future__ import annotations

from functools import cache
from typing import Final

from pipeline.errors import FormatError, UnsupportedError
from stages.arch.layout import KernelLayout, LinearMap, loaded_at
from stages.arch.paging import BitField, BitTest, Leaf, Level, PagingForm, Window
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo

NAMES: Final = (("ppc64le", "<"), ("ppc64", ">"))
"""Machines and their byte orders."""
SPARSE_BITS: Final = ((24, 51), (24, 47), (24, 46), (24, 44))
PAGE_OFFSET: Final = 0xC000000000000000
_LAST: Final = 0xC00FFFFFFFFFFFFF
_WIDTHS: Final = {16: (5, 9, 9, 13), 12: (9, 9, 9, 13)}
"""Bits of an index, last level first, by bits of a page."""

_VALID: Final = BitTest(1 << 63, 1 << 63)
_LEAF: Final = BitTest(1 << 62, 1 << 62)
_TABLE: Final = (BitField((1 << 62) - (1 << 8)),)
_PAGE: Final = (BitField((1 << 53) - (1 << 12)),)
_FLAGS: Final = (
    (1 << 63, "VALID"),
    (1 << 62, "LEAF"),
    (0x100, "ACCESSED"),
    (0x080, "DIRTY"),
    (0x008, "PRIVILEGED"),
    (0x004, "READ"),
    (0x002, "WRITE"),
    (0x001, "EXEC"),
)


@cache
def paging_form(page_bits: int) -> PagingForm:
    """Radix tables for pages of 2**page_bits bytes, 12 or 16."""
    levels = []
    shift = page_bits
    for name, bits in zip(("pte", "pmd", "pud", "pgd"), _WIDTHS[page_bits], strict=True):
        leaves = (Leaf(_LEAF, shift, _PAGE),) if name != "pgd" else ()
        table = () if name == "pte" else _TABLE
        levels.append(Level(name, shift, bits, _VALID, leaves, table, 0, _FLAGS))
        shift += bits
    size = 1 << (page_bits - 10)
    windows = (Window(PAGE_OFFSET, _LAST),)
    return PagingForm(f"ppc64-radix-{size}k", page_bits, tuple(reversed(levels)), windows, ">")


def layouts(info: VmcoreInfo, image: ImageInfo) -> list[KernelLayout]:
    """Where the top table may lie, the most trustworthy first; to be verified by translating.

    Raises:
        MissingInfoError: VMCOREINFO names no top table.
        UnsupportedError: the machine ran with the hash MMU, which has no tree of tables.
        FormatError: what VMCOREINFO says can't be true.
    """
    if info.number("RADIX_MMU") == 0:
        raise UnsupportedError("ppc64: address translation with the hash MMU; only radix is known")
    page_bits = info.page_size.bit_length() - 1
    if page_bits not in _WIDTHS:
        raise FormatError("vmcoreinfo", None, "PAGESIZE", info.page_size, "4096 or 65536")
    top = info.need_symbol("swapper_pg_dir", "address translation")
    linear = LinearMap(PAGE_OFFSET, 0)
    roots = {top - PAGE_OFFSET: "the direct map"}  # the kernel itself lies in it
    loaded = loaded_at(image, top)
    if loaded is not None:
        roots.setdefault(loaded, "the kernel's PT_LOAD")
    found = [
        KernelLayout(paging_form(page_bits), root, 0, source, linear)
        for root, source in roots.items()
        if 0 <= root < 1 << 53 and root % 4096 == 0
    ]
    if not found:
        raise FormatError("vmcoreinfo", None, "SYMBOL(swapper_pg_dir)", top, "0xc000000000000000..")
    return found
