"""aarch64: pages of 4, 16 and 64 KiB, 36 to 52 bits of addresses.

References:
    Arm Architecture Reference Manual, D8 (VMSAv8-64); Documentation/arch/arm64/memory.rst

Every table is a page of entries, but the top one, which has as many as there are bits left::

    pages     levels by bits of a virtual address           blocks above a page
    4 KiB     3: 39    4: 48    5: 52                        2 MiB, 1 GiB, with LPA2 512 GiB
    16 KiB    2: 36    3: 47    4: 48, 52                    32 MiB, with LPA2 64 GiB
    64 KiB    2: 42    3: 48, 52                             512 MiB, 4 TiB

Physical addresses above 48 bits are spread over an entry in one of two ways. LPA2 (4 and 16 KiB)
moves bits 51:50 to entry bits 9:8, which otherwise say how memory is shared; Linux uses it if,
and only if, virtual addresses have 52 bits too. LPA (64 KiB) moves bits 51:48 to entry bits 15:12,
which otherwise are zero, so every entry can be read that way.
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

NAME: Final = "aarch64"
SPARSE_BITS: Final = ((30, 48), (27, 48), (29, 48), (30, 52), (27, 52), (29, 52))
"""Sections of 2**30 bytes up to v5.11, then 2**29 with pages of 64 KiB and 2**27 with others."""
BYTE_ORDER: Final = "<"
_PHYS_BITS: Final = 52
_WRAP: Final = ADDRESS_LIMIT - 1

_VALID: Final = BitTest(1, 1)
_BLOCK: Final = BitTest(2, 0)
_PAGE: Final = BitTest(2, 2)
_LPA2_BITS: Final = 52
_BLOCK_DEPTHS: Final = {12: (1, 2), 14: (1,), 16: (1, 2)}
"""How many levels above a page blocks may be."""
_FLAGS: Final = (
    (0x001, "VALID"),
    (0x040, "USER"),
    (0x080, "RDONLY"),
    (0x400, "AF"),
    (0x800, "NG"),
    (1 << 51, "DBM"),
    (1 << 52, "CONT"),
    (1 << 53, "PXN"),
    (1 << 54, "UXN"),
)


def _bits(first: int, last: int) -> int:
    """Bits `first` to `last`, both included."""
    return (1 << (last + 1)) - (1 << first)


def _address(page_bits: int, va_bits: int) -> tuple[BitField, ...]:
    if page_bits == 16:
        return BitField(_bits(16, 47)), BitField(_bits(12, 15), 36)
    if va_bits == _LPA2_BITS:
        return BitField(_bits(page_bits, 49)), BitField(_bits(8, 9), 42)
    return (BitField(_bits(page_bits, 47)),)


def kernel_window(va_bits: int) -> Window:
    """What TTBR1 translates: the addresses whose bits from `va_bits` up are all ones."""
    return Window(ADDRESS_LIMIT - (1 << va_bits), ADDRESS_LIMIT - 1)


@cache
def paging_form(page_bits: int, va_bits: int, used_bits: int | None = None) -> PagingForm:
    """Tables for `va_bits` of addresses, of which the machine uses `used_bits`, all by default."""
    address = _address(page_bits, va_bits)
    shifts = list(range(page_bits, va_bits, page_bits - 3))
    depths = _BLOCK_DEPTHS[page_bits]
    if va_bits == _LPA2_BITS and page_bits < 16:
        depths = (*depths, depths[-1] + 1)
    levels = []
    for up, (name, shift) in enumerate(zip(level_names(len(shifts)), shifts, strict=True)):
        index_bits = min(page_bits - 3, va_bits - shift)
        if up == 0:
            leaves: tuple[Leaf, ...] = (Leaf(_PAGE, shift, address),)
        else:
            leaves = (Leaf(_BLOCK, shift, address),) if up in depths else ()
        table = address if up else ()
        levels.append(Level(name, shift, index_bits, _VALID, leaves, table, 0, _FLAGS))
    size = 1 << (page_bits - 10)
    used = used_bits or va_bits
    bits = f"{va_bits}" if used == va_bits else f"{used}in{va_bits}"
    return PagingForm(
        f"aarch64-{size}k-{bits}",
        page_bits,
        tuple(reversed(levels)),
        (kernel_window(used),),
    )


def _va_bits(info: VmcoreInfo) -> tuple[int, int]:
    """Bits of addresses that the kernel was built for, and those that the machine uses."""
    built = info.need_number("VA_BITS", "address translation")
    if not 36 <= built <= 52:
        raise FormatError("vmcoreinfo", None, "NUMBER(VA_BITS)", built, "36 to 52")
    size = info.number("TCR_EL1_T1SZ")
    if size is None:
        # Kernels before v5.9 that were built for 52 bits: mem_section lies in the direct map.
        section = info.symbol("mem_section")
        high = built == 52 and section is not None and section >> 51 & 1 == 1
        return built, 48 if high else built
    used = 64 - size
    if not 36 <= used <= built:
        raise FormatError("vmcoreinfo", None, "NUMBER(TCR_EL1_T1SZ)", size, f"{64 - built} to 28")
    return built, used


def form_of(info: VmcoreInfo) -> PagingForm:
    """The form of the kernel that `info` is from.

    A kernel built for 52 bits on a machine that has fewer folds its top level away, but with pages
    of 64 KiB, where it keeps using the last entries of the large top table.

    Raises:
        MissingInfoError, FormatError: VMCOREINFO does not tell, or not the truth.
    """
    page_bits = info.page_size.bit_length() - 1
    if page_bits not in _BLOCK_DEPTHS:
        raise FormatError("vmcoreinfo", None, "PAGESIZE", info.page_size, "4096, 16384 or 65536")
    built, used = _va_bits(info)
    return paging_form(page_bits, built, used) if page_bits == 16 else paging_form(page_bits, used)


def linear_map(info: VmcoreInfo, image: ImageInfo) -> LinearMap | None:
    """Where the direct map starts, and the memory it starts with; None when nothing tells.

    The map fills one half of the kernel's addresses: the lower one since Linux commit 14c127c957c1
    ("arm64: mm: Flip kernel VA space") (in v5.4), the upper one before; the kernel's text is in the
    other. Its start follows from the bits that the kernel was built for, also on a machine that
    has fewer: PHYS_OFFSET is then below 0, modulo 2**64.
    """
    built, _ = _va_bits(info)
    stext = info.symbol("_stext") or _WRAP
    flipped = stext > ADDRESS_LIMIT - (1 << (min(48, built) - 1))
    start = ADDRESS_LIMIT - (1 << (built if flipped else built - 1))
    phys = info.number("PHYS_OFFSET")
    if phys is None:
        loads = (load for load in image.loads if load.paddr is not None and load.vaddr >= start)
        phys = next(((load.paddr or 0) - (load.vaddr - start) for load in loads), None)
    return None if phys is None else LinearMap(start, phys & _WRAP)


def _roots(info: VmcoreInfo, image: ImageInfo, top: int) -> Iterator[tuple[int, str]]:
    """Candidates for the top table, the most trustworthy first, each with where it comes from.

    VMCOREINFO is younger than the kernel's move out of the direct map, so that tells nothing here.
    """
    offset = info.number("kimage_voffset")
    if offset is not None:
        yield (top - offset) & _WRAP, "kimage_voffset"
    loaded = loaded_at(image, top)
    if loaded is not None:
        yield loaded, "the kernel's PT_LOAD"


def _signed(paddr: int) -> int:
    """An address modulo 2**64 as a number: above the middle it is one below 0."""
    return paddr - ADDRESS_LIMIT if paddr >> 63 else paddr


def layouts(info: VmcoreInfo, image: ImageInfo) -> list[KernelLayout]:
    """Where the top table may lie, the most trustworthy first; to be verified by translating.

    Raises:
        MissingInfoError: VMCOREINFO names no top table, or not how many bits addresses have.
        FormatError: nothing that it says can be true.
    """
    top = info.need_symbol("swapper_pg_dir", "address translation")
    form = form_of(info)
    linear = linear_map(info, image)
    found: dict[int, KernelLayout] = {}
    for root, source in _roots(info, image, top):
        if root < 1 << _PHYS_BITS and root % 4096 == 0:
            layout = KernelLayout(
                form=form,
                root=root,
                phys_base=0 if linear is None else _signed(linear.paddr),
                phys_base_from=source,
                direct_map=linear,
            )
            found.setdefault(root, layout)
    if not found:
        raise MissingInfoError("VMCOREINFO NUMBER(kimage_voffset)", "address translation")
    return list(found.values())
