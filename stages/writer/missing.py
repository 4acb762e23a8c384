"""Pages that could not be read: one event for each run of them, and the first few in the totals."""

from __future__ import annotations

from typing import Final

from pipeline.flow.items import Totals
from pipeline.memory.addresses import PfnArray
from pipeline.memory.extents import runs_of
from pipeline.obs.log import log_event

_MAX_LISTED: Final = 64
"""Runs told one by one; an image cut in many places must not flood the log, and says so once."""


class MissingPages:
    """Takes missing pfns in ascending order; runs that go on in the next batch are one."""

    def __init__(self, totals: Totals) -> None:
        self._extents = totals.missing_extents
        self._start = self._stop = 0
        self._is_silent = False

    def add(self, pfns: PfnArray) -> None:
        """Note that `pfns` (uint64[n], ascending, above all before) are missing."""
        for start, n_pages in zip(*(column.tolist() for column in runs_of(pfns)), strict=True):
            if start != self._stop:
                self.close()
                self._start = start
            self._stop = start + n_pages

    def close(self) -> None:
        """Tell of the last run, if there is one."""
        if self._start == self._stop:
            return
        if len(self._extents) < _MAX_LISTED:
            self._extents.append((self._start, self._stop))
            log_event(
                "pages_unreadable",
                "warning",
                first_pfn=hex(self._start),
                n_pages=self._stop - self._start,
            )
        elif not self._is_silent:
            self._is_silent = True
            log_event(
                "pages_unreadable",
                "warning",
                first_pfn=hex(self._start),
                text="and more from here on, which are counted and not listed",
            )
        self._start = self._stop
