"""Reading table entries, many at a time."""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pipeline.memory.addresses import AddrArray, BoolArray
from stages.arch.paging import ENTRY_BYTES
from stages.cache.pages import PageReader, TablePages

_MAX_REQUEST_BYTES: Final = 4 << 20
"""Table pages held at once. 1,024 tables of 4 KiB describe 2 GiB in single pages."""


def run_starts(values: AddrArray) -> NDArray[np.intp]:
    """intp[n_runs]: where each run of equal neighbours in `values` starts."""
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.concatenate((np.zeros(min(len(values), 1), dtype=np.intp), starts))


class TableReader(Struct, frozen=True):
    """Entries by physical address. `entry_order` is ``<`` or ``>``."""

    pages: PageReader | TablePages
    entry_order: str

    def expect(self, paddrs: AddrArray) -> None:
        """Tables at `paddrs` (uint64[n]) will be looked into soon; a hint, which may be lost."""
        hint = getattr(self.pages, "hint", None)
        if hint is not None and len(paddrs):
            hint(paddrs // np.uint64(self.pages.page_size))

    async def entries(self, paddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        """Entries at `paddrs` (uint64[n], multiples of 8; cheap when neighbours share a page).

        Each page is asked for once, and all of them in one request unless they are more than
        `_MAX_REQUEST_BYTES`.

        Returns:
            uint64[n], and bool[n]: False where the page is not in the image (entry 0).
        """
        page_size = np.uint64(self.pages.page_size)
        pfns, offsets = np.divmod(paddrs, page_size)
        slots = (offsets // np.uint64(ENTRY_BYTES)).astype(np.intp)
        starts = run_starts(pfns)
        edges = np.append(starts, len(paddrs))
        out = np.zeros(len(paddrs), dtype=np.uint64)
        good = np.zeros(len(paddrs), dtype=np.bool_)
        step = max(_MAX_REQUEST_BYTES // self.pages.page_size, 1)
        for first in range(0, len(starts), step):
            bounds = edges[first : first + step + 1]
            wanted, row_of_run = np.unique(pfns[bounds[:-1]], return_inverse=True)
            rows, usable = await self.pages.get_many(wanted)
            row = np.repeat(row_of_run, np.diff(bounds))
            mine = slice(bounds[0], bounds[-1])
            out[mine] = rows.view(f"{self.entry_order}u8")[row, slots[mine]]
            good[mine] = usable[row]
        return out, good
