"""Check a dump: every page decodes, every offset is in bounds; and compare it with its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.sizes import show_count
from stages.reader.image import Image

_BATCH_PAGES: Final = 1024
_MAX_LISTED: Final = 20
"""Problems written out one by one; the rest are counted."""


@dataclass(slots=True)
class Findings:
    """What a verification saw. It failed when there is any problem.

    Attributes:
        n_pages: pages that the dump says it holds.
        n_zero: those that are all zero.
        n_good: pages that decoded, and equal the source's where there is one.
        problems: the first few, as sentences.
        n_problems: all of them.
        notes: what is worth knowing and no problem.
    """

    n_pages: int = 0
    n_zero: int = 0
    n_good: int = 0
    n_problems: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.n_problems == 0

    def add(self, problem: str) -> None:
        self.n_problems += 1
        if len(self.problems) < _MAX_LISTED:
            self.problems.append(problem)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield from self.problems
        if self.n_problems > len(self.problems):
            n_more = self.n_problems - len(self.problems)
            yield f"... and {show_count(n_more, 'more problem')}"
        yield from self.notes
        verdict = "ok" if self.ok else "NOT OK"
        yield (
            f"{verdict}: {self.n_good} of {show_count(self.n_pages, 'page')} good, "
            f"{self.n_zero} of them zero, {show_count(self.n_problems, 'problem')}"
        )


def verify_dump(dump: Image, source: Image | None = None) -> Findings:
    """Read every page of `dump`, and with `source` the same pages there."""
    found = Findings()
    if dump.info.incomplete:
        found.add(f"the dump is incomplete: {dump.info.incomplete}")
    _check_structure(dump, found)
    if source is not None:
        _check_identity(dump, source, found)
    pages = np.empty((_BATCH_PAGES, dump.info.page_size), dtype=np.uint8)
    others = np.empty_like(pages) if source is not None else None
    for pfns in _batches(dump):
        _check_batch(dump, source, pfns, pages[: len(pfns)], others, found)
    return found


def _check_structure(dump: Image, found: Findings) -> None:
    """Problems that the format itself can tell: offsets, sizes and flags of descriptors."""
    format_problems: Any = getattr(dump, "iter_problems", None)
    if format_problems is not None:
        for problem in format_problems():
            found.add(str(problem))


def _check_identity(dump: Image, source: Image, found: Findings) -> None:
    if dump.info.page_size != source.info.page_size:
        found.add(f"page size {dump.info.page_size}, the source has {source.info.page_size}")
    if dump.info.vmcoreinfo != source.info.vmcoreinfo:
        found.add("VMCOREINFO differs from the source's")
    extra = dump.ram.subtract(source.ram)
    if extra.n_pages:
        first = int(extra.starts[0])
        pages = show_count(extra.n_pages, "page")
        found.add(f"not in the source: {pages} of the dump, first {first:#x}")
    absent = source.ram.subtract(dump.ram)
    if absent.n_pages:
        # RAM above the last struct page is left out, as makedumpfile leaves it out.
        pages = show_count(absent.n_pages, "page")
        found.notes.append(f"unknown to the dump: {pages} of the source")


def _batches(dump: Image) -> Iterator[PfnArray]:
    for pfns in dump.saved_bitmap().iter_pfns():
        for start in range(0, len(pfns), _BATCH_PAGES):
            yield pfns[start : start + _BATCH_PAGES]


def _check_batch(
    dump: Image,
    source: Image | None,
    pfns: PfnArray,
    pages: ByteArray,
    others: ByteArray | None,
    found: Findings,
) -> None:
    states = dump.read_pages(pfns, pages)
    good = states != PageState.MISSING
    for pfn in pfns[~good].tolist():
        found.add(f"page {pfn:#x} does not decode{_reason(dump, pfn)}")
    if source is not None and others is not None:
        rows = others[: len(pfns)]
        theirs = source.read_pages(pfns, rows)
        readable = theirs != PageState.MISSING
        equal = (pages == rows).all(axis=1)
        for pfn in pfns[good & readable & ~equal].tolist():
            found.add(f"page {pfn:#x} differs from the source")
        n_gone = int(np.count_nonzero(good & ~readable))
        if n_gone:
            found.notes.append(f"{show_count(n_gone, 'page')} can't be read in the source")
        good &= equal | ~readable
    found.n_pages += len(pfns)
    found.n_good += int(np.count_nonzero(good))
    found.n_zero += int(np.count_nonzero(good & ~pages.any(axis=1)))


def _reason(dump: Image, pfn: int) -> str:
    errors: Any = getattr(dump, "read_errors", None)
    for run in getattr(errors, "runs", ()):
        if run.pages.start <= pfn < run.pages.stop:
            return f": {run.why}"
    return ""
