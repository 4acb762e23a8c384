"""A kernel inside an image: its VMCOREINFO, its paging, and reads by virtual address.

Everything that follows kernel pointers (memory model, log, utsname) goes through `Kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import numpy as np

from pipeline.errors import DumpError, FormatError, MissingInfoError
from stages.arch.layout import KernelLayout, LinearMap
from stages.arch.paging import ADDRESS_LIMIT, Window
from stages.arch.select import Arch, arch_for
from stages.cache.pages import PageReader
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import Image
from stages.translator.memory import VirtualMemory
from stages.translator.ranges import PhysRun
from stages.translator.space import KernelSpace, Translator

__all__ = ["Kernel", "PhysRun", "Translator", "open_kernel"]

UTSNAME_BYTES: Final = 390
"""struct new_utsname: six strings of 65 bytes."""
_STRING_BYTES: Final = 65
_RELEASE: Final = 2
_PROBE_TABLES: Final = 4096
"""Tables looked into for the first page of the direct map; a sane kernel needs five."""


class Kernel(VirtualMemory):
    """What is known of the kernel in an image; made by `open_kernel`.

    Attributes:
        warnings: sentences for people about what does not fit together.
    """

    def __init__(
        self,
        info: VmcoreInfo,
        arch: Arch,
        layout: KernelLayout,
        pages: PageReader,
        page_offsets: Sequence[int] = (),
    ) -> None:
        """`page_offsets` are what the image's headers suggest, see `Arch.page_offsets`."""
        space = KernelSpace(layout.form, layout.root, pages, direct=layout.direct)
        super().__init__(space, pages, arch.byte_order)
        self.info = info
        self.arch = arch
        self.layout = layout
        self._page_offsets = page_offsets
        self._page_offset: int | None = None
        self._is_offset_known = False
        self.warnings: list[str] = []

    @property
    def phys_base(self) -> int:
        """Bytes by which the kernel text was moved in physical memory; may be negative.

        What dumps carry under that name differs on some architectures, see `KernelLayout`.
        """
        return self.layout.phys_base

    @property
    def memory_start(self) -> int:
        """Physical address where the direct map starts: 0 unless the architecture says so."""
        linear = self.layout.direct_map
        return linear.paddr if isinstance(linear, LinearMap) else 0

    async def find_page_offset(self) -> int | None:
        """Where the direct map of physical memory starts, None when that can't be told.

        The first call looks for it, which costs reads that wait for each other; most commands need
        no more than page tables, and never ask.
        """
        if not self._is_offset_known:
            self._page_offset = await _find_page_offset(self, self._page_offsets)
            self._is_offset_known = True
        return self._page_offset

    async def utsname(self) -> bytes:
        """The kernel's struct new_utsname, `UTSNAME_BYTES`.

        Raises:
            MissingInfoError: VMCOREINFO does not say where it is.
            FormatError: something else is there.
            TranslationError, MissingPageError: as `read`.
        """
        for at in self._utsname_candidates():
            found = await self.read(at, UTSNAME_BYTES)
            if found.startswith(b"Linux\0"):
                return found
        raise FormatError("kernel memory", None, "utsname.sysname", found[:8], "Linux")

    def _utsname_candidates(self) -> list[int]:
        before_namespaces = self.info.symbol("system_utsname")  # up to v2.6.18
        if before_namespaces is not None:
            return [before_namespaces]
        namespace = self.info.need_symbol("init_uts_ns", "utsname")
        offset = self.info.offset("uts_namespace.name")
        # Where the offset is not told: after a 4-byte kref, until Linux 9a56493f6942 ("uts: Use
        # generic ns_common::count") (in v5.11) moved that away.
        return [namespace + at for at in ((4, 0) if offset is None else (offset,))]


async def open_kernel(image: Image, reader: PageReader) -> Kernel:
    """Find the kernel's page tables in `image`, and check that they translate.

    Raises:
        MissingInfoError: no VMCOREINFO, or it lacks what translation needs.
        UnsupportedError: an architecture without a table.
        FormatError: what VMCOREINFO says can't be true.
    """
    if image.info.vmcoreinfo is None:
        raise MissingInfoError("a VMCOREINFO note", "address translation")
    arch = arch_for(image.info.machine)
    info = VmcoreInfo.parse(image.info.vmcoreinfo)
    guesses = tuple(arch.page_offsets(image.info))
    kernels = [
        Kernel(info, arch, layout, reader, guesses) for layout in arch.layouts(info, image.info)
    ]
    page_size = 1 << kernels[0].layout.form.page_bits
    if not page_size == info.page_size == reader.page_size:
        raise FormatError("vmcoreinfo", None, "PAGESIZE", info.page_size, f"{page_size}")
    if getattr(reader, "hint", None) is not None:
        from stages.translator.ahead import look_ahead

        await look_ahead(kernels[0], reader)
    return await _most_credible(kernels)


async def _most_credible(kernels: list[Kernel]) -> Kernel:
    """The first whose utsname fits VMCOREINFO, else the very first, with a warning."""
    doubts: list[str] = []
    for kernel in kernels:
        doubt = await _doubt(kernel)
        if doubt is None:
            kernel.warnings += doubts
            return kernel
        doubts.append(
            f"{kernel.layout.form.name} with its top table at {kernel.layout.root:#x}, phys_base "
            f"{kernel.phys_base:#x} from {kernel.layout.phys_base_from}: {doubt}"
        )
    kernels[0].warnings += doubts[:1]
    return kernels[0]


async def _doubt(kernel: Kernel) -> str | None:
    """Why the translation can't be trusted, None when it finds the right utsname."""
    try:
        if kernel.layout.mapped is not None:
            await kernel.read(kernel.layout.mapped, 1)
        utsname = await kernel.utsname()
    except DumpError as error:
        return str(error)
    release = utsname[_RELEASE * _STRING_BYTES :][:_STRING_BYTES].split(b"\0")[0]
    wanted = kernel.info.osrelease
    if release[:64].decode("ascii", "replace") == wanted:
        return None
    return f"the release in memory is {release!r}, VMCOREINFO says {wanted!r}"


async def _find_page_offset(kernel: Kernel, guesses: Sequence[int]) -> int | None:
    """Start of the direct map: the first guess by which the top table is found through it."""
    where = kernel.layout.direct_map
    if isinstance(where, LinearMap):
        return where.vaddr if await _maps_top_table(kernel, where) else None
    if where is None:
        return None
    for guess in guesses:
        if await _maps_top_table(kernel, LinearMap(guess, 0)):
            return guess
    first = await _first_mapped(kernel, where)
    if first is not None and await _maps_top_table(kernel, LinearMap(first, 0)):
        return first
    return None


async def _first_mapped(kernel: Kernel, window: Window) -> int | None:
    first, last = window
    runs = kernel.translator.iter_runs(first, last - first + 1, max_tables=_PROBE_TABLES)
    try:
        async with aclosing(runs):
            async for run in runs:
                if run.paddr is not None:
                    return run.vaddr - run.paddr
    except FormatError:  # tables made to keep us busy: then there is no telling
        return None
    return None


async def _maps_top_table(kernel: Kernel, linear: LinearMap) -> bool:
    root = kernel.layout.root
    vaddr = (linear.vaddr + root - linear.paddr) & (ADDRESS_LIMIT - 1)
    if not 0 <= linear.vaddr <= vaddr:
        return False
    paddrs, good = await kernel.translator.translate(np.array([vaddr], dtype=np.uint64))
    return bool(good[0]) and int(paddrs[0]) == root
