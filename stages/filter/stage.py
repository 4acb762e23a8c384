"""The filter: pass 1 as a stage, and as one call for whoever wants the bitmaps at once."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pipeline.errors import PageCountError
from pipeline.flow.channel import Outbox
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.sizes import show_count
from stages.filter.levels import EXCLUDED_CLASSES, DumpLevel, PageClass
from stages.filter.prepare import FilterPlan, prepare_filter
from stages.filter.sanity import check_free_count, check_kernel_pages, expect_free_count
from stages.filter.sweep import SectionVerdict, sweep
from stages.reader.image import Image
from stages.translator.kernel import Kernel

WINDOW_BYTES: Final = 2 << 20
"""Struct pages at a time: those of one block of the bitmap, and they stay in a core's cache."""


class FilterResult(Struct):
    """What pass 1 found. The books balance: ram = kept + left out (by class) + missing.

    Attributes:
        level: what the dump lacks, the source's own level included.
        ram: pages that exist, below `max_mapnr` (makedumpfile's 1st bitmap).
        kept: pages that the dump will have (2nd bitmap).
        max_mapnr: one past the last pfn, cut to the last struct page.
        counts: pages left out, by class: ``cache``, ``user``, ...
        n_missing: pages of `ram` whose content the source does not have.
        n_unknown: pages kept because their struct page could not be read.
        n_without: pages kept because they have no struct page (device memory).
        memory_model: for people; ``none`` when no struct page was looked at.
        warnings: sentences for people.
    """

    level: int
    ram: PageBitmap
    kept: PageBitmap
    max_mapnr: int
    counts: dict[str, int]
    n_missing: int
    n_unknown: int
    n_without: int
    memory_model: str
    warnings: list[str]


class EndOfFilter(Struct):
    """The last item of the stage."""

    result: FilterResult

    @property
    def n_bytes(self) -> int:
        return 0


class _Books(Struct):
    """Adds up verdicts."""

    plan: FilterPlan
    ram: PageBitmap
    saved: PageBitmap
    kept: PageBitmap
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PageClass), np.int64))
    n_unknown: int = 0
    n_without: int = 0
    n_bad_orders: int = 0

    @classmethod
    def open(cls, image: Image, plan: FilterPlan) -> _Books:
        saved = image.saved_bitmap()
        if plan.max_mapnr < saved.n_pages:
            saved = saved.truncated(plan.max_mapnr)
        ram = PageBitmap.from_extents(image.ram, plan.max_mapnr)
        return cls(plan, ram, saved, PageBitmap(plan.max_mapnr))

    def add(self, verdict: SectionVerdict) -> None:
        self.kept.set_block(verdict.index, verdict.kept)
        self.counts += verdict.counts
        self.n_unknown += verdict.n_unknown
        self.n_without += verdict.n_without
        self.n_bad_orders += verdict.n_bad_orders

    def close(self) -> FilterResult:
        """Raises:
        PageCountError: the books do not balance, which is a bug.
        """
        n_ram, n_saved, n_kept = self.ram.count(), self.saved.count(), self.kept.count()
        n_excluded = int(self.counts.sum())
        if n_saved != n_kept + n_excluded:
            raise PageCountError(
                f"{n_saved} pages saved, but {n_kept} kept and {n_excluded} left out"
            )
        warnings = list(self.plan.warnings)
        if self.n_unknown:
            shown = show_count(self.n_unknown, "page")
            warnings.append(f"kept for want of a readable struct page: {shown}")
        if self.n_bad_orders:
            shown = show_count(self.n_bad_orders, "free block")
            warnings.append(f"kept for an absurd order: {shown}")
        return FilterResult(
            level=self.plan.level,
            ram=self.ram,
            kept=self.kept,
            max_mapnr=self.plan.max_mapnr,
            counts={cls.label: int(self.counts[cls]) for cls in EXCLUDED_CLASSES},
            n_missing=n_ram - n_saved,
            n_unknown=self.n_unknown,
            n_without=self.n_without,
            memory_model=self.plan.model.name,
            warnings=warnings,
        )


class FilterStage(Struct, frozen=True):
    """A source of `SectionVerdict`, ascending, one for each block that has saved pages.

    The last item is `EndOfFilter`.
    """

    image: Image
    kernel: Kernel | None
    level: int
    window_bytes: int = WINDOW_BYTES
    workers: int = 1
    name: str = "filter"

    async def run(self, outbox: Outbox[SectionVerdict | EndOfFilter]) -> None:
        """Send all verdicts and the result.

        Raises:
            UsageError: not a dump level.
            MissingInfoError: the level needs VMCOREINFO, or a key of it, that is not there.
            FormatError, TranslationError, MissingPageError: the memory model makes no sense.
        """
        plan = await prepare_filter(self.image, self.kernel, self.level)
        books = _Books.open(self.image, plan)
        await self._expect_second_opinion(plan)
        verdicts = sweep(
            self.image,
            self.kernel,
            plan,
            books.ram,
            books.saved,
            window_bytes=self.window_bytes,
            workers=self.workers,
        )
        async with aclosing(verdicts):
            async for verdict in verdicts:
                books.add(verdict)
                await outbox.send(verdict)
        result = books.close()
        if self.kernel is not None and plan.layout is not None:
            result.warnings += await check_kernel_pages(
                self.kernel, self.image.ram, books.saved, books.kept
            )
        result.warnings += await self._second_opinion(plan, result.counts[PageClass.FREE.label])
        await outbox.send(EndOfFilter(result))

    async def _expect_second_opinion(self, plan: FilterPlan) -> None:
        if self.workers > 1 and self.kernel is not None and plan.layout is not None:
            await expect_free_count(self.kernel, plan.layout)

    async def _second_opinion(self, plan: FilterPlan, n_free: int) -> list[str]:
        """Only where free pages were looked for, in an image that still has all of them."""
        source, layout = self.image.info, plan.layout
        looked = plan.level & ~source.dump_level & DumpLevel.FREE
        if self.kernel is None or layout is None or not (looked and layout.knows_buddy):
            return []
        return await check_free_count(self.kernel, layout, n_free, source.nr_cpus)


class _Keeper:
    """An outbox that keeps the last item only."""

    last: SectionVerdict | EndOfFilter | None = None

    async def send(self, item: SectionVerdict | EndOfFilter) -> None:
        self.last = item


async def filter_image(
    image: Image,
    kernel: Kernel | None,
    level: int,
    *,
    window_bytes: int = WINDOW_BYTES,
    workers: int = 1,
) -> FilterResult:
    """The whole of pass 1 in one call; see `FilterStage` for what it raises."""
    keeper = _Keeper()
    await FilterStage(image, kernel, level, window_bytes, workers).run(keeper)
    assert isinstance(keeper.last, EndOfFilter)
    return keeper.last.result
