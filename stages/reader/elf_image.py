"""ELF cores as images: /proc/vmcore, QEMU's and Xen's dumps, makedumpfile's ELF output.

One run of consecutive pages costs one preadv, straight into the caller's rows. Measured, page cache
warm: 2 us for one page, 1 us for each run of scattered ones, 3 us above the bare preadv for 1024
pages in a row.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import EMPTY, ExtentSet
from stages.reader.elf_head import read_elf_head
from stages.reader.elf_map import map_loads, usable_loads, were_filtered
from stages.reader.file_io import ImageFile
from stages.reader.hole_windows import HoleWindows
from stages.reader.image import ImageInfo
from stages.reader.read_errors import OnReadError, ReadErrors
from stages.reader.rows import RowReader


class ElfImage:
    """`Image` of an ELF core; `read_errors` lists the pages it could not read."""

    fork_safe = True

    def __init__(self, file: ImageFile, on_read_error: OnReadError | None = None) -> None:
        """Open the image in `file`, which becomes this object's to close.

        Raises:
            FormatError: a header has an impossible value.
            UnsupportedError: not a core file, or one without physical memory.
            OSError: the device failed.
        """
        info = read_elf_head(file)
        loads = usable_loads(info)
        tails_are_zero = info.made_by == "qemu" and not were_filtered(loads)
        self._map = map_loads(loads, info.page_size, tails_are_zero=tails_are_zero)
        if file.size is not None and self._map.file_end > file.size:
            cut = f"cut at {file.size} bytes, its headers describe {self._map.file_end}"
            info.incomplete = info.incomplete or cut
        self.info: ImageInfo = info
        self.path = file.path
        self.ram: ExtentSet = self._map.ram
        self.saved: ExtentSet = self._map.saved
        self.max_mapnr = self._map.max_mapnr
        self.read_errors = ReadErrors(on_read_error)
        self._file = file
        self._rows = RowReader(file, info.page_size, self.read_errors)
        self._holes = HoleWindows(file, self._map, info.page_size) if file.has_holes else None
        # bisect on lists beats searchsorted by 1 us, half of what a single page costs.
        self._firsts: list[int] = self._map.first.tolist()
        self._stops: list[int] = self._map.stop.tolist()
        self._deltas: list[int] = self._map.delta.tolist()

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        n_pages = len(pfns)
        states = np.zeros(n_pages, dtype=np.uint8)
        if n_pages == 0:
            return states
        if len(out) != n_pages:
            out = out[:n_pages]
        first, last = pfns.item(0), pfns.item(-1)
        if last - first == n_pages - 1:
            run = bisect_right(self._firsts, first) - 1
            if run >= 0 and last < self._stops[run] and not self._in_hole(first, last + 1):
                off = first * self.info.page_size + self._deltas[run]
                self._read_run(off, pfns, out, states)
                return states
        self._read_scattered(pfns, out, states)
        return states

    def _in_hole(self, start: int, stop: int) -> bool:
        return self._holes is not None and self._holes.touch(start, stop)

    def _read_run(
        self, off: int, pfns: PfnArray, out: ByteArray, states: NDArray[np.uint8]
    ) -> None:
        view = out.data.cast("B")
        try:
            got = self._file.read_into(view, off)
        except OSError:
            got = 0  # met again, and dealt with, by finish_run
        if got != len(view):
            self._rows.finish_run(view, off, got, pfns, states)

    def _read_scattered(self, pfns: PfnArray, out: ByteArray, states: NDArray[np.uint8]) -> None:
        pages = pfns.view(np.int64)
        run = np.searchsorted(self._map.first, pages, side="right") - 1
        whole = (run >= 0) & (pages < self._map.stop[run]) if len(self._firsts) else run >= 0
        if self._holes is not None:
            hole = whole & self._holes.contain(pfns)
            self._set_zero(hole, out, states)
            rest, whole = ~whole, whole & ~hole
        else:
            rest = ~whole
        rows = np.flatnonzero(whole)
        offs = pages[rows] * self.info.page_size + self._map.delta[run[rows]]
        self._rows.read_rows(offs, rows, pfns, out, states)
        if rest.any():
            self._read_rest(np.flatnonzero(rest), pfns, out, states)

    @staticmethod
    def _set_zero(zero: NDArray[np.bool_], out: ByteArray, states: NDArray[np.uint8]) -> None:
        if zero.any():
            out[zero] = 0
            states[zero] = PageState.ZERO

    def _read_rest(
        self, rows: NDArray[np.intp], pfns: PfnArray, out: ByteArray, states: NDArray[np.uint8]
    ) -> None:
        """Pages that no run has: zero tails, pages in parts, and pages the image lacks."""
        states[rows] = PageState.MISSING
        zero = rows[self._map.zero.contains(pfns[rows])]
        out[zero] = 0
        states[zero] = PageState.ZERO
        for row in rows[np.isin(pfns[rows], self._map.odd.view(np.uint64))].tolist():
            self._read_odd(row, pfns, out, states)

    def _read_odd(
        self, row: int, pfns: PfnArray, out: ByteArray, states: NDArray[np.uint8]
    ) -> None:
        """Put one page together from the pieces that have a byte of it."""
        page_size = self.info.page_size
        start = int(pfns[row]) * page_size
        pieces = self._map.pieces
        mine = pieces.overlapping(start, start + page_size)
        out[row] = 0
        view = out[row].data
        states[row] = PageState.DATA
        for first, stop, off in zip(*(column[mine].tolist() for column in pieces), strict=True):
            low, high = max(first, start), min(stop, start + page_size)
            part = view[low - start : high - start]
            if not self._rows.read_part(part, off + low - first, int(pfns[row])):
                states[row] = PageState.MISSING

    def holes(self, start: int, stop: int) -> ExtentSet:
        zero = self._map.zero.clip(start, stop) if len(self._map.zero) else EMPTY
        if self._holes is None:
            return zero
        return self._holes.extents(start, stop).union(zero)

    def read_ahead(self, start: int, stop: int) -> None:
        first = max(bisect_right(self._firsts, start) - 1, 0)
        for run in range(first, bisect_right(self._firsts, stop - 1)):
            low, high = max(self._firsts[run], start), min(self._stops[run], stop)
            if low < high:
                page_size, delta = self.info.page_size, self._deltas[run]
                self._file.advise(low * page_size + delta, high * page_size + delta)

    def saved_bitmap(self) -> PageBitmap:
        return PageBitmap.from_extents(self.saved, self.max_mapnr)

    def close(self) -> None:
        self._file.close()
