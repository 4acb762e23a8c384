"""Paging forms of architectures that have no table in the product yet.

They are here to prove that forms can say it all: what is tested is the walker, with entries that
are scattered, shifted, big-endian, larger or smaller than a page.
"""

from __future__ import annotations

from typing import Final

from stages.arch.paging import ALWAYS, BitField, BitTest, Leaf, Level, PagingForm, Window


def _bits(first: int, last: int) -> int:
    """Bits `first` to `last`, both included."""
    return (1 << (last + 1)) - (1 << first)


def _ones_extended(va_bits: int) -> tuple[Window, ...]:
    return (Window((1 << 64) - (1 << va_bits), (1 << 64) - 1),)


def _sign_extended(va_bits: int) -> tuple[Window, ...]:
    half = 1 << (va_bits - 1)
    return Window(0, half - 1), Window((1 << 64) - half, (1 << 64) - 1)


def _arm64(
    name: str,
    page_bits: int,
    va_bits: int,
    address: tuple[BitField, ...],
    block_shifts: tuple[int, ...],
) -> PagingForm:
    """Tables of a page each, the top one shorter; bit 0 valid, bit 1 table or page."""
    valid, block = BitTest(1, 1), BitTest(2, 0)
    shifts = list(range(page_bits, va_bits, page_bits - 3))
    levels = []
    for shift in reversed(shifts):
        bits = min(page_bits - 3, va_bits - shift)
        leaves: tuple[Leaf, ...] = ()
        if shift == page_bits:
            leaves = (Leaf(BitTest(2, 2), shift, address),)
        elif shift in block_shifts:
            leaves = (Leaf(block, shift, address),)
        table = () if shift == page_bits else address
        level_name = ("pte", "pmd", "pud", "p4d", "pgd")[shifts.index(shift)]
        levels.append(Level(level_name, shift, bits, valid, leaves, table))
    return PagingForm(name, page_bits, tuple(levels), _ones_extended(va_bits))


ARM64_4K_48: Final = _arm64("arm64-4k-48", 12, 48, (BitField(_bits(12, 47)),), (30, 21))
# LPA: address bits 51:48 sit in entry bits 15:12.
ARM64_64K_52: Final = _arm64(
    "arm64-64k-52", 16, 52, (BitField(_bits(16, 47)), BitField(_bits(12, 15), 36)), (42, 29)
)
# LPA2: address bits 51:50 sit in entry bits 9:8.
ARM64_16K_52: Final = _arm64(
    "arm64-16k-52", 14, 52, (BitField(_bits(14, 49)), BitField(_bits(8, 9), 42)), (36, 25)
)


def _riscv(name: str, n_levels: int) -> PagingForm:
    """Page numbers from bit 10 up; readable, writable or executable makes a leaf at any level."""
    valid, leaf = BitTest(1, 1), BitTest(0xE, 0, negated=True)
    address = (BitField(_bits(10, 53), 2),)
    # Svnapot: 64 KiB from sixteen equal entries, told by bit 63 and 0b1000 in the page number.
    napot = Leaf(BitTest(1 << 63 | 0xF << 10, 1 << 63 | 0x8 << 10), 16, address)
    levels = [
        Level(level_name, 12 + 9 * up, 9, valid, (Leaf(leaf, 12 + 9 * up, address),), address)
        for up, level_name in enumerate(("pte", "pmd", "pud", "p4d", "pgd")[:n_levels])
    ]
    levels[0] = Level("pte", 12, 9, valid, (napot, Leaf(leaf, 12, address)))
    va_bits = 12 + 9 * n_levels
    return PagingForm(name, 12, tuple(reversed(levels)), _sign_extended(va_bits))


RISCV_SV39: Final = _riscv("riscv-sv39", 3)
RISCV_SV48: Final = _riscv("riscv-sv48", 4)
RISCV_SV57: Final = _riscv("riscv-sv57", 5)

# Region and segment tables have 2048 entries, four pages; page tables 256, half a page.
_S390_VALID: Final = BitTest(0x20, 0)
_S390_LARGE: Final = BitTest(0x400, 0x400)
S390X_3: Final = PagingForm(
    "s390x-3",
    12,
    (
        Level(
            "pud",
            31,
            11,
            _S390_VALID,
            (Leaf(_S390_LARGE, 31, (BitField(_bits(31, 63)),)),),
            (BitField(_bits(12, 63)),),
        ),
        Level(
            "pmd",
            20,
            11,
            _S390_VALID,
            (Leaf(_S390_LARGE, 20, (BitField(_bits(20, 63)),)),),
            (BitField(_bits(11, 63)),),
        ),
        Level("pte", 12, 8, BitTest(0x400, 0), (Leaf(ALWAYS, 12, (BitField(_bits(12, 63)),)),)),
    ),
    (Window(0, (1 << 42) - 1),),
    entry_order=">",
)


def _ppc64_radix(page_bits: int, widths: tuple[int, int, int, int]) -> PagingForm:
    """Big-endian entries even on little-endian kernels; tables as small as 256 bytes."""
    valid, leaf = BitTest(1 << 63, 1 << 63), BitTest(1 << 62, 1 << 62)
    table = (BitField(_bits(8, 61)),)
    levels = []
    shift = page_bits
    for name, bits in zip(("pte", "pmd", "pud", "pgd"), widths, strict=True):
        page = (BitField(_bits(12, 52)),)
        leaves = (Leaf(leaf, shift, page),) if name != "pgd" else ()
        levels.append(Level(name, shift, bits, valid, leaves, () if name == "pte" else table))
        shift += bits
    kernel = Window(0xC000000000000000, 0xC00FFFFFFFFFFFFF)
    return PagingForm("ppc64-radix", page_bits, tuple(reversed(levels)), (kernel,), entry_order=">")


PPC64_RADIX_64K: Final = _ppc64_radix(16, (5, 9, 9, 13))

# Table pointers are addresses in the direct map window; an empty entry points to an empty table.
_LOONGARCH_TABLE: Final = (BitField(_bits(14, 47)),)
_LOONGARCH_SET: Final = BitTest((1 << 64) - 1, 0, negated=True)
LOONGARCH64_16K_47: Final = PagingForm(
    "loongarch64-16k-47",
    14,
    (
        Level("pgd", 36, 11, _LOONGARCH_SET, (), _LOONGARCH_TABLE),
        Level(
            "pmd",
            25,
            11,
            _LOONGARCH_SET,
            (Leaf(BitTest(1 << 6, 1 << 6), 25, _LOONGARCH_TABLE),),
            _LOONGARCH_TABLE,
        ),
        Level("pte", 14, 11, BitTest(1 << 7, 1 << 7), (Leaf(ALWAYS, 14, _LOONGARCH_TABLE),)),
    ),
    _ones_extended(47),
)

OTHER_FORMS: Final = (
    ARM64_4K_48,
    ARM64_64K_52,
    ARM64_16K_52,
    RISCV_SV39,
    RISCV_SV48,
    RISCV_SV57,
    S390X_3,
    PPC64_RADIX_64K,
    LOONGARCH64_16K_47,
)
