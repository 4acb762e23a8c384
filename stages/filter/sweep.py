"""Pass 1: every struct page of the saved pages, in ascending order, block of the bitmap by block.

Windows are located by the translator in groups, scanned in a thread, and resolved here in order,
because a run (a buddy block, a gigantic page) can reach into the windows that follow.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import anyio.to_thread
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from stages.filter.levels import EXCLUDED_CLASSES, DumpLevel, PageClass
from stages.filter.page_layout import PageLayout
from stages.filter.prepare import FilterPlan
from stages.filter.runs import NO_CARRY, Carry, resolve_runs
from stages.filter.scan import ScannedWindow, WindowScanner
from stages.filter.windows import (
    LocatedWindow,
    Window,
    chunk_pages,
    locate_windows,
    plan_windows,
    window_pages,
)
from stages.reader.image import Image
from stages.translator.kernel import Kernel


class SectionVerdict(Struct):
    """What becomes of the pages of one block of the page bitmap.

    Attributes:
        index: of the block; its first pfn is `index * BLOCK_PAGES`.
        kept: bool[BLOCK_PAGES], pages that the dump will have.
        counts: int64[len(PageClass)], pages left out, by class.
        n_unknown: saved pages that are kept because their struct page could not be read.
        n_without: saved pages that are kept because they have no struct page.
        n_bad_orders: buddy pages whose order cannot be; kept.
    """

    index: int
    kept: BoolArray
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PageClass), np.int64))
    n_unknown: int = 0
    n_without: int = 0
    n_bad_orders: int = 0

    @property
    def n_pages(self) -> int:
        """Saved pages that the verdict is about."""
        return int(np.count_nonzero(self.kept)) + int(self.counts.sum())

    @property
    def n_bytes(self) -> int:
        return self.kept.nbytes + self.counts.nbytes


async def sweep(
    image: Image,
    kernel: Kernel | None,
    plan: FilterPlan,
    ram: PageBitmap,
    saved: PageBitmap,
    *,
    window_bytes: int,
    workers: int = 1,
) -> AsyncGenerator[SectionVerdict]:
    """Verdicts for all blocks that have any page of `saved`, ascending.

    Args:
        image: read in a worker thread, while the caller awaits.
        kernel: None only with a plan that looks at no struct pages.
        plan: from `prepare_filter`.
        ram: pages that exist, below `plan.max_mapnr`. Their struct pages count even where the image
            lacks the page: a huge page goes as a whole, though its head may be a page of zeros that
            an earlier run left out.
        saved: those of `ram` that the image has.
        window_bytes: struct pages that are read and classified at a time.
        workers: threads that do so.
    """
    if plan.layout is None or kernel is None:
        for index in saved.busy_blocks(0, saved.n_blocks):
            yield _untouched(saved, index)
        return
    next_index = 0
    scan = _Scan(image, kernel, plan, plan.layout, ram, saved, window_bytes, workers)
    async with aclosing(_verdicts(ram, saved, scan.results())) as verdicts:
        async for verdict in verdicts:
            for before in saved.busy_blocks(next_index, verdict.index):
                yield _untouched(saved, before)
            yield verdict
            next_index = verdict.index + 1
    for index in saved.busy_blocks(next_index, saved.n_blocks):
        yield _untouched(saved, index)


async def _verdicts(
    ram: PageBitmap, saved: PageBitmap, windows: AsyncGenerator[tuple[Window, ScannedWindow]]
) -> AsyncGenerator[SectionVerdict]:
    """Verdicts of the blocks that have windows; closes `windows`."""
    verdict: SectionVerdict | None = None
    carry = NO_CARRY
    async with aclosing(windows):
        async for window, scanned in windows:
            index = window.first_pfn // BLOCK_PAGES
            if verdict is not None and verdict.index != index:
                yield verdict
                verdict = None
            verdict = verdict or _untouched(saved, index)
            carry = _apply(verdict, window, _pages_of(ram, window), scanned, carry)
    if verdict is not None:
        yield verdict


def _untouched(saved: PageBitmap, index: int) -> SectionVerdict:
    return SectionVerdict(index, saved.block(index), n_without=saved.block_count(index))


def _pages_of(bitmap: PageBitmap, window: Window) -> BoolArray:
    """bool[n_pages] of the window's pages."""
    index, start = divmod(window.first_pfn, BLOCK_PAGES)
    return bitmap.block(index)[start : start + window.n_pages]


