"""A kernel's address space: translation of kernel virtual addresses by walking its page tables.

Table entries hold machine addresses, and so does what a walk gives. Only the top table is known by
its kernel-physical address; where the two differ, `steps` lead from one to the other::

    vaddr --walk--> machine address
    kernel-physical --steps--> machine address          (no steps: they are the same)

Some architectures have windows that no table maps: there an address and its machine address differ
by a constant.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Final, Protocol

import numpy as np

from pipeline.errors import FormatError
from pipeline.memory.addresses import AddrArray, BoolArray
from pipeline.memory.arrays import distinct
from stages.arch.layout import DirectWindow
from stages.arch.paging import ENTRY_BYTES, EntryKind, PagingForm, Window
from stages.cache.pages import PageReader
from stages.translator.explain import Walk, explain
from stages.translator.ranges import MAX_EXPECTED, MAX_TABLES, PhysRun, iter_runs, window_of
from stages.translator.tables import TableReader
from stages.translator.walk import walk

MAX_RUNS: Final = 1 << 17
"""Most runs `runs` gathers (about 20 MiB); ranges in more pieces go through `iter_runs`."""


class Translator(Protocol):
    """Virtual to physical, many addresses a call."""

    async def translate(self, vaddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        """Physical addresses of `vaddrs` (uint64[n], any order).

        Returns:
            uint64[n] (0 where untranslatable), and bool[n]: which could be translated.
        """

    def iter_runs(self, vaddr: int, n_bytes: int) -> AsyncIterator[PhysRun]:
        """The range (n_bytes below 2**64) cut into physically contiguous runs and holes.

        In ascending order of vaddr, without gaps, merged as far as they go. Memory stays bounded
        however large the range is; work grows with the tables that map it.

        Raises:
            FormatError: too many tables map the range (an image that was made to do harm).
        """

    async def runs(self, vaddr: int, n_bytes: int) -> list[PhysRun]:
        """What `iter_runs` gives, as a list.

        Raises:
            FormatError: as `iter_runs`, or more than `MAX_RUNS` runs.
        """


class PhysStep(Protocol):
    """One step from what the kernel calls physical towards what the machine does."""

    async def apply(self, paddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        """uint64[n] after the step, and bool[n]: False where there is no such memory."""


class KernelSpace:
    """Translates through the tables at `root`. It keeps nothing: table pages stay in the cache."""

    def __init__(
        self,
        form: PagingForm,
        root: int,
        pages: PageReader,
        steps: Sequence[PhysStep] = (),
        direct: Sequence[DirectWindow] = (),
    ) -> None:
        """`direct` windows overlap neither each other nor those of `form`."""
        self.form = form
        self.root = root
        self.steps = tuple(steps)
        self.direct = tuple(sorted(direct))
        tables: PageReader = getattr(pages, "tables", pages)  # a cache keeps tables longer
        self._tables = TableReader(tables, form.entry_order)

    async def to_machine(self, paddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        """Machine addresses of kernel-physical ones (uint64[n]), and which of them exist."""
        good = np.ones(len(paddrs), dtype=np.bool_)
        for step in self.steps:
            paddrs, exists = await step.apply(paddrs)
            good &= exists
        return paddrs, good

    async def expect_tables(self) -> None:
        """Hints that the tables right below the top one, and below those, will be wanted.

        Reads the top table and one level more; for readers that are slow to answer.
        """
        bases = np.array([await self._top_table()], dtype=np.uint64)
        for depth in range(min(2, len(self.form.levels) - 1)):
            slots = np.arange(1 << self.form.levels[depth].bits, dtype=np.uint64)
            at = bases[:, None] + slots * np.uint64(ENTRY_BYTES)
            entries, good = await self._tables.entries(at.reshape(-1))
            kinds, addrs, _ = self.form.decode(depth, entries)
            bases = distinct(addrs[good & (kinds == EntryKind.TABLE)])[-MAX_EXPECTED:]
            if not len(bases):
                return
            self._tables.expect(bases)

    async def _top_table(self) -> int:
        paddrs, good = await self.to_machine(np.array([self.root], dtype=np.uint64))
        if not good[0]:
            raise FormatError("page tables", None, "top table", self.root, "an address in memory")
        return int(paddrs[0])

    async def translate(self, vaddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        walked = await walk(self.form, await self._top_table(), self._tables, vaddrs)
        paddrs, mapped = walked.paddrs, walked.mapped
        for first, last, paddr in self.direct:
            inside = (vaddrs >= np.uint64(first)) & (vaddrs <= np.uint64(last))
            paddrs = np.where(inside, vaddrs - np.uint64(first) + np.uint64(paddr), paddrs)
            mapped = mapped | inside
        return paddrs, mapped

    async def iter_runs(
        self, vaddr: int, n_bytes: int, *, max_tables: int = MAX_TABLES
    ) -> AsyncGenerator[PhysRun]:
        window = window_of(vaddr, n_bytes)
        if window is None:
            return
        root = await self._top_table()
        for part, paddr in self._parts(window):
            if paddr is not None:
                yield PhysRun(part.first, paddr, part.last - part.first + 1)
                continue
            runs = iter_runs(self.form, root, self._tables, part, max_tables=max_tables)
            async with aclosing(runs):
                async for run in runs:
                    yield run

    def _parts(self, window: Window) -> Iterator[tuple[Window, int | None]]:
        """`window` cut at direct windows, each piece with the address it lies at, None by table."""
        at = window.first
        for first, last, paddr in self.direct:
            first_inside, last_inside = max(first, at), min(last, window.last)
            if first_inside > last_inside:
                continue
            if first_inside > at:
                yield Window(at, first_inside - 1), None
            yield Window(first_inside, last_inside), paddr + first_inside - first
            at = last_inside + 1
        if at <= window.last:
            yield Window(at, window.last), None

    async def runs(self, vaddr: int, n_bytes: int) -> list[PhysRun]:
        found: list[PhysRun] = []
        async for run in self.iter_runs(vaddr, n_bytes):
            if len(found) == MAX_RUNS:
                raise FormatError(
                    "page tables", None, "runs", len(found) + 1, f"{MAX_RUNS} at most"
                )
            found.append(run)
        return found

    async def explain(self, vaddr: int) -> Walk:
        """Each step of the walk for one address; there are none in a direct window."""
        for first, last, paddr in self.direct:
            if first <= vaddr <= last:
                return Walk(vaddr, (), vaddr - first + paddr, None)
        return await explain(self.form, await self._top_table(), self._tables, vaddr)
