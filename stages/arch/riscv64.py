"""riscv64: Sv39, Sv48 and Sv57, with Svnapot leaves.

References:
    RISC-V privileged architecture, chapter 12 (Supervisor-Level ISA);
    Documentation/arch/riscv/vm-layout.rst

An entry has the page number from bit 10 up, flags below, and attributes that are no address above
bit 53 (Svpbmt, Svnapot). One that may be read, written or executed is a leaf, on every level.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

from pipeline.errors import FormatError, MissingInfoError
from stages.arch.layout import KernelLayout, LinearMap, level_names, loaded_at
from stages.arch.paging import ADDRESS_LIMIT, BitField, BitTest, Leaf, Level, PagingForm, Window
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo

NAME: Final = "riscv64"
SPARSE_BITS: Final = ((27, 56),)
BYTE_ORDER: Final = "<"
_PHYS_BITS: Final = 56
_MODES: Final = {39: 3, 48: 4, 57: 5}
"""Levels by bits of an address."""
_FIRMWARE_BYTES: Final = 2 << 20
"""Below the kernel, where firmware keeps the start of memory to itself."""
_OLD_RAM_BASE: Final = 0x80000000

_VALID: Final = BitTest(1, 1)
_LEAF: Final = BitTest(0xE, 0, negated=True)
_ADDRESS: Final = (BitField(((1 << 54) - 1) & ~0x3FF, 2),)
_NAPOT_BIT: Final = 1 << 63
# 64 KiB from sixteen equal entries, whose page number ends in 0b1000: the only size there is yet.
_NAPOT: Final = Leaf(BitTest(_NAPOT_BIT | 0xF << 10, _NAPOT_BIT | 0x8 << 10), 16, _ADDRESS)
_PAGE: Final = Leaf(_LEAF, 12, _ADDRESS, reserved=_NAPOT_BIT)
_FLAGS: Final = (
    (0x01, "VALID"),
    (0x02, "READ"),
    (0x04, "WRITE"),
    (0x08, "EXEC"),
    (0x10, "USER"),
    (0x20, "GLOBAL"),
    (0x40, "ACCESSED"),
    (0x80, "DIRTY"),
    (1 << 63, "NAPOT"),
)


@cache
def paging_form(va_bits: int) -> PagingForm:
    """Tables for 39, 48 or 57 bits of addresses."""
    levels = [Level("pte", 12, 9, _VALID, (_NAPOT, _PAGE), flags=_FLAGS)]
    for up, name in enumerate(level_names(_MODES[va_bits])[1:], 1):
        shift = 12 + 9 * up
        leaf = Leaf(_LEAF, shift, _ADDRESS, reserved=((1 << shift) - 4096) >> 2)
        levels.append(Level(name, shift, 9, _VALID, (leaf,), _ADDRESS, 0, _FLAGS))
    half = 1 << (va_bits - 1)
    windows = (Window(0, half - 1), Window(ADDRESS_LIMIT - half, ADDRESS_LIMIT - 1))
    return PagingForm(f"riscv64-sv{va_bits}", 12, tuple(reversed(levels)), windows)


def _kernel_offsets(info: VmcoreInfo, ram_base: int | None) -> Iterator[tuple[int, str]]:
    """Candidates for the kernel's virtual minus its physical address, best first."""
    offset = info.number("va_kernel_pa_offset")
    if offset is not None:
        yield offset, "va_kernel_pa_offset"
    link = info.number("KERNEL_LINK_ADDR")
    if link is None:
        return
    # Up to v6.4 the offset was not told: the kernel lies at the start of memory, or behind the
    # firmware, which some releases count as memory and others do not.
    start = _OLD_RAM_BASE if ram_base is None else ram_base
    for base in (start, start + _FIRMWARE_BYTES):
        yield link + info.kernel_offset - base, f"a kernel at {base:#x}"


def layouts(info: VmcoreInfo, image: ImageInfo) -> list[KernelLayout]:
    """Where the top table may lie, the most trustworthy first; to be verified by translating.

    Raises:
        MissingInfoError: VMCOREINFO does not tell what is needed.
        FormatError: nothing that it says can be true.
    """
    top = info.need_symbol("swapper_pg_dir", "address translation")
    va_bits = info.need_number("VA_BITS", "address translation")
    if va_bits not in _MODES:
        raise FormatError("vmcoreinfo", None, "NUMBER(VA_BITS)", va_bits, "39, 48 or 57")
    ram_base = info.number("phys_ram_base")
    start = info.number("PAGE_OFFSET")
    linear = None if start is None or ram_base is None else LinearMap(start, ram_base)
    roots = [(top - offset, source) for offset, source in _kernel_offsets(info, ram_base)]
    loaded = loaded_at(image, top)
    if loaded is not None:
        roots.append((loaded, "the kernel's PT_LOAD"))
    found: dict[int, KernelLayout] = {}
    for root, source in roots:
        root &= ADDRESS_LIMIT - 1
        if root < 1 << _PHYS_BITS and root % 4096 == 0:
            layout = KernelLayout(paging_form(va_bits), root, ram_base or 0, source, linear)
            found.setdefault(root, layout)
    if not found:
        raise MissingInfoError("VMCOREINFO NUMBER(va_kernel_pa_offset)", "address translation")
    return list(found.values())
