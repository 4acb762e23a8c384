"""ELF images: pages against a model, and each peculiarity of real files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.flow.items import PageState
from pipeline.memory.extents import Extent
from stages.reader.elf_image import ElfImage
from stages.reader.file_io import PlainFile
from stages.reader.probe import open_image
from tests.support.images import read_all, states_of
from tests.support.vmcore_writer import (
    EM_386,
    EM_AARCH64,
    EM_S390,
    NO_ADDRESS,
    PAGE,
    VmcoreWriter,
    described,
    pack_note,
    prstatus,
)

VMCOREINFO = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"


@contextmanager
def opened(writer: VmcoreWriter, path: Path, *, cut_at: int | None = None) -> Iterator[ElfImage]:
    image = open_image(str(writer.write(path, cut_at=cut_at)))
    assert isinstance(image, ElfImage)
    try:
        yield image
    finally:
        image.close()


def qemu_writer() -> VmcoreWriter:
    return VmcoreWriter().note("CORE", 1, prstatus()).note("QEMU", 0, bytes(440))


class Load:
    """A load of the model: unaligned, overlapping, and partly saved as hypothesis likes."""

    def __init__(self, paddr: int, file_size: int, tail: int, seed: int) -> None:
        self.paddr = paddr
        self.data = np.random.default_rng(seed).integers(1, 256, file_size, np.uint8).tobytes()
        self.mem_size = file_size + tail


loads = st.lists(
    st.builds(
        Load,
        paddr=st.one_of(st.integers(0, 12 * PAGE), st.integers(0, 12).map(lambda n: n * PAGE)),
        file_size=st.one_of(st.integers(0, 5 * PAGE), st.integers(0, 5).map(lambda n: n * PAGE)),
        tail=st.one_of(st.just(0), st.integers(1, 3 * PAGE)),
        seed=st.integers(0, 2**32),
    ).filter(lambda load: load.mem_size > 0),
    min_size=1,
    max_size=6,
)
N_PAGES = 24


def model(given_loads: list[Load]) -> tuple[set[int], set[int], bytes]:
    """Pages that exist, pages with a byte in the file, and all of memory (zero elsewhere)."""
    memory = np.zeros(N_PAGES * PAGE, dtype=np.uint8)
    ram, covered = np.zeros_like(memory, dtype=bool), np.zeros_like(memory, dtype=bool)
    for load in reversed(given_loads):  # the first in file order is laid on top
        ram[load.paddr : load.paddr + load.mem_size] = True
        span = slice(load.paddr, load.paddr + len(load.data))
        covered[span] = True
        memory[span] = np.frombuffer(load.data, np.uint8)
    by_page = (N_PAGES, PAGE)
    return (
        set(np.flatnonzero(ram.reshape(by_page).any(axis=1)).tolist()),
        set(np.flatnonzero(covered.reshape(by_page).any(axis=1)).tolist()),
        memory.tobytes(),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    given_loads=loads,
    qemu=st.booleans(),
    wanted=st.sets(st.integers(0, N_PAGES + 3), min_size=1),
    align=st.sampled_from([1, 4096]),
)
def test_pages_against_a_model(
    given_loads: list[Load], qemu: bool, wanted: set[int], align: int, tmp_path: Path
) -> None:
    """Any loads, any pages: every byte is the first covering load's, or zero, or missing."""
    writer = qemu_writer() if qemu else VmcoreWriter().note("CORE", 1, prstatus())
    writer.data_align = align
    for load in given_loads:
        writer.load(paddr=load.paddr, data=load.data, mem_size=load.mem_size)
    ram, covered, memory = model(given_loads)

    with opened(writer, tmp_path / "core") as image:
        ram_pages = {pfn for extent in image.ram for pfn in range(*extent)}
        saved = {pfn for extent in image.saved for pfn in range(*extent)}
        found = read_all(image, wanted)

    assert ram_pages == ram
    assert image.max_mapnr == max(ram) + 1
    # QEMU's tails are zero, unless a load goes on where one ends: then a dump tool was at work.
    went_on = any(
        len(load.data) < load.mem_size and following.paddr == load.paddr + load.mem_size
        for load, following in pairwise(given_loads)
    )
    assert saved == (ram if qemu and not went_on else covered)
    for pfn, page in found.items():
        expected = memory[pfn * PAGE : (pfn + 1) * PAGE] if pfn in saved else None
        assert page == expected, f"pfn {pfn}"


def lost_pages(image: ElfImage, cut_at: int) -> set[int]:
    """Pages with a byte behind `cut_at`, by what the loads say of themselves."""
    where = np.full(N_PAGES * PAGE, -1, dtype=np.int64)
    for load in reversed(image.info.loads):
        assert load.paddr is not None
        places = np.arange(load.file_off, load.file_off + load.file_size)
        where[load.paddr : load.paddr + load.file_size] = places
    return set(np.flatnonzero((where >= cut_at).reshape(N_PAGES, PAGE).any(axis=1)).tolist())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(given_loads=loads, share=st.floats(0, 1), is_single=st.booleans())
