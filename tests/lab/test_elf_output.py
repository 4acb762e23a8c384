"""ELF dumps of real kernels, judged by readelf, makedumpfile, crash, drgn and an ELF reader."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.lab.build import ensure_image, ensure_oracle_image
from tests.lab.catalog import IMAGES, Method
from tests.lab.commands import run
from tests.lab.elfhead import PT_LOAD, PT_NOTE, read_note, read_program_headers
from tests.lab.oracles.codecs import PAGE_SIZE
from tests.lab.oracles.compare import compare_dumps
from tests.lab.oracles.crash import crash_commands
from tests.lab.oracles.drgn_tasks import drgn_tasks
from tests.lab.oracles.elf_pages import ElfPages
from tests.lab.oracles.kdump_pages import KdumpPages
from tests.lab.oracles.makedumpfile import makedumpfile_dump
from tests.lab.ours import dump, dumpstream
from tests.lab.tools import makedumpfile, vmlinux

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lab
NATIVE = [image.name for image in IMAGES.values() if image.native and not image.bench]
ELF = [name for name in NATIVE if IMAGES[name].method is not Method.QMP_KDUMP]
FEW = ["k6.1-4l", "kexec-6.1", "k7.2-5l"]


def elf_dump(image: Path, level: int, out: Path, *options: str) -> Path:
    words = ["-d", str(level), "--format", "elf", "--progress", "none", "-f", *options]
    dumpstream("dump", *words, image, out)
    return out


def zero_pages(kdump: Path) -> set[int]:
    """Pfns of a kdump file whose pages are zero."""
    with KdumpPages(kdump) as pages:
        return {pfn for pfn, page in pages if not page.strip(b"\0")}


@pytest.mark.parametrize("name", ELF)
class TestPages:
    def test_are_those_of_the_kdump(self, name: str, tmp_path: Path) -> None:
        """At level 31: what kdump has, but for zero pages, with the image's contents."""
        image = ensure_image(name)
        dump(image, 31, "none", tmp_path / "kdump")
        elf = elf_dump(image, 31, tmp_path / "elf")

        with KdumpPages(tmp_path / "kdump") as kdump, ElfPages(elf) as pages:
            wanted = set(kdump.pfns.tolist()) - zero_pages(tmp_path / "kdump")
            assert set(np.unique(pages.pfns).tolist()) == wanted
            assert [
                pfn for pfn in sorted(wanted) if pages.read_page(pfn) != kdump.read_page(pfn)
            ] == []
        assert "0 problems" in dumpstream("verify", elf, "--against", image)

    @pytest.mark.parametrize("level", [1, 31])
    def test_makedumpfile_makes_the_same_kdump_of_it(
        self, name: str, level: int, tmp_path: Path
    ) -> None:
        """makedumpfile reads it with all its shortcuts, and finds every page, and no other."""
        image = ensure_image(name)
        dump(image, level, "none", tmp_path / "ours")
        elf = elf_dump(image, level, tmp_path / "elf")

        makedumpfile_dump(elf, 1, "none", tmp_path / "theirs")

        found = compare_dumps(tmp_path / "ours", tmp_path / "theirs")
        assert (len(found.only_b), len(found.content), len(found.exists_only_b)) == (0, 0, 0)
        assert set(found.only_a.tolist()) == zero_pages(tmp_path / "ours")
        # makedumpfile loses the last page of a load that ends in mid-page.
        assert len(found.exists_only_a) <= 1

    def test_level_0_is_the_image(self, name: str, tmp_path: Path) -> None:
        """Nothing but hwpoison and offline pages left out: every page of RAM, zeros too."""
        image = ensure_image(name)
        elf = elf_dump(image, 0, tmp_path / "elf")

        makedumpfile_dump(elf, 1, "none", tmp_path / "theirs")

        dump(image, 0, "none", tmp_path / "ours")
        found = compare_dumps(tmp_path / "ours", tmp_path / "theirs")
        assert (len(found.only_b), len(found.content)) == (0, 0)
        # makedumpfile loses the last page of a load that ends in mid-page.
        assert found.only_a.tolist() == found.exists_only_a.tolist()
        assert len(found.only_a) <= 1


