"""The reader stage: the start of the copy pass.

For a local file that forked workers share, a batch is only its pfns: whoever encodes it reads the
pages into its own cache-warm buffer (one core moves 5-7 GB/s that way, and nothing is copied
twice). Otherwise the reader reads them here, in a thread, and the batch brings its data along.
"""

from __future__ import annotations

import anyio.to_thread
import numpy as np
from msgspec import Struct

from pipeline.flow.channel import Outbox
from pipeline.flow.items import EndOfDump, PageBatch, Totals
from pipeline.memory.bitmap import PageBitmap
from stages.reader.batches import plan_batches
from stages.reader.image import Image


class ReaderStage(Struct, frozen=True):
    """Source[PageBatch]."""

    image: Image
    kept: PageBitmap
    batch_pages: int
    hole_pages: int
    """Pages of a batch that is one hole; larger, for it holds no data."""
    read_here: bool
    """True: batches bring their data. False: their encoder reads it."""
    read_ahead_pages: int
    """How far ahead of the batch that is being sent the image is told to read."""
    ahead_bytes: int = 0
    """Read ahead of the batch that is being sent over a slow line, when the reader reads."""
    name: str = "reader"

    async def run(self, outbox: Outbox[PageBatch | EndOfDump]) -> None:
        if self.read_here and self.ahead_bytes:
            from stages.reader.remote_batches import send_side_by_side

            await send_side_by_side(self, outbox)
            return
        n_pages = told = 0
        plans = plan_batches(
            self.image, self.kept, batch_pages=self.batch_pages, hole_pages=self.hole_pages
        )
        for seq, (pfns, hole) in enumerate(plans):
            batch = PageBatch(seq, pfns, self.image.info.page_size, hole=hole)
            if not hole:
                told = self._read_ahead(int(pfns[0]), told)
                if self.read_here:
                    await anyio.to_thread.run_sync(self.load, batch)
            await outbox.send(batch)
            n_pages += len(pfns)
        await outbox.send(EndOfDump(Totals(n_pages=n_pages)))

    def load(self, batch: PageBatch) -> None:
        """Read the pages of `batch` into it; blocks."""
        pages = np.empty((batch.n_pages, batch.page_size), dtype=np.uint8)
        batch.states = self.image.read_pages(batch.pfns, pages)
        batch.data = pages.reshape(-1).data

    def _read_ahead(self, pfn: int, told: int) -> int:
        """Keep the window [pfn, pfn + read_ahead) announced, a quarter of it at a time."""
        if not self.read_ahead_pages or pfn + self.read_ahead_pages * 3 // 4 < told:
            return told
        stop = pfn + self.read_ahead_pages
        self.image.read_ahead(max(pfn, told), stop)
        return stop
