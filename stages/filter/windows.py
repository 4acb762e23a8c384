"""The plan of pass 1: which struct pages to look at, in pieces that stay in a core's cache.

A window is a stretch of pfns inside one block of the page bitmap and one region of the memory
model. Planning needs no memory reads; `locate_windows` then asks where the struct pages lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct

from pipeline.memory.addresses import BoolArray, PfnArray
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from stages.arch.paging import ADDRESS_LIMIT
from stages.filter.classify import BATCH_PAGES
from stages.filter.memory_model import MemoryModel
from stages.filter.page_layout import PageLayout
from stages.translator.kernel import PhysRun, Translator

UNMAPPED: Final = np.uint64((1 << 64) - 1)
"""Stands for the pfn of memmap that cannot be translated."""
_MIN_PROBE_PAGES: Final = 4
"""Pages of memmap a chunk below which asking for its head first saves nothing."""


class Window(NamedTuple):
    """Pfns [first_pfn, first_pfn + n_pages), whose struct pages are at `memmap_vaddr`."""

    first_pfn: int
    n_pages: int
    memmap_vaddr: int


class LocatedWindow(Struct, frozen=True):
    """A window, and where its struct pages are in the image. Can be sent to a worker process.

    Attributes:
        memmap_off: byte in the first page of memmap where the first struct page starts.
        memmap_pfns: uint64[], pages of memmap that the struct pages are in, or `UNMAPPED`.
        probes: bool[n_chunks]: chunks of the buddy allocator's largest block size whose first
            struct page alone may tell about all of them; None: read everything.
    """

    first_pfn: int
    n_pages: int
    memmap_off: int
    memmap_pfns: PfnArray
    probes: BoolArray | None


def window_pages(layout: PageLayout, window_bytes: int) -> int:
    """Pages a window: a power of two, so that a block is cut evenly, and batches are whole."""
    n_pages = max(window_bytes // layout.size, BATCH_PAGES)
    return int(min(1 << (n_pages.bit_length() - 1), BLOCK_PAGES))


def plan_windows(
    model: MemoryModel, saved: PageBitmap, layout: PageLayout, n_pages: int
) -> Iterator[Window]:
    """Windows of at most `n_pages` pages, ascending, for all blocks that have any saved page."""
    for region in model.regions:
        if region.memmap_vaddr is None:
            continue
        start = region.start_pfn
        while start < region.stop_pfn:
            if not saved.block_count(start // BLOCK_PAGES):
                start = (start // BLOCK_PAGES + 1) * BLOCK_PAGES
                continue
            stop = min((start // n_pages + 1) * n_pages, region.stop_pfn)
            vaddr = region.memmap_vaddr + (start - region.start_pfn) * layout.size
            yield Window(start, stop - start, vaddr)
            start = stop


def chunk_pages(layout: PageLayout, page_size: int) -> int:
    """Pages of the buddy allocator's largest block, 0 where asking for heads saves nothing."""
    n_pages = layout.max_block_pages
    n_bytes = n_pages * layout.size
    whole = n_bytes % page_size == 0 and n_pages % BATCH_PAGES == 0
    worth = layout.knows_buddy and n_bytes >= _MIN_PROBE_PAGES * page_size
    return n_pages if whole and worth else 0


async def locate_windows(
    translator: Translator,
    windows: Sequence[Window],
    layout: PageLayout,
    page_size: int,
) -> list[tuple[int, PfnArray]]:
    """`memmap_off` and `memmap_pfns` of each window; those side by side take one translation."""
    out: list[tuple[int, PfnArray]] = []
    for stretch in _stretches(windows, layout.size):
        first, last = stretch[0], stretch[-1]
        start = first.memmap_vaddr // page_size * page_size
        stop = last.memmap_vaddr + last.n_pages * layout.size
        n_pages = -(-(stop - start) // page_size)
        # A section table that was hit may put struct pages past the end of the address space.
        n_possible = max(min(n_pages, (ADDRESS_LIMIT - start) // page_size), 0)
        pfns = np.full(n_pages, UNMAPPED, dtype=np.uint64)
        if n_possible:
            runs = await translator.runs(start, n_possible * page_size)
            pfns[:n_possible] = _page_pfns(runs, page_size)
        for window in stretch:
            skip, off = divmod(window.memmap_vaddr - start, page_size)
            n_needed = -(-(off + window.n_pages * layout.size) // page_size)
            out.append((off, pfns[skip : skip + n_needed]))
    return out


def _stretches(windows: Sequence[Window], struct_size: int) -> Iterator[list[Window]]:
    """Cut where the struct pages of one window do not follow those of the one before."""
    stretch: list[Window] = []
    for window in windows:
        if stretch:
            last = stretch[-1]
            if window.memmap_vaddr != last.memmap_vaddr + last.n_pages * struct_size:
                yield stretch
                stretch = []
        stretch.append(window)
    if stretch:
        yield stretch


def _page_pfns(runs: Sequence[PhysRun], page_size: int) -> PfnArray:
    """uint64[n_pages]: the pfn of each page of the range that `runs` cover."""
    counts = np.array([run.n_bytes // page_size for run in runs], dtype=np.int64)
    mapped = np.array([run.paddr is not None for run in runs], dtype=np.bool_)
    firsts = np.array([(run.paddr or 0) // page_size for run in runs], dtype=np.int64)
    before = np.cumsum(counts) - counts
    pfns = np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(firsts - before, counts)
    out: PfnArray = pfns.astype(np.uint64)
    out[~np.repeat(mapped, counts)] = UNMAPPED
    return out
