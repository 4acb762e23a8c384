"""Pages that the device does not give: only they are lost, and everyone is told once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.memory.extents import Extent
from stages.reader.elf_image import ElfImage
from stages.reader.file_io import PlainFile
from stages.reader.kdump_image import KdumpImage
from stages.reader.read_errors import MAX_LISTED, BadRun, ReadErrors
from tests.support.images import read_all
from tests.support.kdump_writer import KdumpWriter
from tests.support.vmcore_writer import PAGE, VmcoreWriter, described


class FailingFile(PlainFile):
    """A file on a disk with bad sectors, and with reads that are served in pieces."""

    def __init__(self, path: Path, *, most_at_once: int = 1 << 30) -> None:
        super().__init__(str(path))
        self.bad: set[int] = set()
        """Bytes that can't be read."""
        self.code = errno.EIO
        self._most = most_at_once

    def read_into(self, view: memoryview, off: int) -> int:
        view = view[: self._most]
        hit = [byte for byte in self.bad if off <= byte < off + len(view)]
        if hit and min(hit) - off < PAGE:
            raise OSError(self.code, os.strerror(self.code))
        if hit:  # the kernel gives what comes before, and fails the next read
            view = view[: (min(hit) - off) // PAGE * PAGE]
        return super().read_into(view, off)


def image_of(path: Path, n_pages: int, **kwargs: int) -> tuple[ElfImage, FailingFile, int]:
    writer = VmcoreWriter().load(paddr=0, data=described(0, n_pages))
    file = FailingFile(writer.write(path), **kwargs)
    return ElfImage(file), file, writer.header_bytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    bad=st.sets(st.integers(0, 31), max_size=6),
    wanted=st.one_of(st.just(set(range(32))), st.sets(st.integers(0, 31), min_size=1)),
    most=st.sampled_from([1 << 30, 5000, PAGE, 1000]),
)
def test_only_bad_pages_are_lost(
    bad: set[int], wanted: set[int], most: int, tmp_path: Path
) -> None:
    """However reads are cut up, every good page comes, and every bad one is counted."""
    image, file, start = image_of(tmp_path / "core", 32, most_at_once=most)
    file.bad = {start + pfn * PAGE + 17 for pfn in bad}

    found = read_all(image, wanted)
    image.close()

    assert found == {pfn: None if pfn in bad else described(pfn) for pfn in wanted}
    assert image.read_errors.n_pages == len(bad & wanted)
    listed = {pfn for run in image.read_errors.runs for pfn in range(*run.pages)}
    assert listed == bad & wanted


def test_each_run_is_told_once(tmp_path: Path) -> None:
    """The caller's function hears of runs, with the system's reason, not of pages."""
    told: list[BadRun] = []
    writer = VmcoreWriter().load(paddr=0, data=described(0, 16))
    file = FailingFile(writer.write(tmp_path / "core"))
    image = ElfImage(file, told.append)
    file.bad = {writer.header_bytes + pfn * PAGE for pfn in (3, 4, 5, 9)}

    read_all(image, range(16))
    image.close()

    assert told == [
        BadRun(Extent(3, 6), "Input/output error"),
        BadRun(Extent(9, 10), "Input/output error"),
    ]


def test_bad_part_of_an_odd_page(tmp_path: Path) -> None:
    """A page put together from parts is missing when one part is."""
    writer = VmcoreWriter().load(paddr=0x800, data=b"a" * PAGE)
    file = FailingFile(writer.write(tmp_path / "core"))
    image = ElfImage(file)
    file.bad = {writer.header_bytes + PAGE - 1}

    assert read_all(image, [0, 1]) == {0: bytes(0x800) + b"a" * 0x800, 1: None}
    image.close()


def test_odd_page_that_comes_in_pieces(tmp_path: Path) -> None:
    """A read that brings less than was asked for is not the end of the file."""
    writer = VmcoreWriter().load(paddr=0x800, data=b"a" * PAGE)
    image = ElfImage(FailingFile(writer.write(tmp_path / "core"), most_at_once=1000))

    assert read_all(image, [0, 1]) == {
        0: bytes(0x800) + b"a" * 0x800,
        1: b"a" * 0x800 + bytes(0x800),
    }
    image.close()


def test_our_own_mistakes_are_not_hidden(tmp_path: Path) -> None:
    """EBADF is a bug of the program, and raised as such."""
    image, file, start = image_of(tmp_path / "core", 4)
    file.bad, file.code = {start}, errno.EBADF

    with pytest.raises(OSError, match="Bad file descriptor"):
        read_all(image, [0])
    image.close()


def test_bad_sector_in_a_kdump(tmp_path: Path) -> None:
    """In a compressed dump too, pages beside a bad sector are read one by one."""
    writer = KdumpWriter(max_mapnr=64)
    for pfn in range(8):
        writer.page(pfn, described(pfn), codec="lzo" if pfn % 2 else "none")
    file = FailingFile(writer.write(tmp_path / "dump"))
    image = KdumpImage(file)
    table = next(image.iter_descriptors())[1]
    file.bad = {int(table["offset"][pfn]) + 1 for pfn in (2, 5)}

    found = read_all(image, range(8))
    image.close()

    assert found == {pfn: None if pfn in (2, 5) else described(pfn) for pfn in range(8)}
    assert image.read_errors.reasons == {"Input/output error": 2}


def test_list_of_runs_is_bounded() -> None:
    """Millions of bad pages cost a counter, not memory."""
    told: list[BadRun] = []
    errors = ReadErrors(told.append)

    errors.add(list(range(0, 4 * MAX_LISTED, 2)), "Input/output error")
    for number in range(2 * MAX_LISTED):
        errors.add([number], f"reason {number}")

    assert len(errors.runs) == len(told) == MAX_LISTED
    assert errors.n_pages == 4 * MAX_LISTED
    assert len(errors.reasons) <= MAX_LISTED + 1


def test_runs_that_touch_are_put_together() -> None:
    """A bad stretch that is met batch by batch is one run."""
    errors = ReadErrors()

    for first in range(0, 100, 10):
        errors.add(np.arange(first, first + 10).tolist(), "past the end of the file")

    assert errors.runs == [BadRun(Extent(0, 100), "past the end of the file")]
