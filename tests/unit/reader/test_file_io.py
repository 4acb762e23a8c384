"""Files as they are met: their size, their holes, and what is no file at all."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipeline.errors import DumpError
from stages.reader.file_io import PlainFile


def test_size_is_measured(tmp_path: Path) -> None:
    """A regular file's size is what can be read of it."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 12345)

    assert PlainFile(str(path)).size == 12345


@pytest.mark.parametrize("path", ["/proc/self/maps", "/proc/self/status"])
def test_size_of_proc_files_is_unknown(path: str) -> None:
    """Files of /proc say 0 and have content: read until nothing comes."""
    file = PlainFile(path)

    assert file.size is None
    assert not file.has_holes
    assert len(file.read(0, 1 << 20)) > 100
    file.close()


def test_read_is_short_at_the_end_only(tmp_path: Path) -> None:
    """Reads stop at the end of the file, wherever they start, and whatever they ask for."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    file = PlainFile(str(path))

    assert file.read(190, 50) == bytes(range(190, 200))
    assert file.read(200, 10) == b""
    assert file.read(1 << 63, 1 << 63) == b""
    assert file.read(0, 1 << 62) == bytes(range(200))
    view = memoryview(bytearray(20))
    assert file.read_into(view, 195) == 5
    assert view[:5] == bytes(range(195, 200))
    file.close()


def test_holes(tmp_path: Path) -> None:
    """Ranges that the file system has no blocks for, clipped to what was asked."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"x" * 65536)
        file.seek(4 << 20)
        file.write(b"x" * 65536)
        file.truncate(8 << 20)
    plain = PlainFile(str(path))
    if not list(plain.holes(0, 8 << 20)):
        pytest.skip("this file system does not tell where holes are")

    assert plain.has_holes
    assert list(plain.holes(0, 1 << 30)) == [(65536, 4 << 20), ((4 << 20) + 65536, 8 << 20)]
    assert list(plain.holes(1 << 20, 2 << 20)) == [(1 << 20, 2 << 20)]
    assert list(plain.holes(0, 65536)) == []
    assert list(plain.holes(5, 5)) == []


def test_full_file_has_no_holes(tmp_path: Path) -> None:
    """Without missing blocks nobody is asked for holes."""
    path = tmp_path / "full"
    path.write_bytes(b"x" * (1 << 20))

    assert not PlainFile(str(path)).has_holes


def test_missing_file(tmp_path: Path) -> None:
    """One line: the path, and the system's words."""
    with pytest.raises(DumpError, match=r"nowhere: No such file or directory$"):
        PlainFile(str(tmp_path / "nowhere"))


def test_path_with_a_nul() -> None:
    """A path that can't exist is an error like any other."""
    with pytest.raises(DumpError, match=r"null (byte|character)"):
        PlainFile("a\0b")


def test_directory(tmp_path: Path) -> None:
    """A directory is no image."""
    with pytest.raises(DumpError, match=r"^not a memory image: .* is a directory$"):
        PlainFile(str(tmp_path))


def test_fifo_without_a_writer_does_not_block(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to comes back at once."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DumpError, match="is a pipe"):
        PlainFile(str(tmp_path / "pipe"))


def test_socket(tmp_path: Path) -> None:
    """A socket in the file system can't be opened, and says so."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(DumpError, match="socket: "):
            PlainFile(str(tmp_path / "socket"))


def test_character_device() -> None:
    """/dev/zero would be read for ever."""
    with pytest.raises(DumpError, match="is a character device"):
        PlainFile("/dev/zero")


def test_empty_file(tmp_path: Path) -> None:
    """An empty file is called empty."""
    (tmp_path / "empty").touch()

    with pytest.raises(DumpError, match="is empty"):
        PlainFile(str(tmp_path / "empty"))


def test_nothing_stays_open_after_a_refusal(tmp_path: Path) -> None:
    """Refused files leave no descriptor behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))

    for path in (str(tmp_path), "/dev/zero", str(tmp_path / "nowhere")):
        with pytest.raises(DumpError):
            PlainFile(path)

    assert len(list(Path("/proc/self/fd").iterdir())) == before
