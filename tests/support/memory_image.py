"""An image in memory whose pages say their own pfn, for tests of stages that only read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import ExtentSet
from stages.reader.image import ImageInfo

PAGE_SIZE = 4096


class MemoryImage:
    """Pages [0, n_pages): zero where `zero_every` divides the pfn, missing where told."""

    fork_safe = True
    path = "memory"

    def __init__(
        self,
        n_pages: int,
        *,
        zero_every: int = 4,
        missing: frozenset[int] = frozenset(),
        holes: list[tuple[int, int]] | None = None,
    ) -> None:
        self.info = ImageInfo("memory", "x86_64", PAGE_SIZE)
        self.ram = self.saved = ExtentSet.from_pairs([(0, n_pages)])
        self.max_mapnr = n_pages
        self.read_calls = 0
        self._zero_every = zero_every
        self._missing = missing
        self._holes = ExtentSet.from_pairs(holes or [])

    def page(self, pfn: int) -> bytes:
        """What page `pfn` holds."""
        in_hole = bool(self._holes.contains(np.array([pfn], dtype=np.uint64))[0])
        if pfn % self._zero_every == 0 or in_hole:
            return bytes(PAGE_SIZE)
        return pfn.to_bytes(8, "little") * (PAGE_SIZE // 8)

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        self.read_calls += 1
        states = np.full(len(pfns), PageState.DATA, dtype=np.uint8)
        for row, pfn in enumerate(pfns.tolist()):
            if pfn in self._missing:
                states[row] = PageState.MISSING
            else:
                out[row] = np.frombuffer(self.page(pfn), dtype=np.uint8)
        states[self._holes.contains(pfns)] = PageState.ZERO
        return states

    def holes(self, start: int, stop: int) -> ExtentSet:
        return self._holes.clip(start, stop)

    def read_ahead(self, start: int, stop: int) -> None:
        """Memory needs no announcement."""

    def saved_bitmap(self) -> PageBitmap:
        return PageBitmap.from_extents(self.saved, self.max_mapnr)

    def close(self) -> None:
        """Nothing is open."""
