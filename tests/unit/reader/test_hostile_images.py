"""Images that lie: each lie is one error line or missing pages, quickly and in little memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DumpError, FormatError, TruncatedError, UnsupportedError
from stages.reader import pieces
from stages.reader.probe import open_image
from tests.support.images import read_all
from tests.support.kdump_writer import KdumpWriter, flatten
from tests.support.vmcore_writer import PAGE, VmcoreWriter, described, prstatus

MAX_PEAK_BYTES = 32 << 20
MAX_SECONDS = 20
HOSTILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@contextmanager
def bounded() -> Iterator[None]:
    """Fail when what happens inside takes much time or memory."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - started < MAX_SECONDS
    assert peak < MAX_PEAK_BYTES


def read_some(path: Path) -> dict[int, bytes | None]:
    """Pages of the image: the first and the last thousand of what it says it has."""
    image = open_image(str(path))
    try:
        saved = image.saved
        low, high = saved.clip(0, 1000), saved.clip(max(image.max_mapnr - 1000, 0), image.max_mapnr)
        pfns = {pfn for part in (low, high) for extent in part for pfn in range(*extent)}
        image.holes(0, image.max_mapnr)
        image.read_ahead(0, image.max_mapnr)
        return read_all(image, pfns)
    finally:
        image.close()


def pages_or_error(path: Path) -> dict[int, bytes | None] | str:
    """`read_some`, or the one error that may come of it."""
    try:
        return read_some(path)
    except DumpError as error:
        return str(error)


def elf_writer(**kwargs: Any) -> VmcoreWriter:  # fields by name
    return VmcoreWriter(**kwargs).note("CORE", 1, prstatus()).load(paddr=0, data=described(0, 4))


@pytest.mark.parametrize(
    ("writer", "error", "field"),
    [
        (elf_writer(lies={"e_phoff": 2**63}), TruncatedError, "program headers"),
        (elf_writer(lies={"e_phoff": 2**64 - 1}), TruncatedError, "program headers"),
        (elf_writer(lies={"e_phoff": 8}), FormatError, "e_phoff"),
        (elf_writer(lies={"e_phentsize": 8}), FormatError, "e_phentsize"),
        (elf_writer(lies={"e_phentsize": 65535}), TruncatedError, "program headers"),
        (elf_writer(lies={"e_phentsize": 65535, "e_phnum": 65534}), FormatError, "e_phentsize"),
        (elf_writer(lies={"e_phnum": 65534}), TruncatedError, "program headers"),
        (elf_writer(lies={"e_phnum": 65535}), FormatError, "e_shoff"),
        (elf_writer(extended=True, lies={"sh_info": 2**32 - 1}), FormatError, "program headers"),
        (elf_writer(extended=True, lies={"sh_info": 2**18}), TruncatedError, "program headers"),
        (elf_writer(extended=True, lies={"e_shoff": 2**63}), TruncatedError, "section header 0"),
        (elf_writer().load(paddr=0, mem_size=2**63), FormatError, "p_memsz"),
        (elf_writer().load(paddr=2**63, mem_size=2**63), FormatError, "p_memsz"),
        (elf_writer().load(paddr=2**62, mem_size=PAGE), FormatError, "p_memsz"),
        (elf_writer().load(paddr=2**20, mem_size=2**47), FormatError, "PT_LOADs"),
        (
            elf_writer().load(paddr=2**20, mem_size=PAGE, file_size=PAGE, file_off=2**63),
            FormatError,
            "p_offset",
        ),
        (elf_writer(e_type=1), UnsupportedError, "not a memory image"),
        (VmcoreWriter().note("CORE", 1, b"x"), UnsupportedError, "without physical memory"),
        (VmcoreWriter().load(paddr=0, mem_size=0), UnsupportedError, "without physical memory"),
    ],
)
def test_elf_lies(writer: VmcoreWriter, error: type[DumpError], field: str, tmp_path: Path) -> None:
    """Counts and sizes that can't be are refused before anything is done by them."""
    path = writer.write(tmp_path / "core")

    with bounded(), pytest.raises(error, match=field):
        read_some(path)


@pytest.mark.parametrize(
    ("changes", "field", "field_off"),
    [
        ({"mem_size": 2**60}, "p_memsz", 40),
        ({"mem_size": 64, "file_size": 64, "file_off": 2**62}, "p_offset", 8),
    ],
)
def test_elf_lie_is_pointed_at(
    changes: dict[str, Any], field: str, field_off: int, tmp_path: Path
) -> None:
    """The error gives the byte of the file where the bad field stands."""
    path = elf_writer().load(paddr=0x10000, **changes).write(tmp_path / "core")

    with pytest.raises(FormatError) as caught:
        open_image(str(path))

    assert (caught.value.field, caught.value.file_off) == (field, 64 + 2 * 56 + field_off)


