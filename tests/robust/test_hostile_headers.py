"""Headers that lie: counts, offsets and sizes that would cost hours, or all memory, if believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.reader.probe import open_image
from tests.robust.guard import bounded
from tests.robust.running import QUICK, call, left_in, run
from tests.support.kdump_writer import KdumpWriter
from tests.support.vmcore_writer import NO_ADDRESS, VmcoreWriter, described


def small_core(**lies: int) -> VmcoreWriter:
    writer = VmcoreWriter(lies=lies)
    return writer.load(paddr=0x100000, data=described(0x100, 16))


ELF_LIES: list[tuple[dict[str, int], str]] = [
    ({"e_phnum": 0}, "without physical memory"),
    ({"e_phnum": 0xFFFE}, "program headers"),
    ({"e_phnum": 0xFFFF}, "e_shoff"),
    ({"e_phnum": 0xFFFF, "e_shoff": 1 << 40}, "section header 0"),
    ({"e_phentsize": 0}, "e_phentsize"),
    ({"e_phentsize": 55}, "e_phentsize"),
    ({"e_phentsize": 0xFFFF, "e_phnum": 2}, "program headers"),
    ({"e_phoff": 0}, "e_phoff"),
    ({"e_phoff": 1}, "e_phoff"),
    ({"e_phoff": (1 << 64) - 1}, "program headers"),
    ({"e_phoff": 1 << 62}, "program headers"),
    ({"e_type": 2}, "type 2, wanted 4 (core)"),
]


@pytest.mark.parametrize(("lies", "said"), ELF_LIES)
def test_elf_header(lies: dict[str, int], said: str, tmp_path: Path, target: Path) -> None:
    """A field of the ELF header that can't be is named, with what was seen."""
    source = small_core(**lies).write(tmp_path / "source")

    with bounded():
        done = call("dump", *QUICK, "-d", "0", source, target)

    done.failed(1, said, str(source))
    assert left_in(target.parent) == []


def test_absurd_number_of_headers(tmp_path: Path, target: Path) -> None:
    """PN_XNUM with a count in the billions is refused before anything is read by it."""
    writer = VmcoreWriter(extended=True, lies={"sh_info": 0xFFFF_FFFF})
    source = writer.load(paddr=0, data=bytes(4096)).write(tmp_path / "source")

    run("dump", "-d", "0", source, target).failed(1, "number of program headers", "0xffffffff")


LOADS: list[tuple[dict[str, Any], str]] = [
    ({"paddr": 0, "mem_size": (1 << 64) - 1}, "p_memsz"),
    ({"paddr": (1 << 64) - 4096, "mem_size": 8192}, "p_memsz"),
    ({"paddr": 1 << 60, "mem_size": 4096}, "p_memsz"),
    ({"paddr": 0, "mem_size": 1 << 48}, "PT_LOADs"),
    ({"paddr": 0, "mem_size": 8192, "file_size": 8192, "file_off": 1 << 63}, "p_offset"),
    ({"paddr": 0, "mem_size": 8192, "file_size": 8192, "file_off": (1 << 62) - 1}, "p_offset"),
]


@pytest.mark.parametrize(("load", "said"), LOADS)
def test_load(load: dict[str, Any], said: str, tmp_path: Path, target: Path) -> None:
    """Memory where there can't be any, or bytes where no file has them."""
    source = small_core().load(**load).write(tmp_path / "source")

    with bounded():
        call("dump", *QUICK, "-d", "0", source, target).failed(1, said, str(source))

    assert left_in(target.parent) == []


HARMLESS: list[dict[str, Any]] = [
    {"paddr": None, "mem_size": 1 << 63},
    {"paddr": 0, "mem_size": 0, "file_size": 1 << 63},
    {"paddr": 0x200000, "mem_size": 4096, "file_size": 0, "file_off": NO_ADDRESS},
    {"paddr": 0x100001, "mem_size": 1, "file_size": 1, "file_off": 0},
]


@pytest.mark.parametrize("load", HARMLESS)
def test_load_that_says_nothing(load: dict[str, Any], tmp_path: Path, target: Path) -> None:
    """Odd loads beside a good one do not keep its pages from being dumped."""
    source = small_core().load(**load).write(tmp_path / "source")

    call("dump", *QUICK, "-d", "0", source, target).succeeded()

    assert "ok: 16 of 16 pages good" in call("verify", target, "--against", source).out


def test_terabytes_that_are_not_there(tmp_path: Path, target: Path) -> None:
    """A filtered image of 1 TiB is dumped for what it has, in little time and memory."""
    writer = small_core().load(paddr=1 << 33, data=b"x" * 4096, mem_size=1 << 40)
    source = writer.write(tmp_path / "source")

    with bounded(most_s=60):
        call("dump", *QUICK, "-d", "1", source, target).succeeded()

    assert call("verify", target, "--against", source).code == 0


def test_many_overlapping_loads(tmp_path: Path, target: Path) -> None:
    """Thousands of loads over the same memory take time by their number, not by its square."""
    writer = small_core()
    for number in range(5000):
        writer.load(paddr=0x100000, mem_size=4096 * 16 + number, file_size=4096, file_off=4096)
    source = writer.write(tmp_path / "source")

    with bounded():
        call("dump", *QUICK, "-d", "0", source, target).succeeded()


