"""Encoding in this process: inline on the event loop, or in worker threads.

Inline is for one CPU, where a hop to a thread (110-170 us) buys nothing. Threads pay for codecs
that release the GIL for long (zlib, zstd); for lzo and snappy two threads are no faster than one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskStatus

from pipeline.flow.items import PageBatch
from stages.compressor.encode import BatchWorker, Encoded
from stages.compressor.pool import load_slot
from stages.compressor.slots import Slot


class LocalPool:
    """`n_workers` 0 encodes inline; otherwise that many threads at once."""

    def __init__(self, make_worker: Callable[[], BatchWorker], n_workers: int) -> None:
        self.n_workers = n_workers
        self.mode = "threads" if n_workers else "inline"
        self._make_worker = make_worker
        self._workers: list[BatchWorker] = []
        self._seconds = 0.0

    def __enter__(self) -> Self:
        self._workers = [self._make_worker() for _ in range(max(self.n_workers, 1))]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._workers.clear()

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        self._limiter = anyio.CapacityLimiter(max(self.n_workers, 1))
        task_status.started()
        await anyio.sleep_forever()

    async def encode(self, batch: PageBatch, slot: Slot) -> Encoded:
        if self.n_workers == 0:
            await anyio.lowlevel.checkpoint()
            return self._encode(batch, slot)
        return await anyio.to_thread.run_sync(self._encode, batch, slot, limiter=self._limiter)

    def _encode(self, batch: PageBatch, slot: Slot) -> Encoded:
        worker = self._workers.pop()
        started = time.thread_time()
        try:
            return worker.run(slot, batch.n_pages, load_slot(batch, slot))
        finally:
            self._seconds += time.thread_time() - started
            self._workers.append(worker)

    def worker_seconds(self) -> float:
        return self._seconds
