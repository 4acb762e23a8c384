"""Images with holes: zero without reading, in bounded memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.flow.items import PageState
from pipeline.memory.extents import Extent
from stages.reader.elf_image import ElfImage
from stages.reader.hole_windows import MIN_HOLE_BYTES, WINDOW_PAGES
from stages.reader.probe import open_image
from tests.support.images import read_all, states_of
from tests.support.vmcore_writer import PAGE, VmcoreWriter, described

STEP = 65536 // PAGE
"""Pages of the granularity at which `write(holes=True)` leaves zeros out."""


def sparse_image(path: Path, data: bytes, *, paddr: int = 0) -> ElfImage:
    writer = VmcoreWriter(data_align=65536).load(paddr=paddr, data=data)
    image = open_image(str(writer.write(path, holes=True)))
    assert isinstance(image, ElfImage)
    if not len(image.holes(0, 1 << 40)):
        pytest.skip("this file system does not tell where holes are")
    return image


def test_holes_are_zero_without_reading(tmp_path: Path) -> None:
    """Whole pages of a hole are ZERO, data on both sides is data; one call may span both."""
    data = described(0, STEP) + bytes(4 * STEP * PAGE) + described(5 * STEP, STEP)
    image = sparse_image(tmp_path / "core", data)

    assert list(image.holes(0, 6 * STEP)) == [Extent(STEP, 5 * STEP)]
    assert list(image.holes(2 * STEP, 3 * STEP)) == [Extent(2 * STEP, 3 * STEP)]
    assert list(image.holes(0, STEP)) == []
    found = states_of(image, range(6 * STEP))
    zero = {pfn for pfn, state in found.items() if state is PageState.ZERO}
    assert zero == set(range(STEP, 5 * STEP))
    pages = read_all(image, range(6 * STEP))
    assert b"".join(page or b"?" for page in pages.values()) == data
    image.close()


@pytest.mark.parametrize("offset", [0, 100])
def test_scattered_reads_across_holes(offset: int, tmp_path: Path) -> None:
    """Every page comes out right whether its load is page aligned or not."""
    data = b"".join(
        bytes(STEP * PAGE) if block % 3 == 1 else described(block * STEP, STEP)
        for block in range(12)
    )
    image = sparse_image(tmp_path / "core", data, paddr=offset)
    whole = bytes(offset) + data
    wanted = [*range(0, 12 * STEP, 3), 12 * STEP - 1]

    found = read_all(image, wanted)
    image.close()

    assert found == {pfn: whole[pfn * PAGE : (pfn + 1) * PAGE] for pfn in wanted}


def test_small_holes_are_read(tmp_path: Path) -> None:
    """A hole below the threshold is data that happens to be zero."""
    path = tmp_path / "core"
    data = described(0, 64)
    VmcoreWriter(data_align=65536).load(paddr=0, data=data).write(path)
    small = MIN_HOLE_BYTES // 2
    with path.open("r+b") as file:
        file.seek(65536 + 4 * PAGE)
        file.write(bytes(small))
    descriptor = os.open(path, os.O_RDWR)
    try:
        punched = punch_hole(descriptor, 65536 + 4 * PAGE, small)
    finally:
        os.close(descriptor)
    if not punched:
        pytest.skip("this file system can't punch holes")
    image = open_image(str(path))

    assert len(image.holes(0, 64)) == 0
    assert states_of(image, [4])[4] is PageState.DATA
    assert read_all(image, [4]) == {4: bytes(PAGE)}
    image.close()


def punch_hole(descriptor: int, start: int, size: int) -> bool:
    """FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, which Python does not offer."""
    import ctypes

    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return bool(fallocate(descriptor, 3, start, size) == 0)


def test_windows_are_forgotten_and_found_again(tmp_path: Path) -> None:
    """An image far larger than what is kept in memory gives the same answer every time."""
    path = tmp_path / "core"
    n_windows = 600
    n_pages = n_windows * WINDOW_PAGES
    writer = VmcoreWriter(data_align=65536)
    writer.load(paddr=0, mem_size=n_pages * PAGE, file_size=n_pages * PAGE, file_off=65536)
    writer.write(path)
    with path.open("r+b") as file:
        file.truncate(65536 + n_pages * PAGE)
        for window in range(0, n_windows, 50):
            file.seek(65536 + window * WINDOW_PAGES * PAGE)
            file.write(described(window * WINDOW_PAGES, STEP))
    image = open_image(str(path))
    if not len(image.holes(0, n_pages)):
        pytest.skip("this file system does not tell where holes are")

    for _ in range(2):
        holes = image.holes(0, n_pages)
        assert holes.n_pages == n_pages - n_windows // 50 * STEP
        wanted = np.arange(0, n_pages, 10 * WINDOW_PAGES, dtype=np.uint64)
        out = np.empty((len(wanted), PAGE), dtype=np.uint8)
        states = image.read_pages(wanted, out)
        assert (states == np.where(wanted % (50 * WINDOW_PAGES) == 0, 0, 1)).all()
        assert out[0].tobytes() == described(0)
    image.close()


def test_file_full_of_holes_is_asked_only_so_often(tmp_path: Path) -> None:
    """Holes past the bound of a window count as data, and read as zero all the same."""
    path = tmp_path / "core"
    n_blocks = 1200
    VmcoreWriter(data_align=65536).load(
        paddr=0, mem_size=n_blocks * 65536, file_size=n_blocks * 65536, file_off=65536
    ).write(path)
    with path.open("r+b") as file:
        file.truncate(65536 * (n_blocks + 1))
        for block in range(0, n_blocks, 2):
            file.seek(65536 * (block + 1))
            file.write(described(block * STEP))
    image = open_image(str(path))
    holes = image.holes(0, n_blocks * STEP)
    if not len(holes):
        pytest.skip("this file system does not tell where holes are")

    assert 400 <= len(holes) < 600
    last = n_blocks * STEP - 1
    assert states_of(image, [last])[last] is PageState.DATA
    assert read_all(image, [last]) == {last: bytes(PAGE)}
    image.close()
