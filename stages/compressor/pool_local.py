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
from stages.compressor.pool import Job, load_slot
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
        async with anyio.create_task_group() as self._threads:
            self._limiter = anyio.CapacityLimiter(max(self.n_workers, 1))
            task_status.started()
            await anyio.sleep_forever()

    async def begin(self, batch: PageBatch, slot: Slot) -> Job:
        await anyio.lowlevel.checkpoint()
        job = Job(batch.n_pages)
        if self.n_workers == 0:
            job.finish(self._encode(batch, slot))
        else:
            self._threads.start_soon(self._encode_in_thread, batch, slot, job)
        return job

    async def _encode_in_thread(self, batch: PageBatch, slot: Slot, job: Job) -> None:
        # The number of slots bounds how many wait here for a thread.
        job.finish(await anyio.to_thread.run_sync(self._encode, batch, slot, limiter=self._limiter))

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
