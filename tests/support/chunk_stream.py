"""A synthetic dump as the writer would send it, for tests of sinks: every byte follows from its
offset, so any part of the result can be checked without a reference copy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import numpy as np

from pipeline.flow.channel import Channel, Outbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline, Receipt, Totals
from pipeline.flow.protocols import Sink
from pipeline.run.runner import Flow, run_flow

Item = Outline | Chunk | EndOfDump
_GARBAGE = 0xDD


def content(offset: int, n_bytes: int, seed: int = 0) -> bytes:
    """What a `ChunkStream` of `seed` has at `offset`."""
    first = offset // 8
    words = np.arange(first, (offset + n_bytes) // 8 + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (words + np.uint64(seed + 1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed.tobytes()[offset - first * 8 :][:n_bytes]


class _Slots:
    """A few reusable buffers; one that was released is overwritten, so late readers see garbage."""

    def __init__(self, n_slots: int, n_bytes: int) -> None:
        self._free = [bytearray(n_bytes) for _ in range(n_slots)]
        self._released = anyio.Event()
        self.n_out = 0

    async def take(self, data: bytes) -> tuple[memoryview, bytearray]:
        while not self._free:
            await self._released.wait()
        slot = self._free.pop()
        slot[: len(data)] = data
        self.n_out += 1
        return memoryview(slot)[: len(data)], slot

    def give_back(self, slot: bytearray) -> None:
        slot[:] = bytes([_GARBAGE]) * len(slot)
        self._free.append(slot)
        self.n_out -= 1
        self._released.set()
        self._released = anyio.Event()


@dataclass
class ChunkStream:
    """Source[Chunk]: outline, bitmaps, data with descriptors in between, head, end.

    Attributes:
        head_bytes: of the HEAD chunk; the bitmaps start at the next multiple of 4096.
        low_bytes: bitmaps and descriptors together.
        chunk_bytes: of a data chunk, the last may be smaller.
        fail_at: raise instead of sending the data chunk that holds this byte of the data.
        torn: stop there quietly instead, without `EndOfDump`.
        most_bytes: what the outline promises, when it is more than the dump gets.
        before_failure: awaited first, so that a test decides how far the sink has come.
    """

    data_bytes: int
    low_bytes: int = 20_000
    head_bytes: int = 5_000
    chunk_bytes: int = 100_000
    n_slots: int = 6
    seed: int = 0
    fail_at: int | None = None
    torn: bool = False
    most_bytes: int = 0
    before_failure: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
    head_order: HeadOrder = HeadOrder.LAST
    name: str = "chunks"
    n_sent: int = field(default=0, init=False)
    slots: _Slots = field(init=False)

    def __post_init__(self) -> None:
        self.slots = _Slots(self.n_slots, self.chunk_bytes)

    @property
    def low_start(self) -> int:
        return -(-self.head_bytes // 4096) * 4096

    @property
    def data_start(self) -> int:
        return self.low_start + self.low_bytes

    @property
    def size(self) -> int:
        return self.data_start + self.data_bytes

    @property
    def outline(self) -> Outline:
        return Outline(self.data_start, max(self.most_bytes, self.size + self.data_bytes // 3))

    def expected(self, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """The finished dump's bytes."""
        wanted = self.size - offset if n_bytes is None else min(n_bytes, self.size - offset)
        data = bytearray(content(offset, wanted, self.seed))
        gap = slice(max(self.head_bytes - offset, 0), max(self.low_start - offset, 0))
        data[gap] = bytes(len(data[gap]))
        return bytes(data)

    def _low_chunks(self) -> Iterator[tuple[int, int]]:
        """(offset, size): one chunk of bitmaps, then descriptors in step with the data."""
        n_data = max(-(-self.data_bytes // self.chunk_bytes), 1)
        step = max(-(-self.low_bytes // (n_data + 1)), 1)
        for at in range(self.low_start, self.data_start, step):
            yield at, min(step, self.data_start - at)

    async def run(self, outbox: Outbox[Item]) -> None:
        """Source.run."""
        await outbox.send(self.outline)
        if self.head_order is not HeadOrder.LAST:
            await self._send_head(outbox)
        low = self._low_chunks()
        await self._send_low(outbox, low, ChunkKind.BITMAP)
        for at in range(0, self.data_bytes, self.chunk_bytes):
            if self.fail_at is not None and at + self.chunk_bytes > self.fail_at:
                await self.before_failure()
                if self.torn:
                    return
                raise OSError(5, "Input/output error")
            await self._send_data(outbox, at)
            await self._send_low(outbox, low, ChunkKind.DESCRIPTORS)
        while await self._send_low(outbox, low, ChunkKind.DESCRIPTORS):
            pass
        if self.head_order is not HeadOrder.FIRST:
            await self._send_head(outbox)
        await outbox.send(EndOfDump(Totals(n_pages=self.data_bytes // 4096)))

    async def _send_head(self, outbox: Outbox[Item]) -> None:
        await outbox.send(Chunk(ChunkKind.HEAD, 0, content(0, self.head_bytes, self.seed)))

    async def _send_low(
        self, outbox: Outbox[Item], low: Iterator[tuple[int, int]], kind: ChunkKind
    ) -> bool:
        for at, n_bytes in low:
            await outbox.send(Chunk(kind, at, content(at, n_bytes, self.seed)))
            return True
        return False

    async def _send_data(self, outbox: Outbox[Item], at: int) -> None:
        offset = self.data_start + at
        n_bytes = min(self.chunk_bytes, self.data_bytes - at)
        view, slot = await self.slots.take(content(offset, n_bytes, self.seed))
        release = _Once(lambda: self.slots.give_back(slot))
        self.n_sent += n_bytes
        await outbox.send(Chunk(ChunkKind.DATA, offset, view, release))


class _Once:
    """Calls through once; a second release is a defect of the sink."""

    def __init__(self, call: object) -> None:
        self._call = call

    def __call__(self) -> None:
        call, self._call = self._call, None
        assert callable(call), "a chunk was released twice"
        call()


async def send(stream: ChunkStream, sink: Sink[Item], *, capacity: int = 1 << 20) -> Receipt:
    """Run `sink` as the dump command does: open, run, commit; abort when anything fails."""
    await sink.open()
    try:
        stream.head_order = sink.head_order
        receipt = await run_flow(Flow(stream, [], sink, [Channel("chunks", capacity)]))
        await sink.commit()
    except BaseException:
        await sink.abort()
        raise
    return receipt
