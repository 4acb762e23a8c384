"""The kdump writer: coded batches in, (offset, bytes) out through two append-only cursors.

Pass 1 has fixed the number of pages, so every place is known but the data's end::

    0            head_end        data_start
    | head | bitmaps | descriptors | zero page | page data ...
                       cursor 1 ->              cursor 2 ->

Each batch moves both cursors; its data passes through as it stands in the batch's slot. To a target
that takes random writes its descriptors follow at once, so that whatever stops the run, the pages
that were written can be found; for others they are gathered into chunks of `descriptor_bytes`.
When the head goes out is the sink's choice (`HeadOrder`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct

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
from pipeline.memory.addresses import BoolArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.obs.counters import RunCounters
from stages.formats.kdump import PAGE_DESC, KdumpHead, KdumpLayout
from stages.writer.bitmaps import bitmap_chunks
from stages.writer.missing import MissingPages

# An enumeration's member takes as long to look up as a small array operation.
_DATA: Final = int(PageState.DATA)
_ZERO: Final = int(PageState.ZERO)
_MISSING: Final = int(PageState.MISSING)


class KdumpWriter(Struct, frozen=True):
    """Stage[CodedBatch, Chunk]."""

    head: KdumpHead
    layout: KdumpLayout
    ram: PageBitmap
    kept: PageBitmap
    page_flag: int
    """What a compressed page's descriptor carries in `flags`."""
    zero_page: bool
    """The data area starts with one page of zeros that every zero page's descriptor names."""
    head_order: HeadOrder
    missing_as_zero: bool
    """Unreadable pages name the zero page; otherwise their descriptors stay 0 (lost). The head says
    that the dump is incomplete either way."""
    descriptor_bytes: int
    counters: RunCounters
    name: str = "writer"

    async def run(
        self,
        inbox: Inbox[CodedBatch | EndOfDump],
        outbox: Outbox[Outline | Chunk | EndOfDump],
    ) -> None:
        await outbox.send(self._outline())
        if self.head_order is not HeadOrder.LAST:
            await outbox.send(self._head_chunk(complete=self.head_order is HeadOrder.FIRST))
        for chunk in bitmap_chunks(self.layout, self.ram, self.kept):
            await outbox.send(chunk)
        cursors = _Cursors(self)
        if self.zero_page:
            zeros = bytes(self.layout.block_size)
            await outbox.send(Chunk(ChunkKind.DATA, self.layout.data_start, zeros))
        async for item in inbox:
            if isinstance(item, EndOfDump):
                await self._finish(cursors, item, outbox)
                return
            for chunk in cursors.add(item):
                await outbox.send(chunk)
        raise TornStreamError(f"{self.name}: the compressor stopped before its end")

    def _outline(self) -> Outline:
        layout = self.layout
        most_pages = layout.n_dumped + (1 if self.zero_page else 0)
        return Outline(layout.data_start, layout.data_start + most_pages * layout.block_size)

    async def _finish(
        self, cursors: _Cursors, end: EndOfDump, outbox: Outbox[Outline | Chunk | EndOfDump]
    ) -> None:
        for chunk in cursors.flush():
            await outbox.send(chunk)
        cursors.missing.close()
        totals = cursors.totals
        if not totals.n_pages == end.totals.n_pages == self.layout.n_dumped:
            raise PageCountError(
                f"{self.layout.n_dumped} pages were planned, {end.totals.n_pages} were read, "
                f"{totals.n_pages} were written"
            )
        complete = totals.missing_pages == 0
        if not complete or self.head_order is not HeadOrder.FIRST:
            await outbox.send(self._head_chunk(complete=complete))
        await outbox.send(EndOfDump(totals))

    def _head_chunk(self, *, complete: bool) -> Chunk:
        head = self.head if complete else self.head.marked_incomplete()
        return Chunk(ChunkKind.HEAD, 0, head.pack(self.layout))


class _Cursors:
    """Where the next descriptor and the next byte of data go, and the books."""

    def __init__(self, writer: KdumpWriter) -> None:
        self._writer = writer
        layout = writer.layout
        self._data_at = layout.data_start + (layout.block_size if writer.zero_page else 0)
        self._desc_at = layout.descriptors_start
        self._waiting: list[bytes] = []
        self._n_waiting = 0
        self._next_seq = 0
        # Random writes: descriptors go out with their data.
        self._gather_bytes = (
            0 if writer.head_order is HeadOrder.BOTH else max(writer.descriptor_bytes, 1)
        )
        self.totals = Totals()
        self.missing = MissingPages(self.totals)

    def add(self, batch: CodedBatch) -> list[Chunk]:
        """Chunks that `batch` completes: its data, and descriptors when enough are gathered.

        A page's descriptor never comes before its data.
        """
        if batch.seq != self._next_seq:
            raise PageCountError(f"batch {batch.seq} came where {self._next_seq} was due")
        self._next_seq += 1
        has_data = batch.states == _DATA
        n_data = int(np.count_nonzero(has_data))
        self._waiting.append(self._descriptors(batch, has_data, n_data))
        self._n_waiting += len(self._waiting[-1])
        self._count(batch, has_data, n_data)
        chunks: list[Chunk] = []
        n_bytes = len(batch.data)
        if n_bytes:
            chunks.append(Chunk(ChunkKind.DATA, self._data_at, batch.data, batch.release))
            self._data_at += n_bytes
        else:
            batch.release()
        if self._n_waiting >= self._gather_bytes:
            chunks += self.flush()
        return chunks

    def _descriptors(self, batch: CodedBatch, has_data: BoolArray, n_data: int) -> bytes:
        writer = self._writer
        table = np.zeros(batch.n_pages, dtype=PAGE_DESC)
        table["offset"] = batch.offsets + self._data_at
        table["size"] = batch.sizes
        table["flags"] = batch.coded * np.uint32(writer.page_flag)
        if n_data < batch.n_pages:
            table[~has_data] = np.zeros((), dtype=PAGE_DESC)
            zero = ~has_data if writer.missing_as_zero else batch.states == _ZERO
            table["offset"][zero] = writer.layout.data_start
            table["size"][zero] = writer.layout.block_size
        return table.tobytes()

    def _count(self, batch: CodedBatch, has_data: BoolArray, n_data: int) -> None:
        totals = self.totals
        missing = batch.pfns[batch.states == _MISSING]
        n_missing = len(missing)
        n_coded = int(np.count_nonzero(batch.coded & has_data))
        totals.n_pages += batch.n_pages
        totals.missing_pages += n_missing
        totals.zero_pages += batch.n_pages - n_data - n_missing
        totals.shared_pages += batch.n_shared
        totals.coded_pages += n_coded
        totals.raw_pages += n_data - n_coded
        totals.bytes_out += len(batch.data)
        counters = self._writer.counters
        counters.pages_done = counters.pages_kept = totals.n_pages
        counters.pages_zero, counters.pages_missing = totals.zero_pages, totals.missing_pages
        counters.pages_shared, counters.pages_raw = totals.shared_pages, totals.raw_pages
        counters.bytes_in += batch.bytes_in
        counters.pages_coded, counters.bytes_out = totals.coded_pages, totals.bytes_out
        if n_missing:
            self.missing.add(missing)

    def flush(self) -> list[Chunk]:
        """The gathered descriptors as one chunk."""
        if not self._waiting:
            return []
        data = b"".join(self._waiting)
        chunk = Chunk(ChunkKind.DESCRIPTORS, self._desc_at, data)
        self._desc_at += len(data)
        self._waiting, self._n_waiting = [], 0
        return [chunk]
