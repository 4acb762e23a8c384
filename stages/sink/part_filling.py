"""The parts of a dump that are not complete yet: chunks in, complete parts out."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from pipeline.errors import SinkError
from pipeline.flow.items import Chunk
from stages.sink.part_buffers import PartBuffers
from stages.sink.parts import Grid, Part, PartAssembler, Span


class Filling:
    """Copies chunks into part buffers; a buffer belongs to `dispatch` once it was handed on."""

    def __init__(
        self,
        grid: Grid,
        most_parts: int,
        buffers: PartBuffers,
        dispatch: Callable[[Part, mmap.mmap], None],
    ) -> None:
        self._grid = grid
        self._most_parts = most_parts
        self._assembler = PartAssembler(grid)
        self._buffers = buffers
        self._dispatch = dispatch
        self._open: dict[int, mmap.mmap] = {}
        self._complete: set[int] = set()

    @property
    def size(self) -> int:
        return self._assembler.size

    async def take(self, chunk: Chunk) -> None:
        """Copy `chunk` where it belongs and release it; sends parts that it completes."""
        for span in self._assembler.spans(chunk):
            await self._place(span)
            part = self._assembler.add(chunk.kind, span)
            if part is not None:
                await self._close(part)
        if chunk.release is not None:
            chunk.release()

    async def _place(self, span: Span) -> None:
        buffer = await self._buffer(span.number)
        if span.data is not None:
            buffer[span.start : span.start + span.n_bytes] = span.data

    async def _buffer(self, number: int) -> mmap.mmap:
        """The part's buffer; all zeros when it is new and may have gaps: those need no writing."""
        if number > self._most_parts:
            raise SinkError(
                f"the dump does not fit into {self._most_parts} parts of {self._grid.data_part} "
                "bytes"
            )
        if number not in self._open:
            n_bytes, zeros = self._grid.part(number).n_bytes, number <= self._grid.n_low
            self._open[number] = await self._buffers.take(n_bytes, zeros=zeros)
        return self._open[number]

    async def _close(self, part: Part) -> None:
        """Nothing is missing in `part`: hand it on."""
        buffer = await self._buffer(part.number)
        del self._open[part.number]
        self._complete.add(part.number)
        self._dispatch(part, buffer)

    async def finish(self) -> None:
        """Send what is still open: the dump has ended."""
        for part in self._assembler.finish(self._complete):
            await self._close(part)
