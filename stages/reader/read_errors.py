"""What could not be read from an image: a bounded list for the log and for `verify`."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeAlias

from msgspec import Struct

from pipeline.memory.extents import Extent

MAX_LISTED: Final = 1000
"""Runs of bad pages kept; all are counted."""


class BadRun(Struct, frozen=True):
    """Consecutive pages that could not be had, and why."""

    pages: Extent
    why: str


OnReadError: TypeAlias = Callable[[BadRun], None]
"""Called when a run of bad pages is met, for `MAX_LISTED` runs at most, in the thread that reads.

A run that goes on in the next read is not told again: it is longer than what was told.
"""


def reason_of(error: OSError) -> str:
    """The system's words for a failed read, without errno and path."""
    return os.strerror(error.errno or errno.EIO)


class ReadErrors:
    """Bad pages of an image, as they are met; a page read twice is counted twice."""

    def __init__(self, on_read_error: OnReadError | None = None) -> None:
        self.runs: list[BadRun] = []
        self.n_pages = 0
        self.reasons: Counter[str] = Counter()
        """Pages by reason."""
        self._notify = on_read_error

    def add(self, pfns: list[int], why: str) -> None:
        """Note that `pfns` (ascending) are bad, all for the same reason."""
        self.n_pages += len(pfns)
        known = why in self.reasons or len(self.reasons) < MAX_LISTED
        self.reasons[why if known else "other"] += len(pfns)
        start = 0
        for at in range(1, len(pfns) + 1):
            if at == len(pfns) or pfns[at] != pfns[at - 1] + 1:
                self._add_run(BadRun(Extent(pfns[start], pfns[at - 1] + 1), why))
                start = at

    def _add_run(self, run: BadRun) -> None:
        if self.runs and self.runs[-1].why == run.why:
            last = self.runs[-1].pages
            if last.stop == run.pages.start:
                self.runs[-1] = BadRun(Extent(last.start, run.pages.stop), run.why)
                return
        if len(self.runs) >= MAX_LISTED:
            return
        self.runs.append(run)
        if self._notify is not None:
            self._notify(run)
