"""Where batches are encoded: inline, in threads, or in forked processes, behind one contract."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np
from anyio.abc import TaskStatus

from pipeline.flow.items import PageBatch
from pipeline.memory.addresses import ByteArray
from stages.compressor.encode import Encoded
from stages.compressor.slots import Slot


class EncoderPool(Protocol):
    """Workers that encode batches into slots. Made and opened before the event loop runs.

    Forking is safe only while the process has one thread, so `with pool:` comes before any stage.
    """

    n_workers: int
    mode: str
    """``inline``, ``threads`` or ``processes``."""

    def __enter__(self) -> Self:
        """Start the workers."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop them, at once and whatever they do."""

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        """Take in answers until cancelled; a task in the compressor's own group.

        Raises:
            WorkerDiedError: a worker process ended without being told to.
        """

    async def encode(self, batch: PageBatch, slot: Slot) -> Encoded:
        """Encode `batch` into `slot`; several calls may be waiting at once.

        Raises:
            DumpError: the batch's own failure.
        """

    def worker_seconds(self) -> float:
        """CPU seconds used for encoding so far, all workers."""


def load_slot(batch: PageBatch, slot: Slot) -> ByteArray | None:
    """Put the batch's pfns, and its states if it brought data, into the slot's tables.

    Returns:
        The batch's data as uint8[n_pages, page_size], None when the worker reads the pages.
    """
    n_pages = batch.n_pages
    slot.pfns[:n_pages] = batch.pfns
    if batch.data is None:
        return None
    if batch.states is not None:
        slot.states[:n_pages] = batch.states
    return np.frombuffer(batch.data, dtype=np.uint8).reshape(n_pages, batch.page_size)