NOTES = [
    b"\xff" * 12,
    b"\x04\0\0\0\xff\xff\xff\x7f\x01\0\0\0CORE",
    bytes(5000),
    b"\x05\0\0\0\0\0\0\0\x01\0\0\0CORE\0\0\0\0" * 5000,
    b"\xff\xff\xff\xff\0\0\0\0\0\0\0\0",
]


@pytest.mark.parametrize("blob", NOTES)
def test_notes(blob: bytes, tmp_path: Path, target: Path) -> None:
    """Notes that make no sense end the list of notes, not the dump; they are carried along."""
    source = small_core().raw_notes(blob).write(tmp_path / "source")

    call("dump", *QUICK, "-d", "0", source, target).succeeded()

    assert call("verify", target, "--against", source).code == 0


KDUMP_LIES: list[tuple[dict[str, int], str]] = [
    ({"header_version": 0}, "version"),
    ({"header_version": 7}, "version"),
    ({"header_version": -1}, "version"),
    ({"block_size": 0}, "main header"),
    ({"block_size": 12345}, "main header"),
    ({"block_size": 1 << 30}, "main header"),
    ({"sub_hdr_size": 0}, "sub_hdr_size"),
    ({"sub_hdr_size": -1}, "sub_hdr_size"),
    ({"sub_hdr_size": 1 << 30}, "sub_hdr_size"),
    ({"bitmap_blocks": 0}, "main header"),
    ({"bitmap_blocks": (1 << 32) - 1}, "bitmaps"),
    ({"max_mapnr_64": (1 << 64) - 1}, "max_mapnr"),
    ({"max_mapnr_64": 1 << 40}, "max_mapnr"),
    ({"max_mapnr_64": 1 << 33}, "bitmap_blocks"),
    ({"split": 1, "start_pfn_64": 10, "end_pfn_64": 5}, "start_pfn"),
    ({"split": 1, "end_pfn_64": 1 << 50}, "start_pfn"),
]


@pytest.mark.parametrize(("lies", "said"), KDUMP_LIES)
def test_kdump_header(lies: dict[str, int], said: str, tmp_path: Path, target: Path) -> None:
    """A field of a kdump header that can't be is named, with what was seen."""
    writer = KdumpWriter(max_mapnr=100, lies=lies).page(3, described(3))
    source = writer.write(tmp_path / "source")

    with bounded():
        call("dump", *QUICK, "-d", "0", source, target).failed(1, said, str(source))

    assert left_in(target.parent) == []


HARMLESS_KDUMP = [
    {"size_note": 1 << 62, "offset_note": 4096},
    {"size_vmcoreinfo": 1 << 62, "offset_vmcoreinfo": 1},
    {"size_eraseinfo": (1 << 64) - 1, "offset_eraseinfo": 1 << 61},
    {"nr_cpus": -5},
    {"dump_level": 0},
    {"tv_sec": -1},
]


@pytest.mark.parametrize("lies", HARMLESS_KDUMP)
def test_kdump_header_beside_the_pages(lies: dict[str, int], tmp_path: Path, target: Path) -> None:
    """Lies about notes and the like do not keep the pages from being dumped."""
    writer = KdumpWriter(max_mapnr=100, lies=lies).page(3, described(3))
    source = writer.write(tmp_path / "source")

    call("dump", *QUICK, "-d", "0", source, target).succeeded()

    assert "1 of 1 page good" in call("verify", target, "--against", source).out


def test_dump_level_of_the_source(tmp_path: Path, target: Path) -> None:
    """A level that no dump has is told of, not carried along."""
    writer = KdumpWriter(max_mapnr=100, lies={"dump_level": -7}).page(3, described(3))
    source = writer.write(tmp_path / "source")

    done = call("dump", *QUICK, "-d", "1", source, target).succeeded()

    assert done.event("source_incomplete")["text"] == "dump_level -7 makes no sense"
    assert open_image(str(target)).info.dump_level == 1


DESCRIPTORS: list[dict[str, Any]] = [
    {"offset": (1 << 63) - 1},
    {"offset": -1},
    {"offset": 1},
    {"size": 0},
    {"size": 4097},
    {"size": (1 << 32) - 1},
    {"flags": 3},
    {"flags": 1 << 31},
    {"flags": 1},
    {"flags": 2},
    {"flags": 4},
    {"flags": 0x20},
]


@pytest.mark.parametrize("lie", DESCRIPTORS)
def test_descriptor(lie: dict[str, Any], tmp_path: Path, target: Path) -> None:
    """A page whose descriptor is corrupt is lost, and the dump goes on with the others."""
    writer = KdumpWriter(max_mapnr=100).page(3, described(3), **lie).page(4, described(4))
    source = writer.write(tmp_path / "source")

    done = call("dump", *QUICK, "-d", "0", "--on-read-error", "skip", source, target)

    if lie == {"offset": 1}:  # a place inside the headers: who could tell?
        done.succeeded()
        return
    done.failed(3, "1 page of")
    assert done.event("pages_unreadable")["first_pfn"] == "0x3"
    assert "1 of 1 page good" in call("verify", target, "--against", source).out
