"""The ELF writer: pages in, segments out, in one pass.

Which pages are zero is known when they have been read, so how many segments there will be is not
known before; there is room for as many as there may be. Each batch moves two cursors, as in the
kdump format: program headers of the segments that are complete, and pages.

Nothing that pass 1 left out is ever written. Zero pages are left out while there is room for the
segments that this makes; where room gets scarce, only long runs of them are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pipeline.errors import PageCountError, TornStreamError
from pipeline.flow.channel import Inbox, Outbox
from pipeline.flow.items import (
    Chunk,
    ChunkKind,
    CodedBatch,
    EndOfDump,
    HeadOrder,
    Outline,
    PageState,
    Totals,
)
from pipeline.memory.addresses import BoolArray, PfnArray
from pipeline.memory.arrays import distinct
from pipeline.memory.extents import runs_of
from pipeline.obs.counters import RunCounters
from stages.formats.elf import ProgramHeader, pack_program_headers
from stages.writer.elf_layout import ElfLayout
from stages.writer.elf_segments import Load, Run, SegmentBuilder, mark_pair
from stages.writer.missing import MissingPages

_ZEROS: Final = memoryview(bytes(1 << 20))
_LEAST_GAP_STEP: Final = 16
"""Zero pages that a gap must have, to the power of how often the spare segments were halved."""


class ElfWriter(Struct, frozen=True):
    """Stage[CodedBatch, Chunk]; batches are not compressed and share no bytes.

    Attributes:
        n_kept: pages that will come.
        n_spare: segments that may be made by leaving zero or unreadable pages out.
        segment_bytes: the most that a segment is let grow to.
        leave_zeros_out: dump level with bit 1.
        needs_pair: the source's notes make tails read as zeros, see `mark_pair`.
        missing_as_zero: unreadable pages are zero pages; otherwise they are left out, while there
            is room for the segments that this makes. The head says that the dump is incomplete
            either way.
        source_incomplete: the source has lost pages that nobody counts; so has the dump.
    """

    layout: ElfLayout
    notes: bytes
    loads: list[Load]
    n_kept: int
    n_spare: int
    segment_bytes: int
    leave_zeros_out: bool
    needs_pair: bool
    head_order: HeadOrder
    missing_as_zero: bool
    source_incomplete: bool
    counters: RunCounters
    name: str = "writer"

    async def run(
        self,
        inbox: Inbox[CodedBatch | EndOfDump],
        outbox: Outbox[Outline | Chunk | EndOfDump],
    ) -> None:
        layout = self.layout
        end = layout.pages_start + self.n_kept * layout.page_size
        await outbox.send(Outline(layout.data_start, end))
        if self.head_order is not HeadOrder.LAST:
            incomplete = self.source_incomplete or self.head_order is HeadOrder.BOTH
            await outbox.send(self._head(layout.n_slots, incomplete=incomplete))
        front = layout.pack_front(self.notes)
        await outbox.send(Chunk(ChunkKind.DATA, layout.data_start, front))
        cursors = _Cursors(self)
        async for item in inbox:
            if isinstance(item, EndOfDump):
                await self._finish(cursors, item, outbox)
                return
            for chunk in cursors.add(item):
                await outbox.send(chunk)
        raise TornStreamError(f"{self.name}: the compressor stopped before its end")

    async def _finish(
        self, cursors: _Cursors, end: EndOfDump, outbox: Outbox[Outline | Chunk | EndOfDump]
    ) -> None:
        for chunk in cursors.finish():
            await outbox.send(chunk)
        totals = cursors.totals
        if not totals.n_pages == end.totals.n_pages == self.n_kept:
            raise PageCountError(
                f"{self.n_kept} pages were planned, {end.totals.n_pages} were read, "
                f"{totals.n_pages} were written"
            )
        incomplete = self.source_incomplete or totals.missing_pages > 0
        if incomplete or self.head_order is not HeadOrder.FIRST:
            await outbox.send(self._head(cursors.n_headers, incomplete=incomplete))
        await outbox.send(EndOfDump(totals))

    def _head(self, n_loads: int, *, incomplete: bool) -> Chunk:
        return Chunk(ChunkKind.HEAD, 0, self.layout.pack_head(n_loads, incomplete=incomplete))


class _Cursors:
    """Where the next program header and the next page go, and the books."""

    def __init__(self, writer: ElfWriter) -> None:
        self._writer = writer
        self._page_size = writer.layout.page_size
        self._segments = SegmentBuilder(writer.loads, writer.segment_bytes)
        self._table_at = writer.layout.table_start
        self._data_at = writer.layout.pages_start
        self._spare = writer.n_spare
        self._last_pfn = -1
        self._last_tail: ProgramHeader | None = None
        self._next_seq = 0
        self.n_headers = 0
        self.totals = Totals()
        self.missing = MissingPages(self.totals)

    def add(self, batch: CodedBatch) -> list[Chunk]:
        """Chunks that `batch` makes: its pages, then the headers that they complete."""
        if batch.seq != self._next_seq:
            raise PageCountError(f"batch {batch.seq} came where {self._next_seq} was due")
        self._next_seq += 1
        has_data = batch.states == PageState.DATA
        stored = has_data | self._stored_zeros(batch)
        chunks = self._data_chunks(batch, has_data[stored])
        headers: list[ProgramHeader] = []
        for run in self._runs(batch.pfns[stored]):
            headers += self._segments.add(run)
        chunks += self._table_chunks(headers)
        self._count(batch, n_data=int(np.count_nonzero(has_data)), n_stored=int(stored.sum()))
        self._last_pfn = int(batch.pfns[-1]) if stored[-1] else -1
        return chunks

    def finish(self) -> list[Chunk]:
        """The last headers, and zeros up to the end of their room."""
        headers = self._segments.finish(self._data_at)
        chunks = self._table_chunks(headers)
        needs_pair = self._writer.needs_pair and not self._segments.has_pair
        if needs_pair and self._last_tail is not None:
            chunks += self._table_chunks(list(mark_pair(self._last_tail)))
        left = self._writer.layout.data_start - self._table_at
        while left > 0:
            size = min(left, len(_ZEROS))
            chunks.append(Chunk(ChunkKind.DESCRIPTORS, self._table_at, _ZEROS[:size]))
            self._table_at += size
            left -= size
        self.missing.close()
        return chunks

    def _stored_zeros(self, batch: CodedBatch) -> BoolArray:
        """bool[n_pages]: pages without content that are written, as zeros."""
        writer = self._writer
        lost: BoolArray = batch.states == PageState.MISSING
        if writer.missing_as_zero:
            lost = np.zeros(batch.n_pages, dtype=np.bool_)
        stored: BoolArray = batch.states != PageState.DATA
        hollow = stored.copy() if writer.leave_zeros_out else lost
        if not hollow.any():
            return stored
        stored[hollow] = False
        kept = ~hollow
        gaps = np.flatnonzero(np.diff(batch.pfns) != 1) + 1
        cuts = distinct(np.concatenate(([0], gaps, _flips(hollow), [batch.n_pages])))
        for start, stop in pairwise(cuts.tolist()):
            # Lost pages are to be left out as long as there is any room for it.
            is_worth_it = bool(lost[start:stop].any())
            if hollow[start] and not self._may_leave_out(
                batch.pfns, kept, start, stop, is_worth_it=is_worth_it
            ):
                stored[start:stop] = True
        return stored

    def _may_leave_out(
        self, pfns: PfnArray, kept: BoolArray, start: int, stop: int, *, is_worth_it: bool
    ) -> bool:
        """Whether the pages in rows `start` to `stop`, none of them `kept`, are left out; pays."""
        first, last = int(pfns[start]), int(pfns[stop - 1])
        follows = self._last_pfn == first - 1
        if start:
            follows = int(pfns[start - 1]) == first - 1 and bool(kept[start - 1])
        is_followed = True  # for all that is known at the end of a batch
        if stop < len(pfns):
            is_followed = int(pfns[stop]) == last + 1 and bool(kept[stop])
        if not (follows and is_followed):
            return True  # next to a gap that is there anyway
        size = self._page_size
        shared = self._segments.is_shared(first * size, (last + 1) * size)
        cost = 1 + (self._segments.n_others if shared else 0)
        if self._spare < cost:
            return False
        scarcity = self._writer.n_spare // self._spare
        least = _LEAST_GAP_STEP ** (scarcity.bit_length() - 1)
        if stop - start < least and not is_worth_it:
            return False
        self._spare -= cost
        return True

    def _data_chunks(self, batch: CodedBatch, is_data: BoolArray) -> list[Chunk]:
        """The stored pages: the batch's bytes, with zeros between them where there are some."""
        chunks: list[Chunk] = []
        last: Chunk | None = None
        done = 0
        for start, stop in pairwise([0, *_flips(is_data).tolist(), len(is_data)]):
            n_bytes = (stop - start) * self._page_size
            if n_bytes and not is_data[start]:
                chunks += self._zero_chunks(n_bytes)
            elif n_bytes:
                last = Chunk(ChunkKind.DATA, self._data_at, batch.data[done : done + n_bytes])
                chunks.append(last)
                done += n_bytes
                self._data_at += n_bytes
        if done != len(batch.data):
            raise PageCountError(f"{len(batch.data)} bytes came where {done} were due")
        if last is None:
            batch.release()
        else:
            last.release = batch.release
        return chunks

    def _zero_chunks(self, n_bytes: int) -> Iterator[Chunk]:
        while n_bytes > 0:
            size = min(n_bytes, len(_ZEROS))
            yield Chunk(ChunkKind.DATA, self._data_at, _ZEROS[:size])
            self._data_at += size
            n_bytes -= size

    def _runs(self, pfns: PfnArray) -> Iterator[Run]:
        """Runs of the stored pages, which end where the data cursor stands now."""
        size = self._page_size
        off = self._data_at - len(pfns) * size
        for first, n_pages in zip(*(column.tolist() for column in runs_of(pfns)), strict=True):
            yield Run(first * size, (first + n_pages) * size, off)
            off += n_pages * size

    def _table_chunks(self, headers: list[ProgramHeader]) -> list[Chunk]:
        if not headers:
            return []
        self.n_headers += len(headers)
        if self.n_headers > self._writer.layout.n_slots:
            raise PageCountError(
                f"{self.n_headers} segments, room for {self._writer.layout.n_slots}"
            )
        for header in headers:
            if header.p_filesz < header.p_memsz:
                self._last_tail = header
        form = self._writer.layout.form
        wrapped = [header._replace(p_vaddr=header.p_vaddr & form.ones) for header in headers]
        data = pack_program_headers(wrapped, form)
        chunk = Chunk(ChunkKind.DESCRIPTORS, self._table_at, data)
        self._table_at += len(data)
        return [chunk]

    def _count(self, batch: CodedBatch, *, n_data: int, n_stored: int) -> None:
        totals, counters = self.totals, self._writer.counters
        missing = batch.pfns[batch.states == PageState.MISSING]
        totals.n_pages += batch.n_pages
        totals.missing_pages += len(missing)
        totals.zero_pages += batch.n_pages - n_data - len(missing)
        totals.raw_pages += n_data
        totals.bytes_out += n_stored * self._page_size
        counters.pages_done = counters.pages_kept = totals.n_pages
        counters.pages_zero, counters.pages_missing = totals.zero_pages, totals.missing_pages
        counters.pages_raw = totals.raw_pages
        counters.bytes_in += batch.bytes_in
        counters.bytes_out = totals.bytes_out
        if len(missing):
            self.missing.add(missing)


def _flips(flags: BoolArray) -> NDArray[np.intp]:
    """Where `flags` differ from the one before."""
    return np.flatnonzero(flags[1:] != flags[:-1]) + 1