def test_cut_loses_the_pages_behind_it_and_no_others(
    given_loads: list[Load], share: float, is_single: bool, tmp_path: Path
) -> None:
    """Wherever the data is cut, also inside a page: whole pages are as they were."""
    writer = VmcoreWriter().note("CORE", 1, prstatus())
    for load in given_loads:
        writer.load(paddr=load.paddr, data=load.data, mem_size=load.mem_size)
    n_bytes = sum(len(load.data) for load in given_loads)
    size = len(writer.pack())
    cut_at = size - n_bytes + int(share * n_bytes)
    _, covered, memory = model(given_loads)

    with opened(writer, tmp_path / "core", cut_at=cut_at) as image:
        lost = lost_pages(image, cut_at)
        found: dict[int, bytes | None] = {}
        for wanted in [{pfn} for pfn in covered] if is_single else [covered]:
            found |= read_all(image, wanted)
        is_told = image.info.incomplete is not None

    assert is_told == (cut_at < size)
    for pfn in covered:
        expected = None if pfn in lost else memory[pfn * PAGE : (pfn + 1) * PAGE]
        assert found[pfn] == expected, f"pfn {pfn}"


@pytest.mark.parametrize("bits", [32, 64])
def test_left_out_load_that_claims_a_size(bits: Literal[32, 64], tmp_path: Path) -> None:
    """A p_offset of all ones is no place in the file, whatever p_filesz says."""
    writer = VmcoreWriter(machine=EM_386, bits=bits).load(paddr=0, data=described(0, 2))
    writer.load(paddr=16 * PAGE, mem_size=PAGE, file_size=PAGE, file_off=(1 << bits) - 1)

    with opened(writer, tmp_path / "core") as image:
        assert list(image.ram) == [Extent(0, 2), Extent(16, 17)]
        assert list(image.saved) == [Extent(0, 2)]
        assert read_all(image, [1, 16]) == {1: described(1), 16: None}


def test_self_describing_pages(tmp_path: Path) -> None:
    """Long runs and scattered pages alike come from where they should."""
    writer = VmcoreWriter(data_align=PAGE)
    writer.load(paddr=0x1000, data=described(1, 159)).load(paddr=0x100000, data=described(256, 900))
    with opened(writer, tmp_path / "core") as image:
        run = read_all(image, range(300, 800))
        scattered = read_all(image, [1, 3, 4, 5, 159, 256, 300, 302, 1155])

    assert all(page == described(pfn) for pfn, page in (run | scattered).items())


def test_reading_into_a_larger_buffer(tmp_path: Path) -> None:
    """Only as many rows are written as pages are asked for."""
    writer = VmcoreWriter().load(paddr=0, data=described(0, 8))
    out = np.full((8, PAGE), 7, dtype=np.uint8)
    with opened(writer, tmp_path / "core") as image:
        states = image.read_pages(np.array([2, 3], dtype=np.uint64), out)

    assert states.tolist() == [0, 0]
    assert out[:2].tobytes() == described(2, 2)
    assert (out[2:] == 7).all()


def test_no_pages(tmp_path: Path) -> None:
    """Asking for nothing is answered with nothing."""
    with opened(VmcoreWriter().load(paddr=0, data=described(0)), tmp_path / "core") as image:
        assert read_all(image, []) == {}


def test_overlapping_loads_count_once(tmp_path: Path) -> None:
    """The kernel-text load overlaps RAM: union for the pages, first load for the data."""
    writer = VmcoreWriter().load(paddr=0x4000, data=b"K" * 2 * PAGE, vaddr=0xFFFFFFFF81000000)
    writer.load(paddr=0, data=b"R" * 16 * PAGE)
    with opened(writer, tmp_path / "core") as image:
        found = read_all(image, range(16))
        assert image.ram.n_pages == 16

    assert [page and page[:1] for page in found.values()] == [b"R"] * 4 + [b"K"] * 2 + [b"R"] * 10


def test_loads_without_physical_address_are_left_out(tmp_path: Path) -> None:
    """p_paddr of all ones (vmalloc in /proc/kcore) describes no page."""
    writer = VmcoreWriter().load(paddr=None, data=b"v" * PAGE, vaddr=0xFFFFC90000000000)
    writer.load(paddr=0x2000, data=described(2))
    with opened(writer, tmp_path / "core") as image:
        assert list(image.ram) == [Extent(2, 3)]
        assert image.info.loads[0].paddr is None
        assert read_all(image, [2]) == {2: described(2)}


