"""The generations of `struct page` that the demo image can have, as data.

References:
    include/linux/page-flags.h, include/linux/mm_types.h; VMCOREINFO of real 5.10 to 7.2 kernels
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class FlagBits:
    """Bit numbers in `page.flags`."""

    lru: int
    head: int
    waiters: int
    reserved: int
    private: int
    swapcache: int
    swapbacked: int
    hwpoison: int
    slab: int | None = None
    """Exported up to v6.9."""
    hugetlb: int | None = None
    """Of page1, v6.6 to v6.8."""


@dataclass(frozen=True, slots=True)
class TypeValues:
    """Page types as they stand in `page._mapcount`; the top byte alone since v6.12."""

    buddy: int
    offline: int
    table: int
    guard: int
    hugetlb: int | None = None
    slab: int | None = None
    large_kmalloc: int | None = None
    unaccepted: int | None = None


@dataclass(frozen=True, slots=True)
class DemoKernel:
    """Attributes:
    order_in_flags: the order of a compound page is the low byte of page1.flags, not a byte of
        its own behind a destructor number.
    compound_word: name of the word whose bit 0 marks tails.
    mask_tails: tails hold a mask instead of the head's address, and all look alike.
    """

    name: str
    release: str
    bits: FlagBits
    types: TypeValues
    order_in_flags: bool = True
    compound_word: str = "compound_head"
    mask_tails: bool = False
    exports_uts_offset: bool = True


_OLD_BITS: Final = FlagBits(
    lru=4, head=16, waiters=7, reserved=12, private=13, swapcache=10, swapbacked=19, hwpoison=23,
    slab=9,
)  # fmt: skip
_OLD_TYPES: Final = TypeValues(
    buddy=~0x80 & 0xFFFFFFFF,
    offline=~0x100 & 0xFFFFFFFF,
    table=~0x200 & 0xFFFFFFFF,
    guard=~0x400 & 0xFFFFFFFF,
)
_V6_6_BITS: Final = FlagBits(
    lru=5, head=6, waiters=7, reserved=14, private=15, swapcache=12, swapbacked=19, hwpoison=23,
    slab=11, hugetlb=8,
)  # fmt: skip
_V6_12_BITS: Final = FlagBits(
    lru=5, head=6, waiters=7, reserved=13, private=14, swapcache=10, swapbacked=17, hwpoison=20
)
_NEW_TYPES: Final = TypeValues(
    buddy=0xF0 << 24,
    offline=0xF1 << 24,
    table=0xF2 << 24,
    guard=0xF3 << 24,
    hugetlb=0xF4 << 24,
    slab=0xF5 << 24,
    large_kmalloc=0xF8 << 24,
)

KERNELS: Final = {
    kernel.name: kernel
    for kernel in (
        DemoKernel(
            "5.10",
            "5.10.0-99-demo",
            _OLD_BITS,
            _OLD_TYPES,
            order_in_flags=False,
            exports_uts_offset=False,
        ),
        DemoKernel("6.1", "6.1.0-99-demo", _OLD_BITS, _OLD_TYPES, order_in_flags=False),
        DemoKernel("6.6", "6.6.0-99-demo", _V6_6_BITS, _OLD_TYPES),
        DemoKernel("6.12", "6.12.0-99-demo", _V6_12_BITS, _NEW_TYPES),
        DemoKernel(
            "7.1",
            "7.1.0-99-demo",
            replace(_V6_12_BITS, hwpoison=21),
            replace(_NEW_TYPES, unaccepted=0xF7 << 24),
            compound_word="compound_info",
            mask_tails=True,
        ),
    )
}
N_ORDERS: Final = 11
HUGETLB_DTOR: Final = 2
