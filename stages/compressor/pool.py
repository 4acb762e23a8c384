"""Where batches are encoded: inline, in threads, or in forked processes, behind one contract."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np
from anyio.abc import TaskStatus

from pipeline.flow.items import PageBatch
from pipeline.flow.wakeup import Wakeup
from pipeline.memory.addresses import ByteArray
from stages.compressor.encode import Encoded
from stages.compressor.slots import Slot


class Job:
    """A batch that a worker has been given."""

    __slots__ = ("_done", "_error", "_outcome", "n_pages")

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self._outcome: Encoded | None = None
        self._error: Exception | None = None
        self._done = Wakeup()

    def finish(self, outcome: Encoded | Exception) -> None:
        """What came of it; nobody need be waiting."""
        if isinstance(outcome, Encoded):
            self._outcome = outcome
        else:
            self._error = outcome
        self._done.wake()

    async def result(self) -> Encoded:
        """Waits for `finish`.

        Raises:
            DumpError: the batch's own failure.
        """
        while self._outcome is None:
            if self._error is not None:
                raise self._error
            await self._done.wait()
        return self._outcome


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

    async def begin(self, batch: PageBatch, slot: Slot) -> Job:
        """Have `batch` encoded into `slot`; waits while every worker has enough to do.

        Only while `serve` runs.
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
