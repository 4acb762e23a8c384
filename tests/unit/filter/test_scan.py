"""Reading struct pages from an image: sampled, shared, missing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.flow.items import PageState
from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from stages.demo.struct_pages import ANON_MAPPING
from stages.filter.classify import page_codes
from stages.filter.levels import PageClass
from stages.filter.scan import WindowScanner
from stages.filter.windows import UNMAPPED, LocatedWindow
from stages.reader.image import Image, ImageInfo
from tests.unit.filter.struct_rows import StructRows

PAGE = 4096
MEMMAP_PFN = 100


class RowsImage:
    """An image whose pages from `MEMMAP_PFN` on are struct pages; it notes what is read."""

    def __init__(self, rows: StructRows) -> None:
        self.info = ImageInfo("test", "x86_64", PAGE)
        self._pages = rows.raw.reshape(-1, PAGE)
        self.missing: set[int] = set()
        self.reads: list[list[int]] = []

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        assert (np.diff(pfns.astype(np.int64)) > 0).all()
        self.reads.append(pfns.tolist())
        states = np.zeros(len(pfns), dtype=np.uint8)
        for row, pfn in enumerate(pfns.tolist()):
            if pfn in self.missing:
                states[row] = PageState.MISSING
                out[row] = 0xAA
            else:
                out[row] = self._pages[pfn - MEMMAP_PFN]
        return states

    @property
    def n_read(self) -> int:
        return sum(len(read) for read in self.reads)


def scanner_of(image: RowsImage, rows: StructRows, level: int) -> WindowScanner:
    typed: Image = image  # type: ignore[assignment]  # the scanner needs only these two members
    return WindowScanner(typed, rows.layout, level, n_pages=rows.n_pages)


def located(
    rows: StructRows, *, probes: BoolArray | None = None, pfns: PfnArray | None = None
) -> LocatedWindow:
    n_pages = rows.n_pages * 64 // PAGE
    plain = np.arange(MEMMAP_PFN, MEMMAP_PFN + n_pages, dtype=np.uint64)
    return LocatedWindow(rows.first_pfn, rows.n_pages, 0, plain if pfns is None else pfns, probes)


def busy_rows() -> StructRows:
    """Eight chunks: 0, 2, 3, 4 and 7 are free blocks, with stale pages; the others are mixed."""
    rows = StructRows("6.1", 8192)
    for chunk in (0, 2, 3, 4, 7):
        rows.put(chunk * 1024, mapcount=rows.kernel.types.buddy, private=10)
        rows.put(chunk * 1024 + 9, mapping=ANON_MAPPING)
    rows.put(1024, mapping=ANON_MAPPING).put(1030, mapcount=rows.kernel.types.buddy, private=1)
    rows.head(5 * 1024 + 512, 9, hugetlb=True)
    rows.put(6 * 1024, mapcount=rows.kernel.types.buddy, private=9)
    rows.put(6 * 1024 + 1000, mapcount=rows.kernel.types.buddy, private=11)
    return rows


class TestSampling:
    def test_same_codes_with_and_without(self) -> None:
        """But for what lies inside the free blocks, which was not read, and does not count."""
        rows = busy_rows()
        image = RowsImage(rows)
        probes = np.ones(8, dtype=np.bool_)
        sampled = scanner_of(image, rows, 31).scan([located(rows, probes=probes)])[0]
        whole = page_codes(rows.raw, rows.n_pages, 0, rows.layout, 31)

        assert sampled.codes is not None
        inside = np.zeros(8192, dtype=np.bool_)
        for chunk in (0, 2, 3, 4, 7):
            inside[chunk * 1024 + 1 : chunk * 1024 + 1024] = True
        assert np.array_equal(sampled.codes.codes[~inside], whole.codes[~inside])
        assert np.array_equal(sampled.codes.orders, whole.orders)
        assert sampled.codes.n_bad_orders == 1
        assert not sampled.codes.codes[inside].any()

    def test_free_blocks_are_not_read(self) -> None:
        """One page of memmap each, instead of sixteen."""
        rows = busy_rows()
        image = RowsImage(rows)
        scanner_of(image, rows, 16).scan([located(rows, probes=np.ones(8, dtype=np.bool_))])

        assert image.n_read == 8 + 3 * 16

    def test_used_memory_is_hardly_sampled(self) -> None:
        """Where one head in four finds nothing free, the others are not asked."""
        rows = StructRows("6.1", 8192)
        image = RowsImage(rows)
        scanner_of(image, rows, 16).scan([located(rows, probes=np.ones(8, dtype=np.bool_))])

        assert [len(read) for read in image.reads] == [2, 128]

    def test_free_memory_needs_no_codes(self) -> None:
        """A window that is nothing but largest blocks."""
        rows = StructRows("6.1", 4096)
        for chunk in range(4):
            rows.put(chunk * 1024, mapcount=rows.kernel.types.buddy, private=10)
        image = RowsImage(rows)
        probes = np.ones(4, dtype=np.bool_)

        assert scanner_of(image, rows, 16).scan([located(rows, probes=probes)])[0].codes is None
        assert image.n_read == 4

    def test_smaller_blocks_are_read(self) -> None:
        """A chunk that starts with a smaller free block may hold anything behind it."""
        rows = StructRows("6.1", 1024)
        rows.put(0, mapcount=rows.kernel.types.buddy, private=9).put(600, mapping=ANON_MAPPING)
        scanner = scanner_of(RowsImage(rows), rows, 31)
        found = scanner.scan([located(rows, probes=np.ones(1, dtype=np.bool_))])[0]

        assert found.codes is not None
        assert found.codes.codes[600] == PageClass.USER

    def test_absent_heads_are_not_asked(self) -> None:
        """Their struct pages say nothing, so all of the chunk is read."""
        rows = busy_rows()
        probes = np.ones(8, dtype=np.bool_)
        probes[[0, 4]] = False
        found = scanner_of(RowsImage(rows), rows, 31).scan([located(rows, probes=probes)])[0]

        assert found.codes is not None
        assert found.codes.codes[9] == PageClass.USER

    def test_group_of_windows_is_sampled_together(self) -> None:
        """Few large reads instead of many small ones."""
        rows = busy_rows()
        image = RowsImage(rows)
        scanner = scanner_of(image, rows, 16)
        window = located(rows, probes=np.ones(8, dtype=np.bool_))
        shifted = LocatedWindow(8192, 8192, 0, window.memmap_pfns, window.probes)
        both = scanner.scan([window, shifted])

        assert [len(set(read)) for read in image.reads[:2]] == [2, 6]
        assert both[0].codes is not None
        assert both[1].codes is not None
        assert np.array_equal(both[0].codes.codes, both[1].codes.codes)


class TestWhatIsNotThere:
    @pytest.mark.parametrize("how", ["missing", "unmapped"])
    def test_unreadable_struct_pages_are_unknown(self, how: str) -> None:
        """Their pages have no class, and are told apart from pages that are kept for a reason."""
        rows = StructRows("6.1", 256)
        for index in range(256):
            rows.put(index, mapping=ANON_MAPPING)
        image = RowsImage(rows)
        pfns = np.arange(MEMMAP_PFN, MEMMAP_PFN + 4, dtype=np.uint64)
        if how == "missing":
            image.missing = {MEMMAP_PFN + 1}
        else:
            pfns[1] = UNMAPPED
        found = scanner_of(image, rows, 8).scan([located(rows, pfns=pfns)])[0]

        assert found.codes is not None
        assert found.unknown is not None
        assert np.flatnonzero(found.unknown).tolist() == list(range(64, 128))
        assert np.flatnonzero(found.codes.codes == 0).tolist() == list(range(64, 128))

    def test_order_in_an_unreadable_page_is_not_believed(self) -> None:
        """The bytes left in the buffer must not become an order."""
        rows = StructRows("6.1", 128).head(63, 1, mapping=ANON_MAPPING)
        image = RowsImage(rows)
        image.missing = {MEMMAP_PFN + 1}
        found = scanner_of(image, rows, 8).scan([located(rows)])[0]

        assert found.codes is not None
        assert found.codes.codes[63] == PageClass.USER
        assert not found.codes.orders.any()

    def test_struct_page_cut_by_a_missing_page_is_unknown(self) -> None:
        """Both pages that a struct page lies in must be there."""
        rows = StructRows("6.1", 128)
        image = RowsImage(rows)
        image.missing = {MEMMAP_PFN + 1}
        window = LocatedWindow(0, 64, 32, np.array([100, 101], dtype=np.uint64), None)
        found = scanner_of(image, rows, 8).scan([window])[0]

        assert found.unknown is not None
        assert np.flatnonzero(found.unknown).tolist() == [63]

    def test_half_a_struct_page_is_no_free_block(self) -> None:
        """Type and order may be in the half that is there, flags and tail bit in the other."""
        rows = StructRows("6.1", 128)
        rows.rows[64, 8:16] = list((3).to_bytes(8, "little"))  # private, 32 bytes further on
        rows.rows[64, 16:20] = list(rows.kernel.types.buddy.to_bytes(4, "little"))
        image = RowsImage(rows)
        pfns = np.array([UNMAPPED, MEMMAP_PFN + 1], dtype=np.uint64)
        found = scanner_of(image, rows, 16).scan([LocatedWindow(0, 64, 32, pfns, None)])[0]

        assert found.codes is not None
        assert not found.codes.codes.any()
        assert not found.codes.orders.any()

    def test_unreadable_page_beside_free_chunks(self) -> None:
        """What is unknown stays in its place when free chunks are not read."""
        rows = busy_rows()
        image = RowsImage(rows)
        image.missing = {MEMMAP_PFN + 16}
        window = located(rows, probes=np.ones(8, dtype=np.bool_))
        found = scanner_of(image, rows, 31).scan([window])[0]

        assert found.unknown is not None
        assert np.flatnonzero(found.unknown).tolist() == list(range(1024, 1088))


class TestSharedPages:
    def test_memmap_pages_may_repeat_and_jump(self) -> None:
        """Hugetlb vmemmap optimisation maps one page eight times; others come in any order."""
        rows = StructRows("6.1", 256)
        for index in range(64):
            rows.put(index, mapping=ANON_MAPPING)
            rows.put(128 + index, flags=1 << rows.kernel.bits.lru)
        pfns = np.array([102, 100, 100, 101], dtype=np.uint64)
        found = scanner_of(RowsImage(rows), rows, 10).scan([located(rows, pfns=pfns)])[0]

        assert found.codes is not None
        firsts = found.codes.codes[::64].tolist()
        assert firsts == [PageClass.CACHE, PageClass.USER, PageClass.USER, PageClass.KEPT]
