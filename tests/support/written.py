"""Runs a writer stage over made-up batches, holds it to the contract of chunks, and keeps the file.

batches = coded_batches({3: described(3), 4: None}, batch_pages=2)      None: a page of zeros
written = await write(stage, batches)
path.write_bytes(written.blob)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import numpy as np

from pipeline.flow.channel import Channel
from pipeline.flow.items import (
    Chunk,
    ChunkKind,
    CodedBatch,
    EndOfDump,
    Outline,
    PageState,
    Totals,
)

MISSING: Final = b"missing"
"""Stands for the content of a page that could not be read."""


@dataclass
class Batches:
    """Batches for a writer, and how many of their slots have been given back."""

    batches: list[CodedBatch]
    n_released: int = 0

    def release(self) -> None:
        self.n_released += 1


def coded_batches(
    pages: Mapping[int, bytes | None],
    *,
    batch_pages: int = 4,
    coded: Mapping[int, bytes] | None = None,
) -> Batches:
    """Batches of `pages` by pfn; `coded` has the compressed form of those that have one."""
    out = Batches([])
    pfns = sorted(pages)
    for seq, at in enumerate(range(0, len(pfns), batch_pages)):
        out.batches.append(_batch(seq, pfns[at : at + batch_pages], pages, coded or {}, out))
    return out


def _batch(
    seq: int,
    pfns: list[int],
    pages: Mapping[int, bytes | None],
    coded: Mapping[int, bytes],
    owner: Batches,
) -> CodedBatch:
    states, offsets, sizes, is_coded = [], [], [], []
    data = b""
    for pfn in pfns:
        page = pages[pfn]
        stored = b"" if page in (None, MISSING) else coded.get(pfn, page or b"")
        states.append(
            PageState.ZERO
            if page is None
            else PageState.MISSING
            if page == MISSING
            else PageState.DATA
        )
        offsets.append(len(data))
        sizes.append(len(stored))
        is_coded.append(pfn in coded)
        data += stored
    return CodedBatch(
        seq=seq,
        pfns=np.array(pfns, dtype=np.uint64),
        states=np.array(states, dtype=np.uint8),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.uint32),
        coded=np.array(is_coded, dtype=np.bool_),
        data=memoryview(data),
        release=owner.release,
        bytes_in=len(pfns) * 4096,
    )


@dataclass
class Written:
    """What came out of a writer."""

    outline: Outline
    chunks: list[Chunk]
    totals: Totals
    blob: bytes = field(init=False)

    def __post_init__(self) -> None:
        out = bytearray(max(chunk.offset + chunk.n_bytes for chunk in self.chunks))
        for chunk in self.chunks:
            out[chunk.offset : chunk.offset + chunk.n_bytes] = chunk.data
        self.blob = bytes(out)

    def of(self, kind: ChunkKind) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.kind is kind]

    def kinds(self) -> list[str]:
        return [chunk.kind.name for chunk in self.chunks]

    def after(self, n_chunks: int) -> bytes:
        """The file as it was when so many chunks had been written."""
        return Written(self.outline, self.chunks[:n_chunks], self.totals).blob

    def check_cursors(self) -> None:
        """Head at 0, the rest below the data without gaps, data without gaps from where it begins.

        That is what sinks that write parts or a stream of pieces rely on.
        """
        heads = self.of(ChunkKind.HEAD)
        assert heads
        assert {(head.offset, head.n_bytes) for head in heads} == {(0, heads[0].n_bytes)}
        low = [one for one in self.chunks if one.kind in (ChunkKind.BITMAP, ChunkKind.DESCRIPTORS)]
        at = heads[0].n_bytes
        for chunk in low:
            assert chunk.offset == at, chunk
            at += chunk.n_bytes
        assert self.outline.data_start - 4096 < at <= self.outline.data_start
        at = self.outline.data_start
        for chunk in self.of(ChunkKind.DATA):
            assert chunk.offset == at, chunk
            at += chunk.n_bytes
        assert len(self.blob) == max(at, self.outline.data_start)
        assert len(self.blob) <= self.outline.most_bytes


async def write(stage: Any, batches: Batches, *, n_pages: int | None = None) -> Written:
    """Run `stage` to its end; every batch must have been released, once.

    Args:
        stage: a writer.
        batches: what it gets.
        n_pages: pages that the end of the dump says were read, all of them when None.
    """
    before: Channel[Any] = Channel("before", 1 << 30)
    after: Channel[Any] = Channel("after", 1 << 30)
    read = sum(batch.n_pages for batch in batches.batches) if n_pages is None else n_pages
    items: list[Any] = []

    async def collect() -> None:
        async for item in after:
            items.append(item)
            if isinstance(item, Chunk) and item.release is not None:
                item.release()

    async with anyio.create_task_group() as group:
        group.start_soon(collect)
        for item in [*batches.batches, EndOfDump(Totals(n_pages=read))]:
            await before.send(item)
        before.close_sender()
        async with after.sender():
            await stage.run(before, after)
    outline, *chunks, end = items
    assert isinstance(outline, Outline)
    assert isinstance(end, EndOfDump)
    assert batches.n_released == len(batches.batches)
    return Written(outline, chunks, end.totals)


def contents(pages: Iterable[int], make: Any) -> dict[int, bytes | None]:
    """Pages by pfn, each made by `make` from its pfn."""
    return {pfn: make(pfn) for pfn in pages}
