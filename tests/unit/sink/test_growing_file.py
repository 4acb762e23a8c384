"""Room ahead of a growing file, and its early way to the disk, on a real ext4."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from pipeline.errors import StageError
from stages.sink.file import FileSink, PwriteWriter
from stages.sink.growing_file import FLUSH_BYTES, STEP_BYTES, EarlyFlush, RoomAhead
from stages.sink.partial_file import PartialFile
from tests.support.chunk_stream import ChunkStream, send

MIB = 1 << 20


def is_ext4(path: Path) -> bool:
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", str(path)], check=True, capture_output=True, text=True
    )
    return found.stdout.strip() == "ext2/ext3"


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """A folder on ext4."""
    if not is_ext4(tmp_path):
        pytest.skip(f"{tmp_path} is not on ext4")
    return tmp_path


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A folder in memory."""
    folder = Path(f"/dev/shm/growing-{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def opened(folder: Path) -> int:
    return os.open(folder / "file", os.O_RDWR | os.O_CREAT)


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_blocks_come_before_they_are_needed(ext4: Path) -> None:
    """The file stays as short as it is, and has room for a step more."""
    fd = opened(ext4)
    room = RoomAhead(fd, most_bytes=1 << 40)

    assert room.ends_before(MIB)
    room.extend(MIB)

    assert os.fstat(fd).st_size == 0
    assert MIB + STEP_BYTES <= allocated(fd) < 2 * STEP_BYTES
    assert not room.ends_before(MIB + STEP_BYTES)
    assert room.ends_before(MIB + STEP_BYTES + 1)
    os.close(fd)


def test_no_more_than_the_file_can_get(ext4: Path) -> None:
    """A small dump takes no 64 MiB for a moment."""
    fd = opened(ext4)
    room = RoomAhead(fd, most_bytes=3 * MIB)

    room.extend(MIB)

    assert 3 * MIB <= allocated(fd) < 4 * MIB
    os.close(fd)


def test_other_file_systems_are_left_alone(tmpfs: Path) -> None:
    """tmpfs would clear the memory that is to be written in a moment."""
    fd = opened(tmpfs)
    room = RoomAhead(fd, most_bytes=1 << 30)

    assert not room.ends_before(MIB)
    assert not room.is_used
    os.close(fd)


async def test_a_dump_keeps_no_room_it_does_not_need(ext4: Path) -> None:
    """What was allocated for pages that turned out small goes back."""
    stream = ChunkStream(3 * MIB, most_bytes=60 * MIB)
    file = PartialFile(str(ext4 / "dump"), overwrite=False, fsync=True)

    await send(stream, FileSink(file, PwriteWriter()))

    status = (ext4 / "dump").stat()
    assert (ext4 / "dump").read_bytes() == stream.expected()
    assert status.st_blocks * 512 < stream.size + MIB


async def test_neither_does_what_is_left_of_one(ext4: Path) -> None:
    """A partial file is no larger than what is in it."""
    stream = ChunkStream(3 * MIB, most_bytes=60 * MIB, fail_at=2 * MIB)
    file = PartialFile(str(ext4 / "dump"), overwrite=False, fsync=True)

    with pytest.raises(StageError):
        await send(stream, FileSink(file, PwriteWriter()))

    status = (ext4 / "dump.partial").stat()
    assert status.st_blocks * 512 < stream.size + MIB


class Recorder(EarlyFlush):
    """Remembers what it would have written back, and in which thread."""

    def __init__(self, fd: int, *, seconds: float = 0) -> None:
        super().__init__(fd)
        self.seconds = seconds
        self.asked: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def _start_writing(self, start: int, end: int) -> None:
        time.sleep(self.seconds)
        self.asked.append((start, end))
        self.threads.add(threading.get_ident())


async def test_writing_back_starts_before_the_end(tmp_path: Path) -> None:
    """In steps, without gaps, and only what has been written."""
    flush = Recorder(opened(tmp_path))
    at = 5 * MIB
    async with anyio.create_task_group() as group:
        group.start_soon(flush.run)
        for _ in range(40):
            flush.wrote(at, at + MIB)
            at += MIB
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            while not flush.asked or at - flush.asked[-1][1] >= FLUSH_BYTES:  # noqa: ASYNC110  # a thread
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()

    assert flush.asked[0][0] == 5 * MIB
    assert all(one[1] == other[0] for one, other in pairwise(flush.asked))
    assert all(end - start >= FLUSH_BYTES for start, end in flush.asked)


async def test_a_slow_device_holds_nobody_up(tmp_path: Path) -> None:
    """It is waited for in a thread, and gets all that came meanwhile at once."""
    flush = Recorder(opened(tmp_path), seconds=0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(flush.run)
        for nth in range(10):
            flush.wrote(nth * FLUSH_BYTES, (nth + 1) * FLUSH_BYTES)
            await anyio.sleep(0.001)
        with anyio.fail_after(5):
            while not flush.asked or flush.asked[-1][1] < 10 * FLUSH_BYTES:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()

    assert len(flush.asked) < 5
    assert threading.get_ident() not in flush.threads
