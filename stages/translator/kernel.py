"""A kernel inside an image: its VMCOREINFO, its paging, and reads by virtual address.

Everything that follows kernel pointers (memory model, log, utsname) goes through `Kernel`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pipeline.memory.addresses import AddrArray, BoolArray
from stages.formats.vmcoreinfo import VmcoreInfo


class PhysRun(NamedTuple):
    """A piece of a virtual range: `n_bytes` from `vaddr` lie at `paddr`, or nowhere (None)."""

    vaddr: int
    paddr: int | None
    n_bytes: int


class Translator(Protocol):
    """Virtual to physical, many addresses a call."""

    async def translate(self, vaddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        """Physical addresses of `vaddrs` (uint64[n], any order).

        Returns:
            uint64[n] (0 where untranslatable), and bool[n]: which could be translated.
        """

    async def runs(self, vaddr: int, n_bytes: int) -> list[PhysRun]:
        """The range cut into physically contiguous runs, in ascending vaddr, without gaps."""


class Kernel:
    """What is known of the kernel in an image (filled in by `open_kernel`)."""

    info: VmcoreInfo
    page_size: int
    phys_base: int
    translator: Translator

    async def read(self, vaddr: int, n_bytes: int) -> bytes:
        raise NotImplementedError
