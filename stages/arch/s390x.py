"""s390x: region, segment and page tables, and kernels that are not mapped one to one.

References:
    z/Architecture Principles of Operation, chapter 3 (Dynamic Address Translation)

Tables are larger than a page (2,048 entries) but the last, which is half of one (256 entries), and
entries are big-endian, as everything on s390x. An entry of the upper tables says of which kind its
table is, so a walk that starts on the wrong level finds nothing::

    region first    53    11   table type 3        pgd        2**64 bytes of addresses
    region second   42    11   table type 2        p4d        2**53
    region third    31    11   table type 1        pud        2**42, leaves of 2 GiB
    segment         20    11   table type 0        pmd        leaves of 1 MiB
    page            12     8                       pte
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

from pipeline.errors import FormatError
from stages.arch.layout import KernelLayout, LinearMap
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

NAME: Final = "s390x"
SPARSE_BITS: Final = ((28, 46), (28, 42))
BYTE_ORDER: Final = ">"
_TYPE: Final = 0xC
_INVALID: Final = 0x20
_LARGE: Final = BitTest(0x400, 0x400)
_FLAGS: Final = ((0x400, "LARGE"), (0x200, "PROTECT"), (0x100, "NOEXEC"))
_PTE_FLAGS: Final = ((0x200, "PROTECT"), (0x100, "NOEXEC"))


def _from(first_bit: int) -> tuple[BitField, ...]:
    return (BitField(ADDRESS_LIMIT - (1 << first_bit)),)


def _region(name: str, shift: int, table_type: int, leaves: tuple[Leaf, ...] = ()) -> Level:
    present = BitTest(_INVALID | _TYPE, table_type << 2)
    return Level(name, shift, 11, present, leaves, _from(12), 0, _FLAGS)


_LEVELS: Final = (
    _region("pgd", 53, 3),
    _region("p4d", 42, 2),
    _region("pud", 31, 1, (Leaf(_LARGE, 31, _from(31)),)),
    Level(
        "pmd",
        20,
        11,
        BitTest(_INVALID | _TYPE, 0),
        (Leaf(_LARGE, 20, _from(20)),),
        _from(11),
        0,
        _FLAGS,
    ),
    Level(
        "pte",
        12,
        8,
        BitTest(0x400, 0),
        (Leaf(ALWAYS, 12, _from(12), reserved=0x800),),
        flags=_PTE_FLAGS,
    ),
)


@cache
def paging_form(n_levels: int) -> PagingForm:
    """Tables of 3, 4 or 5 levels."""
    levels = _LEVELS[-n_levels:]
    last = (1 << (levels[0].shift + levels[0].bits)) - 1
    return PagingForm(f"s390x-{n_levels}l", 12, levels, (Window(0, last),), entry_order=">")


def _roots(info: VmcoreInfo, top: int) -> Iterator[tuple[int, str]]:
    """Where the top table lies, best guess first.

    Since Linux commit c98d2ecae08f ("s390/mm: Uncouple physical vs virtual address spaces") (in
    v6.10) a kernel says where it is; before, every address was its own physical address.
    """
    phys = info.hexadecimal("KERNELOFFPHYS")
    if phys is not None:
        yield top - info.kernel_offset + phys, "KERNELOFFPHYS"
    yield top, "a kernel mapped one to one"


def layouts(info: VmcoreInfo, image: ImageInfo) -> list[KernelLayout]:
    """Where the top table may lie, and of which kind it may be; to be verified by translating.

    Raises:
        MissingInfoError: VMCOREINFO names no top table.
        FormatError: what it says can't be true.
    """
    del image  # s390x takes nothing from the image's own headers
    top = info.need_symbol("swapper_pg_dir", "address translation")
    linear = LinearMap(info.hexadecimal("IDENTITYBASE") or 0, 0)
    found = [
        KernelLayout(paging_form(n_levels), root, 0, source, linear)
        for root, source in _roots(info, top)
        for n_levels in (3, 4, 5)
        if 0 <= root < 1 << 53 and root % 4096 == 0
    ]
    if not found:
        raise FormatError("vmcoreinfo", None, "SYMBOL(swapper_pg_dir)", top, "a table's address")
    return found
