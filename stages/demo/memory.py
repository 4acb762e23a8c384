"""The demo machine's memory: RAM ranges inside the output file, written in place.

Pages that are never written stay holes of the file.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pipeline.memory.addresses import ByteArray, PfnArray

PAGE: Final = 4096
SECTION_PAGES: Final = 32768


class RamRange(NamedTuple):
    """Pfns [start, stop) of RAM, and where they are in the file."""

    start: int
    stop: int
    file_off: int


class DemoMemory:
    """Writes by physical address into a mapping of the file."""

    def __init__(self, ranges: tuple[RamRange, ...], mapping: ByteArray) -> None:
        self.ranges = ranges
        self._mapping = mapping

    @property
    def end_pfn(self) -> int:
        return self.ranges[-1].stop

    def rows(self, start: int, stop: int) -> ByteArray:
        """uint8[stop - start, PAGE], a view of pfns [start, stop), which lie in one range."""
        for ram in self.ranges:
            if ram.start <= start and stop <= ram.stop:
                first = ram.file_off + (start - ram.start) * PAGE
                view = self._mapping[first : first + (stop - start) * PAGE]
                return view.reshape(-1, PAGE)
        raise ValueError(f"pfns {start:#x}-{stop:#x} are not in one range of RAM")

    def write(self, paddr: int, data: bytes | ByteArray) -> None:
        """Store `data` at `paddr`; all of it in one range."""
        raw = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data
        pfn, offset = divmod(paddr, PAGE)
        stop = -(-(paddr + len(raw)) // PAGE)
        self.rows(pfn, stop).reshape(-1)[offset : offset + len(raw)] = raw

    def all_pfns(self) -> PfnArray:
        """uint64[n_pages], ascending."""
        return np.concatenate(
            [np.arange(ram.start, ram.stop, dtype=np.uint64) for ram in self.ranges]
        )


class PageAllocator:
    """Hands out pages of one physical stretch, lowest first."""

    def __init__(self, start: int, stop: int) -> None:
        self.next = start
        self._stop = stop

    def take(self, n_pages: int = 1) -> int:
        """The first pfn of `n_pages` fresh ones."""
        first, self.next = self.next, self.next + n_pages
        if self.next > self._stop:
            raise ValueError(f"the demo kernel's heap is full: {n_pages} pages wanted")
        return first
