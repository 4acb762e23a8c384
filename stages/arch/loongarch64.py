"""loongarch64: windows that no table maps, and tables for the rest.

References:
    LoongArch Reference Manual, volume 1, chapter 5 (Memory Management)

The upper bits of an address decide who translates it::

    0x8000... 0x9000... 0xa000...     the low 48 bits are the physical address; the kernel is here
    0xffff8000...                     tables: vmalloc, modules, struct pages

Tables hold addresses inside such a window, not physical ones, and an entry that maps nothing
points to a table whose entries do not, down to an entry that is not present.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from pipeline.errors import FormatError
from stages.arch.layout import DirectWindow, KernelLayout, LinearMap, level_names
from stages.arch.paging import (
    ADDRESS_LIMIT,
    ALWAYS,
    BitField,
    BitTest,
    Leaf,
    Level,
    PagingForm,
    Window,
)
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo

NAME: Final = "loongarch64"
SPARSE_BITS: Final = ((29, 48),)
BYTE_ORDER: Final = "<"
_PHYS_BITS: Final = 48
_CACHED: Final = 0x9000000000000000
_WINDOWS: Final = (0x8000000000000000, _CACHED, 0xA000000000000000)
_MAPPED_BITS: Final = 47
"""Of the 48 bits of an address that all processors have so far, half is the kernel's."""
_MAPPED: Final = ADDRESS_LIMIT - (1 << _MAPPED_BITS)
_N_LEVELS: Final = {12: (3, 4), 14: (3, 2), 16: (3, 2)}
"""Levels that a kernel can be built with, the usual first, by bits of a page."""

_NOT_ZERO: Final = BitTest(ADDRESS_LIMIT - 1, 0, negated=True)
_HUGE: Final = BitTest(1 << 6, 1 << 6)
_PRESENT: Final = BitTest(1 << 7, 1 << 7)
_FLAGS: Final = (
    (0x001, "VALID"),
    (0x002, "DIRTY"),
    (0x040, "GLOBAL"),
    (0x080, "PRESENT"),
    (0x100, "WRITE"),
    (1 << 61, "NOREAD"),
    (1 << 62, "NOEXEC"),
)
DIRECT: Final = tuple(DirectWindow(first, first + (1 << _PHYS_BITS) - 1, 0) for first in _WINDOWS)


@cache
def paging_form(page_bits: int, n_levels: int) -> PagingForm:
    """Tables of a page each."""
    address = (BitField((1 << _PHYS_BITS) - (1 << page_bits)),)
    page = Leaf(ALWAYS, page_bits, address)
    levels = [Level("pte", page_bits, page_bits - 3, _PRESENT, (page,), flags=_FLAGS)]
    for up, name in enumerate(level_names(n_levels)[1:], 1):
        shift = page_bits + up * (page_bits - 3)
        leaves = (Leaf(_HUGE, shift, address),) if up == 1 else ()
        levels.append(Level(name, shift, page_bits - 3, _NOT_ZERO, leaves, address))
    size = 1 << (page_bits - 10)
    va_bits = page_bits + n_levels * (page_bits - 3)
    window = Window(_MAPPED, _MAPPED + (1 << min(va_bits, _MAPPED_BITS)) - 1)
    return PagingForm(
        f"loongarch64-{size}k-{n_levels}l", page_bits, tuple(reversed(levels)), (window,)
    )


def layouts(info: VmcoreInfo, image: ImageInfo) -> list[KernelLayout]:
    """Where the top table lies, and how many levels there may be; to be verified by translating.

    Raises:
        MissingInfoError: VMCOREINFO names no top table.
        FormatError: what it says can't be true.
    """
    del image  # loongarch64 takes nothing from the image's own headers
    page_bits = info.page_size.bit_length() - 1
    if page_bits not in _N_LEVELS:
        raise FormatError("vmcoreinfo", None, "PAGESIZE", info.page_size, "4096, 16384 or 65536")
    top = info.need_symbol("swapper_pg_dir", "address translation")
    window = next((one for one in DIRECT if one.first <= top <= one.last), None)
    if window is None or top % 4096:
        raise FormatError("vmcoreinfo", None, "SYMBOL(swapper_pg_dir)", top, "0x9000000000000000..")
    return [
        KernelLayout(
            form=paging_form(page_bits, n_levels),
            root=top - window.first,
            phys_base=0,
            phys_base_from=f"{n_levels} levels of tables",
            direct_map=LinearMap(_CACHED, 0),
            direct=DIRECT,
            mapped=info.symbol("vmemmap"),
        )
        for n_levels in _N_LEVELS[page_bits]
    ]
