"""Random pages of a set of pages, in short runs so that a disk does not seek for each."""

from __future__ import annotations

import random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import PfnArray
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap

RUN_PAGES: Final = 16


class PageSet:
    """The pages of one bitmap that are not in another."""

    def __init__(self, pages: PageBitmap, without: PageBitmap | None = None) -> None:
        """`without` holds nothing that `pages` lacks."""
        self._pages = pages
        self._without = without
        self._counts = np.array([self._count(index) for index in range(pages.n_blocks)], np.int64)
        self.n_pages = int(self._counts.sum())

    def _count(self, index: int) -> int:
        less = 0 if self._without is None else self._without.block_count(index)
        return self._pages.block_count(index) - less

    def pick(self, n_runs: int, draw: random.Random) -> list[PfnArray]:
        """Up to `n_runs` runs of up to `RUN_PAGES` neighbours in the set, none twice.

        Ascending; every run of the set is as likely as any other.
        """
        n_all = -(-self.n_pages // RUN_PAGES)
        chosen = sorted(draw.sample(range(n_all), min(n_runs, n_all)))
        ends = np.cumsum(self._counts)
        return [self._run(start * RUN_PAGES, ends) for start in chosen]

    def _run(self, first: int, ends: NDArray[np.int64]) -> PfnArray:
        """Pages number `first` and following of the set; a run ends with its block."""
        index = int(np.searchsorted(ends, first, side="right"))
        bits = self._pages.block(index)
        if self._without is not None:
            bits &= ~self._without.block(index)
        inside = first - int(ends[index] - self._counts[index])
        rows = np.flatnonzero(bits)[inside : inside + RUN_PAGES]
        return (rows + index * BLOCK_PAGES).astype(np.uint64)
