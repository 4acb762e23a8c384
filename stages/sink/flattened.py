"""The flattened sink: one record a chunk, for targets that take bytes in order only.

Every record carries its absolute offset, so nothing is ever revisited; `makedumpfile -R` and crash
read it. The stream is whole only with its end record, which is written after everything else.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from typing import Protocol

import anyio
import anyio.to_thread

from pipeline.errors import SinkError, TornStreamError, UsageError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, EndOfDump, HeadOrder, Outline, Receipt
from stages.formats.flattened import END_RECORD, HEADER, record_header
from stages.sink.partial_file import PartialFile


class ByteStream(Protocol):
    """Where the records go."""

    target: str

    def open(self) -> None:
        """Claim the target."""

    async def write(self, views: list[memoryview]) -> int:
        """Write some of `views`; returns how many bytes."""

    async def finish(self) -> None:
        """Make what was written durable."""

    def commit(self) -> None:
        """Give it its final name."""

    def abort(self) -> str | None:
        """Let go; returns where a usable rest is."""


class FlattenedSink:
    """Sink[Chunk] over a `ByteStream`."""

    name = "sink"
    head_order = HeadOrder.FIRST

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._n_bytes = 0

    async def open(self) -> None:
        self._stream.open()

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        await self._write([memoryview(HEADER)])
        async for item in inbox:
            if isinstance(item, EndOfDump):
                return await self._finish()
            if isinstance(item, Outline):
                continue
            if item.n_bytes:
                header = record_header(item.offset, item.n_bytes)
                await self._write([memoryview(header), memoryview(item.data)])
            if item.release is not None:
                item.release()
        raise TornStreamError(f"{self._stream.target}: the writer stopped before its end")

    async def _finish(self) -> Receipt:
        await self._write([memoryview(END_RECORD)])
        started = time.perf_counter()
        await self._stream.finish()
        return Receipt(self._stream.target, self._n_bytes, time.perf_counter() - started)

    async def _write(self, views: list[memoryview]) -> None:
        try:
            while views:
                n_bytes = await self._stream.write(views)
                self._n_bytes += n_bytes
                views = _after(views, n_bytes)
        except BrokenPipeError as error:
            raise SinkError(
                f"{self._stream.target}: the reader went away after {self._n_bytes} bytes; "
                "what it has is incomplete"
            ) from error
        except OSError as error:
            text = os.strerror(error.errno) if error.errno else str(error)
            raise SinkError(f"{self._stream.target}: {text}") from error

    async def commit(self) -> None:
        self._stream.commit()

    async def abort(self) -> str | None:
        return self._stream.abort()


def _after(views: list[memoryview], n_bytes: int) -> list[memoryview]:
    """What is left of `views` once `n_bytes` of them are written."""
    for index, view in enumerate(views):
        if n_bytes < len(view):
            return [view[n_bytes:], *views[index + 1 :]]
        n_bytes -= len(view)
    return []


class StdoutStream:
    """An inherited descriptor.

    Pipes are written without blocking, so that Ctrl-C works while the other end sleeps.
    """

    target = "stdout"

    def __init__(self, fd: int | None = None) -> None:
        self._given_fd = sys.stdout.fileno() if fd is None else fd
        self._fd = -1
        self._waits = False

    def open(self) -> None:
        if os.isatty(self._given_fd):
            raise UsageError("standard output is a terminal; redirect it or name a file")
        self._fd = self._given_fd
        if stat.S_ISFIFO(os.fstat(self._given_fd).st_mode):
            # A description of our own: O_NONBLOCK on the given one would leak to its other users.
            self._waits = True
            self._fd = os.open(
                f"/proc/self/fd/{self._given_fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            )

    async def write(self, views: list[memoryview]) -> int:
        if not self._waits:
            return await anyio.to_thread.run_sync(os.writev, self._fd, views)
        await anyio.wait_writable(self._fd)
        try:
            return os.writev(self._fd, views)
        except BlockingIOError:
            return 0

    async def finish(self) -> None:
        """A pipe cannot be synced."""

    def commit(self) -> None:
        self._close()

    def abort(self) -> str | None:
        self._close()
        return None

    def _close(self) -> None:
        if self._fd not in (-1, self._given_fd):
            os.close(self._fd)
        self._fd = -1


class FileStream:
    """A regular file that holds the stream, under its partial name until it is whole."""

    def __init__(self, file: PartialFile) -> None:
        self._file = file
        self.target = str(file.path)

    def open(self) -> None:
        self._file.claim()

    async def write(self, views: list[memoryview]) -> int:
        return await anyio.to_thread.run_sync(os.writev, self._file.fd, views)

    async def finish(self) -> None:
        await anyio.to_thread.run_sync(self._file.sync)

    def commit(self) -> None:
        self._file.commit()

    def abort(self) -> str | None:
        """A stream without its end record opens nowhere: it is removed."""
        self._file.discard()
        return None
