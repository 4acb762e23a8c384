"""Where a sparse image file has holes, found out piecemeal and kept in bounded memory.

Asking the file system costs a few us for each hole, so it is done for a window of pfns when a page
of the window is first wanted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from pipeline.memory.addresses import BoolArray, PfnArray
from pipeline.memory.bitmap import BLOCK_PAGES
from pipeline.memory.extents import EMPTY, ExtentSet
from stages.reader.elf_map import ElfMap
from stages.reader.file_io import ImageFile

WINDOW_PAGES: Final = BLOCK_PAGES
"""As the bitmap's blocks: the copy pass asks for holes block by block."""
MIN_HOLE_BYTES: Final = 1 << 16
"""Shorter holes are read: 16 zero pages cost 5 us, a read cut in two costs about as much."""
_MAX_HOLES: Final = 512
"""Holes looked for in a window; the rest of it counts as data. 128 MiB / 512 = 256 KiB each."""
_SLOTS: Final = 256
"""Windows kept, 32 GiB of image. At most 8 MiB, when all of them are full of holes."""


class _Window(NamedTuple):
    number: int
    starts: list[int]
    stops: list[int]
    extents: ExtentSet


class HoleWindows:
    """Pages of an ELF image that its file has as holes."""

    def __init__(self, file: ImageFile, image_map: ElfMap, page_size: int) -> None:
        self._file = file
        self._map = image_map
        self._page_size = page_size
        # A slot is replaced as a whole, which is atomic: no lock that a fork could leave held.
        self._slots: list[_Window | None] = [None] * _SLOTS

    def touch(self, start: int, stop: int) -> bool:
        """True if a page of pfns [start, stop) is in a hole."""
        for index in range(start // WINDOW_PAGES, (stop - 1) // WINDOW_PAGES + 1):
            window = self._window(index)
            at = bisect_right(window.stops, start)
            if at < len(window.starts) and window.starts[at] < stop:
                return True
        return False

    def contain(self, pfns: PfnArray) -> BoolArray:
        """bool[n]: which of `pfns` (ascending) are in holes."""
        out = np.zeros(len(pfns), dtype=np.bool_)
        windows = pfns // np.uint64(WINDOW_PAGES)
        heads = np.concatenate(([0], np.flatnonzero(np.diff(windows)) + 1, [len(pfns)])).tolist()
        for start, stop in pairwise(heads):
            extents = self._window(int(windows[start])).extents
            if len(extents):
                out[start:stop] = extents.contains(pfns[start:stop])
        return out

    def extents(self, start: int, stop: int) -> ExtentSet:
        """Holes of pfns [start, stop)."""
        indices = {
            index
            for first, last in self._backed(start, stop)
            for index in range(first // WINDOW_PAGES, (last - 1) // WINDOW_PAGES + 1)
        }
        windows = (self._window(index).extents for index in indices)
        found = [extent for window in windows if len(window) for extent in window.clip(start, stop)]
        return ExtentSet.from_pairs(found) if found else EMPTY

    def _backed(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Parts of [start, stop) that lie in the file as whole pages."""
        runs = self._map
        low = int(np.searchsorted(runs.stop, start, side="right"))
        high = int(np.searchsorted(runs.first, stop, side="left"))
        for at in range(low, high):
            yield max(int(runs.first[at]), start), min(int(runs.stop[at]), stop)

    def _window(self, index: int) -> _Window:
        slot = index % _SLOTS
        window = self._slots[slot]
        if window is None or window.number != index:
            window = self._slots[slot] = self._look(index)
        return window

    def _look(self, index: int) -> _Window:
        found = list(self._iter_holes(index * WINDOW_PAGES, (index + 1) * WINDOW_PAGES))
        extents = ExtentSet.from_pairs(found) if found else EMPTY
        return _Window(index, extents.starts.tolist(), extents.stops.tolist(), extents)

    def _iter_holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Holes of the window as pfn ranges, whole pages only."""
        page_size = self._page_size
        n_left = _MAX_HOLES
        for first, last in self._backed(start, stop):
            run = int(np.searchsorted(self._map.first, first, side="right")) - 1
            delta = int(self._map.delta[run])
            for low, high in self._file.holes(first * page_size + delta, last * page_size + delta):
                if n_left == 0:
                    return
                n_left -= 1
                if high - low >= MIN_HOLE_BYTES:
                    yield -(-(low - delta) // page_size), (high - delta) // page_size
