"""The compressor stage: batches out to workers, coded batches back in order.

Slots bound the memory: a batch needs one from the moment it is given to a worker until the sink
has written its bytes, so a slow sink stops the workers, and they stop the reader.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import anyio
import numpy as np
from msgspec import Struct

from pipeline.errors import TornStreamError
from pipeline.flow.channel import Inbox, Outbox
from pipeline.flow.items import CodedBatch, EndOfDump, PageBatch, PageState
from pipeline.flow.wakeup import Wakeup
from stages.compressor.encode import Encoded
from stages.compressor.pool import EncoderPool, Job
from stages.compressor.slots import Slot, SlotArena

_PENDING_BYTES: Final = 4 << 20
"""Batches on their way: slots bound those that have one, this the holes, which have none."""


class _FreeSlots:
    """Slots that nobody uses; released ones wake whoever waits."""

    def __init__(self, arena: SlotArena) -> None:
        self._free = list(reversed(arena.slots))
        self._released = Wakeup()

    async def acquire(self) -> Slot:
        while not self._free:
            await self._released.wait()
        return self._free.pop()

    def release(self, slot: Slot) -> None:
        self._free.append(slot)
        self._released.wake()


class _Pending(NamedTuple):
    """A batch on its way, in the order of the reader; a hole has neither slot nor job."""

    batch: PageBatch
    slot: Slot | None
    job: Job | None


class CompressorStage(Struct, frozen=True):
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
        pending = _Queue()
        async with anyio.create_task_group() as group:
            await group.start(self.pool.serve)
            group.start_soon(self._forward, pending, slots, outbox)
            end = None
            async for item in inbox:
                if isinstance(item, EndOfDump):
                    end = item
                    break
                await pending.put(await self._begin(item, slots))
            pending.close()
            await pending.drained.wait()
            if end is not None:
                await outbox.send(end)
            group.cancel_scope.cancel()
        if end is None:
            raise TornStreamError(f"{self.name}: the reader stopped before its end")

    async def _begin(self, batch: PageBatch, slots: _FreeSlots) -> _Pending:
        if batch.hole and not self.keep_holes:
            return _Pending(batch, None, None)
        slot = await slots.acquire()
        return _Pending(batch, slot, await self.pool.begin(batch, slot))

    async def _forward(
        self, pending: _Queue, slots: _FreeSlots, outbox: Outbox[CodedBatch | EndOfDump]
    ) -> None:
        while (one := await pending.get()) is not None:
            encoded = None if one.job is None else await one.job.result()
            await outbox.send(_coded(one, encoded, slots))


class _Queue:
    """Batches that were begun, in order."""

    def __init__(self) -> None:
        self._items: deque[_Pending] = deque()
        self._n_bytes = 0
        self._changed = Wakeup()
        self._closed = False
        self.drained = anyio.Event()

    async def put(self, one: _Pending) -> None:
        while self._items and self._n_bytes + one.batch.pfns.nbytes > _PENDING_BYTES:
            await self._changed.wait()
        self._items.append(one)
        self._n_bytes += one.batch.pfns.nbytes
        self._changed.wake()

    def close(self) -> None:
        self._closed = True
        self._changed.wake()

    async def get(self) -> _Pending | None:
        """The next one; None when the queue was closed and everything has been taken."""
        while not self._items:
            if self._closed:
                self.drained.set()
                return None
            await self._changed.wait()
        one = self._items.popleft()
        self._n_bytes -= one.batch.pfns.nbytes
        self._changed.wake()
        return one


def _coded(one: _Pending, encoded: Encoded | None, slots: _FreeSlots) -> CodedBatch:
    batch, slot = one.batch, one.slot
    n_pages = batch.n_pages
    if slot is None or encoded is None:
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
        data=slot.data[: encoded.n_bytes].data,
        release=lambda: slots.release(slot),
        bytes_in=n_pages * batch.page_size,
        n_shared=encoded.n_shared,
    )


def _nothing() -> None:
    """Holes hold no slot."""
