"""Struct pages of one kernel generation, written word by word for tests of single rules."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.memory.addresses import ByteArray
from stages.demo.address_map import plan_addresses
from stages.demo.kernels import KERNELS
from stages.demo.vmcoreinfo_text import MemoryModelKeys, vmcoreinfo_text
from stages.filter.classify import page_codes
from stages.filter.levels import PageClass
from stages.filter.page_layout import PageLayout
from stages.filter.runs import NO_CARRY, resolve_runs
from stages.formats.vmcoreinfo import VmcoreInfo

GENERATIONS: Final = tuple(KERNELS)
FREE_MAPCOUNT: Final = 0xFFFFFFFF
_WORDS: Final = {"flags": 0, "compound": 8, "mapping": 24, "private": 40}


def vmcoreinfo_of(generation: str) -> bytes:
    """The demo's VMCOREINFO text of a generation."""
    keys = MemoryModelKeys("sparse_extreme", 46)
    addresses = plan_addresses(64, 4, None)
    return vmcoreinfo_text(KERNELS[generation], addresses, keys, {"mem_section": 1 << 63}, 4)


def layout_of(generation: str, **replaced: str | None) -> PageLayout:
    """Its layout, with lines replaced as ``NUMBER_PG_lru`` or removed by None."""
    text = vmcoreinfo_of(generation).decode()
    for name, value in replaced.items():
        kind, _, member = name.partition("_")
        key = f"{kind}({member.replace('__', '.')})"
        lines = [line for line in text.splitlines() if not line.startswith(f"{key}=")]
        text = "\n".join(lines + ([] if value is None else [f"{key}={value}"])) + "\n"
    return PageLayout.from_vmcoreinfo(VmcoreInfo.parse(text.encode()))


class StructRows:
    """`n_pages` blank struct pages of 64 bytes, of pfns from `first_pfn` on."""

    def __init__(self, generation: str, n_pages: int, first_pfn: int = 0) -> None:
        self.kernel = KERNELS[generation]
        self.layout = layout_of(generation)
        self.n_pages = n_pages
        self.first_pfn = first_pfn
        self.rows = np.zeros((n_pages, 64), dtype=np.uint8)
        self.rows[:, 48:52] = 0xFF

    @property
    def raw(self) -> ByteArray:
        return self.rows.reshape(-1)

    def put(self, index: int, *, mapcount: int | None = None, **words: int) -> StructRows:
        """Set words of one struct page; those not named stay."""
        for name, value in words.items():
            at = _WORDS[name]
            self.rows[index, at : at + 8] = list(value.to_bytes(8, "little"))
        if mapcount is not None:
            self.rows[index, 48:52] = list((mapcount & 0xFFFFFFFF).to_bytes(4, "little"))
        return self

    def head(self, index: int, order: int, *, hugetlb: bool = False, **words: int) -> StructRows:
        """Make a compound head of 2^order pages with its tails."""
        bits = self.kernel.bits
        words["flags"] = words.get("flags", 0) | 1 << bits.head
        self.put(index, **words)
        for tail in range(index + 1, min(index + (1 << order), self.n_pages)):
            self.put(tail, compound=0xFFFF880000000001)
        if index + 1 == self.n_pages:
            return self
        if self.kernel.order_in_flags:
            flag = 1 << bits.hugetlb if hugetlb and bits.hugetlb is not None else 0
            self.put(index + 1, flags=order | flag)
        else:
            self.rows[index + 1, 16] = 2 if hugetlb else 1
            self.rows[index + 1, 17] = order
        if hugetlb and self.kernel.types.hugetlb is not None:
            self.put(index, mapcount=self.kernel.types.hugetlb)
        return self

    def labels(self, level: int, layout: PageLayout | None = None) -> list[str]:
        """The class of each page when all are present; ``kept`` for those that stay."""
        codes = page_codes(self.raw, self.n_pages, self.first_pfn, layout or self.layout, level)
        present = np.ones(self.n_pages, dtype=np.bool_)
        classes, _ = resolve_runs(codes, self.first_pfn, present, NO_CARRY)
        return [PageClass(int(code)).label for code in classes]
