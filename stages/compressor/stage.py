"""The compressor stage: batches out to workers, coded batches back in order.

Slots bound the memory: a batch needs one from the moment it is given to a worker until the sink
has written its bytes, so a slow sink stops the workers, and they stop the reader.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import anyio
import numpy as np

from pipeline.errors import TornStreamError
from pipeline.flow.channel import Inbox, Outbox
from pipeline.flow.items import CodedBatch, EndOfDump, PageBatch, PageState
from stages.compressor.encode import Encoded
from stages.compressor.pool import EncoderPool
from stages.compressor.slots import Slot, SlotArena


class _FreeSlots:
    """Slots that nobody uses; released ones wake whoever waits."""

    def __init__(self, arena: SlotArena) -> None:
        self._free = list(reversed(arena.slots))
        self._released = anyio.Event()

    async def acquire(self) -> Slot:
        while not self._free:
            await self._released.wait()
        return self._free.pop()

    def release(self, slot: Slot) -> None:
        self._free.append(slot)
        self._released.set()
        self._released = anyio.Event()


@dataclass(slots=True)
class _Pending:
    """A batch on its way, in the order of the reader."""

    batch: PageBatch
    slot: Slot | None
    encoded: Encoded | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


@dataclass(frozen=True, slots=True)
class CompressorStage:
    """Stage[PageBatch, CodedBatch]; the pool must be open."""

    pool: EncoderPool
    arena: SlotArena
    keep_holes: bool
    """Dump level without bit 1: holes are pages with content, so they are encoded as well."""
    name: str = "compressor"

    async def run(
        self,
        inbox: Inbox[PageBatch | EndOfDump],
        outbox: Outbox[CodedBatch | EndOfDump],
    ) -> None:
        slots = _FreeSlots(self.arena)
        pending: deque[_Pending] = deque()
        news = _News()
        async with anyio.create_task_group() as group:
            await group.start(self.pool.serve)
            group.start_soon(self._forward, pending, news, slots, outbox)
            end = None
            async for item in inbox:
                if isinstance(item, EndOfDump):
                    end = item
                    break
                await self._begin(item, slots, pending, group)
                news.wake()
            news.end = end
            news.closed = True
            news.wake()
            await news.drained.wait()
            group.cancel_scope.cancel()
        if end is None:
            raise TornStreamError(f"{self.name}: the reader stopped before its end")

    async def _begin(
        self,
        batch: PageBatch,
        slots: _FreeSlots,
        pending: deque[_Pending],
        group: anyio.abc.TaskGroup,
    ) -> None:
        if batch.hole and not self.keep_holes:
            one = _Pending(batch, None)
            one.done.set()
            pending.append(one)
            return
        one = _Pending(batch, await slots.acquire())
        pending.append(one)
        group.start_soon(self._encode, one)

    async def _encode(self, one: _Pending) -> None:
        if one.slot is not None:
            one.encoded = await self.pool.encode(one.batch, one.slot)
        one.done.set()

    async def _forward(
        self,
        pending: deque[_Pending],
        news: _News,
        slots: _FreeSlots,
        outbox: Outbox[CodedBatch | EndOfDump],
    ) -> None:
        while True:
            while not pending:
                if news.closed:
                    if news.end is not None:
                        await outbox.send(news.end)
                    news.drained.set()
                    return
                await news.changed.wait()
            one = pending[0]
            await one.done.wait()
            pending.popleft()
            await outbox.send(_coded(one, slots))


class _News:
    """What the receiving half tells the sending half of the stage."""

    def __init__(self) -> None:
        self.changed = anyio.Event()
        self.drained = anyio.Event()
        self.closed = False
        self.end: EndOfDump | None = None

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


def _coded(one: _Pending, slots: _FreeSlots) -> CodedBatch:
    batch, slot = one.batch, one.slot
    n_pages = batch.n_pages
    if slot is None or one.encoded is None:
        return CodedBatch(
            seq=batch.seq,
            pfns=batch.pfns,
            states=np.full(n_pages, PageState.ZERO, dtype=np.uint8),
            offsets=np.zeros(n_pages, dtype=np.int64),
            sizes=np.zeros(n_pages, dtype=np.uint32),
            coded=np.zeros(n_pages, dtype=np.bool_),
            data=memoryview(b""),
            release=_nothing,
        )
    return CodedBatch(
        seq=batch.seq,
        pfns=batch.pfns,
        states=slot.states[:n_pages],
        offsets=slot.offsets[:n_pages],
        sizes=slot.sizes[:n_pages],
        coded=slot.coded[:n_pages],
        data=slot.data[: one.encoded.n_bytes].data,
        release=lambda: slots.release(slot),
        bytes_in=n_pages * batch.page_size,
        n_shared=one.encoded.n_shared,
    )


def _nothing() -> None:
    """Holes hold no slot."""
