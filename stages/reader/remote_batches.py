"""The copy pass over a line: several batches under way at once, sent in their order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from pipeline.flow.channel import Outbox
from pipeline.flow.items import EndOfDump, PageBatch, Totals
from stages.reader.batches import plan_batches

if TYPE_CHECKING:
    from stages.reader.stage import ReaderStage

_MAX_BATCHES: Final = 32


async def send_side_by_side(stage: ReaderStage, outbox: Outbox[PageBatch | EndOfDump]) -> None:
    """What `ReaderStage.run` sends; `stage.ahead_bytes` of batches are read ahead of the send."""
    image = stage.image
    page_size = image.info.page_size
    most = max(min(stage.ahead_bytes // (stage.batch_pages * page_size), _MAX_BATCHES), 1)
    plans = plan_batches(
        image, stage.kept, batch_pages=stage.batch_pages, hole_pages=stage.hole_pages
    )
    under_way: deque[tuple[PageBatch, Future[None] | None]] = deque()
    n_pages = n_reading = 0
    pool = ThreadPoolExecutor(most, thread_name_prefix="reader")
    try:
        for seq, (pfns, hole) in enumerate(plans):
            batch = PageBatch(seq, pfns, page_size, hole=hole)
            n_pages += len(pfns)
            under_way.append((batch, None if hole else pool.submit(stage.load, batch)))
            n_reading += not hole
            while n_reading >= most or len(under_way) > 2 * most:
                n_reading -= await _send_next(under_way, outbox)
        while under_way:
            await _send_next(under_way, outbox)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    await outbox.send(EndOfDump(Totals(n_pages=n_pages)))


async def _send_next(
    under_way: deque[tuple[PageBatch, Future[None] | None]],
    outbox: Outbox[PageBatch | EndOfDump],
) -> bool:
    """Send the oldest batch when it is there; True if it had to be read."""
    batch, read = under_way.popleft()
    if read is not None:
        await anyio.to_thread.run_sync(read.result, abandon_on_cancel=True)
    await outbox.send(batch)
    return read is not None
