"""Pass 1: every struct page of the saved pages, in ascending order, block of the bitmap by block.

Windows are located by the translator in groups, scanned in a thread, and resolved here in order,
because a run (a buddy block, a gigantic page) can reach into the windows that follow.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

import anyio.to_thread
import numpy as np
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

T = TypeVar("T")
_Place: TypeAlias = tuple[Window, LocatedWindow]

_MAX_PROBERS: Final = 8
"""Groups of windows whose heads are on their way."""
_MAX_READY: Final = 64
"""Windows that wait for the one before them."""


@dataclass(slots=True)
class SectionVerdict:
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
        saved: the image's saved pages below `plan.max_mapnr`.
        window_bytes: struct pages that are read and classified at a time.
        workers: threads that do so.
    """
    if plan.layout is None or kernel is None:
        for index in _busy_blocks(saved, 0, saved.n_blocks):
            yield _untouched(saved, index)
        return
    next_index = 0
    scan = _Scan(image, kernel, plan, plan.layout, saved, window_bytes, workers)
    async with aclosing(_verdicts(saved, scan.results())) as verdicts:
        async for verdict in verdicts:
            for before in _busy_blocks(saved, next_index, verdict.index):
                yield _untouched(saved, before)
            yield verdict
            next_index = verdict.index + 1
    for index in _busy_blocks(saved, next_index, saved.n_blocks):
        yield _untouched(saved, index)


async def _verdicts(
    saved: PageBitmap, windows: AsyncGenerator[tuple[Window, ScannedWindow]]
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
            carry = _apply(verdict, window, scanned, carry)
    if verdict is not None:
        yield verdict


def _busy_blocks(saved: PageBitmap, start: int, stop: int) -> Iterator[int]:
    return (index for index in range(start, stop) if saved.block_count(index))


def _untouched(saved: PageBitmap, index: int) -> SectionVerdict:
    return SectionVerdict(index, saved.block(index), n_without=saved.block_count(index))


def _apply(verdict: SectionVerdict, window: Window, scanned: ScannedWindow, carry: Carry) -> Carry:
    """Book one window of the verdict's block."""
    start = window.first_pfn - verdict.index * BLOCK_PAGES
    kept = verdict.kept[start : start + window.n_pages]
    n_present = int(np.count_nonzero(kept))
    verdict.n_without -= n_present
    if scanned.codes is None:
        kept[:] = False
        verdict.counts[PageClass.FREE] += n_present
        return carry
    classes, carry = resolve_runs(scanned.codes, window.first_pfn, kept, carry)
    kept &= classes == PageClass.KEPT
    if np.count_nonzero(kept) < n_present:
        for page_class in EXCLUDED_CLASSES:
            verdict.counts[page_class] += np.count_nonzero(classes == page_class)
    if scanned.unknown is not None:
        verdict.n_unknown += int(np.count_nonzero(kept & scanned.unknown))
    verdict.n_bad_orders += scanned.codes.n_bad_orders
    return carry


async def _result(future: Future[T]) -> T:
    """What `future` gives; whoever is cancelled here leaves its thread to finish."""
    return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)


@dataclass(frozen=True, slots=True)
class _Scan:
    """The windows of a sweep, scanned by some threads, and handed out in order."""

    image: Image
    kernel: Kernel
    plan: FilterPlan
    layout: PageLayout
    saved: PageBitmap
    window_bytes: int
    workers: int

    async def results(self) -> AsyncGenerator[tuple[Window, ScannedWindow]]:
        n_pages = window_pages(self.layout, self.window_bytes)
        if self.workers > 1:
            async with aclosing(self._side_by_side(n_pages)) as pairs:
                async for pair in pairs:
                    yield pair
            return
        scanner = self._scanner(n_pages)
        windows = self._windows(n_pages)
        while group := list(itertools.islice(windows, scanner.group_windows)):
            located = await self._locate(group)
            found = await anyio.to_thread.run_sync(scanner.scan, located)
            for pair in zip(group, found, strict=True):
                yield pair

    async def _side_by_side(self, n_pages: int) -> AsyncGenerator[tuple[Window, ScannedWindow]]:
        """Heads of the next groups are asked for while windows are read, several at a time."""
        # The first scanners ask for heads only, of as many windows as a buffer of theirs holds.
        n_probers = min(self.workers, _MAX_PROBERS)
        probers = deque(self._scanner(n_pages) for _ in range(n_probers))
        scanners = deque(self._scanner(n_pages) for _ in range(self.workers))
        windows = self._windows(n_pages)
        probed: deque[tuple[list[_Place], Future[list[BoolArray | None]]]] = deque()
        ready: deque[tuple[_Place, BoolArray | None]] = deque()
        scanned: deque[tuple[Window, Future[ScannedWindow] | None]] = deque()
        pool = ThreadPoolExecutor(self.workers + n_probers, thread_name_prefix="filter")
        try:
            while True:
                while len(probed) < n_probers and (
                    group := list(itertools.islice(windows, probers[0].group_windows))
                ):
                    places = list(zip(group, await self._locate(group), strict=True))
                    heads = pool.submit(probers[0].probe, [located for _, located in places])
                    probed.append((places, heads))
                    probers.rotate(-1)
                n_reading = sum(future is not None for _, future in scanned)
                while ready and n_reading < self.workers and len(scanned) < _MAX_READY:
                    (window, located), free = ready.popleft()
                    if free is not None and free.all():
                        scanned.append((window, None))
                        continue
                    scan = pool.submit(scanners[0].scan_window, located, free)
                    scanned.append((window, scan))
                    scanners.rotate(-1)
                    n_reading += 1
                if probed and not ready:
                    places, heads = probed.popleft()
                    found = await _result(heads)
                    ready.extend(zip(places, found, strict=True))
                elif scanned:
                    window, result = scanned.popleft()
                    yield window, ScannedWindow(None) if result is None else await _result(result)
                else:
                    return
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

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
        return await _locate(self.kernel, layout, self.saved, windows, chunk)


async def _locate(
    kernel: Kernel,
    layout: PageLayout,
    saved: PageBitmap,
    windows: Sequence[Window],
    chunk: int,
) -> list[LocatedWindow]:
    """`chunk` as `chunk_pages` gives it, or 0 to look at all struct pages."""
    memmaps = await locate_windows(kernel.translator, windows, layout, kernel.page_size)
    out: list[LocatedWindow] = []
    for window, (offset, pfns) in zip(windows, memmaps, strict=True):
        aligned = chunk and not (offset or window.first_pfn % chunk or window.n_pages % chunk)
        probes = _heads_present(saved, window, chunk) if aligned else None
        out.append(LocatedWindow(window.first_pfn, window.n_pages, offset, pfns, probes))
    return out


def _heads_present(saved: PageBitmap, window: Window, chunk: int) -> BoolArray:
    """bool[n_chunks]: a head that the image lacks tells nothing, as in the page by page rules."""
    index, start = divmod(window.first_pfn, BLOCK_PAGES)
    return saved.block(index)[start : start + window.n_pages : chunk]
