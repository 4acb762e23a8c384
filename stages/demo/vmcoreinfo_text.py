"""The VMCOREINFO text that a kernel of the demo's generation exports, in the kernel's order.

References:
    kernel/vmcore_info.c, arch/x86/kernel/vmcore_info_64.c
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from stages.demo.address_map import AddressMap
from stages.demo.kernel_data import PRINTK_LAYOUT
from stages.demo.kernels import HUGETLB_DTOR, N_ORDERS, DemoKernel

CRASHTIME: Final = 1_700_000_000
SECTION_SIZE_BITS: Final = 27
MEM_SECTION_BYTES: Final = 32
SECTIONS_PER_ROOT: Final = 128
MAX_NODES: Final = 64
ZONE_BYTES: Final = 1536
N_ZONES: Final = 3
NODE_BYTES: Final = 4672
ZONE_SPANNED_OFF: Final = 144
ZONE_STAT_OFF: Final = 1344
NR_ZONES_OFF: Final = N_ZONES * ZONE_BYTES
NODE_START_OFF: Final = NR_ZONES_OFF + 8
NODE_SPANNED_OFF: Final = NR_ZONES_OFF + 24
UTS_NAME_OFF_5_10: Final = 4
"""Up to v5.10 a kref comes first, and its size is not told."""


@dataclass(frozen=True, slots=True)
class MemoryModelKeys:
    """Attributes:
    name: ``sparse_extreme``, ``sparse_classic`` or ``flat``.
    physmem_bits: MAX_PHYSMEM_BITS.
    """

    name: str
    physmem_bits: int

    @property
    def n_sections(self) -> int:
        return 1 << (self.physmem_bits - SECTION_SIZE_BITS)

    @property
    def length(self) -> int:
        """LENGTH(mem_section)."""
        if self.name == "sparse_classic":
            return self.n_sections
        return -(-self.n_sections // SECTIONS_PER_ROOT)


def vmcoreinfo_text(
    kernel: DemoKernel,
    addresses: AddressMap,
    model: MemoryModelKeys,
    symbols: Mapping[str, int],
    levels: int,
) -> bytes:
    """The note's descriptor; `symbols` holds everything but what follows from `addresses`."""
    lines = [
        f"OSRELEASE={kernel.release}",
        "BUILD-ID=0123456789abcdef0123456789abcdef01234567",
        "PAGESIZE=4096",
        *_symbol_lines(symbols, addresses),
        *_memory_lines(kernel, model),
        *PRINTK_LAYOUT.splitlines(),
        "LENGTH(free_area.free_list)=5",
        *_flag_lines(kernel),
        f"NUMBER(phys_base)={addresses.phys_base}",
        f"NUMBER(pgtable_l5_enabled)={int(levels == 5)}",
        f"KERNELOFFSET={addresses.kernel_offset:x}",
        "NUMBER(KERNEL_IMAGE_SIZE)=1073741824",
        "NUMBER(sme_mask)=0",
        f"CRASHTIME={CRASHTIME}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _symbol_lines(symbols: Mapping[str, int], addresses: AddressMap) -> Iterator[str]:
    for name, value in symbols.items():
        yield f"SYMBOL({name})={value:x}"
    yield f"SYMBOL(_stext)={addresses.text_vaddr:x}"
    yield f"NUMBER(VMALLOC_START)=0x{addresses.vmalloc_start:x}"
    if "node_data" in symbols:
        yield f"LENGTH(node_data)={MAX_NODES}"


def _memory_lines(kernel: DemoKernel, model: MemoryModelKeys) -> Iterator[str]:
    if model.name != "flat":
        yield f"LENGTH(mem_section)={model.length}"
        yield f"SIZE(mem_section)={MEM_SECTION_BYTES}"
        yield "OFFSET(mem_section.section_mem_map)=0"
        yield f"NUMBER(SECTION_SIZE_BITS)={SECTION_SIZE_BITS}"
        yield f"NUMBER(MAX_PHYSMEM_BITS)={model.physmem_bits}"
    sizes = {"page": 64, "pglist_data": NODE_BYTES, "zone": ZONE_BYTES, "free_area": 88}
    sizes |= {"list_head": 16, "nodemask_t": 128}
    for name, size in sizes.items():
        yield f"SIZE({name})={size}"
    offsets = {"flags": 0, "_refcount": 52, "mapping": 24, "lru": 8, "_mapcount": 48, "private": 40}
    if not kernel.order_in_flags:
        offsets |= {"compound_dtor": 16, "compound_order": 17}
    offsets[kernel.compound_word] = 8
    for name, offset in offsets.items():
        yield f"OFFSET(page.{name})={offset}"
    yield from (
        "OFFSET(pglist_data.node_zones)=0",
        f"OFFSET(pglist_data.nr_zones)={NR_ZONES_OFF}",
        f"OFFSET(pglist_data.node_start_pfn)={NODE_START_OFF}",
        f"OFFSET(pglist_data.node_spanned_pages)={NODE_SPANNED_OFF}",
        "OFFSET(zone.free_area)=256",
        f"OFFSET(zone.vm_stat)={ZONE_STAT_OFF}",
        f"OFFSET(zone.spanned_pages)={ZONE_SPANNED_OFF}",
        "OFFSET(free_area.free_list)=0",
        "OFFSET(list_head.next)=0",
        "OFFSET(list_head.prev)=8",
        f"LENGTH(zone.free_area)={N_ORDERS}",
    )
    if kernel.exports_uts_offset:
        yield "OFFSET(uts_namespace.name)=0"


def _flag_lines(kernel: DemoKernel) -> Iterator[str]:
    bits, types = kernel.bits, kernel.types
    yield "NUMBER(NR_FREE_PAGES)=0"
    for name in ("lru", "private", "swapcache", "swapbacked", "slab", "hwpoison", "hugetlb"):
        number = getattr(bits, name)
        if number is not None:
            yield f"NUMBER(PG_{name})={number}"
    yield f"NUMBER(PG_head_mask)={1 << bits.head}"
    for name in ("buddy", "slab", "hugetlb", "offline", "unaccepted"):
        value = getattr(types, name)
        if value is not None:  # an int of 32 bits, printed with %ld
            yield f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)={value - (1 << 32)}"
    if not kernel.order_in_flags:
        yield f"NUMBER(HUGETLB_PAGE_DTOR)={HUGETLB_DTOR}"
