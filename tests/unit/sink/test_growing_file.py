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


async def test_writing_back_starts_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps, without gaps, and only what has been written."""
    fd = opened(tmp_path)
    flush = EarlyFlush(fd)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(flush, "_start_writing", lambda start, end: asked.append((start, end)))

    at = 5 * MIB
    for _ in range(40):
        await flush.wrote(at, at + MIB)
        at += MIB

    assert asked[0] == (5 * MIB, 5 * MIB + FLUSH_BYTES)
    assert all(one[1] == other[0] for one, other in pairwise(asked))
    assert at - asked[-1][1] < FLUSH_BYTES
    os.close(fd)


async def test_a_slow_device_holds_up_no_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one call that took long, the others are made in a thread."""
    fd = opened(tmp_path)
    flush = EarlyFlush(fd)
    threads: list[int] = []

    def slow(_start: int, _end: int) -> None:
        threads.append(threading.get_ident())
        time.sleep(0.01)

    monkeypatch.setattr(flush, "_start_writing", slow)
    for nth in range(3):
        await flush.wrote(nth * FLUSH_BYTES, (nth + 1) * FLUSH_BYTES)

    assert threads[0] == threading.get_ident()
    assert threading.get_ident() not in threads[1:]
    os.close(fd)
