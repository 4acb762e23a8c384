"""A sink in memory that holds its stage to the contract of chunk streams, and the file it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import TornStreamError
from pipeline.flow.channel import Channel, Inbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline, Receipt
from pipeline.run.runner import Flow, run_flow
from stages.crypt.payload import DumpKey
from stages.crypt.stage import HEAD_ORDER, EncryptStage
from tests.support.chunk_stream import ChunkStream


@dataclass
class MemorySink:
    """Keeps every chunk; checks order, gaps and the outline's promises."""

    name: str = "sink"
    head_order: HeadOrder = HeadOrder.BOTH
    chunks: list[Chunk] = field(default_factory=list)
    outline: Outline = field(default_factory=lambda: Outline(0, 0))

    async def open(self) -> None:
        """Nothing to claim."""

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        async for item in inbox:
            if isinstance(item, Outline):
                self.outline = item
            elif isinstance(item, Chunk):
                self.chunks.append(Chunk(item.kind, item.offset, bytes(item.data)))
            else:
                self._check()
                return Receipt("memory", len(self.file()))
        raise TornStreamError("torn")

    async def commit(self) -> None:
        """Nothing to rename."""

    async def abort(self) -> str | None:
        return None

    def _check(self) -> None:
        *others, head = self.chunks
        assert head.kind is ChunkKind.HEAD
        assert head.offset == 0
        low, data = head.n_bytes, self.outline.data_start
        for chunk in others:
            if chunk.kind is ChunkKind.DATA:
                assert chunk.offset == data
                data += chunk.n_bytes
            else:
                assert chunk.kind is not ChunkKind.HEAD
                assert chunk.offset == low
                low += chunk.n_bytes
        assert low == self.outline.data_start or data == self.outline.data_start
        assert data <= self.outline.most_bytes

    def file(self) -> bytes:
        out = bytearray(max((chunk.offset + chunk.n_bytes for chunk in self.chunks), default=0))
        for chunk in self.chunks:
            out[chunk.offset : chunk.offset + chunk.n_bytes] = chunk.data
        return bytes(out)


async def encrypted(stream: ChunkStream, key: DumpKey) -> MemorySink:
    """What arrives at the sink when `stream` goes through the encrypting stage."""
    stream.head_order = HEAD_ORDER
    sink = MemorySink()
    channels: list[Channel[Any]] = [Channel("plain", 1 << 20), Channel("sealed", 1 << 20)]
    await run_flow(Flow(stream, [EncryptStage(key)], sink, channels))
    assert stream.slots.n_out == 0, "a chunk was not released"
    return sink
