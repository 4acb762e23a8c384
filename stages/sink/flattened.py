"""The flattened sink: one record a chunk, for targets that take bytes in order only.

Every record carries its absolute offset, so nothing is ever revisited; `makedumpfile -R` and crash
read it. The stream is whole only with its end record, which is written after everything else.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
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


def refuse_terminal(fd: int) -> None:
    """Keep binary data from whoever sits there.

    Raises:
        UsageError: `fd` is a terminal.
    """
    if os.isatty(fd):
        raise UsageError("standard output is a terminal; redirect it or name a file")


class StdoutStream:
    """An inherited descriptor.

    Pipes and sockets are written without blocking, so that Ctrl-C works while the other end sleeps.
    """

    target = "stdout"

    def __init__(self, fd: int | None = None) -> None:
        self._given_fd = sys.stdout.fileno() if fd is None else fd
        self._fd = -1
        self._socket: socket.socket | None = None
        # Writes what there is room for; None for what never waits for a reader, such as a file.
        self._put: Callable[[list[memoryview]], int] | None = None

    def open(self) -> None:
        refuse_terminal(self._given_fd)
        self._fd = self._given_fd
        mode = os.fstat(self._given_fd).st_mode
        if stat.S_ISFIFO(mode):
            self._open_pipe()
        elif stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self._given_fd))
            self._put = partial(_send, self._socket)

    def _open_pipe(self) -> None:
        """Have a description of our own: O_NONBLOCK on the given one would leak to its others."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(f"/proc/self/fd/{self._given_fd}", flags)
        except OSError:  # somebody else's pipe (`su`, `sudo -u`), or no /proc
            self._put = self._put_little
        else:
            self._put = partial(os.writev, self._fd)

    def _put_little(self, views: list[memoryview]) -> int:
        """As much as never blocks on a pipe that is ready to be written."""
        return os.write(self._fd, views[0][: select.PIPE_BUF])

    async def write(self, views: list[memoryview]) -> int:
        if self._put is None:
            return await anyio.to_thread.run_sync(os.writev, self._fd, views)
        await anyio.wait_writable(self._fd)
        try:
            return self._put(views)
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
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _send(link: socket.socket, views: list[memoryview]) -> int:
    return link.sendmsg(views, [], socket.MSG_DONTWAIT)


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
