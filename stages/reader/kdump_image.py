"""kdump-compressed dumps as images: to be refiltered, recompressed, checked, or looked into."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TruncatedError
from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.arrays import distinct
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from pipeline.memory.extents import EMPTY, ExtentSet, runs_of
from stages.formats.kdump import PAGE_DESC
from stages.reader.file_io import ImageFile
from stages.reader.image import ImageInfo
from stages.reader.kdump_descriptors import (
    DescArray,
    DescriptorProblem,
    Descriptors,
    iter_problems,
)
from stages.reader.kdump_head import KdumpHeader, read_bitmap, read_kdump_header, read_kdump_info
from stages.reader.kdump_pages import PageDecoder
from stages.reader.read_errors import OnReadError, ReadErrors

_MAX_ADVICE_BYTES = 64 << 20


class KdumpImage:
    """`Image` of a dump; `read_errors` lists pages that could not be read or decoded."""

    fork_safe = True

    def __init__(self, file: ImageFile, on_read_error: OnReadError | None = None) -> None:
        """Open the dump in `file`, which becomes this object's to close.

        Raises:
            FormatError: a header has an impossible value.
            TruncatedError: the file ends before its bitmaps do.
            UnsupportedError: a form of the format that is recognised but not read.
            OSError: the device failed.
        """
        self.header: KdumpHeader = read_kdump_header(file)
        self.info: ImageInfo = read_kdump_info(file, self.header)
        self.path = file.path
        self.max_mapnr = self.header.max_mapnr
        self.read_errors = ReadErrors(on_read_error)
        self._file = file
        self._check_bitmaps_are_there()
        self._ram = read_bitmap(file, self.header.bitmap1_start, self.max_mapnr)
        self._dumped = self._ram
        if self.header.bitmap2_start != self.header.bitmap1_start:
            self._dumped = read_bitmap(file, self.header.bitmap2_start, self.max_mapnr)
        self._descriptors = Descriptors(
            file, self.header.descriptors_start, self._dumped, self.header.start_pfn
        )
        self._pages = PageDecoder(file, self.info.page_size, self.read_errors)
        self.n_dumped = self._descriptors.count_below(self.header.end_pfn)
        self._saved = self._find_saved()
        self._zero_off = self._find_zero_page()
        self.info.incomplete = self.info.incomplete or self._why_cut()

    def _check_bitmaps_are_there(self) -> None:
        end, size = self.header.descriptors_start, self._file.size
        if size is not None and size < end:
            start = self.header.bitmap1_start
            raise TruncatedError("kdump", start, "bitmaps", end - start, size)

    def _find_saved(self) -> PageBitmap:
        """Pages whose content is here: dumped, of this part, and not lost as far as is known."""
        saved = self._dumped.copy()
        saved.clear_range(0, self.header.start_pfn)
        saved.clear_range(self.header.end_pfn, self.max_mapnr)
        # Only in these do descriptors stay empty; elsewhere reading them all would be for nothing.
        if self.header.incomplete or self._file.incomplete is not None:
            for index in range(saved.n_blocks):
                if saved.block_count(index):
                    self._drop_lost(saved, index)
        return saved

    def _drop_lost(self, saved: PageBitmap, index: int) -> None:
        pfns = saved.pfns(index)
        lost = pfns[self._descriptors.of_pages(pfns)["offset"] == 0]
        if len(lost):
            bits = saved.block(index)
            bits[(lost % np.uint64(BLOCK_PAGES)).astype(np.intp)] = False
            saved.set_block(index, bits)

    def _find_zero_page(self) -> int | None:
        """Where the page of zeros is that all zero pages name, if there is one."""
        if not self.info.dump_level & 1:
            return None
        start, page_size = self.header.descriptors_start, self.info.page_size
        # All parts of a split dump leave room for the descriptors of the whole.
        off = start + self._dumped.count() * PAGE_DESC.itemsize
        try:
            page = bytes(self._pages.read(off, off + page_size))
        except OSError:
            return None
        return off if len(page) == page_size and not page.strip(b"\0") else None

    def _why_cut(self) -> str | None:
        """What the last descriptors say about the file's size."""
        size = self._file.size
        if size is None or self.n_dumped == 0:
            return None
        end = self.header.descriptors_start + self.n_dumped * PAGE_DESC.itemsize
        if size < end:
            return f"cut at {size} bytes, its descriptors end at {end}"
        first = max(self.n_dumped - 1024, 0)
        table = self._descriptors.read(np.arange(first, self.n_dumped, dtype=np.int64))
        past = table[table["offset"] > size - table["size"].astype(np.int64)]
        if len(past) == 0:
            return None
        return f"cut at {size} bytes, {len(past)} of its last {len(table)} pages lie beyond"

    @cached_property
    def ram(self) -> ExtentSet:
        return _extents_of(self._ram)

    @cached_property
    def saved(self) -> ExtentSet:
        return _extents_of(self._saved)

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        out = out[: len(pfns)]
        states = np.full(len(pfns), PageState.MISSING, dtype=np.uint8)
        table = np.zeros(len(pfns), dtype=PAGE_DESC)
        mine = np.flatnonzero(self._saved.contains(pfns))
        table[mine] = self._descriptors.of_pages(pfns[mine])
        states[mine] = PageState.DATA
        if self._zero_off is not None:
            zero = (table["offset"] == self._zero_off) & (table["flags"] == 0)
            states[zero] = PageState.ZERO
            out[zero] = 0
        self._pages.decode(pfns, table, out, states)
        return states

    def iter_descriptors(self) -> Iterator[tuple[PfnArray, DescArray]]:
        """Pages that this file has descriptors for, ascending, a bitmap block at a time."""
        for pfns in self._dumped.iter_pfns():
            mine = pfns[(pfns >= self.header.start_pfn) & (pfns < self.header.end_pfn)]
            if len(mine):
                yield mine, self._descriptors.of_pages(mine)

    def iter_problems(self) -> Iterator[DescriptorProblem]:
        """Descriptors that can't be right, ascending; lost pages (offset 0) are not among them."""
        for pfns, table in self.iter_descriptors():
            yield from iter_problems(pfns, table, self.info.page_size, self._file.size)

    def holes(self, start: int, stop: int) -> ExtentSet:
        return EMPTY

    def read_ahead(self, start: int, stop: int) -> None:
        first, last = (self._descriptors.count_below(pfn) for pfn in (start, stop))
        if first < last:
            table = self._descriptors.read(distinct(np.array([first, last - 1])))
            low, high = int(table["offset"].min()), int(table["offset"].max())
            if low > 0 and high - low <= _MAX_ADVICE_BYTES:
                self._file.advise(low, high + self.info.page_size)

    def saved_bitmap(self) -> PageBitmap:
        return self._saved.copy()

    def close(self) -> None:
        self._file.close()


def _extents_of(bitmap: PageBitmap) -> ExtentSet:
    parts = [runs_of(pfns) for pfns in bitmap.iter_pfns()]
    if not parts:
        return EMPTY
    starts = np.concatenate([starts for starts, _ in parts])
    stops = starts + np.concatenate([lengths for _, lengths in parts])
    # Runs end at block borders; those that go on behind one are put together.
    breaks = np.flatnonzero(starts[1:] != stops[:-1])
    return ExtentSet(
        starts[np.concatenate(([0], breaks + 1))], stops[np.append(breaks, len(stops) - 1)]
    )