def _apply(
    verdict: SectionVerdict,
    window: Window,
    exists: BoolArray,
    scanned: ScannedWindow,
    carry: Carry,
) -> Carry:
    """Book one window of the verdict's block; `exists` is bool[n_pages] of the window."""
    start = window.first_pfn - verdict.index * BLOCK_PAGES
    kept = verdict.kept[start : start + window.n_pages]
    n_present = int(np.count_nonzero(kept))
    verdict.n_without -= n_present
    if scanned.codes is None:
        kept[:] = False
        verdict.counts[PageClass.FREE] += n_present
        return carry
    classes, carry = resolve_runs(scanned.codes, window.first_pfn, exists, carry)
    classes *= kept
    kept &= classes == PageClass.KEPT
    if np.count_nonzero(kept) < n_present:
        for page_class in EXCLUDED_CLASSES:
            verdict.counts[page_class] += np.count_nonzero(classes == page_class)
    if scanned.unknown is not None:
        verdict.n_unknown += int(np.count_nonzero(kept & scanned.unknown))
    verdict.n_bad_orders += scanned.codes.n_bad_orders
    return carry


class _Scan(Struct, frozen=True):
    """The windows of a sweep, scanned by some threads, and handed out in order."""

    image: Image
    kernel: Kernel
    plan: FilterPlan
    layout: PageLayout
    ram: PageBitmap
    saved: PageBitmap
    window_bytes: int
    workers: int

    async def results(self) -> AsyncGenerator[tuple[Window, ScannedWindow]]:
        n_pages = window_pages(self.layout, self.window_bytes)
        windows = self._windows(n_pages)
        if self.workers > 1:
            from stages.filter.read_ahead import ReadAhead

            ahead = ReadAhead(
                windows, self._locate, lambda room: self._scanner(room * n_pages), self.workers
            )
            async with aclosing(ahead.results()) as pairs:
                async for pair in pairs:
                    yield pair
            return
        scanner = self._scanner(n_pages)
        while group := list(itertools.islice(windows, scanner.group_windows)):
            located = await self._locate(group)
            found = await anyio.to_thread.run_sync(scanner.scan, located)
            for pair in zip(group, found, strict=True):
                yield pair

    def _windows(self, n_pages: int) -> Iterator[Window]:
        return plan_windows(self.plan.model, self.saved, self.layout, n_pages)

    def _scanner(self, n_pages: int) -> WindowScanner:
        return WindowScanner(self.image, self.layout, self.plan.level, n_pages=n_pages)

    async def _locate(self, windows: Sequence[Window]) -> list[LocatedWindow]:
        layout, page_size = self.layout, self.kernel.page_size
        chunk = chunk_pages(layout, page_size) if self.plan.level & DumpLevel.FREE else 0
        link = getattr(self.image, "link", None)
        if link is not None and link.gap_bytes >= chunk * layout.size:
            chunk = 0  # reading what lies between two heads costs no more than asking for heads
        return await _locate(self.kernel, layout, self.ram, windows, chunk)


async def _locate(
    kernel: Kernel,
    layout: PageLayout,
    ram: PageBitmap,
    windows: Sequence[Window],
    chunk: int,
) -> list[LocatedWindow]:
    """`chunk` as `chunk_pages` gives it, or 0 to look at all struct pages."""
    memmaps = await locate_windows(kernel.translator, windows, layout, kernel.page_size)
    out: list[LocatedWindow] = []
    for window, (offset, pfns) in zip(windows, memmaps, strict=True):
        aligned = chunk and not (offset or window.first_pfn % chunk or window.n_pages % chunk)
        # A head that does not exist tells nothing, as in the page by page rules.
        probes = _pages_of(ram, window)[::chunk] if aligned else None
        out.append(LocatedWindow(window.first_pfn, window.n_pages, offset, pfns, probes))
    return out
