"""The file sink: positioned writes, in the order they come, and a rename at the end."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Final, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread

from pipeline.errors import SinkError, TornStreamError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline, Receipt
from stages.sink.growing_file import EarlyFlush, RoomAhead
from stages.sink.partial_file import PartialFile

_INLINE_BYTES: Final = 4 << 20
_MOST_AT_ONCE: Final = 512 << 10
"""ext4 and XFS take a folio as large as the write for it. Above this they come out of the largest
free blocks, which are cold, and in a virtual machine may have been given back to the host: 3.7 GB
in writes of 2 MiB took 3.4 s, in these 1.9 s."""
_FAST_S: Final = 0.004
"""A write that took longer was not just a copy; the hop itself takes a twentieth of it."""


class PositionedWriter(Protocol):
    """Puts bytes at a place of an open file; how is a measured choice (`sink.write_mode`)."""

    async def write(self, fd: int, data: memoryview, offset: int) -> None:
        """Write all of `data`.

        Raises:
            OSError: as the file system says.
        """

    async def close(self) -> None:
        """Release what the writer holds beside the descriptor."""


class PwriteWriter:
    """`os.pwrite`: where it takes no longer than a memory copy, without a hop to a thread.

    The page cache takes 400 KiB in 0.1 ms, which is less than the hop and back (110-170 us and the
    wake-ups of both sides; 60 ms of a 0.57 s dump). A write that was slow (throttled, a network
    file system) sends those after it to a thread, until they are fast again: the event loop is
    never held up twice.
    """

    def __init__(self) -> None:
        self._is_fast = True

    async def write(self, fd: int, data: memoryview, offset: int) -> None:
        started = time.perf_counter()
        if self._is_fast and len(data) <= _INLINE_BYTES:
            _pwrite_all(fd, data, offset)
        else:
            await anyio.to_thread.run_sync(_pwrite_all, fd, data, offset)
        self._is_fast = time.perf_counter() - started < _FAST_S

    async def close(self) -> None:
        """Nothing is held."""


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data[:_MOST_AT_ONCE], offset)
        data = data[done:]
        offset += done


class FileSink:
    """Sink[Chunk] for a path on a mounted file system.

    The head comes first and marked incomplete, so that what a crash of the collector leaves behind
    is a dump that crash opens, and that says what it is. The final head vouches for everything
    else, so it is written when everything else is durable.
    """

    name = "sink"
    head_order = HeadOrder.BOTH

    def __init__(self, file: PartialFile, writer: PositionedWriter) -> None:
        self._file = file
        self._writer = writer
        self._end = 0
        self._room: RoomAhead | None = None
        self._flush: EarlyFlush | None = None
        self._final_head: Chunk | None = None
        self._has_head = False
        self._has_pages = False

    async def open(self) -> None:
        self._file.claim()

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        async with anyio.create_task_group() as beside:
            if self._file.fsync:
                self._flush = EarlyFlush(self._file.fd)
                beside.start_soon(self._flush.run)
            await self._write_all(inbox)
            beside.cancel_scope.cancel()
        return await self._finish()

    async def _write_all(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> None:
        async for item in inbox:
            if isinstance(item, EndOfDump):
                return
            if isinstance(item, Outline):
                # Descriptors lie before the data: with room set aside for them, a disk that gets
                # full costs the data that did not fit, and nothing else.
                await anyio.to_thread.run_sync(self._file.reserve, item.data_start)
                self._room = RoomAhead(self._file.fd, most_bytes=item.most_bytes)
            elif item.kind is ChunkKind.HEAD and self._end:
                self._final_head = item
            else:
                await self._write(item)
                self._has_head |= item.kind is ChunkKind.HEAD
                self._has_pages |= item.kind is ChunkKind.DESCRIPTORS
        raise TornStreamError(f"{self._file.partial}: the writer stopped before its end")

    async def _write(self, chunk: Chunk) -> None:
        end = chunk.offset + chunk.n_bytes
        if self._room is not None and self._room.ends_before(end):
            await anyio.to_thread.run_sync(self._room.extend, end)
        try:
            await self._writer.write(self._file.fd, memoryview(chunk.data), chunk.offset)
        except OSError as error:
            raise self._file.failure(error) from error
        self._end = max(self._end, end)
        if chunk.release is not None:
            chunk.release()
        if self._flush is not None and chunk.kind is ChunkKind.DATA:
            self._flush.wrote(chunk.offset, end)

    async def _finish(self) -> Receipt:
        started = time.perf_counter()
        self._trim()
        await anyio.to_thread.run_sync(self._file.sync)
        await anyio.lowlevel.checkpoint()  # a run that was interrupted meanwhile is not complete
        if self._final_head is not None:
            await self._write(self._final_head)
            # Where it is the only one (encrypted dumps), from here on there is something to keep.
            self._has_head = self._has_pages = True
            await anyio.to_thread.run_sync(self._file.sync)
        await self._writer.close()
        return Receipt(str(self._file.path), self._end, time.perf_counter() - started)

    def _trim(self) -> None:
        """Give back the blocks behind the end; the size is what it was."""
        if self._room is not None and self._room.is_used:
            try:
                os.ftruncate(self._file.fd, os.fstat(self._file.fd).st_size)
            except OSError as error:
                raise self._file.failure(error) from error

    async def commit(self) -> None:
        self._file.commit()

    async def abort(self) -> str | None:
        with anyio.CancelScope(shield=True), suppress(OSError):
            await self._writer.close()
        if not (self._has_head and self._has_pages):
            self._file.discard()
            return None
        with suppress(SinkError):
            self._trim()
        return str(self._file.partial) if self._file.keep() else None