def test_load_that_is_not_in_the_file(tmp_path: Path) -> None:
    """p_offset of all ones with p_filesz 0: QEMU left the memory out, it is not zero but gone."""
    writer = qemu_writer().load(paddr=0, data=described(0))
    writer.load(paddr=0x10000, mem_size=4 * PAGE, file_off=NO_ADDRESS)
    with opened(writer, tmp_path / "core") as image:
        assert list(image.ram) == [Extent(0, 1), Extent(16, 20)]
        assert list(image.saved) == [Extent(0, 1)]
        assert states_of(image, [16])[16] is PageState.MISSING


def test_tail_of_a_filtered_dump_is_missing(tmp_path: Path) -> None:
    """p_memsz beyond p_filesz in makedumpfile's ELF dumps: pages that were left out."""
    writer = VmcoreWriter().load(paddr=0, data=described(0, 2), mem_size=8 * PAGE)
    with opened(writer, tmp_path / "core") as image:
        assert list(image.ram) == [Extent(0, 8)]
        assert list(image.saved) == [Extent(0, 2)]
        assert image.saved_bitmap().count() == 2
        assert states_of(image, [1, 2]) == {1: PageState.DATA, 2: PageState.MISSING}
        assert len(image.holes(0, 8)) == 0


def test_tail_of_a_qemu_dump_is_zero(tmp_path: Path) -> None:
    """The same from QEMU reads as zero, and is known to without reading."""
    writer = qemu_writer().load(paddr=0, data=described(0, 2), mem_size=8 * PAGE)
    with opened(writer, tmp_path / "core") as image:
        assert list(image.saved) == [Extent(0, 8)]
        assert list(image.holes(0, 100)) == [Extent(2, 8)]
        found = states_of(image, range(8))

    assert list(found.values()) == [PageState.DATA] * 2 + [PageState.ZERO] * 6


def test_tail_of_a_filtered_qemu_dump_is_missing(tmp_path: Path) -> None:
    """makedumpfile keeps QEMU's notes in its ELF dumps: where a load goes on behind a tail, the
    tail was left out, whatever the notes say."""
    writer = qemu_writer().load(paddr=0, data=described(0, 2), mem_size=8 * PAGE)
    writer.load(paddr=8 * PAGE, data=described(8, 2))
    with opened(writer, tmp_path / "core") as image:
        assert list(image.saved) == [Extent(0, 2), Extent(8, 10)]


def test_fractional_pages(tmp_path: Path) -> None:
    """A load starts and ends inside a page: the rest of it is zero, or another load's."""
    writer = VmcoreWriter().load(paddr=0x1800, data=b"a" * 0x900)  # 0x1800-0x2100
    writer.load(paddr=0x2400, data=b"b" * 0x400)  # 0x2400-0x2800
    with opened(writer, tmp_path / "core") as image:
        found = read_all(image, [1, 2])
        assert list(image.saved) == [Extent(1, 3)]

    assert found[1] == bytes(0x800) + b"a" * 0x800
    assert found[2] == b"a" * 0x100 + bytes(0x300) + b"b" * 0x400 + bytes(0x800)


@pytest.mark.parametrize(
    "writer",
    [
        VmcoreWriter(headers_at=192),
        VmcoreWriter(extended=True),
        VmcoreWriter(bits=32, machine=EM_386),
        VmcoreWriter(bits=32, machine=EM_386, extended=True),
        VmcoreWriter(order=">", machine=EM_S390),
        VmcoreWriter(lies={"e_ehsize": 8}),
    ],
    ids=["e_phoff 192", "PN_XNUM", "ELF32", "ELF32 PN_XNUM", "big-endian", "QEMU's e_ehsize"],
)
def test_header_variants(writer: VmcoreWriter, tmp_path: Path) -> None:
    """Headers are found through their offsets, in every word size, order and numbering."""
    writer.note("CORE", 1, prstatus()).note("CORE", 1, prstatus()).vmcoreinfo(VMCOREINFO)
    writer.load(paddr=0x3000, data=described(3, 5))
    with opened(writer, tmp_path / "core") as image:
        assert image.info.nr_cpus == 2
        assert image.info.vmcoreinfo == VMCOREINFO.encode()
        assert read_all(image, range(3, 8)) == {pfn: described(pfn) for pfn in range(3, 8)}


def test_many_loads(tmp_path: Path) -> None:
    """More loads than 16 bits count, through extended numbering, are all found."""
    n_loads = 66_000
    writer = VmcoreWriter(extended=True)
    for pfn in range(n_loads):
        writer.load(paddr=2 * pfn * PAGE, mem_size=PAGE)
    writer.load(paddr=2 * n_loads * PAGE, data=described(2 * n_loads))
    with opened(writer, tmp_path / "core") as image:
        assert image.ram.n_pages == n_loads + 1
        assert read_all(image, [2 * n_loads]) == {2 * n_loads: described(2 * n_loads)}