def test_elf_lies_that_cost_pages_only(tmp_path: Path) -> None:
    """A p_filesz larger than p_memsz, or than the file, changes nothing for the honest pages."""
    writer = elf_writer().load(paddr=0x10000, data=described(16), file_size=2**63)
    writer.load(paddr=0x20000, mem_size=4 * PAGE, file_size=4 * PAGE, file_off=2**50)
    path = writer.write(tmp_path / "core")

    with bounded():
        found = read_some(path)

    assert found == {
        **{pfn: described(pfn) for pfn in (0, 1, 2, 3, 16)},
        **dict.fromkeys(range(32, 36)),
    }


def test_elf_with_much_memory_and_no_data(tmp_path: Path) -> None:
    """64 TiB that a header claims cost an entry, not a bitmap."""
    path = elf_writer().load(paddr=2**32, mem_size=2**46).write(tmp_path / "core")

    with bounded():
        image = open_image(str(path))
        assert image.ram.n_pages == 4 + 2**34
        assert image.saved_bitmap().count() == 4
        image.close()


def test_notes_larger_than_the_file(tmp_path: Path) -> None:
    """A PT_NOTE cut short is said to be, and the pages stay readable."""
    blob = bytearray(elf_writer().pack())
    blob[64 + 32 : 64 + 40] = (2**62).to_bytes(8, "little")  # p_filesz of the first header
    (tmp_path / "core").write_bytes(blob)

    with bounded():
        image = open_image(str(tmp_path / "core"))
        assert "bytes of notes are there" in (image.info.incomplete or "")
        assert read_all(image, [2]) == {2: described(2)}
        image.close()


def kdump_writer(**lies: int) -> KdumpWriter:
    writer = KdumpWriter(max_mapnr=64, notes=b"n" * 100, eraseinfo=b"erase", lies=lies)
    return writer.page(3, described(3), codec="zlib").page(4, described(4))


@pytest.mark.parametrize(
    ("lies", "field"),
    [
        ({"block_size": 0}, "main header"),
        ({"block_size": 2**31 - 1}, "main header"),
        ({"bitmap_blocks": 0}, "main header"),
        ({"bitmap_blocks": 2**32 - 1}, "bitmaps"),
        ({"sub_hdr_size": 2**31 - 1}, "sub_hdr_size"),
        ({"sub_hdr_size": -(2**31)}, "sub_hdr_size"),
        ({"max_mapnr_64": 2**64 - 1}, "max_mapnr"),
        ({"max_mapnr_64": 2**36}, "bitmap_blocks"),
        ({"max_mapnr_64": 0, "max_mapnr": 0}, "max_mapnr"),
        ({"max_mapnr_64": 2**36, "bitmap_blocks": 2**23}, "bitmaps"),
        ({"split": 1, "start_pfn_64": 5, "end_pfn_64": 2}, "start_pfn"),
        ({"split": 1, "end_pfn_64": 2**64 - 1}, "start_pfn"),
    ],
)
def test_kdump_lies(lies: dict[str, int], field: str, tmp_path: Path) -> None:
    """Header fields that can't be are refused by name."""
    path = kdump_writer(**lies).write(tmp_path / "dump")

    with bounded(), pytest.raises(FormatError, match=field):
        read_some(path)


@pytest.mark.parametrize(
    "lies",
    [
        {"offset_note": -1},
        {"offset_note": 2**62},
        {"size_note": 2**64 - 1},
        {"size_note": 2**30},
        {"offset_vmcoreinfo": 2**62, "size_vmcoreinfo": 100},
        {"size_vmcoreinfo": 2**64 - 1, "offset_vmcoreinfo": 5000},
        {"offset_eraseinfo": 2**62},
        {"size_eraseinfo": 2**64 - 1},
        {"nr_cpus": -5},
        {"dump_level": -1},
        {"tv_sec": -(2**63)},
    ],
    ids=",".join,
)
def test_kdump_lies_about_side_matters(lies: dict[str, int], tmp_path: Path) -> None:
    """Notes and texts that are not where the header says cost nothing but themselves."""
    path = kdump_writer(**lies).write(tmp_path / "dump")

    with bounded():
        assert read_some(path) == {3: described(3), 4: described(4)}


def test_kdump_with_a_huge_hole_for_bitmaps(tmp_path: Path) -> None:
    """A sparse file with bitmaps of 512 MiB: walked block by block, nothing kept."""
    writer = kdump_writer(max_mapnr_64=2**32, bitmap_blocks=2 * 2**17)
    path = writer.write(tmp_path / "dump")
    with path.open("r+b") as file:
        file.truncate(2 << 30)

    with bounded():
        image = open_image(str(path))
        assert image.max_mapnr == 2**32
        image.close()


