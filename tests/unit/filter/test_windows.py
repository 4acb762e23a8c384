"""The plan of pass 1: windows, and where their struct pages are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from pipeline.memory.addresses import AddrArray, BoolArray
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from pipeline.memory.extents import ExtentSet
from stages.filter.memory_model import MemmapRegion, MemoryModel
from stages.filter.windows import (
    UNMAPPED,
    Window,
    chunk_pages,
    locate_windows,
    plan_windows,
    window_pages,
)
from stages.translator.kernel import PhysRun
from tests.unit.filter.struct_rows import layout_of

BASE = 0xFFFFEA0000000000
PAGE = 4096


def saved(*pairs: tuple[int, int], n_pages: int = 4 * BLOCK_PAGES) -> PageBitmap:
    return PageBitmap.from_extents(ExtentSet.from_pairs(pairs), n_pages)


class Spread:
    """A translator that maps page n of memmap to pfn 1000 - n, but for a hole; it counts calls."""

    def __init__(self, hole: int | None = None) -> None:
        self.hole = hole
        self.calls: list[tuple[int, int]] = []

    async def translate(self, vaddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        raise NotImplementedError

    async def iter_runs(self, vaddr: int, n_bytes: int) -> AsyncIterator[PhysRun]:
        first = (vaddr - BASE) // PAGE
        for index in range(first, first + n_bytes // PAGE):
            paddr = None if index == self.hole else (1000 - index) * PAGE
            yield PhysRun(BASE + index * PAGE, paddr, PAGE)

    async def runs(self, vaddr: int, n_bytes: int) -> list[PhysRun]:
        self.calls.append((vaddr, n_bytes))
        return [run async for run in self.iter_runs(vaddr, n_bytes)]


class TestPlanning:
    def test_window_is_a_block_of_the_bitmap(self) -> None:
        """2 MiB of 64-byte struct pages are those of 32768 pages."""
        model = MemoryModel("flat", (MemmapRegion(0, 2 * BLOCK_PAGES + 5, BASE),))
        plan = list(plan_windows(model, saved((0, 4 * BLOCK_PAGES)), layout_of("6.1"), 32768))

        assert plan == [
            Window(0, 32768, BASE),
            Window(32768, 32768, BASE + 32768 * 64),
            Window(65536, 5, BASE + 65536 * 64),
        ]

    def test_blocks_without_saved_pages_are_skipped(self) -> None:
        """A hole of terabytes costs nothing but its blocks' count."""
        model = MemoryModel("flat", (MemmapRegion(0, 4 * BLOCK_PAGES, BASE),))
        some = saved((7, 8), (3 * BLOCK_PAGES, 3 * BLOCK_PAGES + 1))
        plan = list(plan_windows(model, some, layout_of("6.1"), BLOCK_PAGES))

        assert [window.first_pfn for window in plan] == [0, 3 * BLOCK_PAGES]

    def test_regions_without_struct_pages_are_skipped(self) -> None:
        """And regions may start anywhere."""
        regions = (MemmapRegion(0, 100, None), MemmapRegion(100, 1000, BASE))
        plan = list(plan_windows(MemoryModel("x", regions), saved((0, 999)), layout_of("6.1"), 512))

        assert plan == [Window(100, 412, BASE), Window(512, 488, BASE + 412 * 64)]

    @pytest.mark.parametrize(
        ("window_bytes", "n_pages"),
        [(2 << 20, 32768), (3 << 20, 32768), (1 << 30, 32768), (1 << 20, 16384), (1, 512)],
    )
    def test_size_of_windows(self, window_bytes: int, n_pages: int) -> None:
        """A power of two between makedumpfile's batch and a block of the bitmap."""
        assert window_pages(layout_of("6.1"), window_bytes) == n_pages


class TestLocating:
    async def test_windows_side_by_side_are_one_request(self) -> None:
        """512 windows of a 64 GiB machine would be 512 walks."""
        spread = Spread()
        windows = [Window(0, 512, BASE), Window(512, 512, BASE + 512 * 64)]
        found = await locate_windows(spread, windows, layout_of("6.1"), PAGE)

        assert spread.calls == [(BASE, 16 * PAGE)]
        assert [(offset, pfns.tolist()) for offset, pfns in found] == [
            (0, list(range(1000, 992, -1))),
            (0, list(range(992, 984, -1))),
        ]

    async def test_memmap_may_start_inside_a_page(self) -> None:
        """As without vmemmap; then a window's last struct page is in one page more."""
        spread = Spread()
        windows = [Window(0, 512, BASE + 64), Window(4096, 64, BASE + 20 * PAGE + 128)]
        found = await locate_windows(spread, windows, layout_of("6.1"), PAGE)

        assert [(offset, len(pfns), int(pfns[0])) for offset, pfns in found] == [
            (64, 9, 1000),
            (128, 2, 980),
        ]

    async def test_holes_of_memmap_are_marked(self) -> None:
        """Sub-sections of removed memory have no struct pages."""
        windows = [Window(0, 192, BASE)]
        found = await locate_windows(Spread(hole=1), windows, layout_of("6.1"), PAGE)

        assert found[0][1].tolist() == [1000, int(UNMAPPED), 998]

    async def test_struct_pages_over_a_page_boundary(self) -> None:
        """56-byte struct pages do not divide a page."""
        layout = layout_of("6.1", SIZE_page="56")
        found = await locate_windows(Spread(), [Window(0, 74, BASE)], layout, PAGE)

        assert len(found[0][1]) == 2


class TestChunks:
    def test_chunk_is_the_largest_buddy_block(self) -> None:
        """1024 pages, 64 KiB of struct pages."""
        assert chunk_pages(layout_of("6.1"), PAGE) == 1024

    def test_no_chunks_where_they_save_nothing(self) -> None:
        """Blocks that are too small, do not fill pages, or cannot be told."""
        assert chunk_pages(layout_of("6.1", LENGTH_zone__free_area="9"), PAGE) == 0
        assert chunk_pages(layout_of("6.1"), 65536) == 0
        assert chunk_pages(layout_of("6.1", NUMBER_PAGE_BUDDY_MAPCOUNT_VALUE=None), PAGE) == 0


def test_unmapped_is_no_pfn() -> None:
    """It must never be asked of an image."""
    assert np.uint64((1 << 64) - 1) == UNMAPPED
