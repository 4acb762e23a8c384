"""The file sink and the flattened one over files and pipes."""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from pipeline.errors import SinkError, StageError, UsageError
from pipeline.flow.channel import Channel
from pipeline.flow.items import HeadOrder
from pipeline.run.runner import Flow, run_flow
from stages.formats.flattened import END_RECORD, HEADER
from stages.sink.aio import AiofilesWriter
from stages.sink.file import FileSink, PositionedWriter, PwriteWriter
from stages.sink.flattened import FileStream, FlattenedSink, StdoutStream
from stages.sink.partial_file import PartialFile
from tests.support.chunk_stream import ChunkStream, send

WRITERS = [PwriteWriter, AiofilesWriter]
MIB = 1 << 20


def file_sink(path: Path, writer: PositionedWriter | None = None) -> FileSink:
    file = PartialFile(str(path), overwrite=False, fsync=False)
    return FileSink(file, PwriteWriter() if writer is None else writer)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("make_writer", WRITERS)
class TestFileSink:
    async def test_writes_everything_where_it_belongs(
        self, make_writer: Callable[[], PositionedWriter], tmp_path: Path
    ) -> None:
        """The file is the dump, byte for byte, and the receipt says so."""
        stream = ChunkStream(3 * MIB)

        receipt = await send(stream, file_sink(tmp_path / "dump", make_writer()))

        assert (tmp_path / "dump").read_bytes() == stream.expected()
        assert (receipt.target, receipt.n_bytes) == (str(tmp_path / "dump"), stream.size)
        assert names(tmp_path) == ["dump"]

    async def test_gives_every_buffer_back(
        self, make_writer: Callable[[], PositionedWriter], tmp_path: Path
    ) -> None:
        """With fewer buffers than chunks it would stop otherwise."""
        stream = ChunkStream(3 * MIB, n_slots=1)

        await send(stream, file_sink(tmp_path / "dump", make_writer()))

        assert stream.slots.n_out == 0

    @pytest.mark.parametrize("torn", [True, False])
    async def test_keeps_what_is_usable(
        self, torn: bool, make_writer: Callable[[], PositionedWriter], tmp_path: Path
    ) -> None:
        """A failure after pages leaves them under the partial name; no final head was written."""
        stream = ChunkStream(3 * MIB, fail_at=2 * MIB, torn=torn)
        sink = file_sink(tmp_path / "dump", make_writer())

        with pytest.raises(StageError):
            await send(stream, sink)

        assert names(tmp_path) == ["dump.partial"]
        left = (tmp_path / "dump.partial").read_bytes()
        assert left[stream.data_start :][:MIB] == stream.expected(stream.data_start, MIB)

    async def test_leaves_nothing_without_pages(
        self, make_writer: Callable[[], PositionedWriter], tmp_path: Path
    ) -> None:
        """A head alone is no use."""
        with pytest.raises(StageError):
            await send(ChunkStream(MIB, fail_at=0), file_sink(tmp_path / "dump", make_writer()))

        assert names(tmp_path) == []

    async def test_reports_what_can_not_be_written(
        self,
        make_writer: Callable[[], PositionedWriter],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The file's name and the system's reason."""
        sink = file_sink(tmp_path / "dump", make_writer())
        monkeypatch.setattr(type(sink._writer), "write", full_disk)

        with pytest.raises(StageError, match=r"sink: .*dump\.partial: No space left on device"):
            await send(ChunkStream(MIB), sink)

        assert names(tmp_path) == []

    async def test_cancelled(
        self, make_writer: Callable[[], PositionedWriter], tmp_path: Path
    ) -> None:
        """What was written so far is kept, also when the abort itself is in a cancelled scope."""
        sink = file_sink(tmp_path / "dump", make_writer())
        stream = ChunkStream(3 * MIB, fail_at=2 * MIB, before_failure=anyio.sleep_forever)

        with anyio.move_on_after(0.2) as scope:
            await send(stream, sink)

        assert scope.cancelled_caught
        assert names(tmp_path) == ["dump.partial"]


async def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFinalHead:
    async def test_comes_when_all_else_is_durable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Data, sync, final head, sync: a power cut in between leaves a head that is honest."""
        events: list[str] = []

        class Recorder(PwriteWriter):
            async def write(self, fd: int, data: memoryview, offset: int) -> None:
                events.append("head" if offset == 0 else "rest")
                await super().write(fd, data, offset)

        monkeypatch.setattr(os, "fsync", lambda _fd: events.append("sync"))
        file = PartialFile(str(tmp_path / "dump"), overwrite=False, fsync=True)

        await send(ChunkStream(MIB), FileSink(file, Recorder()))

        assert [one for one in events if one != "rest"] == ["head", "sync", "head", "sync", "sync"]
        assert events.index("rest") == 1
        assert events[-5:] == ["rest", "sync", "head", "sync", "sync"]


def records(blob: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, data) of each record of a flattened stream, read by hand."""
    assert blob[:32] == b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)
    at = 4096
    while True:
        offset, size = struct.unpack_from(">qq", blob, at)
        at += 16
        if (offset, size) == (-1, -1):
            assert at == len(blob)
            return
        yield offset, blob[at : at + size]
        at += size


def rearranged(blob: bytes) -> bytes:
    """What makedumpfile -R makes of a stream: later records win, gaps are zeros."""
    out = bytearray()
    for offset, data in records(blob):
        out.extend(bytes(max(offset + len(data) - len(out), 0)))
        out[offset : offset + len(data)] = data
    return bytes(out)


class TestFlattenedFile:
    def sink(self, path: Path) -> FlattenedSink:
        return FlattenedSink(FileStream(PartialFile(str(path), overwrite=False, fsync=False)))

    async def test_is_the_dump_when_rearranged(self, tmp_path: Path) -> None:
        """Records carry their places; put there, they are the dump."""
        stream = ChunkStream(3 * MIB)

        receipt = await send(stream, self.sink(tmp_path / "dump"))

        blob = (tmp_path / "dump").read_bytes()
        assert rearranged(blob) == stream.expected()
        assert receipt.n_bytes == len(blob)
        assert names(tmp_path) == ["dump"]
        assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o600

    async def test_has_the_head_in_front(self, tmp_path: Path) -> None:
        """Who reads the stream as it comes knows what it is from its first record on."""
        stream = ChunkStream(MIB)
        await send(stream, self.sink(tmp_path / "dump"))

        places = [offset for offset, _ in records((tmp_path / "dump").read_bytes())]
        assert places[0] == 0
        assert places.count(0) == 1
        assert self.sink(tmp_path / "other").head_order is HeadOrder.FIRST

    @pytest.mark.parametrize("torn", [True, False])
    async def test_leaves_nothing_without_its_end(self, torn: bool, tmp_path: Path) -> None:
        """A stream that is cut opens nowhere."""
        with pytest.raises(StageError):
            await send(ChunkStream(MIB, fail_at=MIB // 2, torn=torn), self.sink(tmp_path / "dump"))

        assert names(tmp_path) == []


@pytest.mark.parametrize("order", [HeadOrder.BOTH, HeadOrder.LAST])
async def test_whole_dump_whose_name_was_taken(order: HeadOrder, tmp_path: Path) -> None:
    """It stays under its partial name and is told of, encrypted (one head, last) or not."""
    stream = ChunkStream(MIB, head_order=order)
    sink = file_sink(tmp_path / "dump")
    await sink.open()
    await run_flow(Flow(stream, [], sink, [Channel[Any]("chunks", MIB)]))
    (tmp_path / "dump").write_bytes(b"somebody else's")

    with pytest.raises(SinkError, match="appeared"):
        await sink.commit()

    assert await sink.abort() == str(tmp_path / "dump.partial")
    assert (tmp_path / "dump.partial").read_bytes() == stream.expected()


async def test_cancelled_aiofiles_writer_has_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cancels a write may use its buffer again, and the descriptor."""
    busy: list[str] = []

    class SlowFile(io.FileIO):
        def write(self, data: Any) -> int:
            busy.append("begun")
            time.sleep(0.1)
            busy.append("done")
            return super().write(data)

    monkeypatch.setattr("aiofiles.threadpool.sync_open", lambda fd, mode, **_: SlowFile(fd, mode))
    fd = os.open(tmp_path / "dump", os.O_RDWR | os.O_CREAT)
    writer = AiofilesWriter()

    with anyio.move_on_after(0.05) as scope:
        await writer.write(fd, memoryview(bytes(100)), 0)
        await anyio.lowlevel.checkpoint()
    seen = [*busy]
    await writer.close()
    os.close(fd)

    assert scope.cancelled_caught
    assert seen == ["begun", "done"]


@contextmanager
def nobody(pipe: int) -> Iterator[None]:
    """As a user who may not open `pipe`, and has it open; root may open anything."""
    os.fchmod(pipe, 0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


class TestPipe:
    async def read_all(self, fd: int, step: int) -> bytes:
        """Everything that comes out of a pipe, `step` bytes at a time."""
        out = bytearray()
        while piece := await anyio.to_thread.run_sync(os.read, fd, step):
            out += piece
        return bytes(out)

    @pytest.mark.parametrize("step", [777, 1 << 20])
    async def test_carries_the_stream(self, step: int) -> None:
        """However little the reader takes at a time."""
        reading, writing = os.pipe()
        stream = ChunkStream(2 * MIB, chunk_bytes=300_000)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await self.read_all(reading, step))

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await send(stream, FlattenedSink(StdoutStream(writing)))
                os.close(writing)
        finally:
            os.close(reading)

        assert rearranged(got[0]) == stream.expected()

    async def test_leaves_the_given_descriptor_as_it_was(self) -> None:
        """It may be shared with the shell: blocking before, blocking after, and open."""
        reading, writing = os.pipe()
        sink = FlattenedSink(StdoutStream(writing))
        await sink.open()

        assert os.get_blocking(writing)
        await sink.abort()
        os.fstat(writing)

        os.close(reading)
        os.close(writing)

    async def test_reader_goes_away(self) -> None:
        """One error that says how far it came, and no end record."""
        reading, writing = os.pipe()
        os.close(reading)

        with pytest.raises(StageError, match="the reader went away after 0 bytes") as caught:
            await send(ChunkStream(MIB), FlattenedSink(StdoutStream(writing)))

        assert isinstance(caught.value.cause, SinkError)
        os.close(writing)

    async def test_reader_that_sleeps(self) -> None:
        """The sink waits, and can be cancelled while it does."""
        reading, writing = os.pipe()
        stream = ChunkStream(2 * MIB)

        with anyio.move_on_after(0.2) as scope:
            await send(stream, FlattenedSink(StdoutStream(writing)))
        os.close(writing)
        got = await self.read_all(reading, 1 << 20)
        os.close(reading)

        assert scope.cancelled_caught
        assert got.startswith(HEADER)
        assert not got.endswith(END_RECORD)

    async def test_pipe_of_somebody_else(self) -> None:
        """One that may not be opened a second time takes the stream all the same."""
        reading, writing = os.pipe()
        stream = ChunkStream(MIB)
        got: list[bytes] = []
        sink = FlattenedSink(StdoutStream(writing))
        with nobody(writing):
            await sink.open()

        async def read() -> None:
            got.append(await self.read_all(reading, 1 << 20))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await run_flow(Flow(stream, [], sink, [Channel[Any]("chunks", MIB)]))
            await sink.commit()
            os.close(writing)
        os.close(reading)

        assert rearranged(got[0]) == stream.expected()

    async def test_reader_of_such_a_pipe_that_sleeps(self) -> None:
        """The sink can be cancelled here, too."""
        reading, writing = os.pipe()
        sink = FlattenedSink(StdoutStream(writing))
        with nobody(writing):
            await sink.open()

        with anyio.move_on_after(0.2) as scope:
            await run_flow(Flow(ChunkStream(MIB), [], sink, [Channel[Any]("chunks", MIB)]))
        await sink.abort()

        assert scope.cancelled_caught
        os.close(reading)
        os.close(writing)

    async def test_socket(self) -> None:
        """What sshd and inetd give; the reader may be slow."""
        ours, theirs = socket.socketpair()
        stream = ChunkStream(2 * MIB, chunk_bytes=300_000)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await self.read_all(ours.fileno(), 10_000))

        with ours:
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                with theirs:
                    await send(stream, FlattenedSink(StdoutStream(theirs.fileno())))
                    assert theirs.getblocking()

        assert rearranged(got[0]) == stream.expected()

    async def test_socket_whose_reader_sleeps(self) -> None:
        """The sink waits, and can be cancelled while it does."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with anyio.move_on_after(0.2) as scope:
                await send(ChunkStream(2 * MIB), FlattenedSink(StdoutStream(theirs.fileno())))

            assert scope.cancelled_caught

    async def test_socket_whose_reader_goes_away(self) -> None:
        """The same words as about a pipe."""
        ours, theirs = socket.socketpair()
        ours.close()
        with theirs, pytest.raises(StageError, match="the reader went away after 0 bytes"):
            await send(ChunkStream(MIB), FlattenedSink(StdoutStream(theirs.fileno())))

    async def test_terminal(self) -> None:
        """Is no place for a dump."""
        ours, theirs = os.openpty()
        try:
            with pytest.raises(UsageError, match="standard output is a terminal"):
                await FlattenedSink(StdoutStream(theirs)).open()
        finally:
            os.close(ours)
            os.close(theirs)
