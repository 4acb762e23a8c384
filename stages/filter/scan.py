"""Reading struct pages of located windows and classifying them: the part that workers can do.

A scanner reads straight from the image, in large pieces, past the page cache. Where free pages are
to be left out it first asks for the heads of the largest buddy blocks only: one page of memmap
tells about sixteen. On memory that is mostly free that is most of the work saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from pipeline.flow.items import PageState
from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from stages.filter.classify import PageCodes, page_codes
from stages.filter.levels import DumpLevel, PageClass
from stages.filter.page_layout import PageLayout
from stages.filter.windows import UNMAPPED, LocatedWindow, chunk_pages
from stages.reader.image import Image

_FIRST_PROBE: Final = 4
"""One chunk head in so many is asked for first; the others only where it finds a free block."""

_MAX_GROUP: Final = 16
"""Windows a call: 32 MiB of memmap, about 10 ms, beside which a hop to a thread is nothing."""


class ScannedWindow(Struct):
    """Attributes:
    codes: of the window's pages, each by itself; None: all of it is free blocks.
    unknown: bool[n_pages], struct pages that could not be read; None: all could.
    """

    codes: PageCodes | None
    unknown: BoolArray | None = None


class WindowScanner:
    """Scans windows one group at a time; keeps nothing between calls but its buffer.

    Not for several threads at once. Groups can go to any scanner of the image, in any order.
    """

    def __init__(self, image: Image, layout: PageLayout, level: int, *, n_pages: int) -> None:
        """Takes windows of at most `n_pages` pages."""
        self._image = image
        self._layout = layout
        self._level = level
        self._page_size = image.info.page_size
        self._chunk_pages = chunk_pages(layout, self._page_size)
        # Over a line a second round of questions costs more than asking for all heads at once.
        self._first_probe = _FIRST_PROBE if getattr(image, "link", None) is None else 1
        n_rows = -(-n_pages * layout.size // self._page_size) + 1
        self._buffer = np.empty((n_rows, self._page_size), dtype=np.uint8)

    @property
    def group_windows(self) -> int:
        """Windows that make a group: as many as their chunk heads fit into the buffer."""
        per_chunk = self._chunk_pages * self._layout.size // self._page_size
        return min(per_chunk or _MAX_GROUP, _MAX_GROUP)

    def scan(self, windows: Sequence[LocatedWindow]) -> list[ScannedWindow]:
        """Read and classify `windows`, which are at most `group_windows`."""
        free = self.probe(windows)
        return [
            self.scan_window(window, chunks) for window, chunks in zip(windows, free, strict=True)
        ]

    def probe(self, windows: Sequence[LocatedWindow]) -> list[BoolArray | None]:
        """bool[n_chunks] for each window: chunks that are one free block, so not to be read."""
        free = [
            None if window.probes is None else np.zeros(len(window.probes), dtype=np.bool_)
            for window in windows
        ]
        for first_round in (True, False)[: self._first_probe]:
            asked: list[tuple[BoolArray, BoolArray]] = []
            heads: list[PfnArray] = []
            for window, found in zip(windows, free, strict=True):
                if window.probes is None or found is None or not (first_round or found.any()):
                    continue
                turn = np.arange(len(found)) % self._first_probe == 0
                wanted = window.probes & (turn if first_round else ~turn)
                asked.append((found, wanted))
                heads.append(self._by_chunk(window)[wanted, 0])
            if heads:
                answers = self._are_free(np.concatenate(heads))
                for found, wanted in asked:
                    n_asked = int(np.count_nonzero(wanted))
                    found[wanted], answers = answers[:n_asked], answers[n_asked:]
        return free

    def _by_chunk(self, window: LocatedWindow) -> PfnArray:
        """Pages of memmap, uint64[n_chunks, pages of a chunk]."""
        n_chunks = window.n_pages // self._chunk_pages
        return window.memmap_pfns.reshape(n_chunks, -1)

    def _are_free(self, heads: PfnArray) -> BoolArray:
        """Which of these pages of memmap start with the head of a largest free block."""
        if not len(heads):
            return np.zeros(0, dtype=np.bool_)
        rows, _ = self._read(heads)
        raw = np.ascontiguousarray(rows[:, : self._layout.size]).reshape(-1)
        codes = page_codes(raw, len(heads), 0, self._layout, DumpLevel.FREE)
        largest = (self._layout.n_orders or 1) - 1
        free: BoolArray = (codes.codes == PageClass.FREE) & (codes.orders == largest)
        return free

    def scan_window(self, window: LocatedWindow, free: BoolArray | None) -> ScannedWindow:
        """Read and classify one window, all of it but the chunks that `probe` found `free`."""
        if free is None or not free.any():
            return ScannedWindow(*self._classify(window, window.memmap_pfns, window.n_pages))
        if free.all():
            return ScannedWindow(None)
        used = ~free
        n_used = int(np.count_nonzero(used)) * self._chunk_pages
        part, unknown = self._classify(window, self._by_chunk(window)[used].reshape(-1), n_used)
        heads = np.zeros((len(free), self._chunk_pages), dtype=np.uint8)
        heads[free, 0] = 1
        orders = heads * np.uint8((self._layout.n_orders or 1) - 1)
        codes = heads * np.uint8(PageClass.FREE)
        codes[used] = part.codes.reshape(-1, self._chunk_pages)
        orders[used] = part.orders.reshape(-1, self._chunk_pages)
        whole = PageCodes(codes.reshape(-1), orders.reshape(-1), part.n_bad_orders)
        if unknown is None:
            return ScannedWindow(whole)
        all_unknown = np.zeros(codes.shape, dtype=np.bool_)
        all_unknown[used] = unknown.reshape(-1, self._chunk_pages)
        return ScannedWindow(whole, all_unknown.reshape(-1))

    def _classify(
        self, window: LocatedWindow, pfns: PfnArray, n_pages: int
    ) -> tuple[PageCodes, BoolArray | None]:
        """Codes of the `n_pages` struct pages in `pfns`, and which of them are not known."""
        rows, good = self._read(pfns)
        raw = rows.reshape(-1)[window.memmap_off :]
        found = page_codes(raw, n_pages, window.first_pfn, self._layout, self._level)
        if good is None:
            return found, None
        starts = window.memmap_off + np.arange(n_pages) * self._layout.size
        lasts = starts + (self._layout.size - 1)
        known = good[starts // self._page_size] & good[lasts // self._page_size]
        found.codes *= known
        found.orders *= known
        return found, ~known

    def _read(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray | None]:
        """Pages of memmap in the order of `pfns`, and which are good (None: all); bad ones are 0.

        Huge page vmemmap optimisation maps one page many times, so pfns may repeat.
        """
        rows = self._buffer[: len(pfns)]
        mapped = pfns != UNMAPPED
        if mapped.all() and (pfns[1:] > pfns[:-1]).all():
            good = self._image.read_pages(pfns, rows) != PageState.MISSING
        else:
            wanted, inverse = np.unique(pfns[mapped], return_inverse=True)
            found = np.empty((len(wanted), self._page_size), dtype=np.uint8)
            states = self._image.read_pages(wanted, found)
            good = mapped.copy()
            good[mapped] = (states != PageState.MISSING)[inverse]
            rows[mapped] = found[inverse]
        if good.all():
            return rows, None
        rows[~good] = 0
        return rows, good
