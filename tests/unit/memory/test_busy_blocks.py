"""`PageBitmap.busy_blocks` and `clear_range`: work grows with what is set, not with the range."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from pipeline.memory.extents import ExtentSet

N_BLOCKS = 10


def bitmap(pfns: set[int], n_pages: int = N_BLOCKS * BLOCK_PAGES) -> PageBitmap:
    pairs = [(pfn, pfn + 1) for pfn in sorted(pfns)]
    return PageBitmap.from_extents(ExtentSet.from_pairs(pairs), n_pages)


@given(st.sets(st.integers(0, N_BLOCKS * BLOCK_PAGES - 1), max_size=20), st.data())
def test_blocks_of_a_range(pfns: set[int], data: st.DataObject) -> None:
    """Those with any bit, however the range compares with the number of blocks that have some."""
    start = data.draw(st.integers(0, N_BLOCKS))
    stop = data.draw(st.integers(start, N_BLOCKS))

    wanted = sorted({pfn // BLOCK_PAGES for pfn in pfns})
    assert bitmap(pfns).busy_blocks(start, stop) == [one for one in wanted if start <= one < stop]


def test_petabytes_of_nothing() -> None:
    """2**44 page frames with two set are walked and cleared in no time."""
    far = (1 << 44) - 1
    pages = bitmap({5, far}, 1 << 44)

    assert pages.busy_blocks(0, pages.n_blocks) == [0, far // BLOCK_PAGES]
    assert pages.clear_range(6, 1 << 44) == 1
    assert pages.count() == 1
