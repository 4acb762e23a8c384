"""The stdout sink: the flattened form, one record a chunk, for pipes.

Every record carries its absolute offset, so nothing is ever revisited; `makedumpfile -R` and crash
read it. The stream is whole only with its end record, which is written after everything else.
"""

from __future__ import annotations

import os
import stat
import sys

import anyio
import anyio.to_thread

from pipeline.errors import SinkError, TornStreamError, UsageError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, EndOfDump, HeadOrder, Receipt
from stages.formats.flattened import END_RECORD, HEADER, record_header


class FlattenedSink:
    """Sink[Chunk] for an open file descriptor that takes bytes in order."""

    name = "sink"
    head_order = HeadOrder.FIRST

    def __init__(self, fd: int, target: str) -> None:
        self.target = target
        self._given_fd = fd
        self._fd = -1
        self._waits = False
        self._n_bytes = 0
        self._end = 0

    async def open(self) -> None:
        if os.isatty(self._given_fd):
            raise UsageError("standard output is a terminal; redirect it or name a file")
        mode = os.fstat(self._given_fd).st_mode
        self._fd = self._given_fd
        self._waits = False
        if stat.S_ISFIFO(mode):
            # A description of our own: O_NONBLOCK on the given one would leak to its other users.
            self._fd = os.open(
                f"/proc/self/fd/{self._given_fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            )
            self._waits = True

    async def run(self, inbox: Inbox[Chunk | EndOfDump]) -> Receipt:
        await self._write([memoryview(HEADER)])
        async for item in inbox:
            if isinstance(item, EndOfDump):
                await self._write([memoryview(END_RECORD)])
                return Receipt(self.target, self._end)
            view = memoryview(item.data)
            if len(view):
                header = memoryview(record_header(item.offset, len(view)))
                await self._write([header, view])
                self._end = max(self._end, item.offset + len(view))
            if item.release is not None:
                item.release()
        raise TornStreamError(f"{self.target}: the writer stopped before its end")

    async def _write(self, views: list[memoryview]) -> None:
        try:
            while views:
                if self._waits:
                    await anyio.wait_writable(self._fd)
                    n_bytes = self._some(views)
                else:
                    n_bytes = await anyio.to_thread.run_sync(os.writev, self._fd, views)
                self._n_bytes += n_bytes
                views = _after(views, n_bytes)
        except BrokenPipeError as error:
            raise SinkError(
                f"{self.target}: the reader closed the pipe after {self._n_bytes} bytes; "
                "what it has is incomplete"
            ) from error
        except OSError as error:
            raise SinkError(f"{self.target}: {os.strerror(error.errno or 0)}") from error

    def _some(self, views: list[memoryview]) -> int:
        try:
            return os.writev(self._fd, views)
        except BlockingIOError:
            return 0

    async def commit(self) -> None:
        """The end record was the commit."""
        self._close()

    async def abort(self) -> str | None:
        """A stream without its end record is visibly cut; there is nothing to take back."""
        self._close()
        return None

    def _close(self) -> None:
        if self._fd not in (-1, self._given_fd):
            os.close(self._fd)
        self._fd = -1


def _after(views: list[memoryview], n_bytes: int) -> list[memoryview]:
    """What is left of `views` once `n_bytes` of them are written."""
    for index, view in enumerate(views):
        if n_bytes < len(view):
            return [view[n_bytes:], *views[index + 1 :]]
        n_bytes -= len(view)
    return []


def stdout_sink() -> FlattenedSink:
    """The sink for ``-``."""
    return FlattenedSink(sys.stdout.fileno(), "stdout")
