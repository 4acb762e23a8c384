"""Tables that were made to keep us busy, behind a line: bounded reads, bounded memory."""

from __future__ import annotations

from contextlib import aclosing

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import FormatError
from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from stages.arch.paging import Window
from stages.arch.x86_64 import FOUR_LEVELS
from stages.cache.blocks import BlockCache
from stages.translator.ranges import iter_runs
from stages.translator.tables import TableReader
from stages.translator.walk import walk
from tests.unit.cache.line_image import BLOCK_PAGES, LineImage, cache_of

pytestmark = pytest.mark.anyio

PRESENT_TABLE = 0x67
N_PAGES = 1 << 22


class Tables(LineImage):
    """Every page is a table; `targets` says where its entries lead."""

    def __init__(self, kind: str) -> None:
        super().__init__(N_PAGES)
        self.kind = kind
        self.n_read = 0

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        self.n_read += len(pfns)
        slots = np.arange(512, dtype=np.uint64)
        for row, pfn in enumerate(pfns.tolist()):
            if self.kind == "self":
                to = np.full(512, pfn, dtype=np.uint64)
            elif self.kind == "outside":
                to = slots + np.uint64(1 << 39)
            else:
                to = (np.uint64(pfn * 512 + 1) + slots) % np.uint64(N_PAGES)
            entries = to << np.uint64(12) | np.uint64(PRESENT_TABLE)
            out[row] = entries.astype("<u8").view(np.uint8)
        return np.full(len(pfns), PageState.DATA, dtype=np.uint8)


def tables_of(cache: BlockCache) -> TableReader:
    return TableReader(cache.tables, "<")


async def look_through(cache: BlockCache, max_tables: int) -> None:
    window = Window(0, (1 << 47) - 1)
    runs = iter_runs(FOUR_LEVELS, 0x1000, tables_of(cache), window, max_tables=max_tables)
    async with aclosing(runs):
        async for _ in runs:
            pass


async def test_tables_that_point_at_themselves() -> None:
    """A walk through one page that is all its own tables ends, and reads that page once."""
    image = Tables("self")
    cache = cache_of(image)
    vaddrs = np.arange(0, 1 << 40, 1 << 30, dtype=np.uint64)

    walked = await walk(FOUR_LEVELS, 0x1000, tables_of(cache), vaddrs)
    cache.close()

    assert len(walked.paddrs) == len(vaddrs)
    assert image.n_read == BLOCK_PAGES


async def test_millions_of_tables_are_one_error() -> None:
    """Distinct tables without end: the limit says stop, and prefetching went little further."""
    image = Tables("many")
    cache = cache_of(image, blocks=32)

    with pytest.raises(FormatError, match="tables of a range"):
        await look_through(cache, 2000)
    cache.close()

    assert image.n_read <= (2000 + 32) * BLOCK_PAGES * 2
    assert cache.n_bytes <= 32 * BLOCK_PAGES * 4096


async def test_entries_outside_the_image_are_not_asked_for() -> None:
    """Tables at addresses that no memory has cost no reads, hinted or wanted."""
    image = Tables("outside")
    cache = cache_of(image)

    await look_through(cache, 2000)
    cache.close()

    assert image.n_read == BLOCK_PAGES
    assert cache.stats.prefetched == 0
