"""x86_64: paging with 4 and 5 levels, and where the kernel keeps its tables.

References:
    Intel SDM volume 3, chapter 4; Documentation/arch/x86/x86_64/mm.rst
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.errors import FormatError, MissingInfoError
from stages.arch.layout import KernelLayout
from stages.arch.paging import ALWAYS, BitField, BitTest, Leaf, Level, PagingForm, Window
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo

NAME: Final = "x86_64"
BYTE_ORDER: Final = "<"
TEXT_START: Final = 0xFFFFFFFF_80000000
"""__START_KERNEL_map: from here up, vaddr - TEXT_START + phys_base is the physical address."""
_MAX_PHYS_BITS: Final = 52
SPARSE_BITS: Final = ((27, 46), (27, 52), (27, 44), (27, 40))
"""Four levels, five levels, before v2.6.31, before v2.6.26."""
# Newest name first; since v4.13 swapper_pg_dir is a macro for the others.
_TOP_TABLES: Final = ("init_top_pgt", "init_level4_pgt", "swapper_pg_dir")

_PRESENT: Final = BitTest(0x1, 0x1)
_HUGE: Final = BitTest(0x80, 0x80)
_ADDRESS: Final = (BitField(0x000F_FFFF_FFFF_F000),)
_FLAGS: Final = (
    (0x001, "PRESENT"),
    (0x002, "RW"),
    (0x004, "USER"),
    (0x008, "PWT"),
    (0x010, "PCD"),
    (0x020, "ACCESSED"),
    (0x040, "DIRTY"),
    (0x080, "PSE"),
    (0x100, "GLOBAL"),
    (1 << 63, "NX"),
)
_PTE_FLAGS: Final = tuple((mask, "PAT" if name == "PSE" else name) for mask, name in _FLAGS)


def _huge_leaf(span_bits: int) -> tuple[Leaf, ...]:
    """A large page: bit 12 is PAT, and what is left below the span must be zero."""
    return (Leaf(_HUGE, span_bits, _ADDRESS, reserved=(1 << span_bits) - (1 << 13)),)


def _table_only(name: str, shift: int) -> Level:
    """A level where bit 7 is reserved, because no leaf is that large."""
    return Level(name, shift, 9, _PRESENT, table=_ADDRESS, reserved=0x80, flags=_FLAGS)


_LOWER: Final = (
    Level("pud", 30, 9, _PRESENT, _huge_leaf(30), table=_ADDRESS, flags=_FLAGS),
    Level("pmd", 21, 9, _PRESENT, _huge_leaf(21), table=_ADDRESS, flags=_FLAGS),
    Level("pte", 12, 9, _PRESENT, (Leaf(ALWAYS, 12, _ADDRESS),), flags=_PTE_FLAGS),
)


def _sign_extended(va_bits: int) -> tuple[Window, Window]:
    half = 1 << (va_bits - 1)
    return Window(0, half - 1), Window((1 << 64) - half, (1 << 64) - 1)


FOUR_LEVELS: Final = PagingForm(
    name="x86_64-4l",
    page_bits=12,
    levels=(_table_only("pgd", 39), *_LOWER),
    windows=_sign_extended(48),
)
FIVE_LEVELS: Final = PagingForm(
    name="x86_64-5l",
    page_bits=12,
    levels=(_table_only("pgd", 48), _table_only("p4d", 39), *_LOWER),
    windows=_sign_extended(57),
)
# The direct map lies somewhere in here, at a random multiple of 1 GiB; vmalloc comes after it.
_DIRECT_MAP: Final = {
    FOUR_LEVELS.name: Window(0xFFFF8000_00000000, 0xFFFFFFFF_7FFFFFFF),
    FIVE_LEVELS.name: Window(0xFF000000_00000000, 0xFFFFFFFF_7FFFFFFF),
}


def _sme_mask(info: VmcoreInfo) -> int:
    """The encryption bit of table entries, 0 without memory encryption."""
    value = (info.number("sme_mask") or 0) & ((1 << 64) - 1)
    if value & (value - 1) or 0 < value < 1 << 32:
        raise FormatError("vmcoreinfo", None, "NUMBER(sme_mask)", value, "one bit, 32 or above")
    return value


def _phys_bases(info: VmcoreInfo, image: ImageInfo) -> Iterator[tuple[int, str]]:
    """Candidates, the most trustworthy first, each with where it comes from."""
    number = info.number("phys_base")
    if number is not None:
        yield number, "VMCOREINFO"
    if image.phys_base is not None:
        yield image.phys_base, "the dump's sub header"
    for load in image.loads:
        if load.paddr is not None and load.vaddr >= TEXT_START:
            yield load.paddr - (load.vaddr - TEXT_START), "the kernel text's PT_LOAD"
            break
    yield 0, "a kernel that was not relocated"


def layouts(info: VmcoreInfo, image: ImageInfo) -> list[KernelLayout]:
    """Where the top table may lie, the most trustworthy first; to be verified by translating.

    Raises:
        MissingInfoError: VMCOREINFO names no top table.
        FormatError: nothing that it says can be true.
    """
    top = next((at for at in map(info.symbol, _TOP_TABLES) if at is not None), None)
    if top is None:
        raise MissingInfoError("VMCOREINFO SYMBOL(init_top_pgt)", "address translation")
    sme_mask = _sme_mask(info)
    form = FIVE_LEVELS if info.number("pgtable_l5_enabled") else FOUR_LEVELS
    found: dict[int, KernelLayout] = {}
    for phys_base, source in _phys_bases(info, image):
        root = (top - TEXT_START + phys_base) & ~sme_mask
        if top >= TEXT_START and 0 <= root < 1 << _MAX_PHYS_BITS and root % 4096 == 0:
            layout = KernelLayout(
                form=form.ignoring(sme_mask),
                root=root,
                phys_base=phys_base,
                phys_base_from=source,
                direct_map=_DIRECT_MAP[form.name],
            )
            found.setdefault(phys_base, layout)
    if not found:
        raise FormatError("vmcoreinfo", None, "SYMBOL(init_top_pgt)", top, "a kernel text address")
    return list(found.values())


def page_offsets(image: ImageInfo) -> Iterator[int]:
    """Candidates for the start of the direct map that PT_LOADs suggest.

    QEMU writes p_vaddr 0, or p_paddr again: such loads say nothing.
    """
    for load in reversed(image.loads):
        if load.paddr is not None and load.paddr != load.vaddr and 0 < load.vaddr < TEXT_START:
            yield load.vaddr - load.paddr
