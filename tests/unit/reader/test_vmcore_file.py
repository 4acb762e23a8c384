"""Files that are read through mappings, on regular ones: /proc/vmcore itself is the lab's."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Self

import pytest

from stages.reader.file_io import PlainFile
from stages.reader.vmcore_file import LEAST_BYTES, VmcoreFile, open_local

SIZE = 3 * LEAST_BYTES + 777


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of random bytes that ends in the middle of a page."""
    path = tmp_path / "vmcore"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def mappings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Length of each mapping that is made."""
    made: list[int] = []

    class Counted(mmap.mmap):
        def __new__(cls, *args: int, **kwargs: int) -> Self:
            made.append(args[1])
            return super().__new__(cls, *args, **kwargs)

    monkeypatch.setattr(mmap, "mmap", Counted)
    return made


def read(file: PlainFile, off: int, n_bytes: int) -> bytes:
    buffer = bytearray(n_bytes)
    got = file.read_into(memoryview(buffer), off)
    return bytes(buffer[:got])


@pytest.mark.parametrize("off", [0, 1, 4095, 4096, 5000, LEAST_BYTES + 1])
@pytest.mark.parametrize("n_bytes", [LEAST_BYTES, LEAST_BYTES + 1, 2 * LEAST_BYTES, SIZE])
def test_any_range(path: Path, mappings: list[int], off: int, n_bytes: int) -> None:
    """Wherever it starts; up to the end of the file, and not beyond."""
    file = VmcoreFile(str(path))

    assert read(file, off, n_bytes) == path.read_bytes()[off : off + n_bytes]
    assert len(mappings) == 1
    file.close()


@pytest.mark.parametrize(("off", "n_bytes"), [(0, LEAST_BYTES - 1), (SIZE - 4096, LEAST_BYTES)])
def test_little_is_read(path: Path, mappings: list[int], off: int, n_bytes: int) -> None:
    """A mapping would cost more."""
    file = VmcoreFile(str(path))

    assert read(file, off, n_bytes) == path.read_bytes()[off : off + n_bytes]
    assert mappings == []
    file.close()


def test_past_the_end(path: Path, mappings: list[int]) -> None:
    """Nothing comes, as from any file."""
    file = VmcoreFile(str(path))

    assert read(file, SIZE + 10 * LEAST_BYTES, LEAST_BYTES) == b""
    assert mappings == []
    file.close()


def test_what_can_not_be_mapped_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody asks twice."""
    asked: list[int] = []

    def refuse(*args: object, **_: object) -> mmap.mmap:
        asked.append(1)
        raise OSError(19, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    file = VmcoreFile(str(path))

    assert read(file, 0, LEAST_BYTES) == path.read_bytes()[:LEAST_BYTES]
    assert read(file, 0, LEAST_BYTES) == path.read_bytes()[:LEAST_BYTES]
    assert asked == [1]
    file.close()


def test_only_files_of_proc_are_mapped(path: Path) -> None:
    """A regular file that somebody cuts short would end the process by SIGBUS."""
    regular, of_proc = open_local(str(path)), open_local("/proc/self/maps")

    assert type(regular) is PlainFile
    assert type(of_proc) is VmcoreFile
    regular.close()
    of_proc.close()