def test_notes_are_carried_verbatim(tmp_path: Path) -> None:
    """The first PT_NOTE as it stands, with the place of VMCOREINFO inside; all are searched."""
    writer = VmcoreWriter().note("CORE", 1, prstatus()).raw_notes(bytes(24))
    writer.vmcoreinfo(VMCOREINFO).next_note_segment().note("CORE", 1, prstatus())
    writer.note("ERASEINFO", 0, b"erase it size 8\n").load(paddr=0, data=described(0))
    with opened(writer, tmp_path / "core") as image:
        info = image.info

    assert info.notes == (
        pack_note("CORE", 1, prstatus())
        + bytes(24)
        + pack_note("VMCOREINFO", 0, VMCOREINFO.encode())
    )
    assert info.vmcoreinfo_off is not None
    assert info.notes[info.vmcoreinfo_off :].startswith(VMCOREINFO.encode())
    assert info.nr_cpus == 2
    assert info.eraseinfo == b"erase it size 8\n"
    assert (info.form, info.machine, info.page_size) == ("elf", "x86_64", 4096)


def test_page_size_is_the_kernels(tmp_path: Path) -> None:
    """PAGESIZE of VMCOREINFO decides what a page is."""
    size = 65536
    writer = VmcoreWriter(machine=EM_AARCH64).vmcoreinfo("OSRELEASE=6.1\nPAGESIZE=65536\n")
    writer.load(paddr=2 * size, data=described(2, 3, size))
    with opened(writer, tmp_path / "core") as image:
        assert (image.info.machine, image.info.page_size) == ("aarch64", size)
        assert list(image.ram) == [Extent(2, 5)]
        assert read_all(image, [3]) == {3: described(3, 1, size)}


def test_no_notes_at_all(tmp_path: Path) -> None:
    """A core without PT_NOTE is still memory."""
    with opened(VmcoreWriter().load(paddr=0, data=described(0)), tmp_path / "core") as image:
        assert (image.info.notes, image.info.vmcoreinfo, image.info.nr_cpus) == (b"", None, 0)


def test_marked_incomplete(tmp_path: Path) -> None:
    """e_flags bit 0 is how makedumpfile marks an ELF dump that it could not finish."""
    writer = VmcoreWriter(e_flags=1).load(paddr=0, data=described(0))
    with opened(writer, tmp_path / "core") as image:
        assert image.info.incomplete == "marked incomplete by its writer"


def test_cut_file(tmp_path: Path) -> None:
    """Pages past the end of a cut file are missing, the others are there, and the image says so."""
    writer = VmcoreWriter().load(paddr=0, data=described(0, 8))
    cut_at = writer.header_bytes + 3 * PAGE + 100
    with opened(writer, tmp_path / "core", cut_at=cut_at) as image:
        contiguous, scattered = read_all(image, range(8)), read_all(image, [1, 3, 7])
        assert image.saved.n_pages == 8
        assert image.info.incomplete is not None
        assert f"cut at {cut_at} bytes" in image.info.incomplete

    kept: dict[int, bytes | None] = {pfn: described(pfn) for pfn in range(3)}
    assert contiguous == kept | dict.fromkeys(range(3, 8))
    assert scattered == {1: described(1), 3: None, 7: None}
    assert image.read_errors.runs[0].pages == Extent(3, 8)
    assert image.read_errors.n_pages == 7


def test_forked_children_read_at_the_same_time(tmp_path: Path) -> None:
    """Children share the open file with their parent, and nothing else that matters."""
    writer = VmcoreWriter().load(paddr=0, data=described(0, 64))
    with opened(writer, tmp_path / "core") as image:
        children = []
        for first in (0, 16, 32, 48):
            child = os.fork()
            if child == 0:
                good = all(
                    read_all(image, range(first, first + 16))
                    == {pfn: described(pfn) for pfn in range(first, first + 16)}
                    for _ in range(50)
                )
                os._exit(0 if good else 1)
            children.append(child)

        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]


def test_read_ahead_changes_nothing(tmp_path: Path) -> None:
    """Hints may name pages that are not there; reading goes on as before."""
    writer = VmcoreWriter().load(paddr=0x4000, data=described(4, 4))
    with opened(writer, tmp_path / "core") as image:
        for start, stop in ((0, 3), (0, 100), (5, 6), (7, 9), (50, 60)):
            image.read_ahead(start, stop)

        assert read_all(image, [5]) == {5: described(5)}


def test_closing_twice(tmp_path: Path) -> None:
    """`close` may be called again; reading afterwards is a mistake that shows."""
    image = ElfImage(
        PlainFile(str(VmcoreWriter().load(paddr=0, data=described(0)).write(tmp_path / "core")))
    )
    image.close()
    image.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        read_all(image, [0])
