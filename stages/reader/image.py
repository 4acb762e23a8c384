"""The contract of a memory image: positioned reads of pages, and what is known about them.

Everything that reads memory (cache, filter, copy pass) sees an image through this protocol only.
Formats implement it: `elf_image`, `kdump_image`, and later remote ones.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import ExtentSet
from stages.formats.elf import ElfForm


class LoadSegment(Struct):
    """One PT_LOAD. `mem_size` > `file_size` means a tail that was not saved.

    All in bytes; `paddr` is None for a load without a physical address (p_paddr of all ones).
    """

    paddr: int | None
    vaddr: int
    mem_size: int
    file_off: int
    file_size: int


class ImageInfo(Struct):
    """What an image says about itself, before any page is read."""

    form: str
    """``elf``, ``kdump``; for people and for `--stats`."""
    machine: str
    """Kernel's own name of the architecture: ``x86_64``, ``aarch64``, ... or ``unknown``."""
    page_size: int
    notes: bytes = b""
    """The PT_NOTE contents, verbatim, to be carried into the dump."""
    vmcoreinfo: bytes | None = None
    """The VMCOREINFO note's descriptor."""
    vmcoreinfo_off: int | None = None
    """Where that descriptor starts inside `notes`."""
    nr_cpus: int = 0
    """Number of NT_PRSTATUS notes of `CORE`."""
    loads: list[LoadSegment] = field(default_factory=list)
    elf: tuple[ElfForm, int] | None = None
    """Form and e_machine of an ELF image, for a dump of the same kind."""
    made_by: str | None = None
    """``qemu`` when its notes are there; decides how p_filesz < p_memsz is read."""
    dump_level: int = 0
    """What was already left out (a kdump-compressed source); 0 for raw memory."""
    phys_base: int | None = None
    """Only when the image itself carries it (kdump sub header)."""
    utsname: bytes | None = None
    """390 bytes of six strings, when the image itself carries them (kdump header)."""
    timestamp: int | None = None
    eraseinfo: bytes = b""
    incomplete: str | None = None
    """Why the image is known to be cut or incomplete, None when it looks whole."""
    has_lost_pages: bool = False
    """It lacks pages that can't be told from those that were left out on purpose, so that nobody
    counts them: what is made of it has lost them too."""


class Image(Protocol):
    """A memory image, open. Reads are synchronous, positioned, and safe from several threads."""

    info: ImageInfo
    path: str
    fork_safe: bool
    """True: a forked child may call `read_pages` on its copy at the same time."""
    max_mapnr: int
    """One past the highest pfn (makedumpfile rounds the highest PT_LOAD end up)."""

    @property
    def ram(self) -> ExtentSet:
        """Pages the source describes (makedumpfile's 1st bitmap): overlaps count once."""

    @property
    def saved(self) -> ExtentSet:
        """Pages whose content the source holds or knows to be zero: what a dump may keep.

        Smaller than `ram` for an ELF image whose tails were filtered out, and for a kdump image.
        """

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        """Read whole pages into `out`, uint8[n_pages, page_size], one row a pfn.

        Consecutive pfns that lie consecutively in the file become one read. Rows of pages that
        are not DATA are zero-filled for ZERO and undefined for MISSING.

        Args:
            pfns: uint64[n_pages], ascending.
            out: C-contiguous and writable.

        Returns:
            uint8[n_pages] of `PageState`: ZERO for holes known without reading, MISSING for pages
            outside `saved`, past the end of a cut file, or failing with EIO.
        """

    def holes(self, start: int, stop: int) -> ExtentSet:
        """Pages of pfns [start, stop) known to read as zero without reading them (file holes)."""

    def read_ahead(self, start: int, stop: int) -> None:
        """Hint that pages of pfns [start, stop) will be read soon; may do nothing."""

    def saved_bitmap(self) -> PageBitmap:
        """`saved` as a bitmap of `max_mapnr` pages; the caller owns it."""

    def close(self) -> None:
        """Release files; calling it twice is fine."""