@pytest.mark.parametrize("maker", ["ours", "ours, flattened", "makedumpfile"])
@pytest.mark.parametrize("name", ["k5.10-4l", "k7.2-5l"])
def test_refiltering_equals_filtering_the_image(name: str, maker: str, tmp_path: Path) -> None:
    """Level 1 as ELF and then 31 has the pages of 31 at once; zero pages went the first time.

    Huge pages of the images start with a page of zeros, which the ELF dump lacks.
    """
    image, first = ensure_image(name), tmp_path / "first"
    if maker == "makedumpfile":
        oracle = ensure_oracle_image(name)
        run([*makedumpfile(), "-E", "-d", "1", oracle, first], timeout_s=300)
    else:
        elf_dump(image, 1, first, *(["--flatten"] if "flattened" in maker else []))
    dump(first, 31, "lzo", tmp_path / "second")
    dump(image, 31, "lzo", tmp_path / "direct")

    found = compare_dumps(tmp_path / "second", tmp_path / "direct")

    assert (len(found.only_a), len(found.content)) == (0, 0)
    assert set(found.only_b.tolist()) <= zero_pages(tmp_path / "direct")


@pytest.mark.parametrize("name", NATIVE)
def test_crash_and_drgn_say_what_they_say_of_the_kdump(name: str, tmp_path: Path) -> None:
    """Two programs that follow the kernel's own structures notice no difference."""
    image = ensure_image(name)
    symbols = vmlinux(IMAGES[name].kernel)
    dump(image, 31, "none", tmp_path / "kdump")
    elf = elf_dump(image, 31, tmp_path / "elf")

    tasks = drgn_tasks(elf, symbols)
    assert len(tasks) > 40
    assert tasks == drgn_tasks(tmp_path / "kdump", symbols)
    assert crash_commands(symbols, elf) == crash_commands(symbols, tmp_path / "kdump")


@pytest.mark.parametrize("name", FEW)
class TestForm:
    def test_readelf_has_no_complaint(self, name: str, tmp_path: Path) -> None:
        """Header, program headers and notes are in order for binutils."""
        elf = elf_dump(ensure_image(name), 31, tmp_path / "elf")

        said = run(["sh", "-c", 'readelf -hlnW "$1" 2>&1', "sh", elf])

        assert "CORE (Core file)" in said
        assert "VMCOREINFO" in said
        assert "Warning" not in said
        assert "Error" not in said

    def test_segments_cover_what_the_images_loads_cover(self, name: str, tmp_path: Path) -> None:
        """The same memory, in pieces that touch; notes verbatim; no page aligned in the file."""
        image = ensure_image(name)
        elf = elf_dump(image, 31, tmp_path / "elf")

        headers = read_program_headers(elf)
        assert [header.p_type for header in headers].count(PT_NOTE) == 1
        assert read_note(elf) == read_note(image)
        covered = [h for h in read_program_headers(image) if h.p_type == PT_LOAD]
        segments = [h for h in headers if h.p_type == PT_LOAD]
        assert sum(h.p_memsz for h in segments) == sum(h.p_memsz for h in covered)
        for load in covered:
            mine = [
                h for h in segments if h.p_vaddr - h.p_paddr == load.p_vaddr - load.p_paddr
                and load.p_paddr <= h.p_paddr < load.p_paddr + load.p_memsz
            ]  # fmt: skip
            assert sum(h.p_memsz for h in mine) == load.p_memsz
        assert all(h.p_filesz == 0 or h.p_offset % PAGE_SIZE for h in segments)

    def test_few_enough_segments_at_level_1(self, name: str, tmp_path: Path) -> None:
        """Zero pages are everywhere; what is made of it can still be counted in 16 bits."""
        elf = elf_dump(ensure_image(name), 1, tmp_path / "elf")

        assert 1000 < len(read_program_headers(elf)) < 0xFFFF

    def test_flattened(self, name: str, tmp_path: Path) -> None:
        """makedumpfile -R puts the stream together into the very file."""
        image = ensure_image(name)
        elf = elf_dump(image, 31, tmp_path / "elf")
        flat = elf_dump(image, 31, tmp_path / "flat", "--flatten")

        with flat.open("rb") as stream:
            words = [*makedumpfile(), "-R", str(tmp_path / "again")]
            run(["sh", "-c", 'exec "$@" < "$0"', stream.name, *words])

        ours, theirs = elf.read_bytes(), (tmp_path / "again").read_bytes()
        # A stream has its head once, with room for all segments there might have been.
        assert ours[64:] == theirs[64:]
        assert ours[:56] == theirs[:56]
        makedumpfile_dump(tmp_path / "again", 1, "none", tmp_path / "kdump")


def test_kdump_of_qemu_becomes_elf(tmp_path: Path) -> None:
    """QEMU's kdump file, which drgn does not open, as an ELF dump that it does."""
    image = ensure_image("qemu-kdump")
    elf = elf_dump(image, 31, tmp_path / "elf")

    assert len(drgn_tasks(elf, vmlinux("6.1"))) > 40
    assert "0 problems" in dumpstream("verify", elf, "--against", image)


def test_readelf_is_there() -> None:
    """binutils is a judge here: without it the tests above would say nothing."""
    assert shutil.which("readelf") is not None