def sample(kind: str) -> bytes:
    elf = elf_writer().load(paddr=0x8000, data=b"x" * 6000, mem_size=9000).pack()
    dump = kdump_writer().pack()
    return {
        "elf": elf,
        "kdump": dump,
        "flattened kdump": flatten(dump, record_bytes=3000),
        "flattened elf": flatten(elf, record_bytes=3000),
    }[kind]


KINDS = ["elf", "kdump", "flattened kdump", "flattened elf"]


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(kind: str, tmp_path: Path) -> None:
    """Cut at any byte: a clear error, or an image in which every page is right or missing."""
    whole = sample(kind)
    path = tmp_path / "image"
    path.write_bytes(whole)
    truth = read_some(path)
    structures = range(700) if kind == "elf" else range(5400)
    cuts = {*structures[::3], *range(0, len(whole), 211), len(whole) - 17, len(whole) - 1}
    n_opened = 0
    for cut in sorted(cuts - {0}):
        path.write_bytes(whole[:cut])
        found = pages_or_error(path)
        if isinstance(found, str):
            assert len(found.splitlines()) == 1
            continue
        n_opened += 1
        for pfn, page in found.items():
            assert page in (None, truth[pfn]), f"cut at {cut}: pfn {pfn}"
    assert n_opened


@pytest.mark.parametrize("kind", KINDS)
@HOSTILE
@given(data=st.data())
def test_damaged_anywhere(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    """Any few words of the file replaced: an error line or pages, never anything else."""
    blob = bytearray(sample(kind))
    n_heads = 700 if kind == "elf" else min(len(blob), 14_000)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, n_heads - 8))
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        word = data.draw(
            st.one_of(
                st.sampled_from([0, 1, 0x7F, 0xFF, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]),
                st.integers(0, 2**64 - 1),
            )
        )
        blob[at : at + size] = (word % 2 ** (8 * size)).to_bytes(size, "little")
    path = tmp_path / "image"
    path.write_bytes(blob)

    found = pages_or_error(path)

    assert isinstance(found, dict) or len(found.splitlines()) == 1


@HOSTILE
@given(
    tail=st.binary(min_size=1, max_size=200),
    magic=st.sampled_from([b"", b"\x7fELF", b"KDUMP   ", b"makedumpfile\0\0\0\0"]),
)
def test_garbage(tail: bytes, magic: bytes, tmp_path: Path) -> None:
    """Short garbage behind a right magic is refused in one line."""
    path = tmp_path / "image"
    path.write_bytes(magic + tail)

    with pytest.raises(DumpError):
        open_image(str(path))


def test_flattened_records_without_end(tmp_path: Path) -> None:
    """One-byte records by the ten thousand are indexed in bounded memory."""
    stream = bytearray(flatten(b"")[:4096])
    record = np.zeros(40_000, dtype=[("off", ">i8"), ("size", ">i8"), ("data", "u1")])
    record["off"] = np.arange(len(record)) * 2
    record["size"] = 1
    (tmp_path / "image").write_bytes(stream + record.tobytes())

    with bounded(), pytest.raises(DumpError, match="not a memory image"):
        open_image(str(tmp_path / "image"))


def test_flattened_records_on_top_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that overlap are looked at one by one, so there may not be millions of them."""
    monkeypatch.setattr(pieces, "MAX_OVERLAPPING", 1000)
    path = tmp_path / "image"
    dump = kdump_writer().pack()
    path.write_bytes(flatten(dump, extra=[(at, b"xy") for at in range(2**20, 2**20 + 900)]))
    assert read_some(path) == {3: described(3), 4: described(4)}

    path.write_bytes(flatten(dump, extra=[(at, b"xy") for at in range(2**20, 2**20 + 1001)]))
    with pytest.raises(FormatError, match="overlapping ranges is 0x3e9, wanted 1000 at most"):
        open_image(str(path))


@pytest.mark.parametrize("offset", [2**62, 2**63 - 1])
def test_flattened_record_at_an_absurd_offset(offset: int, tmp_path: Path) -> None:
    """A record that would make the dump larger than any file is refused."""
    path = tmp_path / "image"
    path.write_bytes(flatten(kdump_writer().pack(), extra=[(offset, b"x")]))

    with bounded(), pytest.raises(FormatError, match="offset"):
        open_image(str(path))


def test_flattened_record_far_away(tmp_path: Path) -> None:
    """One that merely makes it very large costs nothing."""
    path = tmp_path / "image"
    path.write_bytes(flatten(kdump_writer().pack(), extra=[(2**60, b"x")]))

    with bounded():
        assert read_some(path) == {3: described(3), 4: described(4)}
